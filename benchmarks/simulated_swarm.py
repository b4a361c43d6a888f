"""A swarm of simulated nodes for `routing.py`: engines as fluids under a virtual clock, no tokens one by one.

A node computes as LlamaNet's does: requests get one of its slots in the order of arrival; while prompts and streams run
together, the prompts get `PROMPT_SHARE` of the time, the oldest prompt at least half of that; each further stream of a
batch slows a step by `BATCH_COST`. What a node tells of itself comes from the node's own `Rates`, fed with what the
fluid would have shown it step by step.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any

import attrs

from llamanet.node.rates import Rates
from llamanet.wire.state import ModelState

SLOTS = 4
MAX_WAITING = 64
PROMPT_SHARE = 0.6
BATCH_COST = 0.15
STEP_S = 0.15
"""A step with prompts while others stream."""
OLD_SHARE = 0.9
"""What a step leaves of an average, as in `Rates`."""
PREFILL = 500.0
"""Prompt tokens a second of the slowest node."""
DECODE = 10.0
"""Tokens a second of one stream alone on the slowest node."""
SHORT_PROMPT_TOKENS = 32


class Clock:
    """What happens when; `now` is in seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def at(self, time: float, function: Callable[..., None], *arguments: Any) -> None:
        self._count += 1
        heapq.heappush(self._events, (time, self._count, function, arguments))

    def run(self, until: float = math.inf) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, function, arguments = heapq.heappop(self._events)
            function(*arguments)

    def spawn(self, process: Generator[Any, Any, None]) -> None:
        """Run a process: it yields seconds to sleep, or a `Wait`, which gives the job that has news, or None."""
        self._step(process, None)

    def _step(self, process: Generator[Any, Any, None], value: Any) -> None:
        try:
            wanted = process.send(value)
        except StopIteration:
            return
        if isinstance(wanted, Wait):
            wanted.begin(self, lambda news: self._step(process, news))
        else:
            self.at(self.now + wanted, self._step, process, None)


@attrs.define(eq=False)
class Job:
    """A request on a node."""

    prompt_left: float
    tokens_left: float
    """The first one included."""
    arrived: float
    conversation: int | None = None
    tokens: int = 0
    """Of prompt and answer, once it is over."""
    admitted: float | None = None
    first_at: float | None = None
    done_at: float | None = None
    stalled: bool = False
    waiter: "Wait | None" = None

    def tell(self) -> None:
        if self.waiter:
            self.waiter.end(self)


class Wait:
    """Until one of `jobs` has news, at most until the time `until`."""

    def __init__(self, jobs: Sequence[Job], until: float) -> None:
        self._jobs = jobs
        self._until = until
        self._resume: Callable[[Job | None], None] | None = None

    def begin(self, clock: Clock, resume: Callable[[Job | None], None]) -> None:
        self._resume = resume
        for job in self._jobs:
            job.waiter = self
        if self._until < math.inf:
            clock.at(max(self._until, clock.now), self.end, None)

    def end(self, news: Job | None) -> None:
        if self._resume is not None:
            resume, self._resume = self._resume, None
            for job in self._jobs:
                job.waiter = None
            resume(news)


class SimulatedNode:
    """One engine. `speed` is in slowest nodes; `factor` is what trouble leaves of it."""

    def __init__(self, clock: Clock, speed: float) -> None:
        self.speed = speed
        self.factor = 1.0
        self.running: list[Job] = []
        self.waiting: deque[Job] = deque()
        self.memories: list[tuple[int | None, int]] = [(None, 0)] * SLOTS
        """Of idle slots, the least recently used first: a conversation, and how many of its tokens."""
        decode, prefill = DECODE * speed, PREFILL * speed
        self.rates = Rates(decode=decode, alone=decode, prefill=prefill, best_prefill=prefill)
        self.requests = 0
        self._clock = clock
        self._updated = 0.0
        self._hung_since = 0.0
        self._version = 0

    # --- what a client can do -----------------------------------------------------------------------------------------

    def submit(self, job: Job) -> float | None:
        """Take a request; or, when the queue is full, say after how many seconds to come again."""
        self._advance()
        if len(self.waiting) >= MAX_WAITING:
            return self.rates.place_s(SLOTS)
        self.requests += 1
        self.waiting.append(job)
        self._settle()
        return None

    def cancel(self, job: Job) -> None:
        self._advance()
        if job in self.running:
            self._leave(job)
        elif job in self.waiting:
            self.waiting.remove(job)
        self._settle()

    def state(self) -> ModelState:
        """As a PONG tells it."""
        self._advance()
        running, waiting = len(self.running), len(self.waiting)
        self.rates.pending_tokens = int(sum(job.prompt_left for job in self.running))
        self.rates.step_began = None if self.factor or not running else self._hung_since
        ttft = self.rates.ttft_s(
            slots=SLOTS,
            running=running,
            waiting=waiting,
            prompt_tokens=SHORT_PROMPT_TOKENS,
            now=self._clock.now,
        )
        return ModelState(
            name="alpha",
            running=running,
            waiting=waiting,
            slots=SLOTS,
            tokens_per_second=self.rates.stream_rate(self._clock.now),
            prefill_tokens_per_second=self.rates.prefill_rate(self._clock.now),
            ttft_s=ttft,
            n_ctx=16_384,
        )

    def set_factor(self, factor: float) -> None:
        """Trouble begins or ends; 0 hangs."""
        self._advance()
        self.factor = factor
        self._hung_since = self._clock.now
        for job in self.running:
            if factor == 0 and job.first_at is not None and not job.stalled:
                job.stalled = True
                job.tell()
        self._settle()

    # --- what only the oracle knows -----------------------------------------------------------------------------------

    def least_ttft(self, prompt_tokens: float) -> float:
        return prompt_tokens / (PREFILL * self.speed * self.factor) if self.factor else math.inf

    def true_ttft(self, prompt_tokens: float) -> float:
        """When a prompt that came now would get its first token, if nothing else came."""
        if not self.factor:
            return math.inf
        self._advance()
        running = [attrs.evolve(job, waiter=None) for job in self.running]
        waiting = deque(attrs.evolve(job, waiter=None) for job in self.waiting)
        ours = Job(prompt_tokens, 2.0, 0.0)
        waiting.append(ours)
        elapsed = 0.0
        while True:
            while waiting and len(running) < SLOTS:
                running.append(waiting.popleft())
            rates = self._rates_of(running)
            step = min(left(job) / rate for job, rate in rates)
            elapsed += step
            for job, rate in rates:
                progress(job, rate * step)
                if job.prompt_left <= 0 and job is ours:
                    return elapsed
            running = [job for job in running if job.tokens_left > 1e-9]

    # --- the fluid ----------------------------------------------------------------------------------------------------

    def _rates_of(self, running: Sequence[Job]) -> list[tuple[Job, float]]:
        """Tokens a second of each job that gets anything."""
        streams = [job for job in running if job.prompt_left <= 0]
        prompts = [job for job in running if job.prompt_left > 0]
        share = PROMPT_SHARE if streams and prompts else 1.0
        rates = []
        if prompts:
            prefill = PREFILL * self.speed * self.factor * share
            if len(prompts) == 1:
                rates.append((prompts[0], prefill))
            else:
                shortest = min(prompts[1:], key=lambda job: job.prompt_left)
                rates += [(prompts[0], prefill / 2), (shortest, prefill / 2)]
        if streams:
            rate = self.factor * (1 - share if prompts else 1.0) / self._decode_step(len(streams))
            rates += [(job, rate) for job in streams]
        return rates

    def _decode_step(self, streams: int) -> float:
        return (1 + BATCH_COST * (streams - 1)) / (DECODE * self.speed)

    def _advance(self) -> None:
        elapsed = self._clock.now - self._updated
        self._updated = self._clock.now
        if not elapsed or not self.factor or not self.running:
            return
        self._measure(elapsed)
        for job, rate in self._rates_of(self.running):
            progress(job, rate * elapsed)

    def _measure(self, elapsed: float) -> None:
        """What the steps within `elapsed` seconds would have shown."""
        rates, now = self.rates, self._clock.now
        streams = sum(job.prompt_left <= 0 for job in self.running)
        rates.decode = rates.stream_rate(now - elapsed)
        rates.idle_since = now
        if streams == len(self.running):
            step = self._decode_step(streams) / self.factor
            rates.decode += (1 - OLD_SHARE ** (elapsed / step)) * (1 / step - rates.decode)
        else:
            seen = PREFILL * self.speed * self.factor * (PROMPT_SHARE if streams else 1.0)
            step = STEP_S / self.factor
            prefill = rates.prefill_rate(now - elapsed)
            rates.prefill = prefill + (1 - OLD_SHARE ** (elapsed / step)) * (seen - prefill)
            rates.prompted = now

    def _settle(self) -> None:
        """Whatever has come to an end, and when the next thing will."""
        now = self._clock.now
        for job in list(self.running):
            if job.prompt_left <= 1e-6 and job.first_at is None:
                job.prompt_left = 0.0
                job.tokens_left -= 1
                job.first_at = now
                job.tell()
            if job.first_at is not None and job.tokens_left <= 1e-6:
                job.done_at = now
                self._leave(job)
                job.tell()
        while self.waiting and len(self.running) < SLOTS:
            self._admit(self.waiting.popleft())
        self._version += 1
        if self.running and self.factor:
            delay = min(left(job) / rate for job, rate in self._rates_of(self.running))
            self._clock.at(now + max(delay, 1e-6), self._on_time, self._version)

    def _on_time(self, version: int) -> None:
        if version == self._version:
            self._advance()
            self._settle()

    def _admit(self, job: Job) -> None:
        job.admitted = self._clock.now
        held = [memory for memory in self.memories if memory[0] is not None and memory[0] == job.conversation]
        memory = held[0] if held else self.memories[0]
        self.memories.remove(memory)
        if held:
            job.prompt_left = max(1.0, job.prompt_left - memory[1])
        self.running.append(job)
        self.rates.admitted(queue_s=job.admitted - job.arrived, prompt_tokens=0, cached_tokens=0)

    def _leave(self, job: Job) -> None:
        self.running.remove(job)
        self.memories.append((job.conversation, job.tokens))
        if job.admitted is not None:
            self.rates.served(self._clock.now - job.admitted)


def left(job: Job) -> float:
    """Tokens to the end of the job's phase."""
    return job.prompt_left if job.prompt_left > 0 else job.tokens_left


def progress(job: Job, tokens: float) -> None:
    if job.prompt_left > 0:
        job.prompt_left = job.prompt_left - tokens if job.prompt_left - tokens > 1e-6 else 0.0
    else:
        job.tokens_left -= tokens


def capacity(speed: float, prompt_tokens: float, answer_tokens: float) -> float:
    """Requests a second that a node of `speed` serves with all slots full, for mean lengths."""
    step = (1 + BATCH_COST * (SLOTS - 1)) / (DECODE * speed)
    return 1 / (prompt_tokens / (PREFILL * speed) + answer_tokens * step / SLOTS)
