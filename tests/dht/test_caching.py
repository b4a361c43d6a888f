"""Copies of hot keys near those who ask: what is kept, for how long, and what it saves the holders."""

import math
from collections import Counter
from types import SimpleNamespace

import attrs
import pytest
import trio
from swarms import EPOCH, Swarm, closest_nodes, contact, identity, key, seeded

from llamanet.dht import search
from llamanet.dht.distance import distance
from llamanet.dht.guard import WriteTokens
from llamanet.dht.handlers import CACHE_S, CACHED_PUBLISHERS, Handlers
from llamanet.dht.requests import Outcome
from llamanet.dht.routing import RoutingTable
from llamanet.dht.storage import RecordStore
from llamanet.errors import BadMessage
from llamanet.testing.network import MemoryNetwork
from llamanet.wire.envelope import MAX_PAYLOAD_BYTES, Network
from llamanet.wire.record import encode_record, sign_record
from llamanet.wire.rpc import Address, Contact, FindValue, Refused, Store, Stored, Values

ME = identity(1)
ASKER = contact(7)
T = bytes(8)


@pytest.fixture
def handlers():
    handlers = Handlers(
        own_id=ME.node_id,
        network=Network(),
        table=RoutingTable(ME.node_id, k=16),
        store=RecordStore(secret=b"s"),
        tokens=WriteTokens(bytes(32)),
        rng=seeded(1),
        k=16,
        version="",
        live_state=None,
    )
    nearer = [peer for peer in map(contact, range(400)) if nearer_than_me(peer)]
    for peer in nearer[:40]:
        handlers.table.answered(peer, 0.0)
        handlers.table.answered(peer, 1000.0)
    return handlers


def nearer_than_me(peer):
    return distance(peer.node_id, key("k")) < distance(ME.node_id, key("k"))


def signed(publisher=2, *, sequence=1, lifetime=600):
    return sign_record(
        identity(publisher),
        Network(),
        key=key("k"),
        sequence=sequence,
        issued_at=int(EPOCH),
        lifetime=lifetime,
        value=b"v",
    )


def find(handlers, wall_now=EPOCH):
    request = FindValue(transaction=T, client=True, key=key("k"))
    return handlers.answer(request, ASKER, now=2000.0, wall_now=wall_now, room=MAX_PAYLOAD_BYTES)


def store(handlers, record, *, cache=True, token=None, wall_now=EPOCH):
    token = find(handlers).token if token is None else token
    request = Store(transaction=T, client=True, token=token, record=encode_record(record), cache=cache)
    return handlers.answer(request, ASKER, now=2000.0, wall_now=wall_now, room=MAX_PAYLOAD_BYTES)


def test_a_far_node_keeps_a_copy_for_less_time_the_more_nodes_are_nearer(handlers):
    refused = store(handlers, signed(), cache=False)
    assert isinstance(refused, Refused)
    assert refused.reason == "far"
    assert isinstance(store(handlers, signed()), Stored)
    nearer = handlers.table.nodes_within(distance(ME.node_id, key("k")))
    lifetime = CACHE_S * math.exp(-nearer / 16)
    assert 1.0 < lifetime < CACHE_S / 2
    assert find(handlers, EPOCH + lifetime - 0.1).records == (encode_record(signed()),)
    assert find(handlers, EPOCH + lifetime + 0.1).records == ()


def test_a_copy_does_not_outlive_its_record(handlers):
    record = signed(lifetime=2)
    store(handlers, record)
    assert find(handlers, EPOCH + 1.9).records == (encode_record(record),)
    assert find(handlers, EPOCH + 2.0).records == ()
    expired = store(handlers, record, wall_now=EPOCH + 3)
    assert isinstance(expired, Refused)
    assert expired.reason == "time"


def test_a_copy_is_no_replica(handlers):
    store(handlers, signed())
    assert (handlers.store.records, handlers.store.bytes) == (0, 0)
    assert store(handlers, signed(3)).publishers == 0, "of what it holds for the key itself"


def test_what_is_held_is_told_before_any_copy(handlers):
    store(handlers, signed(2))
    held = signed(3)
    handlers.store.put(held, encode_record(held), b"", EPOCH)
    assert find(handlers).records == (encode_record(held),)


def test_a_copy_needs_a_token_and_a_signature(handlers):
    refused = store(handlers, signed(), token=bytes(8))
    assert isinstance(refused, Refused)
    assert refused.reason == "token"
    handlers.network = Network("another")
    with pytest.raises(BadMessage):
        store(handlers, signed())


def test_copies_are_bounded(handlers):
    for publisher in range(2, 30):
        store(handlers, signed(publisher))
    assert len(handlers.cache) <= CACHED_PUBLISHERS


SMALL = {"k": 4, "alpha": 1, "replicas": 2}
"""Settings with which a lookup among few nodes passes some that are no holders."""


async def hot_key(swarm):
    """60 nodes, and the name of a key that the bootstrap peer does not hold, with one publisher."""
    nodes = await swarm.start_many(60, **SMALL)
    await trio.sleep(40)
    name = next(name for name in map(str, range(1000)) if nodes[0] not in closest_nodes(nodes, key(name), 20))
    await nodes[0].publish(key(name), b"v", lifetime=600)
    return nodes, key(name)


async def read_by_newcomers(swarm, nodes, hot, count, *, limit):
    """Clients that know one node each read the key, one after the other."""
    for number in range(count):
        peer = nodes[number % len(nodes)]
        client = await swarm.start(1000 * limit + number, bootstrap=[peer], client_mode=True, **SMALL)
        await client.wait_joined()
        assert [record.value for record in await client.get(hot, limit=limit)] == [b"v"]
    await trio.sleep(1)


async def served_by_holders():
    """How many requests the two holders of a key answer while 180 newcomers read it."""
    async with trio.open_nursery() as nursery:
        swarm = Swarm(nursery, MemoryNetwork(seed=3, delay=(0.005, 0.01)))
        nodes, hot = await hot_key(swarm)
        holders = [node for node in nodes if node.health().stored_records]
        before = sum(node.health().requests_served for node in holders)
        await read_by_newcomers(swarm, nodes, hot, 180, limit=1)
        served = sum(node.health().requests_served for node in holders) - before
        assert [node for node in nodes if node.health().stored_records] == holders
        nursery.cancel_scope.cancel()
    return served


async def test_the_load_of_a_key_that_many_read_spreads(autojump_clock, monkeypatch):
    with_copies = await served_by_holders()
    monkeypatch.setattr(search, "CACHED_PUBLISHERS", 0)
    assert with_copies < 0.6 * await served_by_holders()


async def test_a_copy_is_left_with_one_that_is_no_holder_by_who_found_all_that_it_wanted(autojump_clock, nursery):
    swarm = Swarm(nursery, MemoryNetwork(seed=3, delay=(0.005, 0.01)))
    nodes, hot = await hot_key(swarm)

    def with_copies():
        return {node for node in nodes if len(node._overlay._handlers.cache)}

    await read_by_newcomers(swarm, nodes, hot, 20, limit=64)
    assert with_copies() == set(), "who wants more than there is asks all holders anyway"
    await read_by_newcomers(swarm, nodes[20:], hot, 20, limit=1)
    assert with_copies()
    assert with_copies().isdisjoint(closest_nodes(nodes, hot, 2))


async def served_by_holders_of_three(*, copies):
    """How many requests the two holders of a key answer while 180 newcomers read its three publishers."""
    async with trio.open_nursery() as nursery:
        swarm = Swarm(nursery, MemoryNetwork(seed=3, delay=(0.005, 0.01)))
        nodes, hot = await hot_key(swarm)
        await nodes[1].publish(hot, b"w", lifetime=600)
        await nodes[2].publish(hot, b"x", lifetime=600)
        holders = [node for node in nodes if node.health().stored_records]
        before = sum(node.health().requests_served for node in holders)
        for number in range(180):
            peer = nodes[number % len(nodes)]
            client = await swarm.start(1000 + number, bootstrap=[peer], client_mode=True, **SMALL)
            await client.wait_joined()
            found = await client.get(hot, copies=copies)
            assert {record.value for record in found} == {b"v", b"w", b"x"}
        served = sum(node.health().requests_served for node in holders) - before
        nursery.cancel_scope.cancel()
    return served


async def test_the_load_of_a_key_with_several_publishers_spreads_among_those_whom_one_word_satisfies(
    autojump_clock, monkeypatch
):
    with_copies = await served_by_holders_of_three(copies=True)
    assert with_copies < 0.4 * await served_by_holders_of_three(copies=False)
    monkeypatch.setattr(search, "CACHED_PUBLISHERS", 0)
    assert with_copies < 0.7 * await served_by_holders_of_three(copies=True)


async def test_whoever_takes_one_word_takes_all_pages_of_it(autojump_clock, nursery):
    swarm = Swarm(nursery, MemoryNetwork(seed=3, delay=(0.005, 0.01)))
    nodes = await swarm.start_many(20)
    for number, node in enumerate(nodes):
        await node.publish(key("large"), b"%d" % number + bytes(200), lifetime=600)
    reader = await swarm.start(100, bootstrap=[nodes[0]], client_mode=True)
    await trio.sleep(5)
    before = Counter({node: node.health().requests_served for node in nodes})
    assert len(await reader.get(key("large"), copies=True)) == 20
    asked = [node for node in nodes if node.health().requests_served > before[node]]
    assert len(asked) < len(closest_nodes(nodes, key("large"), 8))
    for number, node in enumerate(nodes):
        if number % 2:
            swarm.network.pause(swarm.addresses[node])
    with trio.fail_after(10):
        assert len(await reader.get(key("large"), copies=True)) == 20


async def test_a_liar_among_those_whose_word_would_do_does_not_hold_a_reader_up(autojump_clock, nursery, monkeypatch):
    swarm = Swarm(nursery, MemoryNetwork(seed=3, delay=(0.005, 0.01)))
    nodes = await swarm.start_many(12)
    record = (await nodes[1].publish(key("x"), b"v", lifetime=600)).record
    forged = encode_record(attrs.evolve(record, sequence=record.sequence + 1))
    reader = closest_nodes([node for node in nodes if node is not nodes[1]], key("x"), 12)[-1]
    liar = closest_nodes(nodes, key("x"), 1)[0]
    values = Handlers._values

    def lie(self, request, *arguments):
        honest = values(self, request, *arguments)
        if self is liar._overlay._handlers:
            return attrs.evolve(honest, records=(*honest.records, forged), total=9, next_cursor=1)
        return honest

    monkeypatch.setattr(Handlers, "_values", lie)
    with trio.fail_after(5):
        assert await reader.get(key("x"), copies=True) == [record]


async def test_the_word_of_one_that_was_caught_lying_is_not_enough(autojump_clock, nursery, monkeypatch):
    """It tells one publisher's record, and a forged one; the other publishers are known to the next that is asked."""
    swarm = Swarm(nursery, MemoryNetwork(seed=3, delay=(0.005, 0.01)))
    nodes = await swarm.start_many(12)
    records = [(await node.publish(key("x"), b"v", lifetime=600)).record for node in nodes[1:4]]
    told = (encode_record(records[0]), encode_record(attrs.evolve(records[1], sequence=records[1].sequence + 1)))
    reader = closest_nodes([node for node in nodes if node not in nodes[1:4]], key("x"), 12)[-1]
    liar = closest_nodes(nodes, key("x"), 1)[0]
    values = Handlers._values

    def lie(self, request, *arguments):
        honest = values(self, request, *arguments)
        return attrs.evolve(honest, records=told, total=2) if self is liar._overlay._handlers else honest

    monkeypatch.setattr(Handlers, "_values", lie)
    found = await reader.get(key("x"), copies=True)
    assert {record.publisher for record in found} == {record.publisher for record in records}


@pytest.mark.parametrize(("drawn", "leaves"), [(search.COPYING_SHARE - 0.01, True), (search.COPYING_SHARE, False)])
async def test_one_id_at_two_addresses_may_both_have_nothing(drawn, leaves):
    """The nearest of those with nothing gets a copy; two of them may be equally near, and differ in address alone."""
    record = encode_record(signed())
    here, holder = contact(1), contact(2)
    there = Contact(here.public_key, Address("10.9.9.9", 9))
    stored = []

    class Peers:
        def ask(self, contact, request, on_outcome, **_options):
            if isinstance(request, Store):
                stored.append(contact)
                return
            records = (record,) if contact == holder else ()
            values = Values(
                transaction=request.transaction,
                observed=ASKER.address,
                token=b"t" * 8,
                records=records,
                total=1,
                next_cursor=None,
                contacts=(),
            )
            on_outcome(Outcome(contact, values, 0.1))

    class Asks:
        paths, narrow, finished = 1, False, False
        left = iter([here, there, holder])

        def next(self):
            return next(self.left, None)

        def answered(self, contact, contacts):
            pass

    found = search.read(
        key("k"),
        limit=1,
        own=(),
        lookup=Asks(),
        requests=Peers(),
        verifier=search.RecordVerifier(Network()),
        client=True,
        wall_clock=lambda: EPOCH,
        rng=SimpleNamespace(random=lambda: drawn),
        counts=Counter(),
        on_bad_record=lambda: None,
    )
    assert [encode_record(one) async for one in found] == [record]
    assert stored == [here] * leaves
