"""One HTTP request from its first byte to its last, as the access log, the metrics and the limits see it.

Rules:
- `Exchanges` is the outermost layer of the app, and the only one here that wraps what is sent: what inner layers want
  to say in headers they put into `Exchange.headers`.
- A request's id is the client's `x-request-id`, if that is short and plain, or else a fresh one. Every response has it.
- What the swarm did for a request comes from the gateway's events, by that id. An id that is in use is not taken twice.
- An exchange ends once, however it ends, and is then told to everyone in `ended`.
"""

import re
import secrets
from collections.abc import Callable
from typing import Any

import attrs
import trio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llamanet.gateway.events import Event, Events, RequestAnswered, RequestEnded, RequestMoved
from llamanet.gateway.openai import READER_LEFT

_PLAIN_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")


@attrs.define(kw_only=True, eq=False)
class Exchange:
    """What is known of a request so far. Times are in seconds, `started_at` on trio's clock."""

    request_id: str
    client: str
    """The address that asks."""
    method: str
    path: str
    """As it was sent, with its escapes; without the query."""
    started_at: float
    key: str | None = None
    """The label of its API key."""
    headers: list[tuple[bytes, bytes]] = attrs.field(factory=list)
    """To be added to the response; names in lower case."""
    status: int | None = None
    """Of the response; None before it begins, `READER_LEFT` after the reader went away."""
    model: str | None = None
    """The one that answers; before that, the one that was asked for."""
    node_id: str | None = None
    """The label of the node that answered last."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0
    """Of the answer."""
    ttft: float | None = None
    """Seconds until the first token."""
    seconds: float = 0.0
    """Once it has ended: how long it took."""
    left: bool = False
    """Its reader went away."""

    def take(self, event: Event) -> None:
        """Learn what the swarm does for this request."""
        if event.model is not None:
            self.model = event.model
        if isinstance(event, RequestAnswered):
            self.node_id = event.node_id
            self.ttft = event.ttft if self.ttft is None else min(self.ttft, event.ttft)
        elif isinstance(event, RequestMoved):
            self.node_id = event.to_node or self.node_id
        elif isinstance(event, RequestEnded):
            self.node_id = event.node_id or self.node_id
            self.prompt_tokens += event.prompt_tokens
            self.cached_tokens += event.cached_tokens
            self.tokens += event.tokens
            self.left = self.left or event.status == READER_LEFT


class Exchanges:
    """The ASGI layer that gives each request its `Exchange`, in `scope["state"]["exchange"]`."""

    def __init__(self, app: ASGIApp, events: Events, ended: list[Callable[[Exchange], None]]) -> None:
        """`ended` are called with each exchange that is over; they must be quick, and must not raise."""
        self._app = app
        self._ended = ended
        self._open: dict[str, Exchange] = {}
        events.listeners.append(self._heard)

    def _heard(self, event: Event) -> None:
        if (exchange := self._open.get(event.request_id)) is not None:
            exchange.take(event)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(
            request_id=self._request_id(scope),
            client=scope["client"][0] if scope.get("client") else "",
            method=scope["method"],
            path=(scope.get("raw_path") or scope["path"].encode()).decode("latin-1"),
            started_at=trio.current_time(),
        )
        self._open[exchange.request_id] = exchange
        state: dict[str, Any] = scope.setdefault("state", {})
        state["exchange"] = exchange
        state["request_id"] = exchange.request_id
        complete = False

        async def send_told(message: Message) -> None:
            nonlocal complete
            if message["type"] == "http.response.body":
                complete = not message.get("more_body", False)
            elif message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [
                    *((name, value) for name, value in message.get("headers", ()) if name != b"x-request-id"),
                    (b"x-request-id", exchange.request_id.encode()),
                    *exchange.headers,
                ]
            await send(message)

        try:
            await self._app(scope, receive, send_told)
        finally:
            del self._open[exchange.request_id]
            if exchange.left or not complete:
                exchange.status = READER_LEFT
            exchange.seconds = trio.current_time() - exchange.started_at
            for tell in self._ended:
                tell(exchange)

    def _request_id(self, scope: Scope) -> str:
        for name, value in scope["headers"]:
            if name == b"x-request-id" and _PLAIN_ID.fullmatch(value):
                given: str = value.decode()
                if given not in self._open:
                    return given
        return f"req_{secrets.token_hex(16)}"
