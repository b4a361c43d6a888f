"""How fast an engine is, from the steps that it took: what a node tells others, and what a refusal promises.

All are exponentially weighted averages; `0` means not measured yet.
"""

import math

import attrs

_WEIGHT = 0.1
"""Of the newest measurement: the averages follow a change within some 20 steps."""
_BEST_S = 600.0
"""Seconds of slower work after which the best that was measured is believed no more; a slow stretch is shorter."""
_RECOVERY_S = 10.0
"""Seconds without a measurement within which a rate goes back to the best one, for whatever was slow may be over."""
_LEAST_SHARE = 0.02
"""The least share of a step's time that is put down to its prompts."""


@attrs.define
class Rates:
    """Measured rates of one engine. Written by its thread; others read single fields."""

    decode: float = 0.0
    """Tokens a second of one stream, when last measured."""
    alone: float = 0.0
    """Tokens a second of a stream that has the engine to itself, at its best."""
    idle_since: float = 0.0
    """When the last step ended, on the engine's clock."""
    prefill: float = 0.0
    """Prompt tokens a second, beside what a step costs anyway, when last measured."""
    best_prefill: float = 0.0
    prompted: float = 0.0
    """When the last step with a prompt ended, on the engine's clock."""
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
    """When the step in flight, or the batch of texts, began, on the engine's clock; None between them."""
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
        self.decode = _rested(self.decode, self.alone, now - seconds - self.idle_since)
        self.idle_since = now
        self.batch = _average(self.batch, tokens)
        if tokens == drawing:
            self.decode = _average(self.decode, 1 / seconds)
            if drawing == 1:
                self.alone = _best(self.alone, 1 / seconds, seconds)
        elif tokens >= 2 * drawing:
            # A prompt joins a step that costs something without it too; but never is a prompt free.
            fixed = 1 / self.decode if self.decode else 0.0
            net = max(seconds - fixed, _LEAST_SHARE * seconds)
            if self.prefill:
                self._prompt_s = self._prompt_tokens / self.prefill_rate(now - seconds)
            self._prompt_s = _average(self._prompt_s, net)
            self._prompt_tokens = _average(self._prompt_tokens, tokens - drawing)
            self.prefill = self._prompt_tokens / self._prompt_s
            self.prompted = now
            # What is left of a step that took hardly longer than without its prompt is no measure of the best.
            if net >= seconds / 2:
                self.best_prefill = _best(self.best_prefill, self.prefill, seconds)

    def stream_rate(self, now: float) -> float:
        """Tokens a second that a stream should expect at `now`: what was slow under load recovers while it is idle."""
        return self.decode if self.step_began is not None else _rested(self.decode, self.alone, now - self.idle_since)

    def prefill_rate(self, now: float) -> float:
        """Prompt tokens a second that a prompt should expect at `now`; it recovers while no prompt is measured."""
        return _rested(self.prefill, self.best_prefill, now - self.prompted)

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
        prefill = self.prefill_rate(now)
        compute = (prompt_tokens + self.pending_tokens) / prefill if prefill else 0.0
        rate = self.stream_rate(now)
        step = 1 / rate if rate else 0.0
        queue = max(0, running + waiting - slots + 1) * self.place_s(slots)
        began = self.step_began
        return queue + compute + step + (0.0 if began is None else max(0.0, now - began))


def _average(old: float, new: float) -> float:
    return old + _WEIGHT * (new - old) if old else new


def _best(best: float, new: float, seconds: float) -> float:
    """What is better counts soon; what is worse, by the time that it lasts."""
    return _average(best, new) if new >= best else best + (1 - math.exp(-seconds / _BEST_S)) * (new - best)


def _rested(rate: float, best: float, seconds: float) -> float:
    """A rate that was not measured for so long."""
    return rate + (1 - math.exp(-max(0.0, seconds) / _RECOVERY_S)) * max(0.0, best - rate)
