"""What others may cost a node, as numbers."""

import itertools

import pytest

from llamanet.dht.guard import (
    HOST_BURST,
    HOST_RATE,
    INTRODUCTION_BURST,
    KEY_BURST,
    KEY_RATE,
    KNOWN_SHARE,
    MAX_HOSTS,
    MAX_SUBNETS,
    SEND_BURST,
    SEND_RATE,
    SOURCE_KEY_BURST,
    SUBNET_BURST,
    VERIFY_BURST,
    Allowance,
    Guard,
)


def admitted(guard, hosts, now=0.0):
    return sum(guard.admit(host, now) for host in hosts)


def test_an_allowance_fills_at_its_rate_up_to_its_burst():
    allowance = Allowance(2.0, 10.0, 0.0)
    assert allowance.take(0.0, 10.0)
    assert not allowance.take(0.0)
    assert not allowance.take(1.0, 3.0)
    assert allowance.take(1.0, 2.0)
    assert not allowance.take(100.0, 11.0)
    assert allowance.take(100.0, 5.0, keep=5.0)
    assert not allowance.take(100.0, 1.0, keep=5.0)
    allowance.give(3.0)
    assert allowance.take(100.0, 8.0)


def test_one_address_has_its_rate_and_hurts_no_other():
    guard = Guard(0.0)
    assert admitted(guard, ["8.8.8.8"] * 10_000) == HOST_BURST
    assert guard.admit("9.9.9.9", 0.0)
    assert admitted(guard, ["8.8.8.8"] * 10_000, now=1.0) == HOST_RATE


def test_one_subnet_has_its_rate():
    guard = Guard(0.0)
    assert admitted(guard, [f"8.8.8.{n % 250}" for n in range(20_000)]) == SUBNET_BURST
    assert guard.admit("8.8.9.1", 0.0)
    assert admitted(guard, [f"10.8.8.{n % 250}" for n in range(20_000)]) == 20_000


def test_who_was_quiet_takes_no_place():
    guard = Guard(0.0)
    assert admitted(guard, ["8.8.8.8"] * 10_000) == HOST_BURST
    hosts = [f"9.{n >> 8}.{n & 255}.1" for n in range(2000)]
    for number, host in enumerate(hosts):
        assert guard.admit(host, 0.001 * number)
    # Full again at once, but for the one that used up its burst: it has its rate, and no new burst.
    assert len(guard._strangers._hosts) < 10
    assert admitted(guard, ["8.8.8.8"] * 10_000, now=2.0) == 2 * HOST_RATE


def test_this_machine_is_not_limited():
    guard = Guard(0.0)
    assert admitted(guard, ["127.0.0.1", "::1"] * 10_000) == 20_000
    assert all(guard.admit_introduction("127.0.0.1", 0.0) for _ in range(10_000))
    assert all(guard.admit_key("127.0.0.1", 0.0) for _ in range(10_000))
    assert all(guard.allow_answer("::1", 1200, 0.0, verifies=True, known=False) for _ in range(10_000))


def test_what_we_asked_for_is_not_held_against_who_answers():
    guard = Guard(0.0)
    for _ in range(20_000):
        guard.expect("8.8.8.8")
        assert guard.admit("8.8.8.8", 0.0)


def test_any_number_of_addresses_needs_no_more_memory():
    guard = Guard(0.0)
    for a, b, c in itertools.product(range(60), range(60), range(2)):
        guard.admit(f"9.{a}.{b}.{c}", 0.0)
    assert len(guard._strangers._hosts) == MAX_HOSTS
    assert len(guard._strangers._subnets) == MAX_SUBNETS


def test_introductions_are_limited_in_all():
    guard = Guard(0.0)
    assert sum(guard.admit_introduction(f"9.9.{n % 250}.1", 0.0) for n in range(10_000)) == INTRODUCTION_BURST


def test_keys_are_limited_in_all_and_for_each_source():
    guard = Guard(0.0)
    assert sum(guard.admit_key(f"8.8.8.{n % 250}", 0.0) for n in range(1000)) == SOURCE_KEY_BURST
    hosts = [f"9.{n // 250}.{n % 250}.1" for n in range(10_000)]
    assert sum(guard.admit_key(host, 0.0) for host in hosts) == KEY_BURST - SOURCE_KEY_BURST
    assert sum(guard.admit_key(host, 1.0) for host in hosts) == KEY_RATE


@pytest.mark.parametrize(("verifies", "size", "burst"), [(False, 1200, SEND_BURST / 1200), (True, 1, VERIFY_BURST)])
def test_strangers_leave_a_share_to_those_we_know(verifies, size, burst):
    guard = Guard(0.0)

    def allowed(known):
        return sum(guard.allow_answer("9.9.9.9", size, 0.0, verifies=verifies, known=known) for _ in range(10_000))

    strangers = allowed(False)
    assert strangers == int((1 - KNOWN_SHARE) * burst)
    assert allowed(True) == int(burst) - strangers


def test_answers_are_limited_in_all():
    guard = Guard(0.0)
    sent = sum(1200 * guard.allow_answer("9.9.9.9", 1200, n / 1000, verifies=False, known=True) for n in range(60_000))
    assert sent <= SEND_BURST + 60 * SEND_RATE


def test_what_is_refused_or_not_used_is_not_charged():
    guard = Guard(0.0)
    while guard.allow_answer("9.9.9.9", 1200, 0.0, verifies=False, known=True):
        pass
    assert not guard.allow_answer("9.9.9.9", 1200, 0.0, verifies=True, known=True)
    guard.return_unused("9.9.9.9", 1200)
    assert guard.allow_answer("9.9.9.9", 1200, 0.0, verifies=True, known=True)
    assert guard._verifying.left == VERIFY_BURST - 1

    guard = Guard(0.0)
    while guard.allow_answer("9.9.9.9", 1, 0.0, verifies=True, known=True):
        pass
    assert guard._sending.left == SEND_BURST - VERIFY_BURST


def test_one_host_that_introduces_itself_again_and_again_leaves_room_for_newcomers():
    guard = Guard(0.0)
    refused = 0
    for step in range(5000):
        now = step / 500
        guard.admit_introduction("9.9.9.9", now)
        guard.admit_introduction("10.0.0.1", now)
        if step % 50 == 0:
            refused += not guard.admit_introduction(f"7.{step % 250}.{step // 250}.1", now)
            refused += not guard.admit_introduction(f"10.0.1.{step // 50}", now)
    assert refused == 0
    for number in range(10_000):
        guard.admit_introduction(f"9.{number // 250}.{number % 250}.1", 100.0)
    assert len(guard._introductions._sources) == MAX_SUBNETS
