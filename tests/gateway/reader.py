"""Somebody who reads an answer of the app piece by piece, in his own time, and may leave."""

import json
from contextlib import asynccontextmanager

import attrs
import trio


@attrs.define
class Reader:
    """What has come. `take` waits for the next message; until somebody takes it, the app waits too."""

    messages: trio.MemoryReceiveChannel
    gone: trio.Event = attrs.field(factory=trio.Event)
    status: int | None = None
    headers: dict = attrs.field(factory=dict)
    ended: bool = False
    text: str = ""

    async def take(self):
        """The next piece of the body; b"" at the end."""
        while not self.ended:
            message = await self.messages.receive()
            if message["type"] == "http.response.start":
                self.status = message["status"]
                self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
                continue
            self.ended = not message.get("more_body", False)
            self.text += message["body"].decode()
            return message["body"]
        return b""

    async def read(self):
        """All that is left."""
        while not self.ended:
            await self.take()
        return self

    def json(self):
        return json.loads(self.text)

    @property
    def error(self):
        return self.json()["error"]

    @property
    def events(self):
        """The data of all whole events, without `[DONE]`."""
        lines = [line for line in self.text.split("\n") if line.startswith("data: ")]
        return [json.loads(line[6:]) for line in lines if line != "data: [DONE]"]

    @property
    def said(self):
        """The text of all events, of any form and choice."""
        choices = [choice for event in self.events for choice in event.get("choices", ())]
        return "".join(
            choice["delta"].get("content", "") if "delta" in choice else choice["text"] for choice in choices
        )


@asynccontextmanager
async def reading(app, path, body, *, method="POST", **headers):
    """Send a request, and read; leaving the block is leaving."""
    send_channel, receive_channel = trio.open_memory_channel(0)
    reader = Reader(receive_channel)
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    pieces = [{"type": "http.request", "body": raw, "more_body": False}]
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "http_version": "1.1",
        "headers": [
            (b"host", b"127.0.0.1:8080"),
            (b"content-type", b"application/json"),
            *((name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()),
        ],
        "client": ("192.0.2.1", 5),
        "server": ("127.0.0.1", 8080),
        "state": {},
    }

    async def receive():
        if pieces:
            return pieces.pop()
        await reader.gone.wait()
        return {"type": "http.disconnect"}

    async def answer():
        async with send_channel:
            await app(scope, receive, send_channel.send)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        yield reader
        reader.gone.set()
        # What the app still says is heard by nobody, and must not hold it.
        async for _ in receive_channel:
            pass


async def post(app, path, body, **headers):
    """Send a request and read the whole answer."""
    async with reading(app, path, body, **headers) as reader:
        return await reader.read()


async def chat(app, content="hello", **fields):
    """A conversation of one turn."""
    messages = fields.pop("messages", [{"role": "user", "content": content}])
    return await post(app, "/v1/chat/completions", {"model": "alpha", "messages": messages, **fields})


async def complete(app, prompt="hello", **fields):
    """A text to be continued."""
    return await post(app, "/v1/completions", {"model": "alpha", "prompt": prompt, **fields})
