"""Server-sent events, from something that makes them to a reader who may be slow, silent, or gone.

Rules:
- Whoever makes an event sends it, for a change of tasks would cost more. While somebody else is sending, at most
  `BUFFER_BYTES` wait; then whoever makes the events waits too.
- What has gathered is sent at once, so that a reader who lags costs less, not more.
- The response's head waits for the first event, so that a failure before it has its proper status. After `HEAD_AFTER_S`
  it is sent all the same, for a proxy between may wait no longer.
- Comments keep a silent connection alive. A failure in the middle is an `error` event, and the end.

Source: WHATWG HTML, section 9.2, "Server-sent events".
"""

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

import trio
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from llamanet.errors import LlamaNetError
from llamanet.gateway.openai import api_error, to_json
from llamanet.gateway.reading import while_read

BUFFER_BYTES = 64 * 1024
HEAD_AFTER_S = 10.0
IDLE_S = 15.0
"""After so long without an event a comment is sent."""
COMMENT = b": still here\n\n"
DONE = b"data: [DONE]\n\n"

SendBytes: TypeAlias = Callable[[bytes], Awaitable[None]]


class Buffer:
    """Events on their way. One task takes them or lets them through; any number write."""

    def __init__(self) -> None:
        self._events: list[bytes] = []
        self._bytes = 0
        self._ended = False
        self._error: LlamaNetError | None = None
        self._news = trio.Event()
        self._room = trio.Event()
        self._send: SendBytes | None = None
        """Where events go from now on."""
        self._sending = False
        self._sent_at = 0.0

    async def put(self, event: bytes) -> None:
        """Add an event; send it, if that is possible now, or wait while there are too many."""
        if self._send is not None and not self._sending:
            await self._flush(self._send, event)
            return
        self._events.append(event)
        self._bytes += len(event)
        self._news.set()
        while self._bytes > BUFFER_BYTES:
            await self._room.wait()

    def end(self, error: LlamaNetError | None = None) -> None:
        """No event comes any more; `error` says why, if that is not how it should be."""
        self._ended, self._error = True, error
        self._news.set()

    async def take(self, seconds: float) -> bytes | None:
        """All events that wait, once there is one; b"" at the end, and None if there is nothing for so many seconds.

        Raises the error that ended them, once all before it are taken.
        """
        with trio.move_on_after(seconds):
            while not self._events and not self._ended:
                self._news = trio.Event()
                await self._news.wait()
        if self._events:
            return self._take_all()
        if self._error is not None:
            raise self._error
        return b"" if self._ended else None

    async def pass_on(self, send: SendBytes) -> None:
        """Let all events through to `send` until the end, and comments where there is none. Raises as `take`."""
        self._send = send
        await self._flush(send)
        while not self._ended:
            silent_since = trio.current_time() if self._sending else self._sent_at
            self._news = trio.Event()
            with trio.move_on_at(silent_since + IDLE_S):
                await self._news.wait()
            if not self._ended and not self._sending and trio.current_time() - self._sent_at >= IDLE_S:
                await self.put(COMMENT)
        await self._flush(send)
        if self._error is not None:
            raise self._error

    async def _flush(self, send: SendBytes, last: bytes = b"") -> None:
        """Send what waits and then `last`, and what is added meanwhile."""
        self._sending = True
        try:
            while self._events or last:
                piece, last = self._take_all() + last if self._events else last, b""
                await send(piece)
            self._sent_at = trio.current_time()
        finally:
            self._sending = False

    def _take_all(self) -> bytes:
        events, self._events, self._bytes = self._events, [], 0
        room, self._room = self._room, trio.Event()
        room.set()
        return b"".join(events)


class EventResponse:
    """A response (for Starlette) of what `produce` puts into a buffer; `headers` are asked for once the first came."""

    def __init__(self, produce: Callable[[Buffer], Awaitable[None]], headers: Callable[[], Mapping[str, str]]) -> None:
        self._produce = produce
        self._headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer. Raises `LlamaNetError` if nothing has been sent yet."""

        async def answer() -> None:
            buffer = Buffer()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._fill, buffer)
                errors = []
                try:
                    first = await buffer.take(HEAD_AFTER_S)
                except LlamaNetError as error:
                    errors.append(error)
                else:
                    await self._send(buffer, first, send)
            if errors:
                raise errors[0]

        with contextlib.suppress(ClientDisconnect):
            await while_read(receive, answer)

    async def _fill(self, buffer: Buffer) -> None:
        try:
            await self._produce(buffer)
        except LlamaNetError as error:
            buffer.end(error)
        else:
            buffer.end()

    async def _send(self, buffer: Buffer, events: bytes | None, send: Send) -> None:
        headers = {"content-type": "text/event-stream", "cache-control": "no-cache", "x-accel-buffering": "no"}
        headers.update(self._headers())
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})

        async def send_some(events: bytes) -> None:
            await send({"type": "http.response.body", "body": events, "more_body": True})

        try:
            if events != b"":
                await send_some(events or COMMENT)
                await buffer.pass_on(send_some)
            last = b""
        except LlamaNetError as error:
            last = b"event: error\n" + event(api_error(error).body())
        await send({"type": "http.response.body", "body": last, "more_body": False})


def event(value: object) -> bytes:
    """`value` as JSON in one event."""
    return b"data: " + to_json(value) + b"\n\n"
