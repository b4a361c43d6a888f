"""A model that another server on this machine already serves (Ollama, vLLM, llama-server, LM Studio), offered as ours.

Rules:
- It looks to the endpoint like an `Engine`: requests are submitted, read and cancelled in the same way.
- At most `slots` requests are at the server at a time; further ones wait here, and past a bound come `EngineBusy`.
- Cancelling closes the request's connection, which is how such servers are told to stop.
- Load and speed are measured, not asked for: others may use the server too.
"""

import math
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import attrs
import httpx
import trio

from llamanet.errors import EngineBusy, RequestRefused
from llamanet.node.answer import Answer
from llamanet.node.rates import Rates
from llamanet.node.upstream_api import (
    CALL_FORMAT,
    Call,
    ChunkReader,
    EventReader,
    LineTooLong,
    decode_json,
    embed_call,
    generate_call,
    refusal_of,
)
from llamanet.wire.inference import (
    CAPABILITY_EMBEDDINGS,
    CAPABILITY_JSON,
    CAPABILITY_LIVE_STATE,
    CAPABILITY_TEXT_RESUME,
    MAX_VECTOR_BYTES,
    Accepted,
    Embed,
    Embeddings,
    Failed,
    Finished,
    Generate,
    Timings,
    Usage,
)
from llamanet.wire.state import ModelState

MAX_WAITING = 64
BUFFER_TOKENS = 256
READER_S = 30.0
"""How long a reader that lags may take nothing, before its stream is ended."""
MEASURE_S = 1.0
MEASURABLE_S = 0.05
"""Speed is measured over so long, and never over less: servers send several pieces at once."""
SHORT_PROMPT_TOKENS = 32
CHARS_A_TOKEN = 4
"""Before the server has counted a prompt."""
MAX_ERROR_BYTES = 16_384
RETRY_S = (0.1, 10.0)


@attrs.frozen(kw_only=True)
class UpstreamModel:
    """A model as the server tells of it."""

    id: str
    """What the server calls it."""
    name: str
    """What the swarm calls it."""
    digest: bytes = attrs.field(repr=bytes.hex)
    """Stands for the model's file, which we do not see: nodes whose servers call their models the same are taken to
    have the same."""
    n_ctx: int
    owner: str = ""
    """Whom it belongs to, as the server tells; by that the server is known."""


class UpstreamEngine:
    """One model of the server at the base URL of `http`. Requests run in `nursery`."""

    def __init__(
        self, model: UpstreamModel, http: httpx.AsyncClient, nursery: trio.Nursery, *, label: str, slots: int
    ) -> None:
        self.name = model.name
        self.digest = model.digest
        self.n_ctx = model.n_ctx
        self.slots = slots
        self.capabilities = (
            CAPABILITY_EMBEDDINGS,
            CAPABILITY_JSON,
            CAPABILITY_TEXT_RESUME,
            CAPABILITY_LIVE_STATE,
        )
        self.rates = Rates()
        self.idle_since: float | None = trio.current_time()
        """Since when no request is in flight, on trio's clock; None while one is."""
        self._model = model
        self._http = http
        self._nursery = nursery
        self._label = label
        self._slots = trio.Semaphore(slots)
        self._in_flight = 0
        self._running = 0
        self._refused_until = 0.0
        self._idle = trio.lowlevel.ParkingLot()

    def state(self) -> ModelState:
        """How busy and how fast the server is, as far as our own requests tell."""
        now = trio.current_time()
        running = self.slots if now < self._refused_until else self._running
        waiting = self._in_flight - self._running
        return ModelState(
            name=self.name,
            running=running,
            waiting=waiting,
            slots=self.slots,
            tokens_per_second=self.rates.stream_rate(now),
            prefill_tokens_per_second=self.rates.prefill_rate(now),
            ttft_s=self.rates.ttft_s(
                slots=self.slots, running=running, waiting=waiting, prompt_tokens=SHORT_PROMPT_TOKENS, now=now
            ),
            n_ctx=self.n_ctx,
        )

    async def wait_idle(self) -> float:
        """Return when no request is in flight; since when, on trio's clock."""
        while self.idle_since is None:
            await self._idle.park()
        return self.idle_since

    def submit(self, request: Generate) -> "Relay":
        """Queue `request`; the caller must `cancel` it when it stops reading. Raises `EngineBusy`."""
        self._enter()
        relay = Relay(request)
        self._nursery.start_soon(self._run, relay)
        return relay

    async def embed(self, request: Embed) -> Embeddings | Failed:
        """The vectors of the texts of `request`. Raises `EngineBusy`."""
        self._enter()
        with self._leaving():
            async with self._place():
                call = embed_call(attrs.evolve(request, model=self._model.id))
                try:
                    response = await self._http.post(call.path.lstrip("/"), json=call.body)
                except httpx.HTTPError as error:
                    return _broken(request, error)
                if response.status_code != 200:
                    return self._refused(request, response.status_code, response.content, response.headers)
                return _embeddings(request, response.content, self._label)

    # --- one generation -----------------------------------------------------------------------------------------------

    async def _run(self, relay: "Relay") -> None:
        request = attrs.evolve(relay.request, model=self._model.id)
        with self._leaving(), relay.scope:
            try:
                call = generate_call(request, owner=self._model.owner)
            except RequestRefused as error:
                relay._end(
                    Failed(id=request.id, code="bad_request", message=str(error), field=error.field, limit=error.limit)
                )
                return
            arrived = trio.current_time()
            async with self._place():
                relay._end(await self._relay(relay, request, call, arrived))

    async def _relay(self, relay: "Relay", request: Generate, call: Call, arrived: float) -> Finished | Failed:
        """Ask the server, and pass on what it says; the last message."""
        began = trio.current_time()
        try:
            async with self._http.stream("POST", call.path.lstrip("/"), json=call.body) as response:
                if response.status_code != 200:
                    body = await _read_some(response)
                    return self._refused(request, response.status_code, body, response.headers)
                return await self._relay_chunks(relay, request, response, arrived, began)
        except httpx.HTTPError as error:
            return _broken(request, error)
        except LineTooLong as error:
            return _broken(request, error)
        except _SlowReader:
            return Failed(id=request.id, code="slow_reader", message=f"nothing was read for {READER_S:.0f} s")

    async def _relay_chunks(
        self, relay: "Relay", request: Generate, response: httpx.Response, arrived: float, began: float
    ) -> Finished | Failed:
        reader = ChunkReader(must_call=request.tool_choice == "required" or request.tool_name is not None)
        guessed = _guessed_tokens(request)
        tool_format = CALL_FORMAT if request.tools else None
        relay._accept(Accepted(id=request.id, node_id=self._label, prompt_tokens=guessed, tool_format=tool_format))
        self.rates.admitted(queue_s=began - arrived, prompt_tokens=guessed, cached_tokens=0)
        made = measured = 0
        last = first = since = began
        async for data in _events(response):
            chunk = decode_json(data)
            if isinstance(chunk, dict) and chunk.get("error"):
                return refusal_of(request, 500, data, None)
            now = trio.current_time()
            for piece in reader.read(chunk):
                if made:
                    self.rates.drew(now - last)
                    measured += 1
                    if now - since >= MEASURE_S:
                        self.rates.step(drawing=1, tokens=1, seconds=(now - since) / measured, now=now)
                        since, measured = now, 0
                else:
                    first = since = now
                    self.rates.drew_first(now - arrived)
                    # A prompt of a few words takes no less time than a short one.
                    tokens = max(guessed, SHORT_PROMPT_TOKENS)
                    self.rates.step(drawing=0, tokens=tokens, seconds=now - began, now=now)
                last = now
                place = len(request.resume) + made
                logprobs = piece.logprobs and attrs.evolve(piece.logprobs, token=place)
                relay._add(place, piece.text, logprobs)
                made += 1
            await relay.wait_room()
        if reader.finish_reason is None:
            return _broken(request, None)
        if reader.ignored_choice:
            return Failed(
                id=request.id,
                code="bad_request",
                message="a call was required, and the server behind this node answered without one",
                field="tool_choice",
                limit='"auto", or a model on another server',
            )
        if last - since >= MEASURABLE_S:
            self.rates.step(drawing=1, tokens=1, seconds=(last - since) / measured, now=last)
        self.rates.served(last - began)
        resumed = len(request.resume)
        if request.sampling.logprobs is None:
            for _ in range(made, reader.completion_tokens or 0):
                relay._add(resumed + made, "", None)
                made += 1
        prompt = reader.prompt_tokens if reader.prompt_tokens is not None else guessed
        usage = Usage(
            prompt_tokens=max(0, prompt - resumed),
            completion_tokens=resumed + made,
            cached_tokens=min(reader.cached_tokens, max(0, prompt - resumed)),
        )
        timings = Timings(queue_s=began - arrived, prefill_s=first - began, decode_s=last - first)
        return Finished(id=request.id, reason=reader.finish_reason, usage=usage, timings=timings)

    def _refused(self, request: Generate | Embed, status: int, body: bytes, headers: httpx.Headers) -> Failed:
        failed = refusal_of(request, status, body, headers.get("retry-after"))
        if failed.retry_after is not None:
            self._refused_until = trio.current_time() + failed.retry_after
        return failed

    # --- counting -----------------------------------------------------------------------------------------------------

    def _enter(self) -> None:
        """Count a request. Raises `EngineBusy`."""
        waiting = self._in_flight - self.slots
        if waiting >= MAX_WAITING:
            least, most = RETRY_S
            raise EngineBusy(waiting, max(least, min(most, self.rates.place_s(self.slots))))
        self._in_flight += 1
        self.idle_since = None

    @contextmanager
    def _leaving(self) -> Iterator[None]:
        """Count no longer, at the end, what `_enter` counted."""
        try:
            yield
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self.idle_since = trio.current_time()
                self._idle.unpark_all()

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        async with self._slots:
            self._running += 1
            try:
                yield
            finally:
                self._running -= 1


class Relay(Answer):
    """A generation at the server."""

    def __init__(self, request: Generate) -> None:
        super().__init__(request)
        self.scope = trio.CancelScope()
        self._room = trio.lowlevel.ParkingLot()

    def cancel(self) -> None:
        """Close the connection to the server. What was not received is dropped. May be called again, or too late."""
        self.scope.cancel()
        super().cancel()

    async def wait_room(self) -> None:
        """Return when the reader does not lag too far. Raises `_SlowReader` if it takes nothing for too long."""
        with trio.move_on_after(READER_S) as silence:
            while len(self._tokens) >= BUFFER_TOKENS:
                await self._room.park()
        if silence.cancelled_caught:
            raise _SlowReader

    def _taken(self, tokens: int) -> None:
        self._room.unpark_all()


class _SlowReader(Exception):
    """A reader has taken nothing for too long."""


def _broken(request: Generate | Embed, error: httpx.HTTPError | LineTooLong | None) -> Failed:
    why = "it ended in the middle of an answer" if error is None else str(error) or type(error).__name__
    return Failed(id=request.id, code="internal", message=f"the server behind this node cannot be used: {why}"[:1_000])


def _guessed_tokens(request: Generate) -> int:
    said = request.prompt if request.prompt is not None else "".join(turn.content for turn in request.messages)
    return max(1, len(said) // CHARS_A_TOKEN)


async def _events(response: httpx.Response) -> AsyncIterator[bytes]:
    """What the server's events hold."""
    reader = EventReader()
    async for received in response.aiter_bytes():
        for data in reader.read(received):
            yield data


async def _read_some(response: httpx.Response) -> bytes:
    data = b""
    async for piece in response.aiter_bytes():
        data += piece
        if len(data) > MAX_ERROR_BYTES:
            break
    return data[:MAX_ERROR_BYTES]


def _embeddings(request: Embed, content: bytes, label: str) -> Embeddings | Failed:
    try:
        body = decode_json(content)
        entries = sorted(body["data"], key=lambda entry: entry["index"])
        vectors = tuple(_packed(entry["embedding"]) for entry in entries)
        tokens = int(body.get("usage", {}).get("prompt_tokens", 0))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, struct.error) as error:
        message = f"the server behind this node gave no embeddings that can be read ({type(error).__name__})"
        return Failed(id=request.id, code="internal", message=message)
    if len(vectors) != len(request.texts):
        message = f"the server behind this node gave {len(vectors)} vectors for {len(request.texts)} texts"
        return Failed(id=request.id, code="internal", message=message)
    return Embeddings(id=request.id, node_id=label, vectors=vectors, prompt_tokens=max(0, tokens))


def _packed(vector: list[float]) -> bytes:
    """The vector at length 1, as it travels. Raises `ValueError` or the like if it is none."""
    length = math.hypot(*vector) or 1.0
    if not math.isfinite(length):
        raise ValueError("not a vector of numbers")
    packed = struct.pack(f"<{len(vector)}f", *(value / length for value in vector))
    if not packed or len(packed) > MAX_VECTOR_BYTES:
        raise ValueError("no vector, or one that is too long")
    return packed
