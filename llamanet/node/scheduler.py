"""What is computed next: which sequences hold a slot, and which of their tokens go into a batch. Pure.

Rules:
- Waiting sequences get a slot in the order of arrival; `PrefixCache` says which one.
- But streams that began elsewhere come first, for somebody sits before half a sentence: with every second slot at most
  while others wait, for any request may say that it is one.
- A step holds at most `n_batch` tokens: first one token of each sequence that draws next, so that a long prompt never
  stalls a stream; then prompt chunks, no more of them than the `Pace` allows: of all while anyone streams, otherwise of
  each, so that short ones that come together are computed together.
- The oldest prompt gets at least half of what there is for prompts, so that none starves. The other half goes to the
  prompts with the least to compute first, so that a short one does not wait for a long one. A tile is not halved: the
  oldest prompt gets it in every other step.
- A prompt that begins like one that is being computed waits for the common part, rather than compute it too.
- A paused sequence keeps its slot and its memory, and is not computed.
"""

from collections import deque
from collections.abc import Iterator

import attrs

from llamanet.node.backend import Chunk
from llamanet.node.neighbours import Move, next_move
from llamanet.node.pacing import TILE, Pace
from llamanet.node.prefix_cache import Placement, PrefixCache, common_prefix
from llamanet.node.sequence import Sequence

LEAST_AWAITED = 64
"""Tokens in common with a prompt that is being computed, from which on another prompt waits for them."""


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
    def prompt_tokens(self) -> int:
        """Tokens computed in this step beside those of streams."""
        return sum(len(chunk.tokens) for _, chunk in self.parts if len(chunk.tokens) > 1 or not chunk.draws)

    @property
    def tokens(self) -> int:
        """Tokens computed in this step."""
        return sum(len(chunk.tokens) for _, chunk in self.parts)


class Scheduler:
    """The waiting and the running sequences of one engine."""

    def __init__(self, *, slots: int, n_ctx: int, n_batch: int, pace: Pace, cuts: bool = True) -> None:
        """`n_batch` is at least `slots`, so that every stream has its place in every step; `cuts` as in `Backend`."""
        self._n_batch = n_batch
        self._pace = pace
        self._cuts = cuts
        self._cache = PrefixCache(slots=slots, n_ctx=n_ctx, cuts=cuts)
        self.waiting: deque[Sequence] = deque()
        self.running: dict[int, Sequence] = {}
        """By slot, in the order of admission."""
        self._oldest_had_tile = False
        self._preferred = False
        """The last slot went to a stream that began elsewhere, before one that waited longer."""

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence at its place by arrival. The bound on the queue is kept where requests come in."""
        place = len(self.waiting)
        # Preparing a long prompt takes longer, so that requests may get here out of order.
        while place and self.waiting[place - 1].serial > sequence.serial:
            place -= 1
        self.waiting.insert(place, sequence)

    @property
    def memory_tokens(self) -> int:
        """Tokens that live and idle slots remember."""
        live = sum(sequence.computed for sequence in self.running.values())
        return live + sum(map(len, self._cache.idle.values()))

    @property
    def pending_tokens(self) -> int:
        """Tokens of running sequences' prompts that are still to be computed."""
        return sum(sequence.pending - 1 for sequence in self.running.values())

    def cached(self, tokens: list[int]) -> int:
        """How many of a prompt's tokens would not have to be computed, if it were admitted now."""
        return self._cache.longest(tokens, self._live())

    def admit(self) -> tuple[Placement, Sequence] | None:
        """Give an idle slot to the waiting sequence whose turn it is; None if there is none of either.

        The sequence counts `reused` tokens as computed. If they cannot be had, the caller sets `computed` to 0 before
        it calls again.
        """
        if not self._cache.idle:
            return None
        sequence = self._next()
        if sequence is None:
            return None
        self.waiting.remove(sequence)
        placement = self._cache.take(sequence.tokens, self._live())
        sequence.slot = placement.slot
        sequence.computed = placement.reused
        self.running[placement.slot] = sequence
        return placement, sequence

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is; its slot is idle from here on, and remembers what was computed."""
        if sequence.slot is None:
            self.waiting.remove(sequence)
        else:
            del self.running[sequence.slot]
            self._cache.release(sequence.slot, sequence.tokens[: sequence.computed])
            sequence.slot = None

    def move(self) -> Move | None:
        """Bring a running sequence next to the others; None if that would gain nothing. Its slot is changed here."""
        left = {slot: each.limit - len(each.tokens) for slot, each in self.running.items() if each.paused_at is None}
        idle = self._cache.idle
        move = next_move(left, list(idle), [slot for slot, memory in idle.items() if not memory])
        if move is not None:
            self._cache.move(move.slot, move.target)
            self.running = {move.target if slot == move.slot else slot: each for slot, each in self.running.items()}
            self.running[move.target].slot = move.target
        return move

    def plan(self, *, spent: int = 0) -> Step:
        """The next step; without parts if nothing can be computed.

        `spent` tokens that the pace allows were used already, for embedding.
        """
        parts = []
        prompts = []
        for slot, sequence in self.running.items():
            if sequence.paused_at is not None:
                continue
            if sequence.pending == 1:
                parts.append((sequence, _chunk(slot, sequence, 1)))
            else:
                prompts.append((slot, sequence))
        streams = len(parts)
        room = self._n_batch - streams
        most = self._pace.prompt_tokens(streaming=streams > 0)
        budget = min(room, max(0, most - spent)) if streams else room
        room -= budget
        for slot, sequence, size in self._shares(prompts, budget, most):
            # llama.cpp computes the first token of each sequence together, then what prompts have more: whole tiles.
            if streams and room and size % TILE == 0 and size < sequence.computable:
                size, room = size + 1, room - 1
            parts.append((sequence, _chunk(slot, sequence, size)))
        # llama.cpp computes neighbouring sequences in one pass only if they stand in the batch in the order of slots.
        return Step(sorted(parts, key=lambda part: part[1].slot))

    def _shares(
        self, prompts: list[tuple[int, Sequence]], budget: int, most: int
    ) -> Iterator[tuple[int, Sequence, int]]:
        """How many of `budget` tokens each prompt gets; none gets more than `most`."""
        if not prompts:
            return
        oldest_slot, oldest = prompts[0]
        others = sorted(prompts[1:], key=lambda prompt: prompt[1].computable)
        reserved = (budget + 1) // 2
        if budget >= 2 * TILE:
            reserved = -(-reserved // TILE) * TILE
        elif budget >= TILE and others:
            self._oldest_had_tile = not self._oldest_had_tile
            reserved = budget if self._oldest_had_tile else 0
        reserved = min(oldest.computable, most, reserved)
        left = budget - reserved
        for slot, sequence in others:
            size = min(left, sequence.computable, most)
            left -= size
            if size:
                yield slot, sequence, size
        if size := min(reserved + left, oldest.computable, most):
            yield oldest_slot, oldest, size

    def _next(self) -> Sequence | None:
        """Whose turn it is to get a slot."""
        ready = (sequence for sequence in self.waiting if not self._awaits(sequence))
        oldest = next(ready, None)
        if oldest is None or oldest.request.resume or self._preferred:
            self._preferred = False
            return oldest
        begun = next((sequence for sequence in ready if sequence.request.resume), None)
        self._preferred = begun is not None
        return begun or oldest

    def _awaits(self, sequence: Sequence) -> bool:
        """Whether a prompt that is being computed will soon leave more for `sequence` than memory has now."""
        if sequence.awaited is not None:
            leader, common = sequence.awaited
            if leader.slot is not None and leader.paused_at is None and leader.computed < common:
                return True
        sequence.awaited = self._leader(sequence)
        return sequence.awaited is not None

    def _leader(self, sequence: Sequence) -> tuple[Sequence, int] | None:
        """The running prompt with most in common with `sequence`, and how much; None if it is not worth waiting for."""
        prompts = [each for each in self.running.values() if each.paused_at is None and each.pending > 1]
        if not prompts or not self._cuts:
            return None
        reusable = sequence.tokens[:-1]
        common, leader = max(
            ((common_prefix(reusable, each.tokens[: each.prompt_tokens]), each) for each in prompts),
            key=lambda found: found[0],
        )
        if common - max(leader.computed, self.cached(sequence.tokens)) < LEAST_AWAITED:
            return None
        return leader, common

    def _live(self) -> dict[int, list[int]]:
        return {slot: sequence.tokens[: sequence.computed] for slot, sequence in self.running.items()}


def _chunk(slot: int, sequence: Sequence, size: int) -> Chunk:
    start = sequence.computed
    tokens = sequence.tokens[start : start + size]
    return Chunk(slot, start, tokens, start + size == len(sequence.tokens))
