"""Text from strangers on a terminal: it must not move the cursor, set the title, or type for the user."""

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def harmless(text: str) -> str:
    """`text` without control characters but newlines and tabs, so without escape sequences."""
    return _CONTROL.sub("", text)
