"""What a client remembers of nodes: limits, percentiles, and the circuit breaker with its trials."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamanet.client import peers
from llamanet.client.peers import FIRST_TOKEN_LIMITS_S, GAP_LIMITS_S, MAX_OPEN_S, MAX_PEERS, OPEN_S, PeerMemory
from llamanet.wire.identity import NodeId

A, B = NodeId(b"a" * 32), NodeId(b"b" * 32)


def known(*, ttft_s=0.5, prompt_tokens=100, times=20):
    memory = PeerMemory()
    for number in range(times):
        memory.began(A, number)
        memory.first_token(A, ttft_s, prompt_tokens, number)
        memory.finished(A, number)
    return memory


def test_of_strangers_there_is_patience_and_no_percentile():
    memory = PeerMemory()
    assert memory.first_token_limit_s(A, 100, 0.0) == FIRST_TOKEN_LIMITS_S[1]
    assert memory.gap_limit_s(A, 0.0) == GAP_LIMITS_S[1]
    assert memory.hedge_after_s(A, 100) is None
    assert memory.usable(A, 0.0)
    assert (memory.in_flight(A), memory.tokens_per_second(A), memory.doubt(A, 0.0)) == (0, 0.0, None)


def test_the_limit_follows_the_nodes_own_times_and_the_prompts_length():
    memory = known(ttft_s=3.0)
    short, long = memory.first_token_limit_s(A, 100, 0.0), memory.first_token_limit_s(A, 1000, 0.0)
    assert 3.0 <= short < 4.0
    assert long == pytest.approx(short * (peers.FIXED_TOKENS + 1000) / (peers.FIXED_TOKENS + 100))
    assert memory.first_token_limit_s(B, 100, 0.0) > short


def test_uneven_times_widen_the_limit():
    even, uneven = known(ttft_s=3.0), known(ttft_s=3.0)
    for number in range(20):
        even.first_token(A, 3.0, 100, number)
        uneven.first_token(A, 1.0 if number % 2 else 5.0, 100, number)
    assert uneven.first_token_limit_s(A, 100, 0.0) > 1.5 * even.first_token_limit_s(A, 100, 0.0)


def test_the_percentile_is_that_of_the_newest_times():
    memory = PeerMemory()
    for number in range(peers.LEAST_SAMPLES):
        assert memory.hedge_after_s(A, 100) is None
        memory.first_token(A, 9.0, 100, number)
    for number in range(peers.SAMPLES):
        memory.first_token(A, 1.0 + number / 100, 100, number)
    # 61 of 64 are not above it, and that is 95 %.
    assert memory.hedge_after_s(A, 100) == pytest.approx(1.60)


def test_the_percentile_of_few_is_their_largest():
    memory = PeerMemory()
    for number in range(peers.LEAST_SAMPLES):
        memory.first_token(A, 1.0 + number, 100, number)
    assert memory.hedge_after_s(A, 100) == pytest.approx(float(peers.LEAST_SAMPLES))


def test_rates_and_gaps():
    memory = PeerMemory()
    for number in range(50):
        memory.tokens(A, 4, 0.5, number)
    assert memory.tokens_per_second(A) == pytest.approx(8.0)
    assert memory.gap_limit_s(A, 0.0) == GAP_LIMITS_S[0]
    for number in range(50):
        memory.tokens(A, 1, 4.0, number)
    assert 4.0 < memory.gap_limit_s(A, 0.0) < GAP_LIMITS_S[2]


def test_each_failure_in_a_row_keeps_the_node_away_for_twice_as_long():
    memory = PeerMemory()
    now = 0.0
    for count in range(10):
        memory.began(A, now)
        memory.failed(A, now)
        pause = min(MAX_OPEN_S, OPEN_S * 2**count)
        assert not memory.usable(A, now + pause - 0.001)
        now += pause
        assert memory.usable(A, now)
    assert "failed 10 times" in (memory.doubt(A, now - 0.001) or "")


def test_one_request_at_a_time_tries_a_node_that_failed():
    memory = PeerMemory()
    memory.began(A, 0.0)
    memory.failed(A, 0.0)
    memory.began(A, OPEN_S)
    assert not memory.usable(A, OPEN_S)
    memory.finished(A, OPEN_S + 1)  # Its caller gave it up: that says nothing of the node.
    assert memory.usable(A, OPEN_S + 1)
    memory.began(A, OPEN_S + 1)
    assert not memory.usable(A, OPEN_S + 1)
    memory.first_token(A, 0.1, 10, OPEN_S + 2)
    assert memory.usable(A, OPEN_S + 2)
    assert memory.doubt(A, OPEN_S + 2) is None


def test_what_began_before_a_trial_does_not_end_it():
    memory = PeerMemory()
    for _ in range(3):
        memory.began(A, 0.0)
    memory.failed(A, 0.0)
    memory.began(A, OPEN_S)
    memory.finished(A, OPEN_S)
    assert not memory.usable(A, OPEN_S), "the trial is in flight"
    memory.finished(A, OPEN_S)
    memory.finished(A, OPEN_S)
    assert memory.usable(A, OPEN_S)


def test_what_fails_together_counts_once():
    memory = PeerMemory()
    for _ in range(100):
        memory.began(A, 0.0)
    for _ in range(100):
        memory.failed(A, 1.0)
    assert memory.doubt(A, 1.0) == "it failed lately"
    assert memory.usable(A, 1.0 + OPEN_S)


def test_busy_and_silent_nodes_are_left_alone_for_a_while():
    memory = PeerMemory()
    memory.began(A, 0.0)
    memory.busy(A, 3.0, 0.0)
    assert (memory.usable(A, 2.9), memory.usable(A, 3.0)) == (False, True)
    assert "busy" in (memory.doubt(A, 1.0) or "")
    memory.unanswered(A, 10.0)
    memory.unanswered(A, 10.0)
    assert (memory.usable(A, 11.9), memory.usable(A, 12.0)) == (False, True)
    memory.unanswered(A, 12.0)
    memory.answered(A)
    assert memory.usable(A, 12.0)
    assert memory.doubt(A, 12.0) is None


@given(st.lists(st.tuples(st.sampled_from(["began", "finished", "failed", "busy", "first", "tokens"]), st.booleans())))
def test_whatever_happens_nothing_is_negative_and_every_node_gets_its_chance_again(events):
    memory = PeerMemory()
    now = 0.0
    for event, first in events:
        node = A if first else B
        now += 0.1
        if event == "first":
            memory.first_token(node, 0.2, 10, now)
        elif event == "tokens":
            memory.tokens(node, 1, 0.1, now)
        elif event == "busy":
            memory.busy(node, 1.0, now)
        else:
            getattr(memory, event)(node, now)
    for node in (A, B):
        assert memory.in_flight(node) >= 0
        for _ in range(memory.in_flight(node)):
            memory.finished(node, now)
        assert memory.usable(node, now + MAX_OPEN_S)
        least, _, most = FIRST_TOKEN_LIMITS_S
        assert least <= memory.first_token_limit_s(node, 10, now) <= most


def test_at_most_so_many_are_remembered():
    memory = PeerMemory()
    memory.tokens(A, 10, 1.0, 0.0)
    for number in range(MAX_PEERS):
        memory.tokens(NodeId(number.to_bytes(32, "big")), 1, 1.0, 1.0)
    assert memory.tokens_per_second(A) == 0.0
    assert len(memory._peers) == MAX_PEERS
