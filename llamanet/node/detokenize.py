"""From token pieces to text that can be shown: whole characters, and never a part of a stop string.

Rules:
- The text is a function of the pieces alone, so that a node which resumes a stream and replays the ids that another
  node delivered arrives at the same place.
- Bytes that do not yet make a character are held; so is text that may be the beginning of a stop string.
- A stop string itself, and what follows it, is never given out.
"""

import codecs
from collections.abc import Sequence


class TextStream:
    """The text of one generation, fed piece by piece."""

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self.stopped = False
        self._stops = tuple(stops)
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def feed(self, piece: bytes) -> str:
        """The text that `piece` makes certain. `stopped` is True from the piece that completes a stop string on."""
        return self._match(self._characters.decode(piece))

    def flush(self) -> str:
        """The text still held, at the end of a generation; an unfinished character becomes U+FFFD."""
        text = self._match(self._characters.decode(b"", final=True)) + self._held
        self._held = ""
        return text

    def _match(self, new: str) -> str:
        if self.stopped:
            return ""
        if not self._stops:
            return new
        text = self._held + new
        found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        held = max(_overlap(text, stop) for stop in self._stops)
        certain = len(text) - held
        self._held = text[certain:]
        return text[:certain]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest beginning of `stop` that `text` ends with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
