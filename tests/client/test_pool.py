"""The pool of probes: how often, how long and how many of them are used."""

from random import Random

import attrs
import pytest
from test_selection import candidate as make_candidate

from llamanet.client.pool import LOADS, MAX_AGE_S, MAX_KNOWN, POOL_SIZE, ProbePool, uses_a_probe
from llamanet.client.selection import BATCH_COST


def candidate(number=1, *, at=0.0, **state):
    made = make_candidate(1, **state)
    service = attrs.evolve(made.service, public_key=number.to_bytes(32, "big"))
    return attrs.evolve(made, service=service, at=at)


def numbers(candidates):
    return [int.from_bytes(c.service.public_key, "big") for c in candidates]


def test_what_comes_with_an_answer_counts_its_own_request_and_none_twice():
    pool = ProbePool(Random(0))
    node = attrs.evolve(candidate(1, running=0), rtt=0.1)
    pool.add(node, 50)
    for sent in (0.1, 0.2, 0.25):
        pool.used(node.service, 50, sent)
    accepted = attrs.evolve(node, at=0.31, state=attrs.evolve(node.state, running=2))
    pool.told(accepted, 0.2)
    [told] = pool.candidates(0.31)
    assert told.state.running == 3
    assert told.at == 0.31
    finished = attrs.evolve(node, at=0.8)
    pool.told(finished, 0.2)
    assert [told.state.running for told in pool.candidates(0.8)] == [0]


@pytest.mark.parametrize(("nodes", "uses"), [(50, 1.9231), (100, 1.3158), (1000, 1.0246), (2, 4.0), (1, 4.0), (0, 1.0)])
def test_prequals_budget_of_uses(nodes, uses):
    assert uses_a_probe(nodes) == pytest.approx(uses, abs=1e-4)


def test_the_newest_first_and_no_more_than_fit():
    pool = ProbePool(Random(0))
    for number in range(POOL_SIZE + 5):
        pool.add(candidate(number, at=number / 100), 1000)
    assert numbers(pool.candidates(0.2)) == list(range(POOL_SIZE + 4, 4, -1))


def test_probes_age_out():
    pool = ProbePool(Random(0))
    pool.add(candidate(1, at=0.0), 50)
    pool.add(candidate(2, at=0.5), 50)
    assert numbers(pool.candidates(MAX_AGE_S)) == [2, 1]
    assert numbers(pool.candidates(MAX_AGE_S + 0.1)) == [2]


def test_a_probe_is_used_up_and_tells_of_our_own_requests():
    pool = ProbePool(Random(0))
    pool.add(candidate(1, running=3, ttft_s=0.1), 1)
    for count in range(4):
        [told] = pool.candidates(0.0)
        assert told.state.running + told.state.waiting == 3 + count
        pool.used(told.service, 100, 0.0)
    assert told.state.ttft_s > 0.5
    assert pool.candidates(0.0) == []


def test_an_answer_given_before_our_requests_arrived_tells_of_them_too():
    pool = ProbePool(Random(0))
    told = attrs.evolve(candidate(1, running=1), rtt=0.1)
    pool.add(told, 50)
    for sent in (0.2, 0.45, 0.5):
        pool.used(told.service, 50, sent)
    answer = attrs.evolve(told, at=0.53)
    pool.add(answer, 50)
    known = pool.latest(answer)
    assert (known.state.running, known.state.ttft_s) == (
        3,
        pytest.approx(0.1 + 2 * 50 / 500 + 2 * BATCH_COST / 50),
    ), "all but the first"
    pool.used(told.service, 50, 0.54)
    assert pool.latest(answer).state.running == 4
    later = attrs.evolve(told, at=0.7)
    assert pool.latest(later) == later
    pool.add(later, 50)
    assert pool.latest(answer) == later
    pool.forget(told.service)
    assert pool.latest(answer) == answer


def test_in_turn_the_oldest_and_the_worst_are_removed():
    pool = ProbePool(Random(0))
    for number, seconds in enumerate((0.3, 0.2, 9.0, 0.1)):
        pool.add(candidate(number, at=number / 10, ttft_s=seconds), 50)
    pool.remove(0.5)
    assert numbers(pool.candidates(0.5)) == [3, 2, 1]
    pool.remove(0.5)
    assert numbers(pool.candidates(0.5)) == [3, 1]
    pool.remove(0.5)
    pool.remove(0.5)
    assert numbers(pool.candidates(0.5)) == [3]


def test_hot_is_what_few_nodes_are():
    pool = ProbePool(Random(0))
    assert pool.hot_load("alpha") == float("inf")
    for number in range(LOADS):
        pool.add(candidate(number, running=number % 3), 50)
    assert pool.hot_load("alpha") == 1.0, "a slot is free"
    for number in range(LOADS):
        pool.add(candidate(number, running=4, waiting=number % 5), 50)
    assert pool.hot_load("alpha") == 2.0
    assert pool.hot_load("beta") == float("inf"), "another model on the same nodes"


def test_old_news_fade_into_the_average():
    pool = ProbePool(Random(0))
    service = candidate(1).service
    assert pool.outlook(service, 0.0) is None
    for second in range(50):
        pool.add(candidate(1, at=float(second), ttft_s=1.0), 50)
    pool.add(candidate(1, at=50.0, ttft_s=6.0), 50)
    later = [pool.outlook(service, 50.0 + age)[1] for age in (0, 1, 3, 100)]
    assert later == sorted(later, reverse=True)
    assert later[0] == 0.0
    assert later[-1] == pytest.approx(-4.0)
    pool.forget(service)
    assert pool.outlook(service, 50.0) is None


def test_at_most_so_many_are_remembered():
    pool = ProbePool(Random(0))
    for number in range(MAX_KNOWN + 1):
        pool.add(candidate(number), 50)
    assert pool.outlook(candidate(0).service, 0.0) is None
    assert pool.outlook(candidate(1).service, 0.0) is not None
