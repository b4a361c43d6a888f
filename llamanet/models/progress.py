"""Telling how far something long is: pulling, hashing, loading. One kind of callback for all of it."""

import logging
import time
from collections.abc import Callable
from typing import TypeAlias

log = logging.getLogger(__name__)

Report: TypeAlias = Callable[[str, int, int], None]
"""Called with what is being done ("Hashing x"), how much of it is done, and how much there is; from any thread.

The last call for each thing has `done` equal to the whole.
"""
QUIET_S = 1.0
"""What takes less is not worth telling."""
EVERY_S = 10.0
"""Between two lines of a log."""


def silent(what: str, done: int, whole: int) -> None:
    """Tell nobody."""


class LogReport:
    """A `Report` that writes a line to the log after the first second, and then now and then."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` is in seconds."""
        self._clock = clock
        self._next: dict[str, float] = {}

    def __call__(self, what: str, done: int, whole: int) -> None:
        """Note progress; perhaps tell it."""
        now = self._clock()
        due = self._next.setdefault(what, now + QUIET_S)
        if done >= whole:
            del self._next[what]
        elif now >= due:
            log.info("%s: %d %%", what, 100 * done // whole)
            self._next[what] = now + EVERY_S


def size_text(size: float) -> str:
    """A number of bytes for people: "4.1 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
