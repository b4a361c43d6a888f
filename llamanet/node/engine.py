"""One model behind a trio interface: submit a request, read its messages, cancel it.

Rules:
- `submit` answers at once: the queue is bounded, and past it comes `EngineBusy`.
- A generation's messages wait in a buffer of `buffer_tokens` tokens; a reader that lags gets several tokens in one
  message, and past the buffer pauses its own sequence, nobody else's.
- Whoever submits cancels, in a `finally`: what nobody reads holds its slot until the reader's time is over.
"""

import itertools
from collections.abc import Callable

import attrs
import trio

from llamanet.errors import EngineBusy
from llamanet.node.answer import Answer
from llamanet.node.backend import Backend
from llamanet.node.chat_template import ChatTemplate
from llamanet.node.core import Admitted, Cancel, Embedded, EngineCore, Event, Paused, Produced, Submit, Unpause
from llamanet.node.embedding import Embedding
from llamanet.node.prepare import prepare, prepare_texts
from llamanet.node.rates import Rates
from llamanet.node.sequence import Sequence
from llamanet.node.worker import ThreadWorker, Worker
from llamanet.wire.inference import (
    CAPABILITY_EMBEDDINGS,
    CAPABILITY_GRAMMAR,
    CAPABILITY_JSON,
    CAPABILITY_LIVE_STATE,
    Accepted,
    Embed,
    Embeddings,
    Failed,
    Finished,
    Generate,
)
from llamanet.wire.state import ModelState

EMBED_WEIGHT = 0.1
"""Of the newest batch in the average rate of embedding."""
SHORT_PROMPT_TOKENS = 32
"""What `ModelState.ttft_s` takes for a short prompt."""
RETRY_S = (0.1, 10.0)
"""The least and the most that a refusal tells to wait, in seconds: answers may end before their limit."""
TYPICAL_TOKENS = 128
"""Left of an answer that has no limit but the context, for all that is known."""


@attrs.frozen(kw_only=True)
class EngineConfig:
    """The limits that one engine keeps.

    `node_id` is the label that replies carry. `max_waiting` bounds the requests that wait for a slot.
    `buffer_tokens` is how far a reader may lag, and `reader_timeout` how long, in seconds, it may then take nothing.
    `target_step_s` is how long a step may take, in seconds, while anyone streams.
    """

    node_id: str = ""
    max_waiting: int = 64
    buffer_tokens: int = 256
    reader_timeout: float = 30.0
    target_step_s: float = 0.15


async def serve_engine(
    name: str,
    digest: bytes,
    make_backend: Callable[[], Backend],
    config: EngineConfig,
    *,
    make_worker: Callable[[], Worker] = ThreadWorker,
    task_status: trio.TaskStatus["Engine"] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the model that `make_backend` loads, until cancelled; then stop the thread and free the model.

    `task_status` gets the `Engine` once the model is loaded. Generations that are still open end with
    `Failed(code="draining")`. Raises what `make_backend` raises (`ModelFileError`, for one), and `BackendError` if the
    model cannot compute a first token.
    """
    worker = make_worker()
    try:
        backend = await worker.own(make_backend)
        try:
            core = EngineCore(
                backend,
                node_id=config.node_id,
                buffer_tokens=config.buffer_tokens,
                reader_timeout=config.reader_timeout,
                target_step_s=config.target_step_s,
                clock=worker.clock,
            )
            await worker.own(core.measure)
            async with trio.open_nursery() as nursery:
                engine = Engine(name, digest, config, core, worker, nursery)
                nursery.start_soon(worker.drive, core, engine._deliver)
                try:
                    task_status.started(engine)
                    await trio.sleep_forever()
                finally:
                    engine._close()
        finally:
            # Not before: requests in preparation have used the model until the nursery was done.
            with trio.CancelScope(shield=True):
                await worker.own(backend.close)
    finally:
        worker.stop()


class Engine:
    """A served model. Every method is called from trio's thread."""

    def __init__(
        self,
        name: str,
        digest: bytes,
        config: EngineConfig,
        core: EngineCore,
        worker: Worker,
        nursery: trio.Nursery,
    ) -> None:
        """Made by `serve_engine`."""
        self.name = name
        self.digest = digest
        """SHA-256 of the model file."""
        self.n_ctx = core.backend.n_ctx
        """Tokens that a prompt and its answer may have together."""
        self.slots = core.backend.slots
        """Requests that run at the same time."""
        self._config = config
        self._core = core
        self._worker = worker
        self._nursery = nursery
        self._template = ChatTemplate(
            core.backend.chat_template, bos_text=core.backend.bos_text, eos_text=core.backend.eos_text
        )
        self._serials = itertools.count()
        self._generations: dict[int, Generation] = {}
        self._preparing: set[int] = set()
        """Also of generations that were cancelled meanwhile: a thread still works for them."""
        self._embeddings: dict[int, Embedding] = {}
        self._texts: dict[int, int] = {}
        """The tokens of each embedding, once they are counted."""
        self._embedded_at = 0.0
        """When the last batch was there, or the first was asked for."""
        self._embedded = 0
        self._embed_rate = 0.0
        """Tokens a second of texts, beside what else there is to do."""
        generates = core.backend.generates
        able = {
            CAPABILITY_EMBEDDINGS: core.backend.n_embd > 0,
            CAPABILITY_GRAMMAR: generates,
            CAPABILITY_JSON: generates,
            CAPABILITY_LIVE_STATE: generates,
        }
        self.capabilities = tuple(name for name in able if able[name])
        """What nodes announce."""
        self._running = 0
        self._closed = False
        self.idle_since: float | None = trio.current_time()
        """Since when no request is in flight, on trio's clock; None while one is."""
        self._idle = trio.lowlevel.ParkingLot()

    def submit(self, request: Generate) -> "Generation":
        """Queue `request`. Raises `EngineBusy` if the queue is full; for streams that began elsewhere it has more room.

        The caller must `cancel` the generation when it stops reading, however that comes about.
        """
        held = len(self._generations.keys() | self._preparing)
        if held >= self.slots + self._config.max_waiting + (self.slots if request.resume else 0):
            raise EngineBusy(held - self.slots, self._slot_free_s())
        generation = Generation(next(self._serials), request, self)
        if self._closed:
            generation._end(_draining(request))
            return generation
        self.idle_since = None
        self._generations[generation._serial] = generation
        self._preparing.add(generation._serial)
        self._nursery.start_soon(self._prepare, generation)
        return generation

    async def embed(self, request: Embed) -> Embeddings | Failed:
        """The vectors of the texts of `request`, a batch after each step of the streams.

        Raises `EngineBusy` if too many such requests are in flight. Cancelling it loses what was computed.
        """
        if len(self._embeddings) >= self._config.max_waiting:
            raise EngineBusy(len(self._embeddings), self._embedding_free_s())
        if self._closed:
            return _draining(request)
        backend = self._core.backend
        serial = next(self._serials)
        self.idle_since = None
        if not self._embeddings:
            self._embedded_at = self._worker.clock()
        embedding = self._embeddings[serial] = Embedding(serial, request, backend.n_batch, backend.slots, self._worker)
        try:
            texts = await self._worker.call(lambda: prepare_texts(request, backend))
            if isinstance(texts, Failed):
                return texts
            self._texts[serial] = sum(map(len, texts))
            return await embedding.run(texts, node_id=self._config.node_id, able=backend.n_embd > 0)
        finally:
            self._worker.send(Cancel(serial))
            del self._embeddings[serial]
            self._texts.pop(serial, None)
            self._rest()

    async def wait_idle(self) -> float:
        """Return when no request is in flight; since when, on trio's clock."""
        while self.idle_since is None:
            await self._idle.park()
        return self.idle_since

    @property
    def rates(self) -> Rates:
        """What was measured and counted so far."""
        return self._core.rates

    def state(self) -> ModelState:
        """How busy and how fast the engine is now."""
        rates = self._core.rates
        running = self._running
        waiting = len(self._generations) - running
        ttft_s = rates.ttft_s(
            slots=self.slots,
            running=running,
            waiting=waiting,
            prompt_tokens=SHORT_PROMPT_TOKENS,
            now=self._worker.clock(),
        )
        if not self._core.backend.generates and self._embed_rate:
            ttft_s += sum(self._texts.values()) / self._embed_rate
        # Texts to embed have no slot, but they compute as what has one: so they count for as many as are free.
        embedding = min(len(self._embeddings), self.slots - running)
        return ModelState(
            name=self.name,
            running=running + embedding,
            waiting=waiting + len(self._embeddings) - embedding,
            slots=self.slots,
            tokens_per_second=rates.stream_rate(self._worker.clock()),
            prefill_tokens_per_second=rates.prefill_rate(self._worker.clock()),
            ttft_s=ttft_s,
            n_ctx=self.n_ctx,
        )

    async def _prepare(self, generation: "Generation") -> None:
        backend, template = self._core.backend, self._template
        serial, request, now = generation._serial, generation.request, self._worker.clock()
        try:
            # Cancelled before its turn, it is not prepared at all; later, the thread goes on to the end.
            with generation._preparation:
                prepared = await self._worker.call(lambda: prepare(serial, request, backend, template, now))
        finally:
            self._preparing.remove(serial)
        if serial not in self._generations:
            return
        if isinstance(prepared, Failed):
            self._end(generation, prepared)
        else:
            generation._sequence = prepared
            self._worker.send(Submit(prepared))

    def _deliver(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Embedded):
                self._count_embedded()
                if embedding := self._embeddings.get(event.serial):
                    embedding.take(event)
                continue
            generation = self._generations.get(event.serial)
            if generation is None:
                continue
            if isinstance(event, Produced):
                generation._add(event.token, event.text, event.logprobs)
            elif isinstance(event, Admitted):
                generation._admitted = True
                self._running += 1
            elif isinstance(event, Paused):
                generation._pause()
            elif isinstance(event.message, Accepted):
                generation._accept(event.message)
            else:
                self._end(generation, event.message)

    def _count_embedded(self) -> None:
        tokens, now = self._core.rates.embedded_tokens, self._worker.clock()
        if now > self._embedded_at and tokens > self._embedded:
            rate = (tokens - self._embedded) / (now - self._embedded_at)
            self._embed_rate += EMBED_WEIGHT * (rate - self._embed_rate) if self._embed_rate else rate
        self._embedded, self._embedded_at = tokens, now

    def _slot_free_s(self) -> float:
        """Seconds until the first of those that run has all its tokens, at the present time for a step."""
        rates = self._core.rates
        step_s = max(rates.gap_s, 1 / rates.decode if rates.decode else 0.0)
        generations = self._generations.values()
        running = [generation for generation in generations if generation._admitted] or generations
        return _retry_s(step_s * min((generation._tokens_left for generation in running), default=0))

    def _embedding_free_s(self) -> float:
        """Seconds until the smallest of the embeddings is there, while all get a batch in turn."""
        least = min(self._texts.values(), default=0) * len(self._embeddings)
        return _retry_s(least / self._embed_rate if self._embed_rate else 1.0)

    def _end(self, generation: "Generation", last: Finished | Failed | None) -> None:
        if self._generations.pop(generation._serial, None) is not None:
            self._running -= generation._admitted
            generation._end(last)
            self._rest()

    def _cancel(self, generation: "Generation") -> None:
        if generation._serial in self._generations:
            self._end(generation, None)
            generation._preparation.cancel()
            self._worker.send(Cancel(generation._serial))

    def _rest(self) -> None:
        if not self._generations and not self._embeddings:
            self.idle_since = trio.current_time()
            self._idle.unpark_all()

    def _close(self) -> None:
        self._closed = True
        for embedding in self._embeddings.values():
            embedding.drain()
        for generation in list(self._generations.values()):
            self._end(generation, _draining(generation.request))


def _retry_s(seconds: float) -> float:
    least, most = RETRY_S
    return max(least, min(most, seconds))


def _draining(request: Generate | Embed) -> Failed:
    return Failed(id=request.id, code="draining", message="the node is shutting down")


class Generation(Answer):
    """One request on the engine."""

    def __init__(self, serial: int, request: Generate, engine: Engine) -> None:
        """Made by `Engine.submit`."""
        super().__init__(request)
        self._serial = serial
        self._engine = engine
        self._preparation = trio.CancelScope()
        self._sequence: Sequence | None = None
        self._admitted = False
        self._paused = False

    def cancel(self) -> None:
        """Free the slot within one engine step. What was not received is dropped. May be called again, or too late."""
        self._engine._cancel(self)
        super().cancel()

    @property
    def _tokens_left(self) -> int:
        """So many will still be drawn, if the model does not end before."""
        limit = self.request.sampling.max_tokens
        if self._sequence is None:
            return limit or TYPICAL_TOKENS
        left = self._sequence.limit - len(self._sequence.tokens)
        return left if limit else min(left, TYPICAL_TOKENS)

    def _taken(self, tokens: int) -> None:
        if self._sequence is not None:
            self._sequence.taken += tokens
        if self._paused:
            self._paused = False
            self._engine._worker.send(Unpause(self._serial))

    def _pause(self) -> None:
        self._paused = True
        if not self._tokens:
            self._taken(0)
