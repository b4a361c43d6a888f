import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamanet.node.neighbours import WORTH_TOKENS, Move, next_move

LONG = WORTH_TOKENS


def moved(running: set[int], slots: int, *, empty: set[int] | None = None) -> Move | None:
    idle = [slot for slot in range(slots) if slot not in running]
    return next_move(dict.fromkeys(running, LONG), idle, set(idle) if empty is None else empty)


@pytest.mark.parametrize("running", [set(), {3}, {0, 1, 2}, {2, 3}])
def test_neighbours_stay(running: set[int]) -> None:
    assert moved(running, 8) is None


@pytest.mark.parametrize(
    ("running", "move"),
    [
        ({0, 2}, Move(0, 1)),
        ({0, 1, 5}, Move(5, 2)),
        ({0, 1, 3, 4, 5}, Move(0, 2)),
        ({0, 1, 2, 4, 5}, Move(5, 3)),
        ({1, 6, 7}, Move(1, 5)),
    ],
    ids=str,
)
def test_the_shortest_run_goes_next_to_another(running: set[int], move: Move) -> None:
    assert moved(running, 8) == move


def test_a_sequence_near_its_end_stays() -> None:
    assert next_move({0: LONG - 1, 2: LONG, 3: LONG}, [1], [1]) is None


def test_what_was_used_lately_is_kept() -> None:
    running = {0: LONG, 1: LONG, 3: LONG}
    assert next_move(running, [4, 5, 2, 6], []) is None, "2 and 4 would do: 4 is old, but beside 3 alone"
    assert next_move(running, [2, 4, 5, 6], []) == Move(3, 2)
    assert next_move(running, [4, 5, 2, 6], [2]) == Move(3, 2)


@given(st.sets(st.integers(0, 15), max_size=16))
def test_with_room_all_become_neighbours_in_few_moves(running: set[int]) -> None:
    moves = 0
    while move := moved(running, 16):
        assert move.slot in running
        assert move.target not in running
        running = (running - {move.slot}) | {move.target}
        moves += 1
        assert moves <= 16
    assert not running or max(running) - min(running) + 1 == len(running)
