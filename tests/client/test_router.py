"""Whom a client probes and whom it asks, by each strategy, from what it knows."""

from collections import Counter
from random import Random

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_selection import FACTS, candidate

from llamanet.client.affinity import blocks_of
from llamanet.client.directory import Service
from llamanet.client.router import Question, Router
from llamanet.client.selection import Wishes, ranked, shortfalls
from llamanet.client.strategy import STRATEGIES, check_strategy
from llamanet.errors import UserError
from llamanet.wire.identity import PublicKey

SERVICES = [
    Service(
        public_key=PublicKey(number.to_bytes(32, "big")), model="alpha", facts=attrs.evolve(FACTS, label=f"n{number}")
    )
    for number in range(20)
]
LONG = blocks_of(["a conversation " * 100])


def question(strategy="soonest", *, prompt_tokens=500, blocks=()):
    return Question(wishes=Wishes(), prompt_tokens=prompt_tokens, blocks=blocks, strategy=strategy)


def told(service, *, at=0.0, **state):
    return attrs.evolve(candidate(1, **state), service=service, at=at)


def labels(order):
    return [getattr(entry, "service", entry).facts.label for entry in order]


@given(st.sampled_from(STRATEGIES), st.sets(st.integers(0, 19)), st.sets(st.integers(0, 19)), st.integers())
def test_every_node_gets_its_turn_and_the_doubtful_come_last(strategy, known, doubtful, seed):
    router = Router(Random(seed))
    for number in known:
        router.heard(SERVICES[number], told(SERVICES[number], running=number % 5), 20, 0.0)
    for number in doubtful:
        router.heard(SERVICES[number], None, 20, 0.0)
    order = router.probe_order(question(strategy), SERVICES, 0.1)
    assert set(order) == set(SERVICES)
    assert set(order[20 - len(doubtful) :]) == {SERVICES[number] for number in doubtful}
    ranked_ = router.rank(question(strategy), [told(service) for service in SERVICES], 0.1)
    assert {entry.service for entry in ranked_[20 - len(doubtful) :]} == {SERVICES[number] for number in doubtful}


def test_who_knows_nothing_probes_anybody():
    firsts = Counter(Router(Random(seed)).probe_order(question(), SERVICES, 0.0)[0] for seed in range(1000))
    assert len(firsts) == 20
    assert max(firsts.values()) < 2 * 1000 / 20


def test_the_promising_are_probed_most_and_nobody_never():
    router = Router(Random(0))
    for number, service in enumerate(SERVICES):
        router.heard(service, told(service, ttft_s=0.2 + number / 5), 20, 0.0)
    probed = Counter(label for _ in range(500) for label in labels(router.probe_order(question(), SERVICES, 60.0)[:3]))
    assert {label for label, _ in probed.most_common(4)} == {"n0", "n1", "n2", "n3"}
    router.pool.forget(SERVICES[19])
    assert any(SERVICES[19] in router.probe_order(question(), SERVICES, 60.0)[:3] for _ in range(500))


def test_round_robin_takes_all_in_turn():
    router = Router(Random(0))
    asked = [router.probe_order(question("round_robin"), SERVICES, 0.0)[0] for _ in range(40)]
    assert Counter(asked) == dict.fromkeys(SERVICES, 2)


def test_random_takes_any():
    router = Router(Random(0))
    asked = Counter(router.probe_order(question("random"), SERVICES, 0.0)[0] for _ in range(1000))
    assert 20 < min(asked.values()) <= max(asked.values()) < 100


def test_least_load_goes_by_load_alone():
    router = Router(Random(0))
    candidates = [told(SERVICES[0], running=2), told(SERVICES[1], running=1, ttft_s=9.0), told(SERVICES[2], running=4)]
    assert labels(router.rank(question("least_load"), candidates, 0.0)) == ["n1", "n0", "n2"]
    assert labels(router.rank(question("soonest"), candidates, 0.0))[0] == "n0"
    assert labels(router.rank(question("random"), candidates, 0.0)) == ["n0", "n1", "n2"]


def test_hot_nodes_come_after_cold_ones_and_by_load():
    candidates = [
        told(SERVICES[0], running=4, waiting=8, ttft_s=0.1),
        told(SERVICES[1], running=4, waiting=4, ttft_s=0.2),
        told(SERVICES[2], running=1, ttft_s=3.0),
        told(SERVICES[3], running=4, ttft_s=2.0),
    ]
    assert labels(ranked(candidates, 100, Random(0), hot_load=lambda model: 1.0)) == ["n3", "n2", "n1", "n0"]
    assert labels(ranked(candidates, 100, Random(0))) == ["n0", "n1", "n3", "n2"]


def test_a_conversation_goes_back_to_its_node_unless_that_is_hot_or_much_later():
    router = Router(Random(0))
    for service in SERVICES:
        router.heard(service, told(service, ttft_s=0.1), 20, 0.0)
    ours = question(blocks=LONG)
    router.asked(ours, SERVICES[7], 0.0)
    assert router.probe_order(ours, SERVICES, 5.0)[0] == SERVICES[7]
    others = [told(SERVICES[1]), told(SERVICES[2])]
    assert labels(router.rank(ours, [*others, told(SERVICES[7], ttft_s=1.5)], 5.0))[0] == "n7"
    explained = router.explain(ours, router.rank(ours, [*others, told(SERVICES[7])], 5.0), 5.0)
    assert explained[0].verdict == "it should remember the prompt's beginning"
    assert explained[0].cached_tokens > 450
    assert labels(router.rank(ours, [*others, told(SERVICES[7], ttft_s=20.0)], 5.0))[0] != "n7"
    [only] = router.explain(ours, [told(SERVICES[7], running=4, waiting=1)], 5.0)
    assert only.verdict == "hot", "it remembers, but that is not why it is asked"
    assert labels(router.rank(ours, [*others, told(SERVICES[7], running=4, waiting=1)], 5.0))[0] != "n7"
    assert labels(router.rank(question(), [*others, told(SERVICES[7], ttft_s=0.6)], 5.0))[0] != "n7"


def test_what_is_remembered_is_worth_only_so_many_more_requests():
    router = Router(Random(0))
    ours = question(prompt_tokens=1000, blocks=LONG)
    router.asked(ours, SERVICES[7], 0.0)

    def first(more):
        # The other would speak sooner, although it remembers nothing.
        there = told(SERVICES[7], running=2 + more, slots=40, ttft_s=2.9)
        return labels(router.rank(ours, [there, told(SERVICES[1], running=2, slots=40, ttft_s=0.1)], 0.0))[0]

    # 1000 tokens of prompt, and 128 of each answer.
    assert [first(more) for more in (0, 4, 7, 8)] == ["n7", "n7", "n7", "n1"]


def test_what_is_remembered_need_not_be_computed():
    router = Router(Random(0))
    ours = question(prompt_tokens=1000, blocks=LONG)
    router.asked(ours, SERVICES[7], 0.0)
    full = told(SERVICES[7], running=4, ttft_s=0.5)
    # The other has a slot free, but two seconds of prompt to compute.
    assert labels(router.rank(ours, [told(SERVICES[1]), full], 0.0)) == ["n7", "n1"]


def test_explained_are_all_candidates_with_the_first_first():
    router = Router(Random(0))
    router.peers.began(SERVICES[3].node_id, 0.0)
    router.peers.failed(SERVICES[3].node_id, 0.0)
    order = router.rank(question(), [told(SERVICES[3]), told(SERVICES[4], ttft_s=1.0), told(SERVICES[5])], 0.5)
    explained = router.explain(question(), order, 0.5)
    assert [(node.node_id, node.verdict) for node in explained] == [
        ("n5", "the soonest"),
        ("n4", "later"),
        ("n3", "it failed lately"),
    ]
    assert explained[0].age_s == 0.5
    assert explained[0].ttft_s == pytest.approx(0.1 + 0.004 + (500 - 32) / 500)


def test_shortfalls_name_what_was_asked_and_the_best_offer():
    nodes = [
        told(SERVICES[0], tokens_per_second=12.34, running=3, n_ctx=4096),
        told(SERVICES[1], tokens_per_second=5.0, running=2),
    ]
    assert shortfalls(nodes, Wishes(min_tps=12.0, max_load=0.5, n_ctx=4096)) == []
    assert shortfalls([], Wishes(min_tps=12.0)) == []
    assert shortfalls(nodes, Wishes(min_tps=50.0, max_load=0.1, n_ctx=8192)) == [
        "min_tps 50 was asked, and the fastest, n0, has 12.3 tokens/s",
        "max_load 0.1 was asked, and the idlest, n1, has load 0.50",
        "a context of 8192 tokens is needed, and the largest, n0's, has 4096",
    ]


def test_an_unknown_strategy_is_named_with_the_known_ones():
    assert check_strategy("random") == "random"
    with pytest.raises(UserError, match="strategy 'best' is not known; there are soonest, random"):
        check_strategy("best")
