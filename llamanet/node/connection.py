"""One client's websocket: its requests come in, and what their engines answer goes out.

Rules:
- One task writes: after a step, the tokens of all generations in one piece, which is one TLS record, one system call
  and one wake-up of the reader. A socket that does not drain holds back its own generations only, and these are bounded
  by the engine.
- trio-websocket knows the protocol, and reads. Whole messages are framed here and written past it: through it, each
  would be one more round of trio's scheduler, and after a pause of a step every round costs.
- A request ends with its connection, or with its `Cancel`, within one engine step.
- A request is answered by `Failed` with its id and the connection goes on; only what cannot be tied to one request
  ends the connection: `Failed` without id, then the close code.
"""

import struct
from functools import partial
from typing import TYPE_CHECKING

import attrs
import trio
from trio_websocket import WebSocketConnection

from llamanet.errors import BadMessage, EngineBusy
from llamanet.node.answer import Answer
from llamanet.node.shared_stream import SharedStream
from llamanet.node.sleeper import Sleeper
from llamanet.wire.inference import (
    SUBPROTOCOL_JSON,
    SUBPROTOCOL_MSGPACK,
    Cancel,
    Embed,
    Embeddings,
    Failed,
    Generate,
    NodeMessage,
    Status,
    decode_client_message_untrusted,
    encode_message,
    request_id_of_untrusted,
)

if TYPE_CHECKING:
    from llamanet.node.endpoint import Endpoint, Serving

MAX_REQUESTS = 256
"""In flight on one connection."""
IDLE_S = 300.0
"""A connection with no request in flight is closed after this silence; clients open another when they need one."""
SEND_S = 60.0
"""A peer that takes nothing for this long while an answer waits is gone, or might as well be."""
CLOSE_S = 1.0
"""For a polite close; then the socket is closed without."""

_GOING_AWAY, _UNSUPPORTED, _BAD_DATA, _POLICY = 1001, 1003, 1007, 1008
"""Close codes of RFC 6455, section 7.4.1."""


def _busy(request: Generate | Embed, error: EngineBusy) -> Failed:
    return Failed(id=request.id, code="busy", message=str(error), retry_after=error.retry_after)


@attrs.define
class _Close(Exception):
    """The connection cannot go on: `code` is the websocket close code."""

    code: int
    reason: str


def framed(message: bytes | str) -> bytes:
    """A whole message in one frame, as servers send it. Source: RFC 6455, section 5.2."""
    first, data = (0x81, message.encode()) if isinstance(message, str) else (0x82, message)
    length = len(data)
    if length < 126:
        return bytes((first, length)) + data
    if length < 2**16:
        return struct.pack("!BBH", first, 126, length) + data
    return struct.pack("!BBQ", first, 127, length) + data


class Connection:
    """One client's websocket and its requests in flight."""

    def __init__(
        self, endpoint: "Endpoint", websocket: WebSocketConnection, stream: SharedStream, nursery: trio.Nursery
    ) -> None:
        self._endpoint = endpoint
        self._websocket = websocket
        self._stream = stream
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
            if self._websocket.closed is not None:
                return  # What reads hears of it too, and ends the connection.
            frames = b"".join(framed(encode_message(message, as_json=self._as_json)) for message in messages)
            # Only the end of the connection may interrupt a send: half a frame would garble those that follow.
            with trio.move_on_after(SEND_S) as sending:
                await self._stream.send_all(frames)
            if sending.cancelled_caught:
                self.drop()
                return
            self._end(over)
            if self._closing is not None:
                await self._websocket.aclose(self._closing.code, self._closing.reason[:100])
                self.drop()
                return
