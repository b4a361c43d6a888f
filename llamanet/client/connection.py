"""Websockets to nodes: opened when needed, shared by many requests, reused, and closed when idle.

Rules:
- A connection carries nothing before its peer has proved to be the node that was asked for (`client/tls.py`).
- One task writes and one reads. A request that is cancelled sends its `Cancel` and is forgotten; what still arrives for
  it is dropped.
- Nobody waits for a slow reader: a request whose answers pile up past `MAX_AHEAD` is cancelled at the node, and ends
  with `Failed("slow_reader")` after what has arrived. Its reader can resume it when it wants to go on.
- When a connection is lost, or its node breaks the protocol, all its requests end with `NodeFailed` at once.
"""

import itertools
import math
import ssl
import sys
from collections import deque
from collections.abc import Awaitable, Callable

import attrs
import trio

from llamanet.client.alarm import Alarm
from llamanet.client.tls import TlsStream, client_tls, verify_peer
from llamanet.client.websocket import Websocket, WebsocketClosed
from llamanet.errors import BadMessage, NodeFailed
from llamanet.wire.identity import PublicKey
from llamanet.wire.inference import (
    MAX_MESSAGE_BYTES,
    SUBPROTOCOL_MSGPACK,
    Accepted,
    Cancel,
    Embed,
    Embeddings,
    Failed,
    Finished,
    Generate,
    NodeMessage,
    Tokens,
    decode_node_message_untrusted,
    encode_message,
)
from llamanet.wire.state import ModelState

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

CONNECT_S = 3.0
"""For TCP, TLS and the websocket's upgrade together. A node is asked only after it answered a probe, so it is there."""
IDLE_S = 60.0
"""An unused connection is closed after once to twice this time; nodes keep it longer."""
CLOSE_S = 1.0
"""For a polite close; then the socket is closed without."""
MAX_IDLE = 32
"""Unused connections that are kept; busy ones are as many as the callers' requests need."""
MAX_REQUESTS = 128
"""In flight on one connection; nodes allow more. For further ones another connection is opened."""
MAX_OUTBOX = 4 * MAX_REQUESTS
"""Messages that wait to be written; a peer that lets so many pile up is not reading."""
MAX_AHEAD = 65_536
"""Token ids and characters that may wait for the reader of one request."""

Answer = Accepted | Tokens | Embeddings | Finished | Failed
OnState = Callable[[ModelState | None], object]
"""Takes what the node says of its load with `Accepted` and `Finished`, when they arrive, however late they are read."""
OpenStream = Callable[[str, int], Awaitable[trio.abc.Stream]]
"""Opens a byte stream to a host and a TCP port. Raises `OSError`."""

_NETWORK_ERRORS = (OSError, WebsocketClosed, trio.BrokenResourceError, trio.ClosedResourceError)


@attrs.frozen(kw_only=True)
class Peer:
    """Where a node's endpoint is, and who must be there."""

    public_key: PublicKey = attrs.field(repr=bytes.hex)
    label: str
    host: str
    port: int
    tls: bool


class Exchange:
    """One request on a connection, and the answers that wait for its reader. Only one task may read at a time."""

    def __init__(self, connection: "Connection", request_id: int, on_state: OnState | None, *, embeds: bool) -> None:
        """Made by `Connection.submit`."""
        self._connection = connection
        self._on_state = on_state
        self._id = request_id
        self._embeds = embeds
        self._answers: deque[Answer] = deque()
        self._ahead = 0
        self._accepted = False
        self._over: str | None = None
        """Why nothing more will arrive."""
        self._news = trio.lowlevel.ParkingLot()

    @property
    def ready(self) -> bool:
        """Whether `receive` would return at once."""
        return bool(self._answers)

    async def receive(self, until: float = math.inf) -> Answer | None:
        """The next answer, or None if there is none at `until`, on trio's clock.

        Tokens that have piled up come in one. `Finished` or `Failed` is the last. Raises `NodeFailed` if the node is
        lost, after all that arrived before. Cancelling the task that waits here loses nothing.
        """
        if self._answers:
            await trio.lowlevel.checkpoint()
        while not self._answers:
            if self._over is not None:
                raise NodeFailed(self._connection.peer.label, self._over)
            await self._connection.alarm.park(self._news, until)
            if not self._answers and trio.current_time() >= until:
                return None
        return self._take()

    def cancel(self) -> None:
        """Stop the request at the node, if it is not over. What was not received is dropped. May be called again."""
        self._answers.clear()
        if self._over is None:
            self._connection.cancel(self._id)
            self.end("the request was cancelled")

    def lose_node(self, reason: str) -> None:
        """The node is dead: end this request, and all others on the same connection."""
        self._connection.give_up(reason)

    def arrive(self, answer: NodeMessage) -> None:
        """Take an answer from the connection. Raises `BadMessage` for one that does not belong here."""
        if self._accepted and isinstance(answer, Tokens):
            self._arrive_tokens(answer)
            return
        if isinstance(answer, Embeddings) != self._embeds and not isinstance(answer, Failed):
            raise BadMessage("not an answer to this request", "type")
        if not self._embeds and isinstance(answer, Accepted) == self._accepted and not isinstance(answer, Failed):
            raise BadMessage("an answer out of order", "type")
        if isinstance(answer, Accepted):
            self._accepted = True
            self._hear(answer.state)
        elif not isinstance(answer, Embeddings | Finished | Failed):
            raise BadMessage("not an answer to this request", "type")
        self._answers.append(answer)
        if isinstance(answer, Embeddings | Finished | Failed):
            if isinstance(answer, Finished):
                self._hear(answer.state)
            self._connection.forget(self._id)
            self.end("the request is over")
        self._news.unpark_all()

    def _arrive_tokens(self, tokens: Tokens) -> None:
        if not tokens.token_ids:
            raise BadMessage("text without tokens", "token_ids")
        self._answers.append(tokens)
        self._ahead += len(tokens.token_ids) + len(tokens.text)
        if tokens.logprobs:
            self._ahead += sum(1 + len(told.top) for told in tokens.logprobs)
        if self._ahead > MAX_AHEAD:
            self._answers.append(Failed(code="slow_reader", message="the reader lags too far behind", id=self._id))
            self._connection.cancel(self._id)
            self.end("the reader lagged")
        self._news.unpark_all()

    def end(self, reason: str) -> None:
        """Nothing more will arrive."""
        self._over = reason
        self._news.unpark_all()

    def _hear(self, state: ModelState | None) -> None:
        if self._on_state is not None:
            self._on_state(state)

    def _take(self) -> Answer:
        first = self._answers.popleft()
        if not isinstance(first, Tokens):
            return first
        run = [first]
        while self._answers and isinstance(following := self._answers[0], Tokens):
            run.append(following)
            self._answers.popleft()
        self._ahead = 0
        if len(run) == 1:
            return first
        ids = itertools.chain.from_iterable(tokens.token_ids for tokens in run)
        logprobs = itertools.chain.from_iterable(tokens.logprobs for tokens in run)
        text = "".join(tokens.text for tokens in run)
        return Tokens(id=self._id, text=text, token_ids=tuple(ids), logprobs=tuple(logprobs))


class Connection:
    """A websocket to one node, from before it is open until it is lost."""

    def __init__(self, peer: Peer, alarm: Alarm) -> None:
        self.peer = peer
        self.alarm = alarm
        self.lost: str | None = None
        """Why the connection cannot be used any more."""
        self.used_at = trio.current_time()
        self._ids = itertools.count()
        self._exchanges: dict[int, Exchange] = {}
        self._scope = trio.CancelScope()
        self._outbox, self._to_write = trio.open_memory_channel[bytes | str](MAX_OUTBOX)

    @property
    def in_flight(self) -> int:
        """Requests that are not over."""
        return len(self._exchanges)

    def submit(self, request: Generate | Embed, on_state: OnState | None) -> Exchange:
        """Send `request` (under an id of the connection's own) as soon as the connection is open."""
        exchange = Exchange(self, next(self._ids), on_state, embeds=isinstance(request, Embed))
        self._exchanges[exchange._id] = exchange
        self._put(encode_message(attrs.evolve(request, id=exchange._id)))
        return exchange

    def cancel(self, request_id: int) -> None:
        """Stop a request at the node and forget it."""
        self.forget(request_id)
        self._put(encode_message(Cancel(id=request_id)))

    def forget(self, request_id: int) -> None:
        """Drop what still arrives for a request."""
        self._exchanges.pop(request_id, None)
        self.used_at = trio.current_time()

    def close(self) -> None:
        """Close at once."""
        self._scope.cancel()

    def give_up(self, reason: str) -> None:
        """End all requests for `reason`, and close at once."""
        self._lose(reason)
        self.close()

    def _put(self, data: bytes | str) -> None:
        if self.lost is not None:
            return
        try:
            self._outbox.send_nowait(data)
        except trio.WouldBlock:
            self.give_up("it reads nothing")

    def _lose(self, reason: str) -> None:
        if self.lost is None:
            self.lost = reason
            for exchange in self._exchanges.values():
                exchange.end(reason)
            self._exchanges.clear()

    async def run(self, open_stream: OpenStream, tls: ssl.SSLContext) -> None:
        """Open the connection and keep it until it is lost or closed."""
        try:
            with self._scope:
                await self._run(open_stream, tls)
        except NodeFailed as error:
            self._lose(error.reason)
        except _NETWORK_ERRORS as error:
            self._lose(_lost(error))
        except BaseExceptionGroup as group:
            network, rest = group.split(_NETWORK_ERRORS)
            if rest is not None:
                raise rest from None
            self._lose(_lost(network))
        finally:
            self._lose("the connection was closed")

    async def _run(self, open_stream: OpenStream, tls: ssl.SSLContext) -> None:
        transport = None
        try:
            with trio.move_on_after(CONNECT_S) as connecting:
                transport = stream = await open_stream(self.peer.host, self.peer.port)
                if self.peer.tls:
                    stream = secured = TlsStream(transport, tls)
                    await secured.do_handshake()
                    verify_peer(secured, self.peer.public_key, self.peer.label)
                websocket = Websocket(stream, max_message_bytes=MAX_MESSAGE_BYTES)
                await websocket.open(self.peer.host, "/", SUBPROTOCOL_MSGPACK)
            if connecting.cancelled_caught:
                self._lose(f"no connection within {CONNECT_S:g} s")
                return
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, websocket)
                nursery.start_soon(self._close_idle, websocket)
                await self._read(websocket)
                nursery.cancel_scope.cancel()
        finally:
            if transport is not None:
                await trio.aclose_forcefully(transport)

    async def _write(self, websocket: Websocket) -> None:
        try:
            async for data in self._to_write:
                await websocket.send(data)
        except (WebsocketClosed, trio.BrokenResourceError):
            return  # The reader hears of it too, and tells it, after what has arrived.

    async def _read(self, websocket: Websocket) -> None:
        try:
            while True:
                for data in await websocket.receive():
                    message = decode_node_message_untrusted(data)
                    if message.id is None:
                        self._lose(f"it ended the connection: {message.message}")
                        return
                    if exchange := self._exchanges.get(message.id):
                        exchange.arrive(message)
        except BadMessage as error:
            self._lose(f"it broke the protocol: {error}")

    async def _close_idle(self, websocket: Websocket) -> None:
        idle = False
        while not idle:
            await trio.sleep(IDLE_S)
            idle = not self._exchanges and trio.current_time() - self.used_at >= IDLE_S
        self._lose("the connection was idle")
        with trio.move_on_after(CLOSE_S):
            await websocket.close()
            await trio.sleep_forever()  # The reader hears the other end close, and ends this.
        self.close()


def _lost(error: BaseException | None) -> str:
    """Why a connection was lost, in a few words."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, WebsocketClosed):
        return str(error)
    if isinstance(error, trio.BrokenResourceError | trio.ClosedResourceError):
        return "the connection broke"
    return f"no connection ({error})"


class ConnectionPool:
    """The connections of one client. They live in `nursery`, and end with it."""

    def __init__(self, nursery: trio.Nursery, open_stream: OpenStream = trio.open_tcp_stream) -> None:
        self._nursery = nursery
        self._open_stream = open_stream
        self._tls = client_tls()
        self._alarm = Alarm()
        nursery.start_soon(self._alarm.run)
        self._connections: dict[Peer, list[Connection]] = {}

    def submit(self, peer: Peer, request: Generate | Embed, on_state: OnState | None = None) -> Exchange:
        """Send `request` to `peer`, over a connection that is there or that is opened for it."""
        for connection in self._connections.get(peer, ()):
            if connection.lost is None and connection.in_flight < MAX_REQUESTS:
                return connection.submit(request, on_state)
        self._close_surplus()
        connection = Connection(peer, self._alarm)
        self._connections.setdefault(peer, []).append(connection)
        self._nursery.start_soon(self._run, connection)
        return connection.submit(request, on_state)

    async def _run(self, connection: Connection) -> None:
        try:
            await connection.run(self._open_stream, self._tls)
        finally:
            same = self._connections[connection.peer]
            same.remove(connection)
            if not same:
                del self._connections[connection.peer]

    def _close_surplus(self) -> None:
        idle = [c for same in self._connections.values() for c in same if not c.in_flight and c.lost is None]
        idle.sort(key=lambda connection: connection.used_at)
        for connection in idle[: max(0, len(idle) - MAX_IDLE + 1)]:
            connection.close()
