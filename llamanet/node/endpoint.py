"""The inference endpoint: websockets, each carrying many requests, in front of the engines of one node.

Rules:
- Whatever a peer sends, or does not send, ends at most its own connection: handshakes, idling and stalled sends have a
  time limit, connections, requests on each and messages a size limit, and all that comes in is decoded before use.
- One task of a connection writes: after a step, the tokens of all its generations in one piece (`cork.py`). A socket
  that does not drain holds back its own generations only, and these are bounded by the engine.
- A request ends with its connection, or with its `Cancel`, within one engine step.
- A request is answered by `Failed` with its id and the connection goes on; only what cannot be tied to one request
  ends the connection: `Failed` without id, then the close code.
"""

import logging
import math
import ssl
import sys
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import attrs
import trio
import wsproto.utilities
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, wrap_server_stream

from llamanet._version import __version__
from llamanet.errors import BadMessage, EngineBusy
from llamanet.node.answer import Answer, Message
from llamanet.node.cork import Cork
from llamanet.node.engine import Engine
from llamanet.node.rates import Rates
from llamanet.node.sleeper import Sleeper
from llamanet.wire.inference import (
    MAX_MESSAGE_BYTES,
    SUBPROTOCOL_JSON,
    SUBPROTOCOL_MSGPACK,
    Accepted,
    Cancel,
    Embed,
    Embeddings,
    Failed,
    Finished,
    Generate,
    ModelStatus,
    NodeMessage,
    Status,
    StatusReply,
    decode_client_message_untrusted,
    encode_message,
    request_id_of_untrusted,
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
MAX_REQUESTS = 256
"""In flight on one connection."""
HANDSHAKE_S = 10.0
"""For TLS and the websocket's upgrade together."""
IDLE_S = 300.0
"""A connection with no request in flight is closed after this silence; clients open another when they need one."""
SEND_S = 60.0
"""A peer that takes nothing for this long while an answer waits is gone, or might as well be."""
CLOSE_S = 1.0
"""For a polite close; then the socket is closed without."""
RECEIVE_BYTES = 64 * 1024

_PLAIN_HTTP = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: text/plain\r\n\r\n"
_SPEAK_TLS = b"This port speaks TLS: use wss:// (the certificate is self-signed by the node's identity).\n"

_GOING_AWAY, _UNSUPPORTED, _BAD_DATA, _POLICY = 1001, 1003, 1007, 1008
"""Close codes of RFC 6455, section 7.4.1."""
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
        self._connections: dict[_Connection, None] = {}
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
                cork = Cork(stream)
                async with trio.open_nursery() as nursery:
                    request = await wrap_server_stream(
                        nursery, cork, max_message_size=MAX_MESSAGE_BYTES, receive_buffer_size=RECEIVE_BYTES
                    )
                    websocket = await _accept(request)
                    if websocket is not None and self._has_room():
                        handshake.deadline = math.inf
                        del self._handshakes[handshake]
                        await self._serve_connection(_Connection(self, websocket, cork, nursery))
                    # Without this the library's reader would go on until the peer closes its side.
                    nursery.cancel_scope.cancel()
            finally:
                self._handshakes.pop(handshake, None)

    async def _serve_connection(self, connection: "_Connection") -> None:
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


def _busy(request: Generate | Embed, error: EngineBusy) -> Failed:
    return Failed(id=request.id, code="busy", message=str(error), retry_after=error.retry_after)


@attrs.define
class _Close(Exception):
    """The connection cannot go on: `code` is the websocket close code."""

    code: int
    reason: str


class _Connection:
    """One client's websocket and its requests in flight."""

    def __init__(self, endpoint: Endpoint, websocket: WebSocketConnection, cork: Cork, nursery: trio.Nursery) -> None:
        self._endpoint = endpoint
        self._websocket = websocket
        self._cork = cork
        self._as_json = websocket.subprotocol == SUBPROTOCOL_JSON
        self._nursery = nursery
        self._answers = 0
        """Requests whose last answer is not sent."""
        self._dropped = False
        self.heard_at = trio.current_time()
        """When the peer last sent something, on trio's clock."""
        self._generations: dict[int, Answer] = {}
        self._tasks: dict[int, trio.CancelScope] = {}
        """Requests to embed, and those that wait for their model to be loaded."""
        self._replies: list[NodeMessage] = []
        """Whole answers that wait to be written."""
        self._speaking: dict[Answer, None] = {}
        """Those that have something to say, in the order in which they had."""
        self._closing: _Close | None = None
        """Said after all else."""
        self._closed = trio.Event()
        self._news = trio.lowlevel.ParkingLot()

    @property
    def idle(self) -> bool:
        """Whether no request is in flight, and the connection is not on its way out."""
        return not self._answers and not self._dropped

    def drop(self) -> None:
        """Close the connection at once."""
        self._dropped = True
        self._nursery.cancel_scope.cancel()

    async def close(self) -> None:
        """Say what there is to say and close, as a node that goes away; return when the peer has closed too."""
        self._closing = self._closing or _Close(_GOING_AWAY, "the node is shutting down")
        self._news.unpark_all()
        await self._closed.wait()

    async def serve(self) -> None:
        """Answer requests until either side closes, or nothing happens for too long."""
        self._nursery.start_soon(self._write)
        try:
            await self._read()
        except _Close as close:
            with trio.move_on_after(CLOSE_S):
                if close.code != _GOING_AWAY:
                    self._replies.append(Failed(code="bad_request", message=close.reason))
                self._closing = close
                self._news.unpark_all()
                await trio.sleep_forever()
        finally:
            for generation in self._generations.values():
                generation.on_news = None
                generation.cancel()
            self._endpoint.count_request(-self._answers)
            self._closed.set()

    # --- what comes in ------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        """Take what the peer says until it closes. Raises `_Close`."""
        while True:
            with trio.move_on_after(IDLE_S) as silence:
                data = await self._websocket.get_message()
                self.heard_at = trio.current_time()
            if not silence.cancelled_caught:
                self._take(data)
            elif not self._answers:
                raise _Close(_GOING_AWAY, "idle for too long")

    def _take(self, data: bytes | str) -> None:
        if isinstance(data, str) != self._as_json:
            kind, other = ("text", SUBPROTOCOL_MSGPACK) if self._as_json else ("binary", SUBPROTOCOL_JSON)
            raise _Close(_UNSUPPORTED, f"messages are {kind} frames here; ask for subprotocol {other} to send others")
        try:
            message = decode_client_message_untrusted(data)
        except BadMessage as error:
            request_id = request_id_of_untrusted(data)
            if request_id is None or self._in_flight(request_id):
                raise _Close(_BAD_DATA, str(error)) from error
            failed = Failed(id=request_id, code="bad_request", message=str(error), field=error.field, limit=error.limit)
            self._answer(failed)
            return
        if isinstance(message, Cancel):
            if generation := self._generations.get(message.id):
                generation.cancel()
            elif scope := self._tasks.get(message.id):
                scope.cancel()
        elif isinstance(message, Status):
            self._answer(self._endpoint.status(message))
        elif self._in_flight(message.id):
            raise _Close(_POLICY, f"request {message.id} is already in flight")
        else:
            self._begin()
            engine = self._endpoint.engine_for(message)
            if isinstance(message, Generate) and not isinstance(engine, Sleeper):
                self._generate(message, engine)
            else:
                self._tasks[message.id] = trio.CancelScope()
                self._nursery.start_soon(self._answer_later, message)

    def _in_flight(self, request_id: int) -> bool:
        return request_id in self._generations or request_id in self._tasks

    def _begin(self) -> None:
        """Count a request, until its last answer is sent."""
        if self._answers >= MAX_REQUESTS:
            raise _Close(_POLICY, f"more than {MAX_REQUESTS} requests in flight")
        self._answers += 1
        self._endpoint.count_request(+1)

    def _end(self, requests: int) -> None:
        self._answers -= requests
        self._endpoint.count_request(-requests)

    def _generate(self, request: Generate, engine: "Serving | Failed") -> None:
        if isinstance(engine, Failed):
            self._reply(engine)
            return
        try:
            generation = engine.submit(request)
        except EngineBusy as error:
            self._reply(_busy(request, error))
            return
        self._generations[request.id] = generation
        generation.on_news = partial(self._speak, generation)
        self._speak(generation)

    async def _awake(self, request: Generate | Embed) -> "Serving | Failed":
        engine = self._endpoint.engine_for(request)
        while isinstance(engine, Sleeper):
            await engine.wake()
            engine = self._endpoint.engine_for(request)
        return engine

    async def _answer_later(self, request: Generate | Embed) -> None:
        """Answer a request that takes a task: it waits for its model, or embeds."""
        embedded: Embeddings | Failed | None = None
        try:
            with self._tasks[request.id] as scope:
                engine = await self._awake(request)
                if isinstance(request, Embed):
                    embedded = engine if isinstance(engine, Failed) else await engine.embed(request)
        except EngineBusy as error:
            embedded = _busy(request, error)
        finally:
            del self._tasks[request.id]
        if embedded is not None:
            self._reply(embedded)
        elif scope.cancelled_caught or isinstance(request, Embed):
            self._end(1)
        else:
            self._generate(request, engine)

    # --- what goes out ------------------------------------------------------------------------------------------------

    def _answer(self, message: NodeMessage) -> None:
        """Answer a request that is over with it."""
        self._begin()
        self._reply(message)

    def _reply(self, message: NodeMessage) -> None:
        self._replies.append(message)
        self._news.unpark_all()

    def _speak(self, generation: Answer) -> None:
        self._speaking[generation] = None
        self._news.unpark_all()

    async def _write(self) -> None:
        """Send what there is to say, each time all of it in one piece, and the close at last."""
        while True:
            while not (self._replies or self._speaking or self._closing):
                await self._news.park()
            replies, self._replies = self._replies, []
            speaking, self._speaking = self._speaking, {}
            messages: list[NodeMessage] = list(replies)
            over = sum(reply.id is not None for reply in replies)
            for generation in speaking:
                said = generation.take_all()
                messages += [self._endpoint.with_state(message, generation.request) for message in said]
                if generation.over and generation.request.id in self._generations:
                    del self._generations[generation.request.id]
                    over += 1
            # Only the end of the connection may interrupt a send: half a frame would garble those that follow.
            with trio.move_on_after(SEND_S) as sending:
                async with self._cork.corked():
                    for message in messages:
                        await self._websocket.send_message(encode_message(message, as_json=self._as_json))
            if sending.cancelled_caught:
                self.drop()
                return
            self._end(over)
            if self._closing is not None:
                await self._websocket.aclose(self._closing.code, self._closing.reason[:100])
                self.drop()
                return
