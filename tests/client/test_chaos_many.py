"""Hundreds of streams in chaos; `benchmarks/chaos.py` runs ten thousand."""

import pytest

from llamanet.errors import NoNodeServes, SwarmBusy
from llamanet.testing.chaos import run_chaos


@pytest.mark.parametrize("seed", range(2))
async def test_every_stream_ends_exact_or_in_a_typed_error(autojump_clock, seed):
    outcome = await run_chaos(seed=seed, streams=150)
    assert outcome.wrong == []
    assert outcome.left == []
    assert all(isinstance(error, NoNodeServes | SwarmBusy) for error in outcome.errors)
    assert outcome.exact + len(outcome.errors) + outcome.cancelled == 150
    assert outcome.exact >= 135
    assert outcome.batched >= 15
    assert outcome.hops
