"""A websocket's frames, told apart before anybody understands them. Pure.

What a node says is nearly always a message in one binary frame, and there is one for each token. Such plain frames are
taken here, at a sixth of what the whole protocol costs; all others are left to who knows it, in their place.

Source: RFC 6455, section 5.2.
"""

import attrs

_PLAIN = 0x82
"""The first byte of a binary message in one frame."""
_FINAL = _MASKED = 0x80
_CONTROL = 0x08
_TWO_BYTES, _EIGHT_BYTES = 126, 127
"""In the second byte: the length follows."""


@attrs.define
class Frames:
    """What a client has read and not taken yet."""

    most_bytes: int
    """A larger message is not plain."""
    _data: bytes = b""
    _at: int = 0
    """Where in `_data` a frame begins, or goes on that is not plain."""
    _owed: int = 0
    """Bytes of that one that were not taken yet."""
    _in_message: bool = False
    """In the middle of a message in several frames, in which no other may begin."""

    def feed(self, data: bytes) -> None:
        """Add what was read."""
        self._data = self._data[self._at :] + data
        self._at = 0

    def plain(self, most: int) -> list[bytes]:
        """The messages in plain frames that come next and are there, at most so many."""
        messages: list[bytes] = []
        if self._owed or self._in_message:
            return messages
        data, at = self._data, self._at
        while len(messages) < most and len(data) - at >= 2 and data[at] == _PLAIN:
            size, begin = data[at + 1], at + 2
            if size == _TWO_BYTES and len(data) - begin >= 2:
                size, begin = data[begin] << 8 | data[begin + 1], begin + 2
                if size < _TWO_BYTES:
                    break  # One byte can say so much, and therefore has to.
            elif size >= _TWO_BYTES:
                break
            end = begin + size
            if end > len(data) or size > self.most_bytes:
                break
            messages.append(data[begin:end])
            at = end
        self._at = at
        return messages

    def other(self) -> bytes:
        """What is there of a frame that comes next and is not plain; b"" if there is none, or no telling yet."""
        if not self._owed:
            self._owed = self._size_of_other()
        part = self._data[self._at : self._at + self._owed]
        self._at += len(part)
        self._owed -= len(part)
        return part

    def _size_of_other(self) -> int:
        head = self._data[self._at : self._at + 10]
        if len(head) < 2:
            return 0
        length = head[1] & ~_MASKED
        begin = 2 + {_TWO_BYTES: 2, _EIGHT_BYTES: 8}.get(length, 0)
        if len(head) < begin:
            return 0
        size = int.from_bytes(head[2:begin], "big") if begin > 2 else length
        shortest = begin == 2 or (begin == 4 and size >= _TWO_BYTES)
        first_bytes_plain = head[0] == _PLAIN and not head[1] & _MASKED and not self._in_message
        if first_bytes_plain and shortest and size <= self.most_bytes:
            return 0
        if not head[0] & _CONTROL:
            self._in_message = not head[0] & _FINAL
        return begin + (4 if head[1] & _MASKED else 0) + size
