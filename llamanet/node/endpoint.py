"""The inference endpoint: websockets, each carrying many requests, in front of the engines of one node.

Here connections come in, and requests find their engine; `connection.py` is what is said on one of them. Rules:
- Whatever a peer sends, or does not send, ends at most its own connection: handshakes, idling and stalled sends have a
  time limit, connections, requests on each and messages a size limit, and all that comes in is decoded before use.
"""

import logging
import math
import ssl
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeAlias

import attrs
import trio
import wsproto.utilities
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, wrap_server_stream

from llamanet._version import __version__
from llamanet.node.answer import Message
from llamanet.node.connection import CLOSE_S, Connection
from llamanet.node.engine import Engine
from llamanet.node.rates import Rates
from llamanet.node.shared_stream import SharedStream
from llamanet.node.sleeper import Sleeper
from llamanet.wire.inference import (
    MAX_MESSAGE_BYTES,
    SUBPROTOCOL_JSON,
    SUBPROTOCOL_MSGPACK,
    Accepted,
    Embed,
    Failed,
    Finished,
    Generate,
    ModelStatus,
    Status,
    StatusReply,
)

if TYPE_CHECKING:
    from llamanet.node.upstream import UpstreamEngine

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

log = logging.getLogger(__name__)

Serving: TypeAlias = "Engine | UpstreamEngine"
"""What answers requests for one model."""
Served: TypeAlias = "Serving | Sleeper"

MAX_CONNECTIONS = 256
"""A further one takes the place of the one that is idle for longest, and is closed at once if none is idle. With
`MAX_MESSAGE_BYTES` it bounds what half-sent messages can take."""
MAX_HANDSHAKES = 128
"""Connections that are not open yet. A further one takes the place of the oldest, so silence keeps nobody out."""
HANDSHAKE_S = 10.0
"""For TLS and the websocket's upgrade together."""
RECEIVE_BYTES = 64 * 1024

_PLAIN_HTTP = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: text/plain\r\n\r\n"
_SPEAK_TLS = b"This port speaks TLS: use wss:// (the certificate is self-signed by the node's identity).\n"

_NETWORK_ERRORS = (
    ConnectionClosed,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    wsproto.utilities.ProtocolError,
    UnicodeDecodeError,  # let out by wsproto for headers that are not ASCII
)


class Endpoint:
    """The engines of one node as the network sees them."""

    def __init__(self, label: str, tls: ssl.SSLContext | None) -> None:
        """`label` is the node's name in replies; without `tls` the endpoint speaks plain `ws://`."""
        self.label = label
        self.engines: dict[str, Serving] = {}
        """By model name; the first one serves requests that name no model."""
        self.sleeping: dict[str, Sleeper] = {}
        """Models that are loaded when somebody asks for them."""
        self.withdrawn: set[str] = set()
        """Names of models that were served: whoever has not heard of that yet is told to go elsewhere."""
        self.draining = False
        """While True, new requests are refused and running ones go on."""
        self._tls = tls
        self._handshakes: dict[trio.CancelScope, None] = {}
        self._connections: dict[Connection, None] = {}
        self.requests = 0
        """In flight."""
        self._idle = trio.Event()
        self._idle.set()

    async def serve(self, listeners: Iterable[trio.abc.Listener[trio.abc.Stream]]) -> None:
        """Serve every connection that arrives, until cancelled; then all connections are closed."""
        async with trio.open_nursery() as nursery:
            await trio.serve_listeners(self.serve_stream, list(listeners), handler_nursery=nursery)

    async def wait_idle(self) -> None:
        """Return when no request is in flight."""
        while self.requests:
            await self._idle.wait()

    async def close(self) -> None:
        """Close every connection politely, after what it has to say; those that take too long are left as they are."""
        with trio.move_on_after(CLOSE_S):
            async with trio.open_nursery() as nursery:
                for connection in list(self._connections):
                    nursery.start_soon(connection.close)

    async def serve_stream(self, stream: trio.abc.Stream) -> None:
        """Serve one connection over `stream`, and close it."""
        try:
            await self._serve_stream(stream)
        except _NETWORK_ERRORS as error:
            log.debug("connection lost: %r", error)
        except BaseExceptionGroup as group:
            _, rest = group.split(_NETWORK_ERRORS)
            if rest is not None:
                raise rest from None
            log.debug("connection lost: %r", group)
        finally:
            await trio.aclose_forcefully(stream)

    async def _serve_stream(self, stream: trio.abc.Stream) -> None:
        with trio.CancelScope(deadline=trio.current_time() + HANDSHAKE_S) as handshake:
            if len(self._handshakes) >= MAX_HANDSHAKES:
                next(iter(self._handshakes)).cancel()
            self._handshakes[handshake] = None
            try:
                if self._tls is not None:
                    stream = await self._open_tls(stream, self._tls)
                shared = SharedStream(stream)
                async with trio.open_nursery() as nursery:
                    request = await wrap_server_stream(
                        nursery, shared, max_message_size=MAX_MESSAGE_BYTES, receive_buffer_size=RECEIVE_BYTES
                    )
                    websocket = await _accept(request)
                    if websocket is not None and self._has_room():
                        handshake.deadline = math.inf
                        del self._handshakes[handshake]
                        await self._serve_connection(Connection(self, websocket, shared, nursery))
                    # Without this the library's reader would go on until the peer closes its side.
                    nursery.cancel_scope.cancel()
            finally:
                self._handshakes.pop(handshake, None)

    async def _serve_connection(self, connection: Connection) -> None:
        self._connections[connection] = None
        try:
            await connection.serve()
        finally:
            del self._connections[connection]

    def _has_room(self) -> bool:
        """Whether one more connection may be served; an idle one may have to go for it."""
        if len(self._connections) >= MAX_CONNECTIONS:
            idle = [connection for connection in self._connections if connection.idle]
            if not idle:
                return False
            min(idle, key=lambda connection: connection.heard_at).drop()
        return True

    async def _open_tls(self, transport: trio.abc.Stream, tls: ssl.SSLContext) -> trio.abc.Stream:
        stream = trio.SSLStream(transport, tls, server_side=True, https_compatible=True)
        try:
            await stream.do_handshake()
        except trio.BrokenResourceError as error:
            if isinstance(error.__cause__, ssl.SSLError) and error.__cause__.reason == "HTTP_REQUEST":
                await transport.send_all(_PLAIN_HTTP + _SPEAK_TLS)
            raise
        return stream

    def served(self) -> dict[str, "Served"]:
        """All models that can be asked for, by name."""
        return {**self.engines, **self.sleeping}

    def engine_for(self, request: Generate | Embed) -> "Served | Failed":
        """The engine that `request` is for, or why there is none."""
        if self.draining:
            return Failed(id=request.id, code="draining", message="the node takes no new requests")
        engines = self.served()
        engine = engines.get(request.model) if request.model else next(iter(engines.values()), None)
        if engine is None and request.model in self.withdrawn:
            return Failed(id=request.id, code="draining", message=f"the node serves {request.model} no more")
        if engine is None:
            served = ", ".join(engines) or "nothing"
            message = f"the node does not serve {request.model or 'any model'}"
            return Failed(id=request.id, code="no_such_model", message=message, field="model", limit=served)
        if request.digest is not None and request.digest != engine.digest:
            message = f"the node's {engine.name} is another file"
            return Failed(
                id=request.id, code="wrong_digest", message=message, field="digest", limit=engine.digest.hex()
            )
        return engine

    def with_state(self, message: Message, request: Generate) -> Message:
        """`message`, which answers `request`, with the live state of its model if it should tell that."""
        if not request.live_state or not isinstance(message, Accepted | Finished):
            return message
        engine = self.engine_for(request)
        return message if isinstance(engine, Failed) else attrs.evolve(message, state=engine.state())

    def status(self, request: Status) -> StatusReply:
        """The node's state, all models included."""
        models = []
        for engine in self.served().values():
            state, rates = engine.state(), Rates() if isinstance(engine, Sleeper) else engine.rates
            models.append(
                ModelStatus(
                    name=engine.name,
                    digest=engine.digest,
                    n_ctx=state.n_ctx,
                    slots=state.slots,
                    running=state.running,
                    waiting=state.waiting,
                    tokens_per_second=state.tokens_per_second,
                    ttft_s=state.ttft_s,
                    prefill_tokens_per_second=state.prefill_tokens_per_second,
                    queue_s=rates.queue_s,
                    first_s=rates.first_s,
                    gap_s=rates.gap_s,
                    batch_tokens=rates.batch,
                    prompt_tokens=rates.prompt_tokens,
                    cached_tokens=rates.cached_tokens,
                    completion_tokens=rates.completion_tokens,
                    memory_tokens=rates.memory_tokens,
                    embedded_tokens=rates.embedded_tokens,
                )
            )
        return StatusReply(
            id=request.id, node_id=self.label, version=__version__, draining=self.draining, models=tuple(models)
        )

    def count_request(self, change: int) -> None:
        """Called by connections when a request begins (+1) and when its last answer is sent (-1)."""
        if not self.requests:
            self._idle = trio.Event()
        self.requests += change
        if not self.requests:
            self._idle.set()


async def _accept(request: WebSocketRequest) -> WebSocketConnection | None:
    """Agree on a subprotocol; None if the client offers only others."""
    offered = request.proposed_subprotocols
    for subprotocol in (SUBPROTOCOL_MSGPACK, SUBPROTOCOL_JSON):
        if subprotocol in offered:
            return await request.accept(subprotocol=subprotocol)
    if not offered:
        return await request.accept()
    known = f"known subprotocols: {SUBPROTOCOL_MSGPACK}, {SUBPROTOCOL_JSON}\n"
    await request.reject(400, body=known.encode())
    return None
