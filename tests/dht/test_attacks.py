"""Floods, replays and Sybils over the in-memory network: what honest nodes still get, and what it costs them."""

import hashlib
import heapq

import attrs
import pytest
import trio
from swarms import Attacker, Swarm, closest_nodes, contact, identity, key, seeded

from llamanet.dht.distance import distance
from llamanet.dht.guard import (
    HOST_BURST,
    HOST_RATE,
    KEY_BURST,
    KEY_RATE,
    KNOWN_SHARE,
    SEND_BURST,
    SEND_RATE,
    UNANSWERED_BURST,
    UNANSWERED_RATE,
    VERIFY_BURST,
    VERIFY_RATE,
)
from llamanet.dht.handlers import Handlers
from llamanet.dht.overlay import MAX_CHECKS
from llamanet.dht.requests import Outcome
from llamanet.dht.routing import PER_SUBNET_IN_TABLE
from llamanet.dht.search import MAX_UNANSWERED_OF_A_SUBNET, VERIFIED_RECORDS, RecordVerifier
from llamanet.errors import RpcTimeout
from llamanet.testing.network import MemoryNetwork
from llamanet.wire.envelope import Network
from llamanet.wire.record import MAX_RECORD_BYTES, encode_record, is_signed, sign_record
from llamanet.wire.rpc import (
    Address,
    Contact,
    FindNode,
    FindValue,
    Ping,
    Pong,
    Refused,
    Store,
    Values,
    decode_rpc_untrusted,
    encode_rpc,
)

FLOOD_S = 10
HONEST_RATE = 20


async def ping_victim(node, victim, address):
    """Round trips of one honest node that asks at an honest rate."""
    contact = Contact(victim.identity.public_key, address)
    times = []
    for _ in range(FLOOD_S * HONEST_RATE):
        times.append((await node.ping(contact)).rtt)
        await trio.sleep(1 / HONEST_RATE)
    return times


async def flood(swarm, victim, datagram, sources, rate):
    """`rate` datagrams a second, from each of `sources` in turn, until cancelled."""
    count = 0
    while True:
        for _ in range(rate // 100):
            swarm.network.send(datagram, sources[count % len(sources)], swarm.addresses[victim])
            count += 1
        await trio.sleep(0.01)


@pytest.mark.parametrize(("forged", "rate"), [(False, 100 * HONEST_RATE), (True, 200 * HONEST_RATE)])
async def test_a_flood_at_a_hundred_times_the_honest_rate_is_not_felt(autojump_clock, nursery, forged, rate):
    swarm = Swarm(nursery, MemoryNetwork(seed=1, delay=(0.005, 0.01)))
    nodes = await swarm.start_many(20)
    victim, honest = nodes[2], nodes[4]
    attacker = Attacker(swarm, "8.8.8.8")
    datagram = attacker.seal(victim, FindNode(transaction=bytes(8), client=True, target=key("x")), pad_to=320)
    sources = [Address(f"10.{100 + n // 200}.{n % 200}.1", 1) for n in range(2000)] if forged else [attacker.address]
    before, sent_before = victim.health(), swarm.network.sent_bytes
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as inner:
            inner.start_soon(flood, swarm, victim, datagram, sources, rate)
            times = await ping_victim(honest, victim, swarm.addresses[victim])
            scope.cancel()
    elapsed = FLOOD_S + 5  # the pings' own round trips included
    assert sorted(times)[int(0.99 * len(times))] <= 0.02
    served = victim.health().requests_served - before.requests_served
    answered_bytes = swarm.network.sent_bytes - sent_before - rate * elapsed * len(datagram)
    assert answered_bytes < SEND_BURST + SEND_RATE * elapsed
    if not forged:
        assert served <= HOST_BURST + HOST_RATE * elapsed + len(times) + 100
    drops = victim.health().drops
    assert drops["rate" if not forged else "quota"] > 1000


async def test_a_replayed_store_does_nothing_for_another_address(autojump_clock, nursery):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(3)
    victim = nodes[0]
    attacker, accomplice = Attacker(swarm), Attacker(swarm, "10.6.6.7")
    find = FindValue(transaction=bytes(8), client=True, key=key("x"))
    attacker.send(swarm, victim, attacker.seal(victim, find, pad_to=320))
    await trio.sleep(1)
    values = decode_rpc_untrusted(attacker.envelope.open_untrusted(attacker.received[-1]).payload)
    assert isinstance(values, Values)
    record = sign_record(
        attacker.identity,
        Network(),
        key=key("x"),
        sequence=1,
        issued_at=int(victim.config.wall_clock()),
        lifetime=600,
        value=b"v",
    )
    store = attacker.seal(
        victim, Store(transaction=bytes(8), client=True, token=values.token, record=encode_record(record))
    )
    attacker.send(swarm, victim, store, source=accomplice.address)
    await trio.sleep(1)
    assert victim.health().stored_records == 0
    attacker.send(swarm, victim, store)
    await trio.sleep(1)
    assert victim.health().stored_records == 1


@pytest.mark.parametrize("place", [0, -1])
async def test_an_old_record_of_a_publisher_cannot_come_back(autojump_clock, nursery, place):
    """Rollback: a storer that kept the old record tells it to everybody, and readers still take the newer one."""
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(12)
    old = (await nodes[1].publish(key("x"), b"old", lifetime=600)).record
    await trio.sleep(1)
    await nodes[1].publish(key("x"), b"new", lifetime=600)
    holders = [node for node in closest_nodes(nodes, key("x"), 12) if node.health().stored_records]
    liar = [node for node in holders if node is not nodes[1]][place]
    liar._store._drop(key("x"), old.publisher)
    liar._store.put(old, encode_record(old), b"", liar.config.wall_clock())
    reader = closest_nodes(nodes, key("x"), 12)[-1]
    assert [record.value for record in await reader.get(key("x"))] == [b"new"]
    async with reader.find(key("x")) as records:
        assert [record.value async for record in records][-1] == b"new"


async def test_an_old_record_that_somebody_stores_again_is_refused_by_every_holder(autojump_clock, nursery):
    """Rollback: whoever captured it has a good token for its own address, and the record a good signature."""
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(6)
    old = (await nodes[1].publish(key("x"), b"old", lifetime=600)).record
    await trio.sleep(1)
    await nodes[1].publish(key("x"), b"new", lifetime=600)
    attacker = Attacker(swarm)
    for victim in nodes:
        token = await ask_for_token(swarm, attacker, victim, "x")
        attacker.send(swarm, victim, attacker.seal(victim, store(token, encode_record(old))))
        await trio.sleep(1)
        reply = decode_rpc_untrusted(attacker.envelope.open_untrusted(attacker.received[-1]).payload)
        assert isinstance(reply, Refused)
        assert reply.newer is not None
        kept = victim._store.records_of(key("x"), victim.config.wall_clock())
        assert [record.value for record in kept] == [b"new"]


async def test_whoever_relays_for_a_node_does_not_take_its_place(autojump_clock, nursery):
    """Id hijack: its own introduction from another address, whence all that is asked there is passed on to it."""
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(3)
    victim, misled = nodes[1], nodes[0]
    relay = swarm.network.transport("10.6.6.6", 666)
    places = {swarm.addresses[misled]: swarm.addresses[victim], swarm.addresses[victim]: swarm.addresses[misled]}
    passed = []

    def pass_on(datagram, source):
        passed.append(source)
        relay.send(datagram, places[source])

    nursery.start_soon(relay.receive, pass_on)
    introduction = victim._overlay._envelope.seal_introduction(encode_rpc(Ping(transaction=bytes(8), client=False)))
    genuine = Contact(victim.identity.public_key, swarm.addresses[victim])
    for _ in range(20):
        relay.send(introduction, swarm.addresses[misled])
        await trio.sleep(0.5)
        assert genuine in misled.contacts()
    assert swarm.addresses[victim] in passed, "it answered there"


async def test_a_node_that_really_moved_is_known_at_its_new_address_soon(autojump_clock, nursery):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(6)
    swarm.kill(nodes[4])
    await trio.sleep(0.1)
    again = await swarm.start(4, bootstrap=[nodes[0]], address=Address("10.1.0.4", 9999))
    await trio.sleep(10)
    place = Contact(again.identity.public_key, swarm.addresses[again])
    assert all(place in node.contacts() for node in nodes if node is not nodes[4])


async def test_one_subnet_full_of_nodes_has_few_places_in_a_table(autojump_clock, nursery):
    swarm = Swarm(nursery)
    first = await swarm.start(0, address=Address("8.8.4.1", 1))
    for number in range(1, 12):
        await swarm.start(number, bootstrap=[first], address=Address(f"9.9.{number}.1", 1))
    for number in range(100, 160):
        await swarm.start(number, bootstrap=[first], address=Address(f"8.8.8.{number}", 1))
    await trio.sleep(30)
    sybils = [peer for peer in first.contacts() if peer.address.host.startswith("8.8.8.")]
    assert 0 < len(sybils) <= PER_SUBNET_IN_TABLE
    assert identity(1).node_id in {peer.node_id for peer in first.contacts()}


async def test_one_subnet_has_one_vote_on_our_address(autojump_clock, nursery):
    swarm = Swarm(nursery)
    node = await swarm.start(0, address=Address("8.8.4.1", 1))

    def vote(host, observed, number):
        pong = Pong(transaction=bytes(8), observed=Address(observed, 1))
        node._overlay._note(Outcome(contact(number, host=host), pong, 0.01), trio.current_time())

    vote("9.9.1.1", "8.8.4.1", 1)
    vote("9.9.2.1", "8.8.4.1", 2)
    for number in range(50):
        vote(f"7.7.7.{number + 1}", "6.6.6.6", 10 + number)
    assert node.observed_hosts() == ("8.8.4.1", "6.6.6.6")


async def ask_for_token(swarm, attacker, victim, name):
    """The token that `victim` gives the attacker for a key."""
    find = FindValue(transaction=bytes(8), client=True, key=key(name))
    attacker.send(swarm, victim, attacker.seal(victim, find, pad_to=320))
    await trio.sleep(1)
    values = decode_rpc_untrusted(attacker.envelope.open_untrusted(attacker.received[-1]).payload)
    assert isinstance(values, Values)
    return values.token


def ids_of(contacts):
    return {peer.node_id for peer in contacts}


def signed_by(publisher, name, now, *, value=b"v"):
    return sign_record(publisher, Network(), key=key(name), sequence=1, issued_at=int(now), lifetime=600, value=value)


def store(token, encoded):
    return Store(transaction=bytes(8), client=True, token=token, record=encoded)


async def test_a_token_is_good_for_its_maker_and_its_key_only(autojump_clock, nursery):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(3)
    victim, attacker = nodes[0], Attacker(swarm)
    record = encode_record(signed_by(attacker.identity, "x", victim.config.wall_clock()))
    foreign = [await ask_for_token(swarm, attacker, nodes[1], "x"), await ask_for_token(swarm, attacker, victim, "y")]
    for token in foreign:
        attacker.send(swarm, victim, attacker.seal(victim, store(token, record)))
        await trio.sleep(1)
        reply = decode_rpc_untrusted(attacker.envelope.open_untrusted(attacker.received[-1]).payload)
        assert isinstance(reply, Refused)
        assert reply.reason == "token"
    assert victim.health().stored_records == 0


async def test_what_is_too_large_is_dropped(autojump_clock, nursery, monkeypatch):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(3)
    victim, attacker = nodes[0], Attacker(swarm)
    token = await ask_for_token(swarm, attacker, victim, "x")
    record = signed_by(attacker.identity, "x", victim.config.wall_clock())
    with monkeypatch.context() as patch:
        patch.setattr("llamanet.wire.record.MAX_RECORD_BYTES", 1000)
        value = bytes(MAX_RECORD_BYTES - len(encode_record(record)) + 8)
        oversize = encode_record(signed_by(attacker.identity, "x", victim.config.wall_clock(), value=value))
    assert len(oversize) > MAX_RECORD_BYTES
    before, answers = victim.health().drops, len(attacker.received)
    attacker.send(swarm, victim, attacker.seal(victim, store(token, oversize)))
    attacker.send(swarm, victim, attacker.seal(victim, store(token, encode_record(record))) + bytes(1000))
    await trio.sleep(1)
    drops = victim.health().drops
    assert drops["message"] - before["message"] == 1
    assert drops["header"] - before["header"] == 1
    assert len(attacker.received) == answers
    assert victim.health().stored_records == 0


async def test_a_holder_that_tells_forged_records_costs_its_readers_a_signature_an_answer(
    autojump_clock, nursery, monkeypatch
):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(20)
    record = (await nodes[3].publish(key("x"), b"v", lifetime=600)).record
    liars = closest_nodes([node for node in nodes if node is not nodes[3]], key("x"), 4)
    reader = closest_nodes(nodes, key("x"), 20)[-1]
    honest = liars[0]._overlay._handlers.answer

    def lie(request, asker, *, now, wall_now, room):
        if not isinstance(request, FindValue):
            return honest(request, asker, now=now, wall_now=wall_now, room=room)
        forged = [attrs.evolve(record, sequence=10**15 + lie.count + n) for n in range(3)]
        lie.count += 3
        return Values(
            transaction=request.transaction,
            observed=asker.address,
            token=bytes(8),
            records=tuple(map(encode_record, forged)),
            total=2**31,
            next_cursor=lie.count,
            contacts=(),
        )

    lie.count = 0
    for liar in liars:
        liar._overlay._handlers = type(
            "Liar", (), {"answer": staticmethod(lie), "has_token": liar._overlay._handlers.has_token}
        )()
    verified = []

    def counted(candidate, network):
        verified.append(candidate)
        return is_signed(candidate, network)

    monkeypatch.setattr("llamanet.dht.search.is_signed", counted)
    assert await reader.get(key("x")) == [record]
    assert len(verified) <= len(liars) + 1


@pytest.mark.parametrize(
    ("name", "age", "lifetime"), [("y", 0, 600), ("x", 700, 600), ("x", -120, 600)], ids=["key", "past", "future"]
)
async def test_a_genuine_record_that_is_not_for_now_and_this_key_is_not_told_on(
    autojump_clock, nursery, name, age, lifetime
):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(20)
    record = (await nodes[3].publish(key("x"), b"v", lifetime=600)).record
    reader = closest_nodes(nodes, key("x"), 20)[-1]
    other = sign_record(
        identity(77),
        Network(),
        key=key(name),
        sequence=1,
        issued_at=int(reader.config.wall_clock()) - age,
        lifetime=lifetime,
        value=b"other",
    )
    for holder in closest_nodes(nodes, key("x"), 8):
        page = holder._overlay._handlers.store.page

        def lie(key, cursor, *, page=page, **options):
            told = page(key, cursor, **options)
            return attrs.evolve(told, records=(*told.records, encode_record(other)), total=told.total + 1)

        holder._overlay._handlers.store.page = lie
    assert await reader.get(key("x")) == [record]


@pytest.mark.parametrize("empty", [True, False])
async def test_a_holder_whose_pages_never_end_does_not_keep_a_reader(autojump_clock, nursery, monkeypatch, empty):
    monkeypatch.setattr("llamanet.dht.search.MAX_PAGES", 20)
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(20)
    record = (await nodes[3].publish(key("x"), b"v", lifetime=600)).record
    liar = next(node for node in closest_nodes(nodes, key("x"), 8) if node is not nodes[3])
    reader = closest_nodes(nodes, key("x"), 20)[-1]
    page, asked = liar._overlay._handlers.store.page, []

    def lie(key, cursor, **options):
        asked.append(cursor)
        told = page(key, None, **options)
        return attrs.evolve(told, records=() if empty else told.records, total=2**31, next_cursor=len(asked))

    liar._overlay._handlers.store.page = lie
    assert await reader.get(key("x")) == [record]
    assert len(asked) == (1 if empty else 20)


async def test_what_a_node_would_not_or_could_not_answer_is_counted(autojump_clock, nursery, monkeypatch):
    swarm = Swarm(nursery)
    victim = await swarm.start(0)
    attacker = Attacker(swarm)
    ping = Ping(transaction=bytes(8), client=True)
    real_send = victim._overlay.transport.send
    with monkeypatch.context() as patch:
        patch.setattr(victim._overlay.transport, "send", lambda d, to: to != attacker.address and real_send(d, to))
        attacker.send(swarm, victim, attacker.seal(victim, ping))
        await trio.sleep(1)
    assert victim.health().drops["unsent"] == 1
    victim.client_mode = True
    attacker.send(swarm, victim, attacker.seal(victim, ping))
    await trio.sleep(1)
    assert victim.health().drops["client"] == 1
    assert attacker.received == []


def test_a_reader_remembers_few_signatures():
    verifier = RecordVerifier(Network())
    for number in range(VERIFIED_RECORDS + 50):
        record = sign_record(
            identity(1), Network(), key=key("x"), sequence=number, issued_at=1000, lifetime=600, value=b"v"
        )
        assert verifier.verify_untrusted(encode_record(record), key("x"), 1000.0) == record
    assert len(verifier._verified) == VERIFIED_RECORDS


async def test_a_reply_in_an_introduction_proves_nothing(autojump_clock, nursery, monkeypatch):
    """Whoever sees a transaction can write any key into an introduction's header, and forge the address as well."""
    swarm = Swarm(nursery)
    asker, asked = await swarm.start_many(2)
    transaction = b"guessed."
    monkeypatch.setattr("llamanet.dht.overlay.new_transaction", lambda: transaction)
    asked.client_mode = True  # it answers nobody
    forged = asked._overlay._envelope.seal_introduction(
        encode_rpc(Pong(transaction=transaction, observed=swarm.addresses[asker]))
    )

    async def forge():
        await trio.sleep(0.1)
        swarm.network.send(forged, swarm.addresses[asked], swarm.addresses[asker])

    nursery.start_soon(forge)
    with pytest.raises(RpcTimeout):
        await asker.ping(Contact(asked.identity.public_key, swarm.addresses[asked]))
    assert asker.health().drops["unasked"] == 1


async def test_a_contact_has_its_rate_too(autojump_clock, nursery):
    swarm = Swarm(nursery, MemoryNetwork(seed=1, delay=(0.005, 0.01)))
    nodes = await swarm.start_many(6)
    victim, contact, honest = nodes[2], nodes[3], nodes[4]
    ping = encode_rpc(Ping(transaction=bytes(8), client=True))
    datagram = contact._overlay._envelope.seal(victim.identity.public_key, ping)
    served = victim.health().requests_served
    start = trio.current_time()
    async with trio.open_nursery() as inner:
        inner.start_soon(flood, swarm, victim, datagram, [swarm.addresses[contact]], 100 * HONEST_RATE)
        times = await ping_victim(honest, victim, swarm.addresses[victim])
        inner.cancel_scope.cancel()
    assert max(times) <= 0.02
    assert victim.health().drops["rate"] > 1000
    served = victim.health().requests_served - served - len(times)
    assert served <= HOST_BURST + HOST_RATE * (trio.current_time() - start) + 100


async def test_a_flood_of_stores_costs_bounded_signatures_and_is_not_felt(autojump_clock, nursery, monkeypatch):
    swarm = Swarm(nursery, MemoryNetwork(seed=1, delay=(0.005, 0.01)))
    nodes = await swarm.start_many(6)
    victim, honest = nodes[2], nodes[4]
    attacker = Attacker(swarm, "8.8.8.8")
    token = await ask_for_token(swarm, attacker, victim, "x")
    forged = attrs.evolve(signed_by(attacker.identity, "x", victim.config.wall_clock()), value=b"w")
    datagram = attacker.seal(victim, store(token, encode_record(forged)))
    verified = []
    monkeypatch.setattr("llamanet.dht.handlers.is_signed", lambda record, network: bool(verified.append(record)))
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as inner:
            inner.start_soon(flood, swarm, victim, datagram, [attacker.address], 100 * HONEST_RATE)
            times = await ping_victim(honest, victim, swarm.addresses[victim])
            scope.cancel()
    assert sorted(times)[int(0.99 * len(times))] <= 0.02
    assert 1000 < len(verified) <= HOST_BURST + HOST_RATE * (FLOOD_S + 5)
    assert victim.health().stored_records == 0


async def test_stores_from_many_addresses_cost_bounded_signatures_too(autojump_clock, nursery, monkeypatch):
    """Each has a token, and keeps to the rate of one address; half of all signatures is kept for those we know."""
    swarm = Swarm(nursery, MemoryNetwork(seed=1, delay=(0.005, 0.01)))
    nodes = await swarm.start_many(6)
    victim, honest = nodes[2], nodes[4]
    attacker = Attacker(swarm)
    forged = attrs.evolve(signed_by(attacker.identity, "x", victim.config.wall_clock()), value=b"w")
    tokens = victim._overlay._handlers.tokens
    verified = []
    monkeypatch.setattr("llamanet.dht.handlers.is_signed", lambda record, network: bool(verified.append(record)))
    start = trio.current_time()
    async with trio.open_nursery() as inner:
        for number in range(20):
            source = Address(f"9.9.{number}.1", 1)
            token = tokens.make(source, key("x"), start)
            datagram = attacker.seal(victim, store(token, encode_record(forged)))
            inner.start_soon(flood, swarm, victim, datagram, [source], 300)
        await trio.sleep(2)
        contact = Contact(victim.identity.public_key, swarm.addresses[victim])
        assert (await honest.ping(contact)).rtt <= 0.02
        inner.cancel_scope.cancel()
    assert 1000 < len(verified) <= KNOWN_SHARE * VERIFY_BURST + VERIFY_RATE * (trio.current_time() - start)
    assert victim.health().drops["quota"] > 5000


async def test_a_subnet_of_publishers_displaces_nobody_under_a_key(autojump_clock, nursery):
    swarm = Swarm(nursery)
    first = await swarm.start(0, address=Address("8.8.4.1", 1))
    first._store._max_publishers_per_key = 20
    honest = [await swarm.start(n, bootstrap=[first], address=Address(f"9.9.{n}.1", 1)) for n in range(1, 7)]
    for node in honest:
        await node.wait_joined()
        await node.publish(key("x"), b"honest", lifetime=600)
    attacker = Attacker(swarm, "6.6.6.6")
    token = await ask_for_token(swarm, attacker, first, "x")
    for number in range(1000, 1300):
        record = encode_record(signed_by(identity(number), "x", first.config.wall_clock(), value=b"sybil"))
        attacker.send(swarm, first, attacker.seal(first, store(token, record)))
        await trio.sleep(0.01)
    kept = first._store.records_of(key("x"), first.config.wall_clock())
    assert {record.publisher for record in kept if record.value == b"honest"} == {
        node.identity.node_id for node in honest
    }
    assert 6 < len(kept) <= 20


async def test_stores_with_forged_sources_do_not_hinder_honest_ones(autojump_clock, nursery):
    swarm = Swarm(nursery, MemoryNetwork(seed=1, delay=(0.005, 0.01)))
    nodes = await swarm.start_many(6)
    victim = nodes[2]
    client = await swarm.start(50, bootstrap=[nodes[0]], client_mode=True)
    await client.wait_joined()
    junk = Attacker(swarm)
    record = encode_record(signed_by(junk.identity, "x", victim.config.wall_clock()))
    datagram = junk.seal(victim, store(bytes(8), record))
    sources = [Address(f"9.{n % 200}.{n // 200}.1", 1) for n in range(2000)]
    async with trio.open_nursery() as inner:
        inner.start_soon(flood, swarm, victim, datagram, sources, 2000)
        await trio.sleep(3)
        for number in range(20):
            await client.publish(key(f"{number}"), b"v", lifetime=600)
            await trio.sleep(0.2)
        inner.cancel_scope.cancel()
    assert victim.health().stored_records == 20
    assert victim.health().drops["quota"] == 0


async def test_a_flood_of_askers_that_cannot_be_asked_does_not_stop_our_own_pings(autojump_clock, nursery):
    swarm = Swarm(nursery, MemoryNetwork(seed=1, delay=(0.005, 0.01)))
    nodes = await swarm.start_many(3)
    victim, honest = nodes[0], nodes[1]
    attacker = Attacker(swarm)
    datagram = attacker.seal(victim, FindNode(transaction=bytes(8), client=False, target=key("x")), pad_to=320)
    sent = victim.health().requests_sent
    for number in range(300):
        attacker.send(swarm, victim, datagram, source=Address(f"9.{number // 200}.{number % 200}.1", 1))
    await trio.sleep(0.02)
    assert 0 < victim.health().requests_sent - sent <= MAX_CHECKS
    served = honest.health().requests_served
    victim._overlay.check(Contact(honest.identity.public_key, swarm.addresses[honest]))
    await trio.sleep(0.02)
    assert honest.health().requests_served == served + 1


async def test_a_liar_points_few_requests_at_an_address_that_never_asked_for_them(autojump_clock, nursery, monkeypatch):
    """Amplification through lookups: whoever is asked tells of contacts that all live in the victim's subnet."""
    swarm = Swarm(nursery, MemoryNetwork(seed=1, delay=(0.005, 0.01)))
    first = await swarm.start(0, address=Address("9.9.0.1", 1))
    nodes = [first, *[await swarm.start(n, bootstrap=[first], address=Address(f"9.9.{n}.1", 1)) for n in range(1, 12)]]
    await trio.sleep(5)
    asker = nodes[3]
    rng = seeded(1)
    invented = [Contact(identity(n).public_key, Address(f"6.6.6.{n % 250}", n)) for n in range(1000, 1300)]

    def lie(self, target, asker, room):
        return tuple(rng.sample(heapq.nsmallest(60, invented, key=lambda told: distance(told.node_id, target)), 16))

    monkeypatch.setattr(Handlers, "_contacts", lie)
    pointed = []
    send = swarm.network.send

    def watched(datagram, source, target):
        if source == swarm.addresses[asker] and target.host.startswith("6.6.6."):
            pointed.append(len(datagram))
        send(datagram, source, target)

    monkeypatch.setattr(swarm.network, "send", watched)
    await asker.find_nodes(key("0"))
    assert 0 < len(pointed) <= MAX_UNANSWERED_OF_A_SUBNET
    start = trio.current_time()
    for number in range(1, 16):
        await asker.find_nodes(key(f"{number}"))
    elapsed = trio.current_time() - start
    assert len(pointed) <= UNANSWERED_BURST + UNANSWERED_RATE * elapsed + MAX_UNANSWERED_OF_A_SUBNET
    assert 2 * len(pointed) < 15 * MAX_UNANSWERED_OF_A_SUBNET, "the lookups alone would have allowed more"
    assert ids_of(asker.contacts()) == {node.identity.node_id for node in nodes if node is not asker}, "and nobody paid"


async def test_a_flood_of_senders_that_are_all_new_costs_few_key_exchanges(autojump_clock, nursery, monkeypatch):
    """Each at another forged address: boxes with keys that nobody has seen, and introductions."""
    swarm = Swarm(nursery, MemoryNetwork(seed=1, delay=(0.005, 0.01)))
    nodes = await swarm.start_many(6)
    victim, honest = nodes[2], nodes[4]
    client = await swarm.start(50, bootstrap=[nodes[0]], client_mode=True)
    await client.wait_joined()
    place = Contact(victim.identity.public_key, swarm.addresses[victim])
    await client.ping(place)
    computed = []
    compute = victim._overlay._envelope._compute_keys
    monkeypatch.setattr(victim._overlay._envelope, "_compute_keys", lambda peer: computed.append(peer) or compute(peer))
    header = Attacker(swarm).envelope._prefix
    rng = seeded(3)
    start = trio.current_time()

    async def flood_with_new_keys():
        for number in range(40_000):
            source = Address(f"{20 + (number >> 16)}.{number >> 8 & 255}.{number & 255}.1", 1)
            key = hashlib.sha256(b"%d" % number).digest()
            datagram = header + bytes([number % 2]) + key + rng.randbytes(54)
            swarm.network.send(datagram, source, swarm.addresses[victim])
            if number % 50 == 0:
                await trio.sleep(0.01)

    async with trio.open_nursery() as inner:
        inner.start_soon(flood_with_new_keys)
        await trio.sleep(5)
        assert (await honest.ping(place)).rtt <= 0.02, "it is in the table"
        assert (await client.ping(place)).rtt <= 0.02, "it was heard before"
    elapsed = trio.current_time() - start
    assert KEY_BURST < len(computed) <= KEY_BURST + KEY_RATE * elapsed + 10
    assert victim.health().drops["rate"] > 20_000


async def test_who_is_greeted_is_heard_in_a_flood_of_new_senders(autojump_clock, nursery, monkeypatch):
    swarm = Swarm(nursery)
    first = await swarm.start(0)
    comer = await swarm.start(1)
    monkeypatch.setattr(comer._overlay._guard, "admit_key", lambda host, now: False)
    assert await comer._overlay.greet([swarm.addresses[first]])
    assert ids_of(comer.contacts()) == {first.identity.node_id}
    stranger = Attacker(swarm)
    stranger.send(swarm, comer, stranger.seal(comer, Ping(transaction=bytes(8), client=True)))
    await trio.sleep(1)
    assert stranger.received == []


async def test_whoever_forges_the_address_of_a_contact_does_not_silence_it(autojump_clock, nursery):
    """Neither by boxes of keys that we do not know, nor by introductions in the contact's own name."""
    swarm = Swarm(nursery, MemoryNetwork(seed=1, delay=(0.005, 0.01)))
    nodes = await swarm.start_many(6)
    victim, honest = nodes[2], nodes[4]
    attacker = Attacker(swarm)
    boxed = attacker.seal(victim, FindNode(transaction=bytes(8), client=True, target=key("x")), pad_to=320)
    ping = encode_rpc(Ping(transaction=bytes(8), client=True))
    introduction = honest._overlay._envelope.seal_introduction(ping)
    places = [swarm.addresses[honest], Address(swarm.addresses[honest].host, 9)]
    async with trio.open_nursery() as inner:
        inner.start_soon(flood, swarm, victim, boxed, places, 2000)
        inner.start_soon(flood, swarm, victim, introduction, places, 2000)
        await trio.sleep(5)
        times = await ping_victim(honest, victim, swarm.addresses[victim])
        inner.cancel_scope.cancel()
    assert victim.health().drops["rate"] > 10_000
    assert max(times) <= 0.02
