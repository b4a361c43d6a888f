"""A server of OpenAI's API on loopback that answers byte for byte what a test tells it to."""

import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import attrs
import trio

Answer = Callable[[trio.SocketStream, dict[str, Any]], Awaitable[None]]
HEAD = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: text/event-stream\r\n\r\n"


def event(text: str | None = None, *, reason: str | None = None, **more: Any) -> bytes:
    """A chunk of a chat as servers write it: not escaped where JSON need not be."""
    choice = {"index": 0, "delta": {} if text is None else {"content": text}, "finish_reason": reason}
    return b"data: " + json.dumps({"choices": [choice], **more}, ensure_ascii=False).encode() + b"\n\n"


END = event(reason="stop") + b"data: [DONE]\n\n"


def says(*pieces: bytes, head: bytes = HEAD) -> Answer:
    """Answer with these bytes, each in a packet of its own."""

    async def answer(stream: trio.SocketStream, body: dict[str, Any]) -> None:
        for piece in (head, *pieces):
            await stream.send_all(piece)

    return answer


def status(line: str, body: bytes = b"", *headers: str) -> Answer:
    """Answer with a status, such as "429 Too Many Requests"."""
    lines = [f"HTTP/1.1 {line}", f"content-length: {len(body)}", "connection: close", *headers]
    return says(head="\r\n".join((*lines, "", "")).encode() + body)


@attrs.define
class FakeServer:
    """`answer` is how requests are answered now; `asked` are the bodies so far, `open` the requests in progress."""

    url: str = ""
    answer: Answer = says(event("hello"), END)
    models: bytes = b'{"data": [{"id": "m"}]}'
    asked: list[dict[str, Any]] = attrs.field(factory=list)
    open: int = 0
    keeps: bool = False
    """Whether it leaves connections open."""
    reused: int = 0
    """Connections that brought another request."""
    left: int = 0
    """Requests whose connection the asker closed."""

    async def serve(self, *, task_status: trio.TaskStatus["FakeServer"]) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/v1"
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, self._handle, listeners)
            task_status.started(self)

    async def hang(self, stream: trio.SocketStream, body: dict[str, Any]) -> None:
        """An answer that says something, and then nothing until the asker leaves."""
        await stream.send_all(HEAD + event("a"))
        if not await stream.receive_some():
            self.left += 1

    async def _handle(self, stream: trio.SocketStream) -> None:
        async with stream:
            head, _, body = (await self._read(stream)).partition(b"\r\n\r\n")
            if head.startswith(b"GET "):
                await status("200 OK", self.models)(stream, {})
                return
            self.asked.append(json.loads(body))
            self.open += 1
            try:
                await self.answer(stream, self.asked[-1])
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self.left += 1
            finally:
                self.open -= 1
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                self.reused += bool(self.keeps and await stream.receive_some())

    async def _read(self, stream: trio.SocketStream) -> bytes:
        data = b""
        while True:
            head, found, body = data.partition(b"\r\n\r\n")
            length = next((line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), b":0")
            if found and len(body) >= int(length.split(b":")[1]):
                return data
            received = await stream.receive_some()
            if not received:
                return data
            data += received
