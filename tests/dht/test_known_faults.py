"""What other DHTs got wrong, each as a test over whole nodes.

Lookups that end with the first k nodes seen; timeouts of 5 seconds for which a whole round stands still; replies taken
from anybody; keys hashed twice; storers who sign anew what they store; stores at whoever is in the own table; one list
under one key, which all who join read, extend and write.
"""

import hashlib

import attrs
import pytest
import trio
from swarms import Attacker, Swarm, closest_nodes, key

from llamanet.dht import overlay
from llamanet.dht.requests import MIN_RTO_S
from llamanet.errors import RpcTimeout
from llamanet.wire.facts import ALL_NODES, key_of
from llamanet.wire.record import encode_record, sign_record
from llamanet.wire.rpc import Address, Contact, Pong, encode_rpc

SMALL = {"k": 4, "alpha": 2, "replicas": 3}
"""Buckets so small that nobody knows everybody in a swarm of `SIZE`."""
SIZE = 32


async def start_swarm(nursery):
    swarm = Swarm(nursery)
    return swarm, await swarm.start_many(SIZE, **SMALL)


async def newcomer(swarm):
    """A client that knows one node, the one farthest from `key("x")`."""
    far = closest_nodes(list(swarm.addresses), key("x"), SIZE)[-1]
    client = await swarm.start(99, bootstrap=[far], client_mode=True, **SMALL)
    await client.wait_joined()
    assert len(client.contacts()) == 1
    return client


def holders(swarm):
    return {node for node in swarm.addresses if node.health().stored_records}


async def test_a_lookup_ends_with_the_closest_k_not_with_the_first_k_seen(autojump_clock, nursery):
    swarm, nodes = await start_swarm(nursery)
    client = await newcomer(swarm)
    for name in ("x", "y", "z"):
        expected = [node.identity.node_id for node in closest_nodes(nodes, key(name), SMALL["k"])]
        assert [found.node_id for found in await client.find_nodes(key(name))] == expected


async def test_the_silent_stall_no_round(autojump_clock, nursery):
    """Two of three holders are dead, and so is every fourth of the others."""
    swarm, nodes = await start_swarm(nursery)
    ranked = closest_nodes(nodes, key("x"), SIZE)
    await ranked[-1].publish(key("x"), b"v", lifetime=600)
    for dead in [*ranked[:2], *ranked[3:-2:4]]:
        swarm.network.kill(swarm.addresses[dead])
    start = trio.current_time()
    assert [record.value for record in await ranked[-2].get(key("x"), limit=1)] == [b"v"]
    assert trio.current_time() - start < 0.5
    start = trio.current_time()
    assert (await ranked[-1].publish(key("y"), b"v", lifetime=600)).stored == SMALL["replicas"]
    assert trio.current_time() - start < 0.5


async def test_who_answers_is_built_on_while_others_of_its_round_are_silent(autojump_clock, nursery):
    """Every fourth node that holds nothing is dead; a round that waited would take as long as the shortest timeout."""
    swarm, nodes = await start_swarm(nursery)
    ranked = closest_nodes(nodes, key("x"), SIZE)
    await ranked[-1].publish(key("x"), b"v", lifetime=600)
    others = ranked[SMALL["replicas"] :]
    dead = others[::4]
    for node in dead:
        swarm.network.kill(swarm.addresses[node])
    times = []

    async def read(reader):
        start = trio.current_time()
        assert [record.value for record in await reader.get(key("x"), limit=1)] == [b"v"]
        times.append(trio.current_time() - start)

    async with trio.open_nursery() as reading:
        for node in others:
            if node not in dead:
                reading.start_soon(read, node)
    assert max(times) < MIN_RTO_S


async def test_a_reply_counts_from_the_address_and_the_key_that_were_asked_alone(autojump_clock, nursery, monkeypatch):
    swarm = Swarm(nursery)
    asker, asked = await swarm.start_many(2)
    place, elsewhere = swarm.addresses[asked], Address("10.6.6.7", 666)
    attacker = Attacker(swarm)
    transactions = []

    def guessed():
        transactions.append(len(transactions).to_bytes(8, "big"))
        return transactions[-1]

    monkeypatch.setattr(overlay, "new_transaction", guessed)
    asked.client_mode = True  # it answers nobody

    async def answer_in_its_stead():
        await trio.sleep(0.1)
        for transaction in transactions:
            pong = Pong(transaction=transaction, observed=attacker.address, version="forged")
            attacker.send(swarm, asker, attacker.seal(asker, pong), source=place)
            own = asked._overlay._envelope.seal(asker.identity.public_key, encode_rpc(pong))
            attacker.send(swarm, asker, own, source=elsewhere)

    nursery.start_soon(answer_in_its_stead)
    with pytest.raises(RpcTimeout):
        await asker.ping(Contact(asked.identity.public_key, place))
    asked.client_mode = False
    assert (await asker.ping(Contact(asked.identity.public_key, place))).pong.version != "forged"


async def test_a_key_is_hashed_once_and_used_as_it_is(autojump_clock, nursery):
    swarm, nodes = await start_swarm(nursery)
    name = hashlib.sha256(b"all_nodes").digest()
    assert key_of(ALL_NODES) == name
    published = await nodes[3].publish(name, b"v", lifetime=600)
    assert published.record.key == name
    assert holders(swarm) == set(closest_nodes(nodes, name, SMALL["replicas"]))
    for holder in holders(swarm):
        assert [record.key for record in holder._store.records_of(name, holder.config.wall_clock())] == [name]


async def test_storers_tell_what_the_publisher_signed_and_cannot_sign_anew(autojump_clock, nursery):
    swarm, nodes = await start_swarm(nursery)
    ranked = closest_nodes(nodes, key("x"), SIZE)
    reader, publisher, liar = ranked[-1], ranked[-2], ranked[0]
    record = (await publisher.publish(key("x"), b"v", lifetime=300)).record
    swarm.kill(publisher)
    for holder in holders(swarm):
        [kept] = holder._store.records_of(key("x"), holder.config.wall_clock())
        assert encode_record(kept) == encode_record(record)
    again = sign_record(
        liar.identity,
        liar.network,
        key=key("x"),
        sequence=record.sequence + 1,
        issued_at=record.issued_at,
        lifetime=1800,
        value=b"changed",
    )
    forged = attrs.evolve(again, public_key=record.public_key)
    liar._store.put(forged, encode_record(forged), b"", liar.config.wall_clock())
    assert await reader.get(key("x")) == [record]
    await trio.sleep(301)
    assert await reader.get(key("x")) == [], "nobody can prolong it"


async def test_a_store_goes_to_the_closest_nodes_not_to_those_of_the_own_table(autojump_clock, nursery):
    swarm, nodes = await start_swarm(nursery)
    client = await newcomer(swarm)
    published = await client.publish(key("x"), b"v", lifetime=600)
    assert published.stored == SMALL["replicas"]
    assert holders(swarm) == set(closest_nodes(nodes, key("x"), SMALL["replicas"]))


async def test_those_who_join_at_once_overwrite_nobody(autojump_clock, nursery):
    swarm = Swarm(nursery)
    first = await swarm.start(0)
    joined = []

    async def join(number):
        node = await swarm.start(number, bootstrap=[first])
        await node.wait_joined()
        await trio.sleep(5)
        await node.publish(key_of(ALL_NODES), b"%d" % number, lifetime=600)
        joined.append(node)

    async with trio.open_nursery() as joining:
        for number in range(1, 25):
            joining.start_soon(join, number)
    assert len(joined) == 24
    for reader in (first, joined[0], joined[-1]):
        told = {record.value for record in await reader.get(key_of(ALL_NODES))}
        assert told == {b"%d" % number for number in range(1, 25)}
