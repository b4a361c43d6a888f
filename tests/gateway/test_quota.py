"""Limits of a key, over time."""

from llamanet.gateway.quota import Limits, Quota, Refusal


def test_a_minutes_requests_may_come_at_once_and_then_as_they_flow_in():
    quota, limits = Quota(), Limits(rpm=6)
    for _ in range(6):
        assert quota.begin(limits, 100.0) is None
    assert quota.begin(limits, 100.0) == Refusal("requests", 10.0)
    assert quota.begin(limits, 105.0) == Refusal("requests", 5.0)
    assert quota.begin(limits, 110.0) is None
    assert quota.begin(limits, 110.0) == Refusal("requests", 10.0)
    assert dict(quota.headers(limits, 110.0)) == {
        b"x-ratelimit-limit-requests": b"6",
        b"x-ratelimit-remaining-requests": b"0",
        b"x-ratelimit-reset-requests": b"60s",
    }


def test_no_more_flow_in_than_the_limit_over_an_hour():
    quota, limits = Quota(), Limits(rpm=60)
    begun = sum(quota.begin(limits, tenth / 10) is None for tenth in range(36_000))
    assert 3_600 <= begun <= 3_660


def test_tokens_are_charged_at_the_end_and_may_leave_a_debt():
    quota, limits = Quota(), Limits(tpm=600)
    assert quota.begin(limits, 0.0) is None
    quota.end(limits, 900, 0.0)
    refusal = quota.begin(limits, 0.0)
    assert refusal.reason == "tokens"
    assert 30 < refusal.retry_after < 31
    assert dict(quota.headers(limits, 0.0))[b"x-ratelimit-remaining-tokens"] == b"0"
    assert quota.begin(limits, refusal.retry_after + 0.01) is None


def test_requests_at_a_time_are_counted_until_they_end():
    quota, limits = Quota(), Limits(concurrent=2)
    assert quota.begin(limits, 0.0) is None
    assert quota.begin(limits, 0.0) is None
    assert quota.begin(limits, 0.0).reason == "concurrency"
    quota.end(limits, 0, 1.0)
    assert quota.begin(limits, 1.0) is None
    assert quota.running == 2


def test_a_refused_request_costs_nothing():
    quota, limits = Quota(), Limits(rpm=2, concurrent=1)
    assert quota.begin(limits, 0.0) is None
    for _ in range(10):
        assert quota.begin(limits, 0.0).reason == "concurrency"
    quota.end(limits, 0, 0.0)
    assert quota.begin(limits, 0.0) is None
