"""hypercorn's connection over trio, with a shorter way out for small writes, and an end as soon as the client leaves.

A streamed token is one write of some 200 bytes. On hypercorn's way that takes a lock, a cancel scope, and twice round
trio's scheduler, which costs more than all else that HTTP does with it. Here the kernel is asked first: what it takes
at once is gone, and the rest, as well as anything over TLS, goes hypercorn's way. And before that each piece of a body
would go through three layers and h11's states to get a length before it, which it gets here (RFC 9112, section 7.1).

A client that closes a connection on which nothing runs is not waited for. hypercorn keeps the socket until the
connection was idle for too long, and clients that connect for each request would soon use up the sockets. It keeps for
ever that of a client who sent another request behind the one that runs, and left before the answer was complete: what
is to be read after that answer is waited for, and nothing wakes who waits. Here a write that fails does.
"""

import os
import re
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote

import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ABSOLUTE = re.compile(rb"https?://([^/@]+)(/.*)?", re.IGNORECASE)


class Connection(TCPServer):
    """One client's connection."""

    def __init__(self, app: ASGIApp, config: Config, worker: WorkerContext, stream: trio.abc.Stream) -> None:
        # Its types are its own TypedDicts, and say TLS only.
        untyped: Any = self._with_short_way(app), config, worker, ConnectionState({}), stream
        super().__init__(*untyped)
        self._left = False
        """No request comes any more."""
        self._reading = trio.CancelScope()

    def _with_short_way(self, app: ASGIApp) -> Callable[..., Awaitable[None]]:
        async def serve(scope: Scope, receive: Receive, send: Send, *_: object) -> None:
            chunked = False

            async def send_short(message: Message) -> None:
                nonlocal chunked
                if chunked and message.get("more_body", False):
                    if body := message["body"]:
                        await self.protocol_send(RawData(b"%x\r\n%b\r\n" % (len(body), body)))
                    return
                await send(message)
                if message["type"] == "http.response.start":
                    chunked = _is_chunked(scope, message)

            if not scope.get("raw_path", b"/").startswith(b"/"):
                scope = _in_origin_form(scope)
            await app(scope, receive, send_short)

        return serve

    async def _read_data(self) -> None:
        with self._reading:
            await super()._read_data()
        self._left = True
        await self.idle_task.stop()

    async def protocol_send(self, event: Event) -> None:
        """Send, or close, or tell whether something runs."""
        if self._left and isinstance(event, Updated):
            return
        if isinstance(event, RawData) and os.name == "posix" and not self.send_lock.locked():
            stream: object = self.stream
            if isinstance(stream, trio.SocketStream):
                try:
                    sent = os.write(stream.socket.fileno(), event.data)
                except OSError:
                    sent = 0  # Full, or broken; hypercorn's way finds out which.
                if sent == len(event.data):
                    return
                # Half of a piece must not be all of it: who sends may be cancelled, and somebody else goes on sending.
                with trio.CancelScope(shield=sent > 0):
                    await self._send_all(event.data[sent:])
                return
        if isinstance(event, RawData):
            await self._send_all(event.data)
        else:
            await super().protocol_send(event)

    async def _send_all(self, data: bytes) -> None:
        async with self.send_lock:
            try:
                with trio.CancelScope(shield=True):
                    await self.stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._reading.cancel()
                await self.protocol.handle(Closed())


def _is_chunked(scope: Scope, start: Message) -> bool:
    """Whether h11 says so in the header of a response that begins with `start`."""
    has_body = scope["method"] != "HEAD" and start["status"] not in (204, 304)
    has_length = any(name.lower() == b"content-length" for name, _ in start["headers"])
    return scope["http_version"] == "1.1" and has_body and not has_length


def _in_origin_form(scope: Scope) -> Scope:
    """A request whose target is a whole URL as one for its path, and of the host that it names: RFC 9112, 3.2.2."""
    if not (found := _ABSOLUTE.fullmatch(scope["raw_path"])):
        return scope
    host, path = found[1], found[2] or b"/"
    headers = [(b"host", host), *((name, value) for name, value in scope["headers"] if name != b"host")]
    return {**scope, "raw_path": path, "path": unquote(path.decode("ascii")), "headers": headers}
