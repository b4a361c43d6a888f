"""Which slot a new prompt goes to, and how much of what slots remember it can reuse. Pure.

Each slot has memory of its own (llama.cpp's per-sequence KV cells), and remembers what it computed until it is taken
again. Measured on two busy cores: this is as fast as one pool of cells for all, what idle slots remember does not slow
the running ones down (in the pool 1,500 idle tokens did, by 5 %), and a copy costs about a step (9 ms for 2,048 tokens
of a 135M model), where computing costs that for every few tokens. Rules:
- A prompt reuses the longest prefix, token by token, that any slot remembers, live or idle. Its last token is always
  computed, for what is drawn depends on it.
- It takes over an idle slot that remembers little else. Otherwise the prefix is copied into the least recently used
  idle slot, so that a system prompt or a conversation that others still need stays where it is.
- A slot's last use is when it was taken, not when it became idle: so requests that come together get neighbouring
  slots, round after round, and only neighbours are computed in one pass by llama.cpp (`neighbours.py`).
- A live slot is never taken or cut.
- Memory that cannot be cut (a recurrent model's) is reused whole or not at all: a conversation goes on, but two
  questions after one system prompt do not share it.
"""

from collections.abc import Mapping, Sequence

import attrs

COPY_SHARE = 64
"""A prefix is copied if it has at least this part of the context: a copy moves the whole of it, needed or not."""


@attrs.frozen
class Placement:
    """Take `slot`; `reused` tokens come from the memory of `source`, which is `slot` itself unless they are copied."""

    slot: int
    source: int
    reused: int


class PrefixCache:
    """What the idle slots of one engine remember."""

    def __init__(self, *, slots: int, n_ctx: int, cuts: bool = True) -> None:
        """At first all slots are idle and remember nothing. `cuts` says whether memory can be cut."""
        self._cuts = cuts
        self._least_copied = max(1, n_ctx // COPY_SHARE)
        self._idle: dict[int, Sequence[int]] = dict.fromkeys(range(slots), ())
        """By slot, empty ones first, then the least recently taken."""
        self._taken = dict.fromkeys(range(slots), 0)
        """When each slot was taken, as a count."""
        self._takes = 0

    @property
    def idle(self) -> Mapping[int, Sequence[int]]:
        """What each idle slot remembers, the least recently used slot first."""
        return self._idle

    def longest(self, tokens: Sequence[int], live: Mapping[int, Sequence[int]]) -> int:
        """How many of a prompt's `tokens` could be reused now; `live` is what each live slot remembers."""
        reusable = tokens[:-1]
        memories = [*self._idle.values(), *live.values()]
        return max((self._common(reusable, memory) for memory in memories), default=0)

    def take(self, tokens: Sequence[int], live: Mapping[int, Sequence[int]]) -> Placement:
        """Give the prompt `tokens` an idle slot, which is live from now on. At least one slot must be idle."""
        reusable = tokens[:-1]
        # The first of equals: idle before live, for it may need no copy.
        found = {slot: self._common(reusable, memory) for slot, memory in (*self._idle.items(), *live.items())}
        source = max(found, key=found.__getitem__)
        reused = found[source]
        if source in self._idle and 2 * reused >= len(self._idle[source]) > 0:
            slot = source
        else:
            slot = next((slot for slot in self._idle if slot != source), source)
        if slot != source and reused < self._least_copied:
            slot = source = next(iter(self._idle))
            reused = found[slot]
        del self._idle[slot]
        self._takes += 1
        self._taken[slot] = self._takes
        return Placement(slot, source, reused)

    def release(self, slot: int, tokens: Sequence[int]) -> None:
        """The live `slot` is idle now, and remembers `tokens`."""
        memories = {**self._idle, slot: tokens}

        def order(slot: int) -> tuple[bool, int, int]:
            return bool(memories[slot]), self._taken[slot], slot

        self._idle = {slot: memories[slot] for slot in sorted(memories, key=order)}

    def move(self, slot: int, target: int) -> None:
        """The live `slot` is idle and empty now, and the idle `target` live in its place."""
        del self._idle[target]
        self._taken[target] = self._taken[slot]
        self.release(slot, ())

    def _common(self, tokens: Sequence[int], memory: Sequence[int]) -> int:
        length = common_prefix(tokens, memory)
        return length if self._cuts or length == len(memory) else 0


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens `a` and `b` begin with in common."""
    length = min(len(a), len(b))
    # Comparing lists is a hundred times faster than looking at each token.
    low, high = 0, length
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
