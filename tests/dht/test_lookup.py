"""The lookup against whole networks of real routing tables, without any I/O."""

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from swarms import contact, key, seeded

from llamanet.dht.distance import distance
from llamanet.dht.lookup import MAX_ASKED, Lookup
from llamanet.dht.routing import RoutingTable
from llamanet.wire.identity import NodeId
from llamanet.wire.rpc import Address, Contact

ASKER = contact(10**6)
K = 8


def tables_of(contacts, k, seed):
    """Each contact's table, filled in random order with all the others."""
    rng = seeded(seed)
    tables = {}
    for owner in contacts:
        table = RoutingTable(owner.node_id, k=k)
        for other in rng.sample(contacts, len(contacts)):
            table.answered(other, 0.0)
        tables[owner] = table
    return tables


def run(lookup, tables, rng, *, dead=frozenset(), alpha, count, lie=None):
    """Answer in random order; returns who was asked, and the most requests that were under way at once."""
    under_way, asked, most = [], [], 0
    while not lookup.finished:
        while (peer := lookup.next()) is not None:
            under_way.append(peer)
            asked.append(peer)
        most = max(most, len(under_way))
        assert under_way, "not finished, and waiting for nothing"
        peer = under_way.pop(rng.randrange(len(under_way)))
        if peer in dead or peer not in tables:
            lookup.overdue(peer)
        elif lie is not None and lie(peer) is not None:
            lookup.answered(peer, lie(peer))
        else:
            lookup.answered(peer, tables[peer].closest(TARGET, K))
    assert most <= max(alpha, count)
    return asked, most


TARGET = key("target")


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 60),
    seed=st.integers(0, 2**32),
    alpha=st.integers(1, 5),
    count=st.integers(1, K),
    dead_share=st.sampled_from([0.0, 0.0, 0.1, 0.3]),
)
def test_it_ends_with_the_nearest_that_answer(size, seed, alpha, count, dead_share):
    rng = seeded(seed)
    contacts = [contact(rng.randrange(10**6)) for _ in range(size)]
    contacts = list(dict.fromkeys(contacts))
    dead = frozenset(peer for peer in contacts if rng.random() < dead_share)
    tables = tables_of(contacts, K, seed)
    lookup = Lookup(TARGET, ASKER.node_id, rng.sample(contacts, min(3, len(contacts))), count=count, alpha=alpha)
    asked, _ = run(lookup, tables, rng, dead=dead, alpha=alpha, count=count)
    assert len(asked) == len(set(asked)), "nobody is asked twice"
    found = lookup.closest()
    assert found == sorted(found, key=lambda peer: distance(peer.node_id, TARGET))
    assert not dead.intersection(found)
    if not dead:
        assert found == sorted(contacts, key=lambda peer: distance(peer.node_id, TARGET))[:count]


def test_in_a_large_network_it_asks_few_and_finds_the_true_nearest():
    contacts = [contact(number) for number in range(1, 500)]
    tables = tables_of(contacts, 16, 3)
    rng = seeded(4)
    for number in range(20):
        target = key(f"target {number}")
        lookup = Lookup(target, ASKER.node_id, rng.sample(contacts, 3), count=8, alpha=4)
        under_way = deque()
        while not lookup.finished:
            while (peer := lookup.next()) is not None:
                under_way.append(peer)
            peer = under_way.popleft()
            lookup.answered(peer, tables[peer].closest(target, 16))
        assert lookup.closest() == sorted(contacts, key=lambda peer: distance(peer.node_id, target))[:8]
        assert lookup.asked <= 24


def test_it_does_not_stop_at_the_first_k_seen():
    near, far = sorted((contact(n) for n in range(1, 41)), key=lambda c: distance(c.node_id, TARGET))[::39]
    rest = sorted((contact(n) for n in range(1, 41)), key=lambda c: distance(c.node_id, TARGET))[20:39]
    lookup = Lookup(TARGET, ASKER.node_id, rest, count=4, alpha=2)
    peers = []
    while not lookup.finished:
        peer = lookup.next()
        peers.append(peer)
        lookup.answered(peer, [near] if peer == rest[3] else [])  # the last of the first four knows a nearer one
    assert lookup.closest()[0] == near
    assert far not in peers


def test_no_more_than_alpha_are_asked_while_it_gets_nearer():
    contacts = sorted((contact(n) for n in range(1, 200)), key=lambda c: -distance(c.node_id, TARGET))
    lookup = Lookup(TARGET, ASKER.node_id, contacts[:16], count=16, alpha=3)
    under_way = deque()
    for nearer in contacts[16:120]:
        while (peer := lookup.next()) is not None:
            under_way.append(peer)
        assert len(under_way) <= 3
        lookup.answered(under_way.pop(), [nearer])


def test_a_request_under_way_holds_nothing_up():
    contacts = sorted((contact(n) for n in range(1, 40)), key=lambda c: -distance(c.node_id, TARGET))
    lookup = Lookup(TARGET, ASKER.node_id, contacts[:8], count=8, alpha=3)
    silent = lookup.next()
    answering = [lookup.next(), lookup.next()]
    for nearer in contacts[8:]:
        assert lookup.next() is None
        lookup.answered(answering.pop(0), [nearer])
        answering.append(lookup.next())
        assert answering[-1] == nearer
    assert silent not in lookup.closest()


def test_an_overdue_request_holds_nothing_up_and_its_late_answer_counts():
    a, b, c = sorted((contact(n) for n in range(3)), key=lambda peer: distance(peer.node_id, TARGET))
    lookup = Lookup(TARGET, ASKER.node_id, [a, b], count=2, alpha=1)
    assert lookup.next() == a
    assert lookup.next() is None
    lookup.overdue(a)
    assert lookup.next() == b
    lookup.answered(a, [c])  # late
    assert not lookup.finished
    lookup.answered(b, [])
    assert lookup.finished
    assert lookup.closest() == [a, b]


def test_a_lie_about_an_address_does_not_hide_the_honest_one():
    honest, liar, teller = (contact(n) for n in range(3))
    forged = Contact(honest.public_key, Address("10.66.66.66", 6))
    lookup = Lookup(TARGET, ASKER.node_id, [liar], count=3, alpha=1)
    answers = {liar: [forged, teller], teller: [honest], honest: []}
    asked = []
    while not lookup.finished:
        peer = lookup.next()
        asked.append(peer)
        if peer in answers:
            lookup.answered(peer, answers[peer])
        else:
            lookup.overdue(peer)
    assert honest in lookup.closest()
    assert forged not in lookup.closest()


def test_one_liar_does_not_shut_out_the_honest_address_by_many_wrong_ones():
    honest, liar, teller = (contact(n) for n in range(3))
    forged = [Contact(honest.public_key, Address("10.66.66.66", port)) for port in range(1, 17)]
    lookup = Lookup(TARGET, ASKER.node_id, [liar], count=3, alpha=1)
    answers = {liar: [*forged, teller], teller: [honest], honest: []}
    asked = []
    while not lookup.finished:
        peer = lookup.next()
        asked.append(peer)
        if peer in answers:
            lookup.answered(peer, answers[peer])
        else:
            lookup.overdue(peer)
    assert honest in lookup.closest()
    assert len(set(asked).intersection(forged)) == 1


def test_many_liars_do_not_shut_out_the_honest_address_either():
    honest, teller, *liars = (contact(n) for n in range(32))
    lookup = Lookup(TARGET, ASKER.node_id, [*liars, teller], count=32, alpha=1)
    answers = {
        **{liar: [Contact(honest.public_key, Address("10.66.66.66", port))] for port, liar in enumerate(liars, 1)},
        teller: [honest],
        honest: [],
    }
    while not lookup.finished:
        peer = lookup.next()
        if peer in answers:
            lookup.answered(peer, answers[peer])
        else:
            lookup.overdue(peer)
    assert honest in lookup.closest()


def test_liars_cannot_make_it_run_on():
    """Each answer tells of 16 contacts that do not exist, for as long as anybody asks."""
    numbers = iter(range(10_000, 10**6))
    lookup = Lookup(TARGET, ASKER.node_id, [contact(1)], count=8, alpha=4)
    while not lookup.finished:
        peer = lookup.next()
        lookup.answered(peer, [contact(next(numbers)) for _ in range(16)])
        assert lookup.asked <= MAX_ASKED


def test_silent_liars_cannot_make_it_run_on_either():
    lookup = Lookup(TARGET, ASKER.node_id, [contact(1)], count=8, alpha=4)
    lookup.answered(lookup.next(), [contact(number) for number in range(10_000, 15_000)])
    under_way = deque()
    while not lookup.finished:
        while (peer := lookup.next()) is not None:
            under_way.append(peer)
        lookup.overdue(under_way.popleft())
    assert lookup.asked == MAX_ASKED
    assert not under_way
    assert lookup.closest() == [contact(1)]


def test_with_nobody_to_ask_it_is_over():
    lookup = Lookup(TARGET, ASKER.node_id, [ASKER], count=8, alpha=4)
    assert lookup.finished
    assert lookup.next() is None
    assert lookup.closest() == []


@pytest.mark.parametrize("reply", ["answered", "overdue"])
def test_we_never_ask_ourselves(reply):
    lookup = Lookup(TARGET, NodeId(ASKER.node_id), [contact(1)], count=8, alpha=4)
    assert lookup.next() == contact(1)
    lookup.answered(contact(1), [ASKER])
    assert lookup.finished


def test_a_narrow_lookup_asks_one_until_it_is_widened():
    contacts = sorted((contact(n) for n in range(10)), key=lambda peer: distance(peer.node_id, TARGET))
    lookup = Lookup(TARGET, ASKER.node_id, contacts, count=8, alpha=4, narrow=True)
    assert lookup.next() == contacts[0]
    assert lookup.next() is None
    lookup.widen()
    assert [lookup.next() for _ in range(4)] == [*contacts[1:4], None]
    lookup.overdue(contacts[0])
    assert lookup.next() == contacts[4]


# --- liars, and several paths ----------------------------------------------------------------------------------------


def nearest(contacts, count):
    return sorted(contacts, key=lambda peer: distance(peer.node_id, TARGET))[:count]


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(10, 60),
    seed=st.integers(0, 2**32),
    alpha=st.integers(1, 5),
    count=st.integers(1, K),
    paths=st.integers(1, 4),
    dead_share=st.sampled_from([0.0, 0.2]),
    liar_share=st.sampled_from([0.0, 0.1, 0.3]),
)
def test_whatever_the_dead_and_the_liars_do_it_ends_with_the_nearest_that_answer(
    size, seed, alpha, count, paths, dead_share, liar_share
):
    """Liars answer, and tell of contacts that do not exist, and of honest ones at wrong addresses.

    One honest answer is enough to find the nearest of those that it tells of.
    """
    rng = seeded(seed)
    contacts = [contact(number) for number in rng.sample(range(10**6), size)]
    honest, *others = contacts
    dead = frozenset(peer for peer in others if rng.random() < dead_share)
    liars = frozenset(peer for peer in others if peer not in dead and rng.random() < liar_share)
    tables = tables_of(contacts, 64, seed)  # so that everybody knows all

    def lie(peer):
        if peer not in liars:
            return None
        forged = [Contact(other.public_key, Address("10.66.6.6", 66)) for other in nearest(contacts, 4)]
        return [*forged, *(contact(rng.randrange(10**6, 10**9)) for _ in range(12))]

    seeds = [honest, *rng.sample(others, min(5, len(others)))]
    lookup = Lookup(TARGET, ASKER.node_id, seeds, count=count, alpha=alpha, paths=paths)
    asked, _ = run(lookup, tables, rng, dead=dead, alpha=paths * alpha, count=paths * count, lie=lie)
    assert len(asked) == len(set(asked)) == lookup.asked <= paths * MAX_ASKED
    found = lookup.closest()
    assert found == nearest(found, len(found))
    assert len(found) <= paths * count
    assert not dead.intersection(found)
    if any(peer in tables and peer not in dead | liars for peer in asked):
        alive = [peer for peer in nearest(contacts, K) if peer not in dead]
        assert set(alive[:count]) <= set(found)


def test_a_path_that_liars_captured_hides_nothing_from_the_others():
    """Ids ground next to the target, which tell only of each other: with one path they are all that is found."""
    contacts = [contact(number) for number in range(1, 200)]
    tables = tables_of(contacts, K, 3)
    ground = nearest((contact(number) for number in range(10**6, 10**6 + 20_000)), 12)
    tables |= dict.fromkeys(ground)
    seeds = [ground[0], *contacts[:5]]

    def lie(peer):
        return ground if peer in ground else None

    def find(paths):
        lookup = Lookup(TARGET, ASKER.node_id, seeds, count=K, alpha=1, paths=paths)
        asked, _ = run(lookup, tables, seeded(1), alpha=paths, count=paths * K, lie=lie)
        return asked, lookup.closest()

    captured, found = find(1)
    assert found == ground[:K]
    assert not set(contacts[5:]).intersection(captured)
    asked, found = find(3)
    assert found == nearest([*ground[:K], *nearest(contacts, K)], 2 * K)
    assert len(asked) == len(set(asked)) < 60


def test_paths_among_the_honest_agree_and_cost_little_more_than_one():
    contacts = [contact(number) for number in range(1, 500)]
    tables = tables_of(contacts, 16, 3)
    asked, found = {}, {}
    for paths in (1, 4):
        lookup = Lookup(TARGET, ASKER.node_id, contacts[:16], count=K, alpha=3, paths=paths)
        run(lookup, tables, seeded(1), alpha=3 * paths, count=K * paths)
        asked[paths], found[paths] = lookup.asked, lookup.closest()
    assert found[1] == nearest(contacts, K)
    assert set(found[1]) <= set(found[4])
    assert len(found[4]) <= 2 * K
    assert asked[4] <= 3 * asked[1]


def test_what_a_path_hears_first_counts_however_much_was_lied_to_another():
    honest, liar, teller = (contact(n) for n in range(3))
    forged = [Contact(honest.public_key, Address("10.66.6.6", port)) for port in range(1, 17)]
    lookup = Lookup(TARGET, ASKER.node_id, [liar, teller], count=3, alpha=1, paths=2)
    answers = {liar: forged, teller: [honest], honest: []}
    while not lookup.finished:
        peer = lookup.next()
        if peer in answers:
            lookup.answered(peer, answers[peer])
        else:
            lookup.overdue(peer)
    assert honest in lookup.closest()


def test_a_late_answer_frees_the_place_of_the_path_that_asks_elsewhere():
    """One path asks at a wrong address, another at the right one, and the first is answered late after all."""
    first, second = sorted((contact(n) for n in range(2)), key=lambda peer: distance(peer.node_id, TARGET))
    moved = Contact(first.public_key, Address("10.9.9.9", 9))
    lookup = Lookup(TARGET, ASKER.node_id, [first, second], count=2, alpha=1, paths=2)
    assert [lookup.next(), lookup.next()] == [first, second]
    lookup.overdue(first)
    lookup.answered(second, [moved])
    assert lookup.next() == moved
    lookup.answered(first, [])
    lookup.overdue(moved)
    assert lookup.finished
    assert lookup.closest() == [first, second]


def test_there_are_no_more_paths_than_seeds():
    lookup = Lookup(TARGET, ASKER.node_id, [contact(1)], count=8, alpha=1, paths=4)
    assert [lookup.next(), lookup.next()] == [contact(1), None]
    lookup.answered(contact(1), [])
    assert lookup.finished


def test_a_narrow_lookup_goes_on_one_by_one_until_it_is_near():
    peers = sorted((contact(n) for n in range(40)), key=lambda peer: distance(peer.node_id, TARGET))
    near = distance(peers[8].node_id, TARGET)
    lookup = Lookup(TARGET, ASKER.node_id, peers[30:], count=8, alpha=4, narrow=True, near=near)
    assert [lookup.next(), lookup.next()] == [peers[30], None]
    lookup.answered(peers[30], peers[12:20])
    assert [lookup.next(), lookup.next()] == [peers[12], None]
    lookup.answered(peers[12], peers[5:12])
    assert [lookup.next(), lookup.next()] == [peers[5], None]
    lookup.answered(peers[5], peers[:8])
    assert [lookup.next() for _ in range(5)] == [*peers[:4], None]


def test_a_narrow_lookup_widens_when_an_answer_leads_nowhere_or_none_comes():
    peers = sorted((contact(n) for n in range(10)), key=lambda peer: distance(peer.node_id, TARGET))
    for disappoint in (lambda lookup: lookup.answered(peers[0], peers[1:3]), lambda lookup: lookup.overdue(peers[0])):
        lookup = Lookup(TARGET, ASKER.node_id, peers, count=8, alpha=4, narrow=True, near=0)
        assert lookup.next() == peers[0]
        disappoint(lookup)
        assert [lookup.next() for _ in range(5)] == [*peers[1:5], None]
