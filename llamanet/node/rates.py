"""How fast an engine is, from the steps that it took: what a node tells others, and what a refusal promises.

All are exponentially weighted averages; `0` means not measured yet.
"""

import math

import attrs

_WEIGHT = 0.1
"""Of the newest measurement: the averages follow a change within some 20 steps."""
_ALONE_WEIGHT = 0.01
"""Of a lone step that was slower than usual: something else may have had the machine for a while."""
_RECOVERY_S = 10.0
_LEAST_SHARE = 0.02
"""The least share of a step's time that is put down to its prompts."""


@attrs.define
class Rates:
    """Measured rates of one engine. Written by its thread; others read single fields."""

    decode: float = 0.0
    """Tokens a second of one stream, when last measured."""
    alone: float = 0.0
    """Tokens a second of a stream that has the engine to itself."""
    idle_since: float = 0.0
    """When the last step ended, on the engine's clock."""
    prefill: float = 0.0
    """Prompt tokens a second, beside what a step costs anyway."""
    service_s: float = 0.0
    """Seconds that a request holds its slot."""
    queue_s: float = 0.0
    """Seconds that a request waits for its slot."""
    first_s: float = 0.0
    """Seconds from a request's arrival to its first token."""
    gap_s: float = 0.0
    """Seconds between two tokens of a stream."""
    batch: float = 0.0
    """Tokens a step."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    embedded_tokens: int = 0
    """All four counted since the start: of prompts, those of them found in memory, drawn, and of texts to embed."""
    memory_tokens: int = 0
    """Remembered now."""
    pending_tokens: int = 0
    """Of the prompts of running requests, what is still to be computed."""
    step_began: float | None = None
    """When the step in flight began, on the engine's clock; None between steps."""
    _prompt_s: float = attrs.field(default=0.0, init=False)
    _prompt_tokens: float = attrs.field(default=0.0, init=False)
    """The averages that `prefill` is the ratio of, so that long prompts count for more."""

    def admitted(self, *, queue_s: float, prompt_tokens: int, cached_tokens: int) -> None:
        """Count a request that got its slot."""
        # A first wait of 0 is a measurement here.
        self.queue_s += _WEIGHT * (queue_s - self.queue_s)
        self.prompt_tokens += prompt_tokens
        self.cached_tokens += cached_tokens

    def drew_first(self, first_s: float) -> None:
        """Count the first token of a stream, drawn `first_s` seconds after the request arrived."""
        self.completion_tokens += 1
        self.first_s = _average(self.first_s, first_s)

    def drew(self, gap_s: float) -> None:
        """Count a token, drawn `gap_s` seconds after the one before it."""
        self.completion_tokens += 1
        self.gap_s = _average(self.gap_s, gap_s)

    def step(self, *, drawing: int, tokens: int, seconds: float, now: float) -> None:
        """Count a step that ended at `now` and computed `tokens` tokens, of which `drawing` were followed by a draw."""
        if seconds <= 0:
            return
        self.decode = self._rested(now - seconds - self.idle_since)
        self.idle_since = now
        self.batch = _average(self.batch, tokens)
        if tokens == drawing:
            self.decode = _average(self.decode, 1 / seconds)
            if drawing == 1:
                slower = 1 / seconds < self.alone
                self.alone = _average(self.alone, 1 / seconds, _ALONE_WEIGHT if slower else _WEIGHT)
        elif tokens >= 2 * drawing:
            # A prompt joins a step that costs something without it too; but never is a prompt free.
            fixed = 1 / self.decode if self.decode else 0.0
            net = max(seconds - fixed, _LEAST_SHARE * seconds)
            self._prompt_s = _average(self._prompt_s, net)
            self._prompt_tokens = _average(self._prompt_tokens, tokens - drawing)
            self.prefill = self._prompt_tokens / self._prompt_s

    def stream_rate(self, now: float) -> float:
        """Tokens a second that a stream should expect at `now`: what was slow under load recovers while it is idle."""
        return self._rested(now - self.idle_since) if self.step_began is None else self.decode

    def _rested(self, idle_s: float) -> float:
        return self.decode + (1 - math.exp(-max(0.0, idle_s) / _RECOVERY_S)) * max(0.0, self.alone - self.decode)

    def served(self, seconds: float) -> None:
        """Count a request that held its slot for `seconds`."""
        self.service_s = _average(self.service_s, seconds)

    def place_s(self, slots: int) -> float:
        """Seconds until a slot is expected to become free while all are taken."""
        return self.service_s / slots

    def ttft_s(self, *, slots: int, running: int, waiting: int, prompt_tokens: int, now: float) -> float:
        """Seconds to the first token that a request with `prompt_tokens` to compute should expect at `now`.

        A step that lasts long will last as long again, for all that is known: so an engine that hangs is soon avoided.
        """
        compute = (prompt_tokens + self.pending_tokens) / self.prefill if self.prefill else 0.0
        rate = self.stream_rate(now)
        step = 1 / rate if rate else 0.0
        queue = max(0, running + waiting - slots + 1) * self.place_s(slots)
        began = self.step_began
        return queue + compute + step + (0.0 if began is None else max(0.0, now - began))


def _average(old: float, new: float, weight: float = _WEIGHT) -> float:
    return old + weight * (new - old) if old else new
