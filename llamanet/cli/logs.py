"""What a command says about itself: log lines on standard error, for people (text) or for machines (JSON)."""

import json
import logging
import sys
from datetime import datetime, timezone

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time` (ISO 8601, UTC), `level`, `logger`, `message`; `error` after an exception.

    A record's `fields`, if it has any (`gateway/access_log.py`), stand beside them.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON."""
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry.update(getattr(record, "fields", {}))
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def set_up_logging(level: str, style: str) -> None:
    """Send LlamaNet's log lines of `level` and above to standard error. Called once, by a command."""
    handler = logging.StreamHandler(sys.stderr)
    if style == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S"))
    # Other libraries' chatter (trio-websocket logs each frame) is of use only to those who ask for everything.
    logging.basicConfig(level=logging.DEBUG if level == "debug" else logging.WARNING, handlers=[handler])
    logging.getLogger("llamanet").setLevel(level.upper())
    # HTTP/2's library logs each header, and with it the API key; that is nobody's to know.
    logging.getLogger("hpack").setLevel(logging.INFO)
