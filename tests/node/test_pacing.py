import itertools
from random import Random

import pytest

from llamanet.node.pacing import GROWTH, LEAST, START, TILE, Pace


def settle(pace: Pace, *, stream_s: float, token_s: float, steps: int = 60) -> list[float]:
    """The seconds of steps full of prompt on a machine of this speed."""
    taken = []
    for _ in range(steps):
        size = pace.prompt_tokens(streaming=True)
        taken.append(stream_s + size * token_s)
        pace.step(prompt_tokens=size, seconds=taken[-1])
    return taken


def test_alone_prompts_go_in_whole_tiles_for_twice_as_long() -> None:
    pace = Pace(0.15, 512)
    assert (pace.prompt_tokens(streaming=False), pace.prompt_tokens(streaming=True)) == (TILE, START)
    taken = []
    for _ in range(10):
        size = pace.prompt_tokens(streaming=False)
        assert size % TILE == 0
        taken.append(size * 0.001)
        pace.step(prompt_tokens=size, seconds=taken[-1])
    assert taken == sorted(taken)
    assert taken[-1] == 0.256
    pace.step(prompt_tokens=64, seconds=10.0)
    assert pace.prompt_tokens(streaming=False) == TILE


def test_most_of_a_tile_is_a_whole_one() -> None:
    for fitting, expected in ((47, 47), (48, TILE), (63, TILE), (64, TILE), (65, 65)):
        pace = Pace(0.15, 512)
        pace.step(prompt_tokens=fitting, seconds=0.15)
        assert pace.prompt_tokens(streaming=True) == expected
    # The rest of a tile is computed at 0.8 of its speed.
    for token_s in (0.0015, 0.0018, 0.0022, 0.0026, 0.003):
        pace, last = Pace(0.15, 512), 0.0
        for _ in range(20):
            size = pace.prompt_tokens(streaming=True)
            last = (size // TILE * TILE + size % TILE / 0.8) * token_s
            pace.step(prompt_tokens=size, seconds=last)
        assert last <= 0.2


@pytest.mark.parametrize("token_s", [0.0005, 0.001, 0.004])
@pytest.mark.parametrize("stream_s", [0.0, 0.01, 0.06])
def test_steps_come_to_the_target_and_stay_there(stream_s: float, token_s: float) -> None:
    taken = settle(Pace(0.15, 512), stream_s=stream_s, token_s=token_s)
    assert all(0.10 < seconds < 0.155 for seconds in taken[-30:])


def test_a_machine_that_becomes_slow_is_followed_at_once_and_one_that_becomes_fast_by_and_by() -> None:
    pace = Pace(0.15, 512)
    settle(pace, stream_s=0.0, token_s=0.001)
    slow = settle(pace, stream_s=0.0, token_s=0.004, steps=3)
    assert slow[0] > 0.4
    assert slow[1] < 0.155
    fast = settle(pace, stream_s=0.0, token_s=0.001, steps=12)
    assert all(later <= earlier * GROWTH * 1.05 for earlier, later in itertools.pairwise(fast))
    assert fast[-1] > 0.14


def test_a_step_with_room_left_says_nothing_unless_it_was_too_long() -> None:
    pace = Pace(0.15, 512)
    settle(pace, stream_s=0.0, token_s=0.001)
    pace.step(prompt_tokens=5, seconds=0.02)
    assert pace.prompt_tokens(streaming=True) == 150
    pace.step(prompt_tokens=50, seconds=0.3)
    assert pace.prompt_tokens(streaming=True) == 25


def test_prompts_never_starve_and_never_overflow_the_batch() -> None:
    pace, random = Pace(0.15, 256), Random(1)
    for _ in range(1000):
        pace.step(prompt_tokens=random.randint(0, 256), seconds=10 ** random.uniform(-6, 3))
        assert LEAST <= pace.prompt_tokens(streaming=True) <= 256
    assert Pace(0.15, 4).prompt_tokens(streaming=True) == 4
