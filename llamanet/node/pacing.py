"""How many prompt tokens a step may hold while others stream, so that nobody waits long for the next token. Pure.

Rules:
- Alone, prompts go in full batches. While anyone streams, a step is meant to stay under `target_s`.
- The number follows the steps that were measured: down at once, up to twice as many in a step. What a stream costs,
  and that later prompt tokens cost more than early ones, is in the measurement and needs no model.
- At least `LEAST` tokens go through, however slow the machine, so that no prompt starves.
"""

import attrs

LEAST = 16
START = 32
"""Before anything was measured."""
GROWTH = 2.0


@attrs.define
class Pace:
    """The pace of one engine. `target_s` in seconds; `n_batch` tokens fit into a step."""

    target_s: float
    n_batch: int
    _size: float = START

    def prompt_tokens(self, *, streaming: bool) -> int:
        """Most prompt tokens for the next step."""
        return min(self.n_batch, int(self._size)) if streaming else self.n_batch

    def step(self, *, prompt_tokens: int, seconds: float) -> None:
        """Count a step with so many prompt tokens; it took `seconds`, its draws included."""
        # A step below the limit says nothing about the limit, unless it was too long even so.
        if prompt_tokens and seconds > 0 and (prompt_tokens >= int(self._size) or seconds > self.target_s):
            fitting = prompt_tokens * self.target_s / seconds
            most = GROWTH * max(self._size, prompt_tokens)
            self._size = max(LEAST, min(fitting, most, self.n_batch))
