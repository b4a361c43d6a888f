"""One key with more publishers than a holder keeps."""

import itertools
import statistics

import attrs
import pytest
from swarms import unsigned_record

from llamanet.dht.publishers import MAX_ESTIMATED_OF_A_SUBNET, SETTLE_S
from llamanet.dht.storage import Kept, RecordStore, Rejected
from llamanet.wire.record import encode_record

KEY = unsigned_record(1, 1).key
BOUND = 100


def announce(store, numbers, *, now=1000.0, subnets=1000, lifetime=300):
    """Each publisher stores a record, `number % subnets` being its subnet; who was taken."""
    taken = []
    for number in numbers:
        record = unsigned_record(1, number, int(now), issued=int(now), lifetime=lifetime)
        if store.put(record, encode_record(record), b"%d" % (number % subnets), now) == Kept():
            taken.append(number)
    return taken


def holder(secret=b"s", most=BOUND):
    return RecordStore(secret=secret, max_publishers_per_key=most)


def kept(store, now=1000.0):
    return {record.publisher for record in store.records_of(KEY, now)}


def test_all_that_fit_are_kept_and_counted():
    store = holder()
    assert len(announce(store, range(BOUND))) == BOUND == store.publishers_of(KEY)
    assert store.publishers_of(bytes(32)) == 0


def test_every_publisher_has_the_same_chance_whenever_it_came():
    publishers = [unsigned_record(1, number).publisher for number in range(1000)]
    counts = dict.fromkeys(publishers, 0)
    for number in range(200):
        store = holder(b"%d" % number)
        announce(store, range(1000))
        announce(store, range(1000), now=1120.0)
        assert BOUND // 4 <= len(store) <= BOUND
        for publisher in kept(store, 1120.0):
            counts[publisher] += 1
    mean = statistics.mean(counts.values())
    chi_square = sum((count - mean) ** 2 / mean for count in counts.values())
    assert chi_square < 1143  # 999 degrees of freedom, p = 0.001
    first, last = sum(list(counts.values())[:500]), sum(list(counts.values())[500:])
    assert first / last == pytest.approx(1.0, rel=0.05)


def test_the_samples_of_two_holders_have_no_more_in_common_than_chance():
    samples = []
    for secret in (b"a", b"b"):
        store = holder(secret)
        announce(store, range(2000))
        samples.append(kept(store))
    assert len(samples[0] & samples[1]) < 20
    again = holder(b"a")
    announce(again, reversed(range(2000)))
    assert kept(again) == samples[0]


def test_the_number_of_publishers_is_estimated():
    estimates = []
    for number in range(30):
        store = holder(b"%d" % number, most=500)
        announce(store, range(10_000))
        estimates.append(store.publishers_of(KEY))
    assert statistics.median(estimates) == pytest.approx(10_000, rel=0.05)
    assert statistics.stdev(estimates) < 800


def test_the_sample_follows_the_publishers_up_and_down():
    store = holder()
    now, sizes = 1000.0, []
    for count in (50, 3000, 3000, 400, 400, 400, 400, 60, 60, 60, 60, 60):
        for _ in range(2):
            announce(store, range(count), now=now)
            now += 120.0
        sizes.append(store.publishers_of(KEY))
    assert sizes[0] == 50
    assert sizes[2] == pytest.approx(3000, rel=0.5)
    assert sizes[6] == pytest.approx(400, rel=0.5)
    assert sizes[-1] == pytest.approx(60, rel=0.5)


def test_the_sample_grows_again_one_step_at_a_time():
    """Else those that were refused before would not have come back, and the count would fall to nothing at once."""
    store = holder()
    announce(store, range(3000))
    announce(store, range(300), now=1290.0, lifetime=1800)
    levels = []
    for second in range(300, 1000, 10):
        store.expire(1000.0 + second)
        announce(store, range(5), now=1000.0 + second)
        levels.append(store._keys[KEY]._level)
    changes = [number for number, (a, b) in enumerate(itertools.pairwise(levels)) if a != b]
    assert levels[-1] < levels[0]
    assert all(a - b in (0, 1) for a, b in itertools.pairwise(levels))
    assert all(10 * (b - a) >= SETTLE_S for a, b in itertools.pairwise(changes))


def test_withdrawals_do_not_count():
    store = holder()
    announce(store, range(80))
    announce(store, range(30), now=1001.0, lifetime=0)
    assert (store.publishers_of(KEY), len(store)) == (50, 80)


def test_a_subnet_of_sybils_displaces_nobody_and_hardly_makes_the_key_look_larger():
    store = holder()
    announce(store, range(60))
    honest = kept(store)
    for record in (unsigned_record(1, number) for number in range(10_000, 200_000, 7)):
        store.put(record, encode_record(record), b"sybils", 1000.0)
    assert honest <= kept(store)
    assert len(store) <= BOUND
    assert store.publishers_of(KEY) <= 60 + MAX_ESTIMATED_OF_A_SUBNET
    assert len(announce(store, range(60, 75))) == 15


def test_a_swarm_behind_one_address_is_sampled_too():
    store = holder()
    announce(store, range(1000), subnets=1)
    assert BOUND // 4 <= len(store) <= BOUND
    assert store.publishers_of(KEY) == pytest.approx(1000, rel=0.3)


def test_who_is_kept_may_always_say_something_new_and_who_is_not_is_told_so_before_its_signature_is_looked_at():
    store = holder()
    announce(store, range(1000))
    records = [unsigned_record(1, number) for number in range(1000)]
    inside = next(record for record in records if record.publisher in kept(store))
    outside = next(record for record in records if record.publisher not in kept(store))
    newer = attrs.evolve(inside, sequence=2000)
    assert store.put(newer, encode_record(newer), b"elsewhere", 1000.0) == Kept()
    assert not store.admits(KEY, outside.publisher, b"0", 1000.0)
    assert store.put(outside, encode_record(outside), b"0", 1000.0) == Rejected("sample")
    assert store.admits(KEY, inside.publisher, b"0", 1000.0)
