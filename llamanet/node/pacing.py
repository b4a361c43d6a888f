"""How many prompt tokens a step may hold, so that nobody waits long for the next token, or for a first one. Pure.

Rules:
- While anyone streams, a step is meant to stay under `target_s`. With prompts alone, one of them is meant to stay under
  `ALONE` times that: so long does a new request, or the cancelling of that one, wait.
- The number follows the steps that were measured: down at once, up to twice as many in a step. What a stream costs,
  and that later prompt tokens cost more than early ones, is in the measurement and needs no model.
- From three quarters of a tile on, a step holds a whole one, which takes as long as 54 tokens do that fill none: so the
  target is missed by a third at most, for prompts that are computed a sixth faster.
- Alone, steps hold whole tiles, so that it makes no difference to what is computed where they end.
- At least `LEAST` tokens go through, however slow the machine, so that no prompt starves.
"""

import attrs

LEAST = 16
START = 32
"""Before anything was measured."""
GROWTH = 2.0
ALONE = 2.0
TILE = 64
"""Tokens of a prompt that llama.cpp's attention computes together on a processor (GGML_FA_TILE_Q of ggml-cpu); what is
left over it computes one by one, and rounds otherwise."""


@attrs.define
class Pace:
    """The pace of one engine. `target_s` in seconds; `n_batch` tokens fit into a step."""

    target_s: float
    n_batch: int
    _size: float = START

    def prompt_tokens(self, *, streaming: bool) -> int:
        """Most prompt tokens for the next step; of each prompt, if nobody streams."""
        size = int(self._size)
        if not streaming:
            size = max(TILE, int(ALONE * self._size) // TILE * TILE)
        elif TILE * 3 / 4 <= size < TILE:
            size = TILE
        return min(self.n_batch, size)

    def step(self, *, prompt_tokens: int, seconds: float) -> None:
        """Count a step with so many prompt tokens; it took `seconds`, its draws included."""
        # A step below the limit says nothing about the limit, unless it was too long even so.
        full = prompt_tokens >= self.prompt_tokens(streaming=True)
        if prompt_tokens and seconds > 0 and (full or seconds > self.target_s):
            fitting = prompt_tokens * self.target_s / seconds
            most = GROWTH * max(self._size, prompt_tokens)
            self._size = max(LEAST, min(fitting, most, self.n_batch))
