from random import Random

import attrs
import pytest

from llamanet.client.directory import Service
from llamanet.client.selection import (
    BATCH_COST,
    Candidate,
    Wishes,
    estimated_ttft,
    load_of,
    objection,
    overload,
    ranked,
    tokens_in,
    with_one_more,
)
from llamanet.wire.facts import ServiceFacts
from llamanet.wire.identity import PublicKey
from llamanet.wire.rpc import Address
from llamanet.wire.state import ModelState

FACTS = ServiceFacts(
    hosts=("10.0.0.1",),
    port=8000,
    dht_port=8001,
    tls=True,
    label="node",
    digest=bytes(32),
    n_ctx=2048,
    slots=4,
    version="1",
)
STATE = ModelState(
    name="alpha",
    running=0,
    waiting=0,
    slots=4,
    tokens_per_second=50.0,
    prefill_tokens_per_second=500.0,
    ttft_s=0.1,
    n_ctx=2048,
)


def candidate(number=1, *, rtt=0.001, draining=False, **state):
    service = Service(public_key=PublicKey(bytes([number]) * 32), model="alpha", facts=FACTS)
    return Candidate(
        service=service,
        address=Address("10.0.0.1", 8001),
        rtt=rtt,
        state=attrs.evolve(STATE, **state),
        draining=draining,
    )


def best(candidates, prompt_tokens=0, seed=0):
    order = ranked(candidates, prompt_tokens, Random(seed))
    return [chosen.service.public_key[0] for chosen in order]


def test_the_estimate_counts_distance_queue_prefill_and_decode():
    assert estimated_ttft(candidate(rtt=0.02, ttft_s=0.5), 0) == pytest.approx(0.58)
    assert estimated_ttft(candidate(rtt=0.0, ttft_s=0.5), 32) == pytest.approx(0.5)
    assert estimated_ttft(candidate(rtt=0.0, ttft_s=0.5), 1032) == pytest.approx(2.5)
    assert estimated_ttft(candidate(rtt=0.0, ttft_s=0.5, prefill_tokens_per_second=0.0), 1032) == pytest.approx(0.5)


def test_the_soonest_first():
    near, far, slow = candidate(1), candidate(2, rtt=0.1), candidate(3, ttft_s=3.0)
    for seed in range(5):
        assert best([slow, far, near], seed=seed) == [1, 2, 3]


def test_one_more_request_costs_its_prompt_and_slows_the_step_of_all():
    lone = with_one_more(candidate(), 50).state
    assert (lone.running, lone.tokens_per_second, lone.ttft_s) == (1, 50.0, pytest.approx(0.1 + 0.1))
    crowd = candidate(slots=40)
    for number in range(11):
        crowd = with_one_more(crowd, 0)
        step = 0.02 * (1 + BATCH_COST * number)
        assert crowd.state.tokens_per_second == pytest.approx(1 / step)
        assert crowd.state.ttft_s == pytest.approx(0.1 + step - 0.02)
    full = with_one_more(candidate(running=4), 50).state
    assert (full.waiting, full.tokens_per_second, full.ttft_s) == (1, 50.0, pytest.approx(0.1 + 0.1 + 128 / 200))


def test_a_long_prompt_goes_to_the_fast_prefill():
    queue_free, fast = candidate(1, prefill_tokens_per_second=50.0), candidate(2, ttft_s=1.0)
    assert best([queue_free, fast], prompt_tokens=10) == [1, 2]
    assert best([queue_free, fast], prompt_tokens=1000) == [2, 1]


def test_equals_by_load_and_then_at_random():
    assert best([candidate(1, running=2), candidate(2, running=1)]) == [2, 1]
    firsts = {
        best([candidate(number, ttft_s=0.1 + number / 10_000) for number in range(4)], seed=seed)[0]
        for seed in range(40)
    }
    assert firsts == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("chosen", "wishes", "reason"),
    [
        (candidate(), Wishes(), None),
        (candidate(), Wishes(digest=bytes(32), min_tps=50.0, max_load=0.0, n_ctx=2048), None),
        (candidate(draining=True), Wishes(), "it is shutting down"),
        (candidate(), Wishes(digest=bytes([1]) * 32), "its file is another one (SHA-256 000000000000…)"),
        (candidate(), Wishes(min_tps=50.5), "50.0 tokens/s is below min_tps 50.5"),
        (candidate(), Wishes(n_ctx=4096), "its context of 2048 tokens is too short"),
    ],
)
def test_objections(chosen, wishes, reason):
    assert objection(chosen, wishes) == reason


def test_overload():
    busy = candidate(running=3, waiting=1)
    assert objection(busy, Wishes(max_load=0.8)) is None
    assert overload(busy, Wishes(max_load=0.8)) == "load 1.00 is above max_load 0.8"
    assert overload(busy, Wishes(max_load=1.0)) is None
    assert overload(busy, Wishes()) is None


def test_load_and_length():
    assert load_of(3, 5, 4) == 2.0
    assert load_of(0, 0, 0) == 0.0
    assert tokens_in(10) == 3
