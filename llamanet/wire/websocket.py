"""Websockets (RFC 6455) without I/O: the opening handshake, and messages in frames.

Rules:
- The handshake is wsproto's. Frames are read and made here, many at a time: a token is a frame, and what a frame costs,
  a token costs.
- `WebSocket.receive` raises nothing: it gives the messages that came before a violation or the end, and `closed` says
  why no more will come. What the protocol itself has to say (a pong, a close) waits in `to_send`, at most one of each.
- No extensions, and no compression: tokens are too short for it.
"""

import os
from collections.abc import Sequence

import attrs
import wsproto.utilities
from wsproto.connection import ConnectionType
from wsproto.events import AcceptConnection, RejectConnection, RejectData, Request
from wsproto.handshake import H11Handshake

from llamanet.errors import LlamaNetError

MAX_HEAD_BYTES = 16_384
"""Of the HTTP request or response that opens a websocket."""
NORMAL, GOING_AWAY, VIOLATION, UNSUPPORTED, NO_CODE, BAD_DATA, POLICY, TOO_BIG = (
    *(1000, 1001, 1002, 1003, 1005, 1007, 1008, 1009),
)
"""Close codes of RFC 6455, section 7.4.1."""

_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_FINAL, _MASKED, _CONTROL = 0x80, 0x80, 0x8
_MAX_CONTROL_BYTES = 125
_END_OF_HEAD = b"\r\n\r\n"


@attrs.frozen
class Close:
    """Why a websocket is closed: a code of RFC 6455 and a few words."""

    code: int
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.code} {self.reason}" if self.reason else str(self.code)


@attrs.define
class HandshakeRefused(LlamaNetError):
    """What should open a websocket does not. A server sends `answer`, if there is one, before it closes."""

    reason: str
    answer: bytes = b""

    def __str__(self) -> str:
        return self.reason


class WebSocket:
    """An open websocket, one side of it."""

    def __init__(self, *, client: bool, max_message_bytes: int) -> None:
        """A client masks what it sends; a server does not (section 5.1)."""
        self.closed: Close | None = None
        """Why nothing more will arrive: what the peer said, or how it broke the protocol."""
        self._client = client
        self._max_message_bytes = max_message_bytes
        self._buffer = bytearray()
        self._parts = bytearray()
        """Of a message whose last frame has not come."""
        self._kind: int | None = None
        """The opcode of that message; None between messages."""
        self._pong: bytes | None = None
        self._close: bytes | None = None
        self._close_sent = False

    def receive(self, data: bytes | bytearray) -> list[bytes | str]:
        """The messages that `data` completes."""
        messages: list[bytes | str] = []
        buffer = self._buffer
        buffer += data
        start, end = 0, len(buffer)
        while self.closed is None and end - start >= 2:
            first, second = buffer[start], buffer[start + 1]
            at, length = start + 2, second & 0x7F
            if length > _MAX_CONTROL_BYTES:
                size = 2 if length == 126 else 8
                if end < at + size:
                    break
                length, least = int.from_bytes(buffer[at : at + size], "big"), 126 if size == 2 else 1 << 16
                at += size
                if length < least or first & _CONTROL:
                    self._violated(VIOLATION, "a frame's length is wrong")
                    break
            if bool(second & _MASKED) == self._client:
                self._violated(VIOLATION, "a frame's mask is wrong")
                break
            if length > self._max_message_bytes - len(self._parts):
                self._violated(TOO_BIG, f"a message of more than {self._max_message_bytes} bytes")
                break
            if not self._client:
                at += 4
            if end < at + length:
                break
            payload = bytes(buffer[at : at + length])
            if not self._client:
                payload = _masked(payload, bytes(buffer[at - 4 : at]))
            start = at + length
            self._take(first, payload, messages)
        del buffer[:start]
        return messages

    def send(self, message: bytes | str) -> bytes:
        """The frame that carries `message`."""
        if isinstance(message, str):
            return self._frame(_TEXT, message.encode())
        return self._frame(_BINARY, message)

    def close(self, code: int, reason: str = "") -> None:
        """Have `to_send` say that we close. May be called again."""
        if self._close is None:
            # What is cut must still be whole characters.
            short = reason.encode()[: _MAX_CONTROL_BYTES - 2].decode(errors="ignore")
            self._close = code.to_bytes(2, "big") + short.encode()

    @property
    def due(self) -> bool:
        """Whether `to_send` would give anything."""
        return self._pong is not None or (self._close is not None and not self._close_sent)

    @property
    def close_sent(self) -> bool:
        """Whether `to_send` gave a close frame: nothing may be sent after it."""
        return self._close_sent

    def to_send(self) -> bytes:
        """What the protocol has to say: a pong for the newest ping (section 5.5.3), and a close."""
        data = b""
        if self._pong is not None:
            data, self._pong = self._frame(_PONG, self._pong), None
        if self._close is not None and not self._close_sent:
            self._close_sent = True
            data += self._frame(_CLOSE, self._close)
        return data

    def _frame(self, opcode: int, payload: bytes) -> bytes:
        length, mask = len(payload), 0
        key = b""
        if self._client:
            mask, key = _MASKED, os.urandom(4)
            payload = _masked(payload, key)
        if length <= _MAX_CONTROL_BYTES:
            return bytes((_FINAL | opcode, mask | length)) + key + payload
        if length < 1 << 16:
            return bytes((_FINAL | opcode, mask | 126)) + length.to_bytes(2, "big") + key + payload
        return bytes((_FINAL | opcode, mask | 127)) + length.to_bytes(8, "big") + key + payload

    def _take(self, first: int, payload: bytes, messages: list[bytes | str]) -> None:
        final, opcode = first & _FINAL, first & 0x0F
        if first & 0x70 or opcode not in (_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG):
            self._violated(VIOLATION, "a frame of an unknown kind")
        elif opcode & _CONTROL:
            if not final:
                self._violated(VIOLATION, "a control frame in parts")
            elif opcode == _PING:
                self._pong = payload
            elif opcode == _CLOSE:
                self._take_close(payload)
        elif (opcode == _CONTINUATION) == (self._kind is None):
            self._violated(VIOLATION, "a frame out of order")
        else:
            kind = self._kind or opcode
            if not final:
                self._kind = kind
                self._parts += payload
                return
            if self._kind is not None:
                payload = bytes(self._parts) + payload
                self._parts.clear()
                self._kind = None
            if kind == _BINARY:
                messages.append(payload)
                return
            try:
                messages.append(payload.decode())
            except UnicodeDecodeError:
                self._violated(BAD_DATA, "text that is not UTF-8")

    def _take_close(self, payload: bytes) -> None:
        code = int.from_bytes(payload[:2], "big") if payload else NO_CODE
        known = code in (*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)) or not payload
        try:
            reason = payload[2:].decode()
        except UnicodeDecodeError:
            known = False
        if not known:
            self._violated(VIOLATION, "a close frame that is none")
            return
        self.closed = Close(code, reason)
        self.close(NORMAL if code == NO_CODE else code)

    def _violated(self, code: int, reason: str) -> None:
        self.closed = Close(code, reason)
        self.close(code, reason)


def _masked(payload: bytes, key: bytes) -> bytes:
    """`payload` under the mask `key`, or from under it (section 5.3)."""
    length = len(payload)
    keys = (key * (length // 4 + 1))[:length]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(keys, "big")).to_bytes(length, "big")


# --- the opening handshake --------------------------------------------------------------------------------------------


class _Head:
    """Gathers the lines that open a websocket; `rest` came after them."""

    def __init__(self) -> None:
        self.rest = b""
        self._head = bytearray()

    def receive(self, data: bytes | bytearray) -> bytes | None:
        self._head += data
        at = self._head.find(_END_OF_HEAD)
        if at < 0 and len(self._head) <= MAX_HEAD_BYTES:
            return None
        end = at + len(_END_OF_HEAD) if at >= 0 else len(self._head)
        self.rest = bytes(self._head[end:])
        return bytes(self._head[:end])


class ClientOpening:
    """A client's half of the handshake: send `request`, feed what comes back."""

    def __init__(self, host: str, subprotocol: str) -> None:
        self._handshake = H11Handshake(ConnectionType.CLIENT)
        self._subprotocol = subprotocol
        self._head = _Head()
        self.request = self._handshake.send(Request(host=host, target="/", subprotocols=[subprotocol]))

    @property
    def rest(self) -> bytes:
        """What came after the handshake: the beginning of the frames."""
        return self._head.rest

    def receive(self, data: bytes | bytearray) -> bool:
        """Whether the websocket is open now. Raises `HandshakeRefused`."""
        head = self._head.receive(data)
        if head is None:
            return False
        try:
            self._handshake.receive_data(head)
        except (wsproto.utilities.ProtocolError, UnicodeError) as error:
            raise HandshakeRefused(f"it speaks no websocket ({error})") from error
        for event in self._handshake.events():
            if isinstance(event, AcceptConnection):
                if event.subprotocol != self._subprotocol:
                    raise HandshakeRefused(f"it does not speak {self._subprotocol}")
                return True
            if isinstance(event, RejectConnection):
                raise HandshakeRefused(f"it answered with HTTP status {event.status_code}")
        raise HandshakeRefused("it speaks no websocket")


class ServerOpening:
    """A server's half of the handshake: feed what comes, then send what `accept` or `reject` gives."""

    def __init__(self) -> None:
        self._handshake = H11Handshake(ConnectionType.SERVER)
        self._head = _Head()
        self.offered: Sequence[str] = ()
        """The subprotocols that the client would speak."""
        self.subprotocol: str | None = None
        """The one that was accepted."""

    @property
    def rest(self) -> bytes:
        """What came after the handshake: the beginning of the frames."""
        return self._head.rest

    def receive(self, data: bytes | bytearray) -> bool:
        """Whether the request is whole now. Raises `HandshakeRefused` for one that does not ask for a websocket."""
        head = self._head.receive(data)
        if head is None:
            return False
        try:
            self._handshake.receive_data(head)
            for event in self._handshake.events():
                if isinstance(event, Request):
                    self.offered = event.subprotocols
                    return True
        except wsproto.utilities.RemoteProtocolError as error:
            answer = self._handshake.send(error.event_hint) if error.event_hint else b""
            raise HandshakeRefused(str(error), answer) from error
        except UnicodeError as error:
            raise HandshakeRefused("headers that are not ASCII", self.reject(400, b"not ASCII\n")) from error
        raise HandshakeRefused("no HTTP request", self.reject(431, b"too long\n"))

    def accept(self, subprotocol: str | None) -> bytes:
        """Open the websocket, speaking `subprotocol`, one of `offered`."""
        self.subprotocol = subprotocol
        return self._handshake.send(AcceptConnection(subprotocol=subprotocol))

    def reject(self, status: int, body: bytes) -> bytes:
        """Refuse, with an HTTP status and a line of text."""
        headers = [(b"Content-Length", b"%d" % len(body)), (b"Content-Type", b"text/plain")]
        rejection = RejectConnection(status_code=status, headers=headers, has_body=True)
        return self._handshake.send(rejection) + self._handshake.send(RejectData(data=body, body_finished=True))
