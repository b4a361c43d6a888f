"""Which running sequence moves to another slot, so that all of them are computed in one pass. Pure.

llama.cpp computes sequences together only where their slots follow one another; each gap between them costs a pass over
the whole model in every step. A move costs one copy of a slot's memory, about as much as a step. Rules:
- What moves is from the shortest run of neighbours, and goes next to another run: with every move there are fewer gaps,
  so that it ends.
- It takes the place of an empty slot, or of one that was not used for longer than half of the idle ones.
- A sequence that is nearly at its end stays where it is.
"""

from collections.abc import Collection, Mapping, Sequence

import attrs

WORTH_TOKENS = 16
"""A sequence that may generate fewer tokens than these from here on is not moved; it would not pay."""


@attrs.frozen
class Move:
    """The sequence in `slot` goes on in the idle slot `target`."""

    slot: int
    target: int


def next_move(running: Mapping[int, int], idle: Sequence[int], empty: Collection[int]) -> Move | None:
    """The move that closes a gap; None if there is no gap, or if closing it does not pay.

    `running` is how many tokens the sequence in each slot may still generate, `idle` the slots that nobody runs in, the
    least recently used first, and `empty` those of them that remember nothing.
    """
    runs = _runs(sorted(running))
    if len(runs) < 2:
        return None
    shortest = min(runs, key=len)
    beside = {slot for run in runs if run is not shortest for slot in (run[0] - 1, run[-1] + 1)}
    seldom = idle[: len(idle) // 2]
    target = next((slot for slot in idle if slot in beside and (slot in empty or slot in seldom)), None)
    if target is None:
        return None
    # From the far end, so that the rest of the run is still together, and may be beside the target now.
    slot = shortest[0] if target > shortest[0] else shortest[-1]
    return Move(slot, target) if running[slot] >= WORTH_TOKENS else None


def _runs(slots: Sequence[int]) -> list[list[int]]:
    """Slots in ascending order, parted where one is missing."""
    runs: list[list[int]] = []
    for slot in slots:
        if runs and runs[-1][-1] == slot - 1:
            runs[-1].append(slot)
        else:
            runs.append([slot])
    return runs
