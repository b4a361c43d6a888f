"""The engine's step: schedule, decode one batch, draw, and say what came of it.

Synchronous and free of trio: a worker thread drives it in a node (`node/worker.py`), a trio task in tests
(`testing/backend.py`). Rules:
- Commands come in between steps, so that a cancelled sequence is gone before the next step, in its prompt too.
- A sequence whose reader lags `buffer_tokens` behind is paused; nobody else waits. After `reader_timeout` it is lost.
- A failed computation ends the sequences in it, and only those.
- Texts are embedded between the steps, one batch a step. While anybody generates it holds no more than half of what the
  `Pace` allows for prompts, and prompts get the rest. A text longer than all of that is computed in pieces, or whole if
  the model looks ahead in it. After each, streams have at least as long to themselves as it took.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeAlias

import attrs

from llamanet.errors import RequestRefused
from llamanet.node.backend import Backend, BackendError, Chunk
from llamanet.node.pacing import Pace
from llamanet.node.prefix_cache import Placement
from llamanet.node.rates import Rates
from llamanet.node.scheduler import Scheduler, Step
from llamanet.node.sequence import Sequence
from llamanet.wire.inference import Accepted, Failed, Finished, TokenLogprobs


@attrs.frozen
class Submit:
    """Take a prepared sequence."""

    sequence: Sequence


@attrs.frozen
class Cancel:
    """Drop a sequence, or the texts to embed, if they are still there."""

    serial: int


@attrs.frozen
class Unpause:
    """The reader of a paused sequence has caught up."""

    serial: int


@attrs.frozen
class EmbedBatch:
    """Embed the first of these tokenized texts, at least one; `Backend.embed` would take all."""

    serial: int
    texts: list[list[int]]


Command: TypeAlias = Submit | Cancel | Unpause | EmbedBatch


@attrs.frozen
class Admitted:
    """The sequence has a slot now."""

    serial: int


@attrs.frozen
class Produced:
    """A token, and the text that it made certain."""

    serial: int
    token: int
    text: str
    logprobs: TokenLogprobs | None = None
    """If the request asks for them."""


@attrs.frozen
class Paused:
    """The reader lags; an `Unpause` is awaited."""

    serial: int


@attrs.frozen
class Told:
    """A message for the reader. `Finished` and `Failed` are the last of their sequence."""

    serial: int
    message: Accepted | Finished | Failed


@attrs.frozen
class Embedded:
    """The vectors of the first texts of an `EmbedBatch`, or why there are none."""

    serial: int
    result: list[bytes] | BackendError


Event: TypeAlias = Admitted | Produced | Paused | Told | Embedded


class EngineCore:
    """The state of one engine; every method is called from the one thread or task that drives it."""

    def __init__(
        self,
        backend: Backend,
        *,
        node_id: str,
        buffer_tokens: int,
        reader_timeout: float,
        target_step_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.backend = backend
        self.clock = clock
        self.rates = Rates()
        self._node_id = node_id
        self._buffer_tokens = buffer_tokens
        self._reader_timeout = reader_timeout
        self._pace = Pace(target_step_s, backend.n_batch)
        self._scheduler = Scheduler(
            slots=backend.slots, n_ctx=backend.n_ctx, n_batch=backend.n_batch, pace=self._pace, cuts=backend.cuts
        )
        self._sequences: dict[int, Sequence] = {}
        self._events: list[Event] = []
        self._batches: deque[EmbedBatch] = deque()
        self._begun = 0
        """How many tokens of the very first text are computed."""
        self._embedded = 0
        """Tokens embedded since the last step."""
        self._embeds_from = -math.inf
        """While anybody generates, the next batch is not embedded before."""

    def measure(self) -> None:
        """Time one token, so that a node that never served can say how fast it is. It also touches the weights."""
        if not self.backend.generates:
            return
        chunk = Chunk(0, 0, [0], True)
        self.backend.decode([chunk])
        self.backend.forget(0, 0)
        start = self.clock()
        self.backend.decode([chunk])
        now = self.clock()
        self.rates.step(drawing=1, tokens=1, seconds=now - start, now=now)
        self.backend.forget(0, 0)

    def take_events(self) -> list[Event]:
        """What happened since the last call, in order."""
        events, self._events = self._events, []
        return events

    def execute(self, commands: Iterable[Command]) -> None:
        """Carry out what the readers want."""
        for command in commands:
            if isinstance(command, Submit):
                self._submit(command.sequence)
            elif isinstance(command, EmbedBatch):
                self._batches.append(command)
            elif isinstance(command, Cancel) and any(batch.serial == command.serial for batch in self._batches):
                self._cancel_texts(command.serial)
            elif sequence := self._sequences.get(command.serial):
                if isinstance(command, Cancel):
                    self._drop(sequence)
                else:
                    sequence.paused_at = None

    def plan(self) -> Step:
        """The next batch; without chunks if nothing can be computed before another command, or `wake_at`."""
        if self._batches and self.clock() >= self._next_embed():
            self._embed()
        now = self.clock()
        for sequence, since in self._paused():
            if now >= since + self._reader_timeout:
                message = f"the reader took nothing for {self._reader_timeout:g} s"
                self._fail(sequence, "slow_reader", message)
        while admitted := self._scheduler.admit():
            self._admit(*admitted, now)
        if move := self._scheduler.move():
            self.backend.move(move.slot, move.target)
        # Before anybody hears of those that were admitted.
        self.rates.pending_tokens = self._scheduler.pending_tokens
        embedded, self._embedded = self._embedded, 0
        return self._scheduler.plan(spent=embedded)

    def wake_at(self) -> float | None:
        """When there is something to do without a step: a text to embed, or a reader to give up; None: nothing."""
        times = [since + self._reader_timeout for _, since in self._paused()]
        if self._batches:
            times.append(self._next_embed())
        return min(times, default=None)

    def _next_embed(self) -> float:
        return self._embeds_from if self._scheduler.running else -math.inf

    def _paused(self) -> list[tuple[Sequence, float]]:
        running = self._scheduler.running.values()
        return [(sequence, since) for sequence in running if (since := sequence.paused_at) is not None]

    def compute(self, step: Step) -> None:
        """Decode the step's chunks and draw the tokens that follow them."""
        start = self.clock()
        self.rates.step_began = start
        try:
            self._compute(step, start)
        finally:
            self.rates.step_began = None

    def _compute(self, step: Step, start: float) -> None:
        try:
            self.backend.decode(step.chunks)
        except BackendError as error:
            for sequence, _ in step.parts:
                sequence.computed = 0
                self._fail(sequence, "internal", str(error))
            return
        drawn_at = self.clock()
        for sequence, chunk in step.parts:
            sequence.computed += len(chunk.tokens)
            if chunk.draws:
                self._draw(chunk.slot, sequence, drawn_at)
        now = self.clock()
        seconds = now - start
        self.rates.step(drawing=step.drawing, tokens=step.tokens, seconds=seconds, now=now)
        self.rates.memory_tokens = self._scheduler.memory_tokens
        self.rates.pending_tokens = self._scheduler.pending_tokens
        self._pace.step(prompt_tokens=step.prompt_tokens, seconds=seconds)

    def _submit(self, sequence: Sequence) -> None:
        sequence.cached = min(self._scheduler.cached(sequence.tokens), sequence.prompt_tokens)
        accepted = Accepted(
            id=sequence.request.id,
            node_id=self._node_id,
            prompt_tokens=sequence.prompt_tokens,
            cached_tokens=sequence.cached,
            tool_format=sequence.tool_format,
        )
        self._events.append(Told(sequence.serial, accepted))
        if sequence.reason is not None:
            self._finish(sequence, sequence.reason)
            return
        self._sequences[sequence.serial] = sequence
        self._scheduler.add(sequence)

    def _admit(self, placement: Placement, sequence: Sequence, now: float) -> None:
        slot = placement.slot
        sequence.admitted = now
        if placement.source != slot:
            self.backend.copy(placement.source, slot)
        if not self.backend.forget(slot, placement.reused):
            self.backend.forget(slot, 0)
            sequence.computed = 0
        sequence.cached = min(sequence.computed, sequence.prompt_tokens)
        self.rates.admitted(
            queue_s=now - sequence.arrived, prompt_tokens=sequence.prompt_tokens, cached_tokens=sequence.cached
        )
        self.backend.begin(
            slot,
            sequence.request.sampling,
            sequence.seed,
            sequence.tokens[: sequence.prompt_tokens],
            sequence.tokens[sequence.prompt_tokens :],
        )
        self._events.append(Admitted(sequence.serial))

    def _cancel_texts(self, serial: int) -> None:
        if self._batches[0].serial == serial:
            self._begun = 0
        self._batches = deque(batch for batch in self._batches if batch.serial != serial)

    def _embed(self) -> None:
        streaming = bool(self._scheduler.running)
        most = self._pace.prompt_tokens(streaming=streaming)
        batch, done = self._batches[0], self._begun
        first, *others = batch.texts
        piece = self.backend.embeds_pieces and len(first) - done > most
        texts, tokens = [first], most if piece else len(first) - done
        for other in () if piece else others:
            if tokens + len(other) > most // (2 if streaming else 1):
                break
            texts.append(other)
            tokens += len(other)
        start = self.clock()
        self.rates.step_began = start
        result: list[bytes] | BackendError | None = None
        try:
            if piece:
                self.backend.embed_piece(first, done, done + tokens)
            else:
                result = self.backend.embed(texts, done=done)
        except BackendError as error:
            result = error
        finally:
            self.rates.step_began = None
        self._begun = 0 if result is not None else done + tokens
        if result is not None:
            self._batches.popleft()
            self._events.append(Embedded(batch.serial, result))
        self._embedded = tokens
        self.rates.embedded_tokens += tokens
        end = self.clock()
        self._embeds_from = end + (end - start)
        self._pace.step(prompt_tokens=tokens, seconds=end - start)

    def _draw(self, slot: int, sequence: Sequence, now: float) -> None:
        try:
            token = self.backend.draw(slot, sequence.generated)
        except BackendError as error:
            self._fail(sequence, "internal", str(error))
            return
        except RequestRefused as error:
            self._fail(sequence, "bad_request", str(error), field=error.field, limit=error.limit)
            return
        if sequence.drew_last is None:
            sequence.drew_first = now
            self.rates.drew_first(now - sequence.arrived)
        else:
            self.rates.drew(now - sequence.drew_last)
        sequence.drew_last = now
        text = sequence.append(token, self.backend)
        top = sequence.request.sampling.logprobs
        logprobs = None if top is None else self.backend.logprobs(slot, token, top)
        self._events.append(Produced(sequence.serial, token, text, logprobs))
        if sequence.reason is not None:
            self._drop(sequence)
            self._finish(sequence, sequence.reason)
        elif sequence.drawn - sequence.taken >= self._buffer_tokens:
            sequence.paused_at = now
            self._events.append(Paused(sequence.serial))

    def _drop(self, sequence: Sequence) -> None:
        if sequence.slot is not None:
            self.backend.end(sequence.slot)
        if sequence.admitted is not None:
            self.rates.served(self.clock() - sequence.admitted)
        self._scheduler.remove(sequence)
        del self._sequences[sequence.serial]

    def _finish(self, sequence: Sequence, reason: str) -> None:
        finished = Finished(
            id=sequence.request.id,
            reason=reason,
            usage=sequence.usage(),
            timings=sequence.timings(self.clock()),
        )
        self._events.append(Told(sequence.serial, finished))

    def _fail(
        self, sequence: Sequence, code: str, message: str, *, field: str | None = None, limit: str | None = None
    ) -> None:
        self._drop(sequence)
        failed = Failed(id=sequence.request.id, code=code, message=message, field=field, limit=limit)
        self._events.append(Told(sequence.serial, failed))
