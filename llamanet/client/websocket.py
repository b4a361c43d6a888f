"""A websocket's client end over a byte stream, for who reads much and writes little.

Rules:
- wsproto knows the protocol; here its bytes are moved. There is no task and no queue: one task reads, any may write.
- Messages in plain frames, which nearly all are, do not pass through it (`client/frames.py`).
- Messages that came in one read are given together. Through a queue, each of them would cost a round of trio's
  scheduler, which is more than all else that is done with a token.
- But no more than `TOGETHER`, and then others have their turn: trio runs tasks that became ready together in any order,
  so that the tokens of a hundred streams, taken at once, would reach their readers now early and now late.
"""

import re
from typing import Any

import trio
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Event, Message, Ping, Request, TextMessage
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import ProtocolError

from llamanet.client.frames import Frames
from llamanet.errors import LlamaNetError

ANSWER_S = 1.0
"""For the answer to the other end's goodbye to be written."""
RECEIVE_BYTES = 64 * 1024
MAX_HEAD_BYTES = 16 * 1024
"""Of the answer to the upgrade."""
TOGETHER = 16
_HEAD_END = re.compile(rb"\n\r?\n")


class WebsocketClosed(LlamaNetError):
    """Nothing can be read or written any more; says why."""


class Websocket:
    """Messages over `stream`, which stays the caller's to close."""

    def __init__(self, stream: trio.abc.Stream, *, max_message_bytes: int) -> None:
        """`open` must follow."""
        self._stream = stream
        self._max_message_bytes = max_message_bytes
        self._protocol = WSConnection(ConnectionType.CLIENT)
        self._frames = Frames(max_message_bytes)
        self._sending = trio.Lock()
        self._parts: list[bytes] = []
        """Of a message that is not complete."""
        self._size = 0
        """Of `_parts`."""
        self._hurried = False
        """There may be more than was given."""
        self._closed: WebsocketClosed | None = None

    async def open(self, host: str, target: str, subprotocol: str) -> None:
        """Upgrade from HTTP. Raises as `receive`."""
        await self._send(Request(host=host, target=target, subprotocols=[subprotocol]))
        read = b""
        while True:
            read += await self._read()
            while end := _HEAD_END.search(read):
                head, read = read[: end.end()], read[end.end() :]
                if self._is_upgraded_by(head):
                    self._frames.feed(read)
                    return
            if len(read) > MAX_HEAD_BYTES:
                raise WebsocketClosed(f"no connection (the upgrade was answered by more than {MAX_HEAD_BYTES} bytes)")

    async def receive(self) -> list[bytes | str]:
        """The messages that came together, at least one, and at most `TOGETHER`.

        Raises `WebsocketClosed` once no more will come, and what the stream raises.
        """
        if self._hurried:
            await trio.lowlevel.checkpoint()
        messages: list[bytes | str] = []
        while len(messages) < TOGETHER and self._closed is None:
            messages += self._frames.plain(TOGETHER - len(messages))
            if part := self._frames.other():
                await self._understand(part, messages)
            elif messages:
                break
            else:
                self._frames.feed(await self._read())
        if not messages and self._closed is not None:
            raise self._closed
        self._hurried = len(messages) == TOGETHER
        return messages

    async def send(self, message: bytes | str) -> None:
        """Write a message. Raises `WebsocketClosed`, and what the stream raises.

        Cancelling it may leave half a message written, after which nothing else must be.
        """
        await self._send(BytesMessage(message) if isinstance(message, bytes) else TextMessage(message))

    async def close(self) -> None:
        """Say goodbye, to which the other end answers by closing. Raises as `send`."""
        await self._send(CloseConnection(CloseReason.NORMAL_CLOSURE))

    async def _read(self) -> bytes:
        data = await self._stream.receive_some(RECEIVE_BYTES)
        if not data:
            raise WebsocketClosed("the connection was closed")
        return bytes(data)

    def _is_upgraded_by(self, head: bytes) -> bool:
        """Raises `WebsocketClosed`."""
        try:
            self._protocol.receive_data(head)
            for event in self._protocol.events():
                if isinstance(event, AcceptConnection):
                    return True
                raise WebsocketClosed(f"no connection (the upgrade was answered by {event})")
        # The second is let out by wsproto for headers that are not ASCII.
        except (ProtocolError, UnicodeDecodeError) as error:
            raise WebsocketClosed(f"no connection ({error})") from error
        return False

    async def _understand(self, part: bytes, messages: list[bytes | str]) -> None:
        """Take what is no plain frame, or a part of it."""
        self._protocol.receive_data(part)
        for event in self._protocol.events():
            if isinstance(event, Message):
                self._take(event, messages)
            else:
                await self._answer(event)

    async def _send(self, event: Event) -> None:
        async with self._sending:
            try:
                data = self._protocol.send(event)
            except ProtocolError as error:
                raise WebsocketClosed("the connection was closed") from error
            await self._stream.send_all(data)

    def _take(self, part: Message[Any], messages: list[bytes | str]) -> None:
        is_text = isinstance(part, TextMessage)
        data = part.data.encode() if is_text else part.data
        self._parts.append(data)
        self._size += len(data)
        if self._size > self._max_message_bytes:
            raise WebsocketClosed(f"it sent a message of more than {self._max_message_bytes} bytes")
        if part.message_finished:
            whole = b"".join(self._parts)
            messages.append(whole.decode() if is_text else whole)
            self._parts, self._size = [], 0

    async def _answer(self, event: Event) -> None:
        if isinstance(event, Ping):
            await self._send(event.response())
        elif isinstance(event, CloseConnection):  # Which wsproto also makes of what is no websocket frame.
            self._closed = _closed(event)
            if self._protocol.state is ConnectionState.REMOTE_CLOSING:
                with trio.move_on_after(ANSWER_S):
                    await self._send(event.response())


def _closed(event: CloseConnection) -> WebsocketClosed:
    said = event.reason or (CloseReason(event.code).name if event.code in set(CloseReason) else "")
    return WebsocketClosed(f"the connection was closed ({event.code} {said})")
