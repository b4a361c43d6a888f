from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from swarms import contact, key, seeded

from llamanet.dht.distance import common_prefix_bits, distance, number_of
from llamanet.dht.routing import (
    FAILURES_IF_REPLACED,
    MAX_FAILURES,
    PER_SUBNET_IN_BUCKET,
    PER_SUBNET_IN_TABLE,
    TRIAL_S,
    UNSENDABLE_S,
    UNSENT_S,
    Entry,
    RoutingTable,
)
from llamanet.wire.identity import NodeId
from llamanet.wire.rpc import Address, Contact

OWN = NodeId(bytes(32))
K = 4


def in_bucket(bits, count, start=0):
    """Contacts that share exactly `bits` leading bits with OWN."""
    found, number = [], start
    while len(found) < count:
        number += 1
        if common_prefix_bits(number_of(OWN), number_of(contact(number).node_id)) == bits:
            found.append(contact(number))
    return found


@st.composite
def events(draw):
    steps = st.tuples(st.sampled_from(["answered", "answered", "answered", "failed"]), st.integers(1, 120))
    return draw(st.lists(steps, max_size=300))


@settings(max_examples=100, deadline=None)
@given(events(), st.integers(0, 2**256 - 1))
def test_whatever_happens_the_table_keeps_its_rules(steps, target_number):
    table = RoutingTable(OWN, k=K)
    now = 0.0
    for what, number in steps:
        now += TRIAL_S / 4
        peer = contact(number)
        if what == "answered":
            table.answered(peer, now)
        else:
            table.failed(peer, now)
        assert all(size <= K for size in table.bucket_sizes)
        assert sum(table.bucket_sizes) == len(table)
    known = [entry.contact for entry in table]
    assert len({peer.address for peer in known}) == len({peer.node_id for peer in known}) == len(known)
    target = target_number.to_bytes(32, "big")
    for count in (1, K, 100):
        expected = sorted(known, key=lambda peer: distance(peer.node_id, target))[:count]
        assert table.closest(target, count) == expected
    assert table._proven == sum(entry.proven for entry in table)
    good = [entry.contact for entry in table if not entry.failures]
    good.sort(key=lambda peer: distance(peer.node_id, target))
    assert table.closest(target, K, good_only=True) == good[:K]
    told = table.to_tell(target, K)
    assert len(told) == min(K, len(good))
    proven = [entry.contact for entry in table if entry.proven and not entry.failures]
    if 2 * table._proven >= len(table) and len(proven) >= K:
        assert set(told) <= set(proven)


def test_only_the_own_bucket_splits():
    table = RoutingTable(OWN, k=K)
    for number in range(1, 2000):
        table.answered(contact(number), 0.0)
    assert table.bucket_sizes[:6] == (K,) * 6
    for bits, size in enumerate(table.bucket_sizes[:-1]):
        held = [e for e in table if common_prefix_bits(0, number_of(e.contact.node_id)) == bits]
        assert len(held) == size


def test_we_never_enter_our_own_table():
    me = contact(1)
    table = RoutingTable(me.node_id, k=K)
    assert not table.answered(me, 0.0).added
    assert not table.wants(me)
    assert len(table) == 0


def test_old_contacts_are_preferred_and_the_doubtful_one_is_to_be_checked():
    table = RoutingTable(OWN, k=K)
    first = in_bucket(0, K + 1)
    for peer in in_bucket(1, K):
        table.answered(peer, 0.0)
    for peer in first[:K]:
        assert table.answered(peer, 0.0).added
    late = table.answered(first[K], 10.0)
    assert (late.added, late.check) == (False, None)
    for peer in first[1:K]:
        table.answered(peer, 100.0)
    late = table.answered(first[K], 100.0)
    assert (late.added, late.check) == (False, first[0])
    assert first[K].node_id not in table


def test_a_contact_that_fails_twice_gives_its_place_to_one_that_waits():
    table = RoutingTable(OWN, k=K)
    first = in_bucket(0, K + 1)
    for peer in [*in_bucket(1, K), *first]:
        table.answered(peer, 0.0)
    for _ in range(FAILURES_IF_REPLACED):
        assert first[0].node_id in table
        table.failed(first[0], 1.0)
    assert first[0].node_id not in table
    assert first[K].node_id in table


def test_with_nobody_waiting_it_takes_longer_to_leave():
    table = RoutingTable(OWN, k=K)
    table.answered(contact(1), 0.0)
    for _ in range(MAX_FAILURES):
        assert contact(1).node_id in table
        table.failed(contact(1), 1.0)
    assert len(table) == 0
    assert not table.holds_address(contact(1).address)


def test_an_answer_clears_failures():
    table = RoutingTable(OWN, k=K)
    table.answered(contact(1), 0.0)
    for _ in range(MAX_FAILURES - 1):
        table.failed(contact(1), 1.0)
    assert table.has_urgent(1.0)
    assert table.closest(OWN, K, good_only=True) == []
    table.answered(contact(1), 2.0)
    assert not table.has_urgent(2.0)
    assert table.closest(OWN, K, good_only=True) == [contact(1)]


def test_a_failure_at_another_address_proves_nothing():
    table = RoutingTable(OWN, k=K)
    table.answered(contact(1), 0.0)
    liar = Contact(contact(1).public_key, Address("10.9.9.9", 9))
    for _ in range(10):
        table.failed(liar, 1.0)
    assert not table.has_urgent(1.0)
    assert [entry.contact for entry in table] == [contact(1)]


def test_a_contact_that_moved_is_found_at_its_new_address():
    table = RoutingTable(OWN, k=K)
    table.answered(contact(1), 5.0)
    moved = Contact(contact(1).public_key, Address("10.9.9.9", 9))
    assert table.wants(moved)
    assert table.answered(moved, 6.0).check == contact(1), "who may be there still"
    assert [entry.contact for entry in table] == [contact(1)]
    for _ in range(3):
        table.failed(contact(1), 7.0)
    assert [entry.contact for entry in table] == [moved]
    assert next(iter(table)).since == 5.0
    assert table.is_proved(moved)
    assert not table.is_proved(contact(1))


def test_a_contact_that_still_answers_where_it_was_has_not_moved():
    table = RoutingTable(OWN, k=K)
    table.answered(contact(1), 5.0)
    relay = Contact(contact(1).public_key, Address("10.9.9.9", 9))
    for now in (6.0, 7.0, 8.0):
        assert table.wants(relay)
        table.answered(relay, now)
        assert not table.wants(relay), "it is known, and its old address is being asked"
        table.failed(contact(1), now)
        table.answered(contact(1), now)
    for _ in range(3):
        table.failed(contact(1), 9.0)
    assert len(table) == 0


def test_a_contact_of_both_families_keeps_the_address_that_works():
    table = RoutingTable(OWN, k=K)
    table.answered(contact(1), 5.0)
    same = Contact(contact(1).public_key, Address("fd00::1", 9))
    assert not table.wants(same)
    table.answered(same, 6.0)
    assert [entry.contact for entry in table] == [contact(1)]
    table.failed(contact(1), 7.0)
    assert table.wants(same)
    table.answered(same, 8.0)
    assert [entry.contact for entry in table] == [same]


def test_a_new_key_at_an_address_takes_the_place_of_the_old_one():
    table = RoutingTable(OWN, k=K)
    table.answered(contact(1), 0.0)
    reborn = Contact(contact(2).public_key, contact(1).address)
    table.answered(reborn, 1.0)
    assert [entry.contact for entry in table] == [reborn]


def test_one_subnet_has_few_places():
    table = RoutingTable(OWN, k=16)
    for number in range(1, 1000):  # so that buckets split
        table.answered(contact(number), 0.0)
    for _ in range(3 * MAX_FAILURES):
        for entry in list(table):
            table.failed(entry.contact, 1.0)
    assert len(table) == 0

    def of_subnet():
        return [entry.contact for entry in table]

    for number in range(1000, 4000):
        table.answered(contact(number, host=f"8.8.8.{number % 250 + 1}"), 2.0)
    assert len(of_subnet()) == PER_SUBNET_IN_TABLE
    in_bucket = Counter(common_prefix_bits(0, number_of(peer.node_id)) for peer in of_subnet())
    assert max(in_bucket.values()) == PER_SUBNET_IN_BUCKET
    assert not table.wants(contact(5001, host="8.8.8.8"))
    for peer in of_subnet():
        for _ in range(MAX_FAILURES):
            table.failed(peer, 3.0)
    assert of_subnet() == []
    assert any(table.answered(contact(number, host="8.8.8.8"), 4.0).added for number in range(5000, 5040))


def test_a_private_subnet_has_no_such_limit():
    table = RoutingTable(OWN, k=16)
    for number in range(1, 17):
        table.answered(contact(number, host="127.0.0.1"), 0.0)
    assert len(table) == 16


def test_the_size_of_the_network_is_exact_while_small_and_estimated_beyond():
    table = RoutingTable(OWN, k=16)
    for number in range(1, 13):
        table.answered(contact(number), 0.0)
    assert table.network_size == 12
    for size in (200, 5000):
        estimates = []
        for seed in range(20):
            table = RoutingTable(NodeId(key(f"owner {seed}")), k=16)
            for number in range(1, size + 1):
                table.answered(contact(number), 0.0)
            estimates.append(table.network_size)
        mean = sum(estimates) / len(estimates)
        assert 0.8 * size < mean < 1.25 * size
        assert table.nodes_within(1 << 255) == pytest.approx(table.network_size / 2)


def test_whom_to_check():
    table = RoutingTable(OWN, k=K)
    for number, seen in ((1, 30.0), (2, 10.0), (3, 20.0)):
        table.answered(contact(number), seen)
    assert table.to_check(24.0, retry_after=1.0, idle_after=15.0) is None
    assert table.to_check(40.0, retry_after=1.0, idle_after=15.0) == contact(2)
    table.failed(contact(1), 40.0)
    assert table.to_check(40.5, retry_after=1.0, idle_after=15.0) == contact(2)
    assert table.to_check(41.0, retry_after=1.0, idle_after=15.0) == contact(1)
    assert table.to_check(41.5, retry_after=1.0, idle_after=15.0) == contact(2)


def test_buckets_are_refreshed_when_nothing_was_looked_up_in_them():
    table = RoutingTable(OWN, k=K)
    for number in range(1, 500):
        table.answered(contact(number), 0.0)
    buckets = len(table.bucket_sizes)
    targets = [table.to_refresh(0.0, 900.0, seeded(1)) for _ in range(buckets)]
    assert [common_prefix_bits(0, number_of(target)) for target in targets] == list(range(buckets))
    assert table.to_refresh(899.0, 900.0, seeded(1)) is None
    table.looked_up(in_bucket(0, 1)[0].node_id, 899.0)
    again = table.to_refresh(900.0, 900.0, seeded(1))
    assert common_prefix_bits(0, number_of(again)) == 1


def test_a_bucket_that_was_never_looked_up_is_filled_while_it_is_less_than_half_full():
    table = RoutingTable(OWN, k=K)
    assert table.to_fill(seeded(1)) is None
    for bits, count in ((0, 2), (1, 1), (2, 1), (3, 4)):
        for peer in in_bucket(bits, count):
            table.answered(peer, 0.0)
    assert table.bucket_sizes[:3] == (2, 1, 1)
    for bits in (1, 2):
        target = table.to_fill(seeded(1))
        assert common_prefix_bits(0, number_of(target)) == bits
        table.looked_up(target, 1.0)
    assert table.to_fill(seeded(1)) is None


@pytest.mark.parametrize("answered_first", [True, False])
def test_who_asks_is_worth_a_ping_only_if_there_is_a_place(answered_first):
    table = RoutingTable(OWN, k=K)
    assert table.wants(contact(1))
    if answered_first:
        table.answered(contact(1), 0.0)
        assert not table.wants(contact(1))
        table.failed(contact(1), 1.0)
        assert table.wants(contact(1))


# --- the trial of the new ---------------------------------------------------------------------------------------------


def old_table(peers, k=K):
    """A table in which `peers` have passed their trial by the time `TRIAL_S`."""
    table = RoutingTable(OWN, k=k)
    for peer in peers:
        table.answered(peer, 0.0)
    for peer in peers:
        table.answered(peer, TRIAL_S)
    return table


def test_others_are_told_of_the_new_only_after_a_second_answer():
    old, new = [contact(number) for number in range(1, 7)], contact(99)
    table = old_table(old, k=16)
    target = new.node_id
    table.answered(new, TRIAL_S + 1)
    assert table.closest(target, 4, good_only=True)[0] == new, "our own lookups ask it"
    assert new not in table.to_tell(target, 4)
    table.answered(new, 2 * TRIAL_S)
    assert new not in table.to_tell(target, 4), "an answer too soon proves nothing"
    table.answered(new, 2 * TRIAL_S + 1)
    assert table.to_tell(target, 4)[0] == new


def test_a_small_swarm_is_told_of_as_it_is():
    old, new = [contact(number) for number in range(1, 7)], contact(99)
    table = old_table(old, k=16)
    table.answered(new, TRIAL_S + 1)
    told = table.to_tell(new.node_id, 16)
    assert told == sorted([*old, new], key=lambda peer: distance(peer.node_id, new.node_id))


def test_while_most_of_the_table_is_new_all_are_told():
    table = RoutingTable(OWN, k=16)
    for number in range(1, 13):
        table.answered(contact(number), 0.0)
    for number in range(1, 7):
        assert table.to_tell(OWN, 4) == table.closest(OWN, 4)
        table.answered(contact(number), TRIAL_S)
    assert table.to_tell(OWN, 4) == table.closest(OWN, 4, good_only=True, proven_only=True) != table.closest(OWN, 4)


def test_nobody_is_told_of_who_failed_lately_however_old():
    table = old_table([contact(number) for number in range(1, 7)], k=16)
    nearest = table.to_tell(OWN, 1)[0]
    table.failed(nearest, TRIAL_S + 1)
    assert nearest not in table.to_tell(OWN, 16)


def test_a_contact_that_moved_keeps_the_trust_it_has():
    table = old_table([contact(number) for number in range(1, 7)], k=16)
    moved = Contact(contact(1).public_key, Address("10.9.9.9", 9))
    table.answered(moved, TRIAL_S + 1)
    for _ in range(3):
        table.failed(contact(1), TRIAL_S + 2)
    assert moved in table.to_tell(moved.node_id, 1)


def test_a_place_goes_to_who_has_waited_longest_enough_before_a_stranger():
    table = RoutingTable(OWN, k=K)
    first = in_bucket(0, K + 3)
    for peer in [*in_bucket(1, K), *first[: K + 1]]:
        table.answered(peer, 0.0)
    steady, *strangers = first[K:]
    table.answered(steady, TRIAL_S)
    for stranger in strangers:
        table.answered(stranger, TRIAL_S + 1)
    for _ in range(FAILURES_IF_REPLACED):
        table.failed(first[0], TRIAL_S + 2)
    assert steady.node_id in table
    assert not any(stranger.node_id in table for stranger in strangers)
    assert steady in table.closest(OWN, 100, good_only=True, proven_only=True)


def test_a_trial_ends_by_a_check_in_time():
    old, new = contact(1), contact(2)
    table = old_table([old])
    table.answered(new, 10.0)
    table.answered(old, 10.0 + TRIAL_S)
    assert not table.has_urgent(9.0 + TRIAL_S)
    assert table.to_check(9.0 + TRIAL_S, retry_after=1.0, idle_after=60.0) is None
    assert table.has_urgent(10.0 + TRIAL_S)
    assert table.to_check(10.0 + TRIAL_S, retry_after=1.0, idle_after=60.0) == new
    assert table.to_check(10.5 + TRIAL_S, retry_after=1.0, idle_after=60.0) is None, "it is being checked"
    table.answered(new, 10.5 + TRIAL_S)
    assert not table.has_urgent(11.0 + TRIAL_S)


def part(contact):
    return contact.number >> 251


def test_each_part_of_a_full_bucket_gets_a_place_before_any_gets_two():
    far = in_bucket(0, 400)
    crowd = [other for other in far if part(other) == part(far[0])][:K]
    others = {part(other): other for other in far if part(other) != part(far[0])}
    spread = list(others.values())[: K - 1]
    table = RoutingTable(OWN, k=K)
    near = in_bucket(1, K + 1)
    for now, newcomer in enumerate([*near, *crowd]):
        table.answered(newcomer, float(now))
    for newcomer in spread:
        assert table.answered(newcomer, 100.0).added
    # The oldest of the crowd has kept its place, and each of the others came from a part of its own.
    assert {entry.contact for entry in table if entry.contact in far} == {crowd[0], *spread}
    for late in (crowd[-1], next(other for other in far if part(other) == part(spread[0]) and other != spread[0])):
        assert not table.answered(late, 200.0).added
    # Who gave way waits, and comes back when one of the others fails.
    for _ in range(MAX_FAILURES):
        table.failed(spread[0], 300.0)
    assert spread[0].node_id not in table
    assert table.bucket_sizes[0] == K


def test_a_place_that_a_new_key_took_away_goes_to_who_waits():
    """An address is one contact's; whoever came back with a new key may belong into another bucket."""
    table = RoutingTable(OWN, k=K)
    near, far = in_bucket(1, K), in_bucket(0, K + 2)
    for peer in (*near, *far):
        table.answered(peer, 0.0)
    waiting = [peer for peer in far if peer.node_id not in table]
    leaving = next(peer for peer in far if peer.node_id in table)
    assert len(waiting) == 2
    [newcomer] = in_bucket(2, 1)
    table.answered(Contact(newcomer.public_key, leaving.address), 1.0)
    assert newcomer.node_id in table
    assert leaving.node_id not in table
    assert sum(peer.node_id in table for peer in waiting) == 1


def test_who_cannot_take_a_place_now_goes_on_waiting():
    table = RoutingTable(OWN, k=K)
    far = in_bucket(0, 5)
    subnet = [Contact(peer.public_key, Address(f"8.8.8.{n}", 1)) for n, peer in enumerate(far[:3], 1)]
    for peer in (*in_bucket(1, K), *subnet[:2], *far[3:5]):
        table.answered(peer, 0.0)
    bucket = table._buckets[0]
    crowded = Entry(subnet[2], subnet[2].number, 1.0, 1.0, 1.0)
    bucket.waiting.append(crowded)
    for now in (2.0, 3.0):
        table.failed(far[3], now)
    assert far[3].node_id not in table
    assert bucket.waiting == [crowded], "two of its subnet are there"
    for now in (4.0, 5.0):
        table.failed(subnet[0], now)
    assert subnet[2].node_id in table


def test_who_could_not_be_sent_to_is_not_blamed_and_lets_others_have_their_turn():
    table = RoutingTable(OWN, k=K)
    for number, seen in ((1, 10.0), (2, 20.0)):
        table.answered(contact(number), seen)
    assert table.to_check(40.0, retry_after=1.0, idle_after=15.0) == contact(1)
    table.unsent(contact(1).address, 40.0)
    assert table.to_check(40.0, retry_after=1.0, idle_after=15.0) == contact(2)
    table.failed(contact(1), 41.0)
    table.unsent(contact(1).address, 42.0)
    assert table.to_check(44.0, retry_after=1.0, idle_after=15.0) == contact(2)
    assert table.to_check(42.0 + UNSENT_S + 1, retry_after=1.0, idle_after=15.0) == contact(1)
    assert [entry.failures for entry in table] == [1, 0]


def unsendable(host, other_host, *, other_answers):
    """A table whose contact at `host` could not be sent to for longer than it may, and who is in it."""
    table = RoutingTable(OWN, k=K)
    table.answered(contact(1, host), 0.0)
    table.answered(contact(2, other_host), 0.0)
    for now in range(10, int(2 * UNSENDABLE_S), 10):
        table.unsent(contact(1, host).address, float(now))
        if other_answers:
            table.answered(contact(2, other_host), float(now))
        else:
            table.unsent(contact(2, other_host).address, float(now))
    return {entry.contact for entry in table}


def test_who_cannot_be_sent_to_for_long_leaves_if_others_answer():
    v6, v4 = "2001:4860::1", "9.9.9.9"
    assert unsendable(v6, v4, other_answers=True) == {contact(2, v4)}
    assert unsendable(v6, v4, other_answers=False) == {contact(1, v6), contact(2, v4)}, "we are cut off"


@pytest.mark.parametrize(("host", "nearer"), [("9.9.9.9", "10.0.0.1"), ("10.0.0.1", "127.0.0.1")])
def test_that_somebody_nearer_answers_does_not_show_that_the_way_to_a_contact_is_lost(host, nearer):
    assert contact(1, host) in unsendable(host, nearer, other_answers=True)
    assert unsendable(nearer, host, other_answers=True) == {contact(2, host)}


def test_who_waits_takes_the_place_of_one_who_cannot_be_sent_to():
    table = RoutingTable(OWN, k=K)
    far = in_bucket(0, K + 1)
    near = in_bucket(4, 1)
    for peer in (*near, *far):
        table.answered(peer, 0.0)
    assert far[K] not in {entry.contact for entry in table}
    table.unsent(far[0].address, 1.0)
    table.answered(near[0], 2.0)
    table.unsent(far[0].address, 1.0 + UNSENDABLE_S)
    assert {entry.contact for entry in table} == {*near, *far[1:]}


def test_an_answer_shows_that_a_contact_can_be_sent_to():
    table = RoutingTable(OWN, k=K)
    for now in range(0, int(4 * UNSENDABLE_S), int(UNSENDABLE_S) - 1):
        table.answered(contact(1), float(now))
        table.answered(contact(2), float(now))
        table.unsent(contact(1).address, now + 1.0)
        assert len(table) == 2


def test_who_cannot_be_sent_to_is_looked_for_and_taken_at_its_address_of_the_other_family():
    table = RoutingTable(OWN, k=K)
    v6, v4 = contact(1, "2001:4860::1"), contact(1, "9.9.9.9")
    table.answered(v6, 0.0)
    table.unsent(v6.address, 1.0)
    assert not table.holds_address(v6.address)
    assert table.wants(v4)
    table.answered(v4, 2.0)
    assert [entry.contact for entry in table] == [v4]
    assert table.holds_address(v4.address)


def test_a_relay_cannot_have_a_node_asked_until_enough_is_lost():
    table = RoutingTable(OWN, k=K)
    table.answered(contact(1), 0.0)
    relay = Contact(contact(1).public_key, Address("10.9.9.9", 9))
    checks = 0
    for step in range(36_000):
        now = step / 10
        if table.wants(relay) and table.answered(relay, now).check is not None:
            checks += 1
            table.answered(contact(1), now)
    assert 1 <= checks <= 30


def test_a_relay_takes_no_place_sooner_because_somebody_waits():
    table = RoutingTable(OWN, k=K)
    far = in_bucket(0, K + 1)
    for peer in (*in_bucket(4, 1), *far):
        table.answered(peer, 0.0)
    relay = Contact(far[0].public_key, Address("10.9.9.9", 9))
    table.answered(relay, 1.0)
    for _ in range(MAX_FAILURES - 1):
        table.failed(far[0], 2.0)
    assert table.is_proved(far[0])
    table.failed(far[0], 3.0)
    assert table.is_proved(relay)
