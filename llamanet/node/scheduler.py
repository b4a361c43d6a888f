"""What is computed next: which sequences hold a slot, and which of their tokens go into a batch. Pure.

Rules:
- A waiting sequence gets the lowest free slot, in the order of arrival.
- A step holds at most `n_batch` tokens: first one token of each sequence that draws next, so that a long prompt never
  stalls a stream; then prompt chunks, oldest first.
- A paused sequence keeps its slot and its memory, and is not computed.
"""

import heapq
from collections import deque

import attrs

from llamanet.node.backend import Chunk
from llamanet.node.sequence import Sequence


@attrs.frozen
class Step:
    """One batch: the chunks, each with the sequence that it belongs to."""

    parts: list[tuple[Sequence, Chunk]]

    @property
    def chunks(self) -> list[Chunk]:
        """What is computed together."""
        return [chunk for _, chunk in self.parts]

    @property
    def drawing(self) -> int:
        """How many sequences draw a token after this step."""
        return sum(chunk.draws for _, chunk in self.parts)

    @property
    def tokens(self) -> int:
        """Tokens computed in this step."""
        return sum(len(chunk.tokens) for _, chunk in self.parts)


class Scheduler:
    """The waiting and the running sequences of one engine."""

    def __init__(self, *, slots: int, n_batch: int) -> None:
        """`n_batch` is at least `slots`, so that every stream has its place in every step."""
        self._n_batch = n_batch
        self._free = list(range(slots))
        self.waiting: deque[Sequence] = deque()
        self.running: dict[int, Sequence] = {}
        """By slot, in the order of admission."""

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence at its place by arrival. The bound on the queue is kept where requests come in."""
        place = len(self.waiting)
        # Preparing a long prompt takes longer, so that requests may get here out of order.
        while place and self.waiting[place - 1].serial > sequence.serial:
            place -= 1
        self.waiting.insert(place, sequence)

    def admit(self) -> list[tuple[int, Sequence]]:
        """Give the free slots to the oldest waiting sequences; the slots with the sequences that got them."""
        admitted = []
        while self._free and self.waiting:
            sequence = self.waiting.popleft()
            sequence.slot = heapq.heappop(self._free)
            self.running[sequence.slot] = sequence
            admitted.append((sequence.slot, sequence))
        return admitted

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is; its slot is free from here on."""
        if sequence.slot is None:
            self.waiting.remove(sequence)
        else:
            del self.running[sequence.slot]
            heapq.heappush(self._free, sequence.slot)
            sequence.slot = None

    def plan(self) -> Step:
        """The next step; without parts if nothing can be computed."""
        budget = self._n_batch
        parts = []
        prompts = []
        for slot, sequence in self.running.items():
            if sequence.paused_at is not None:
                continue
            if sequence.pending == 1:
                parts.append((sequence, _chunk(slot, sequence, 1)))
                budget -= 1
            else:
                prompts.append((slot, sequence))
        for slot, sequence in prompts:
            if budget == 0:
                break
            size = min(budget, sequence.pending)
            parts.append((sequence, _chunk(slot, sequence, size)))
            budget -= size
        # llama.cpp computes neighbouring sequences in one pass only if they stand in the batch in the order of slots.
        return Step(sorted(parts, key=lambda part: part[1].slot))


def _chunk(slot: int, sequence: Sequence, size: int) -> Chunk:
    start = sequence.computed
    tokens = sequence.tokens[start : start + size]
    return Chunk(slot, start, tokens, start + size == len(sequence.tokens))
