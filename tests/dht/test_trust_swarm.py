"""Whom honest nodes tell of, and what they find, among newcomers and liars; whole nodes over the in-memory network."""

import pytest
import trio
from swarms import Swarm, closest_nodes, key

from llamanet.dht.routing import TRIAL_S
from llamanet.wire.rpc import Contact, FindNode, FindValue, Nodes, Store, Stored, Values


def contact_of(swarm, node):
    return Contact(node.identity.public_key, swarm.addresses[node])


async def told_of(swarm, asker, node):
    """Which of the other nodes tell `asker` of `node`."""
    others = [other for other in swarm.addresses if other not in (asker, node)]
    contact = contact_of(swarm, node)
    return [other for other in others if contact in await asker.contacts_of(contact_of(swarm, other), contact.node_id)]


async def test_a_newcomer_is_told_of_after_its_trial(autojump_clock, nursery):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(25)
    await trio.sleep(120)
    assert len(await told_of(swarm, nodes[3], nodes[7])) > 5
    newcomer = await swarm.start(99, bootstrap=[nodes[0]])
    await newcomer.wait_joined()
    await trio.sleep(TRIAL_S / 2)
    assert await told_of(swarm, nodes[3], newcomer) == []
    assert newcomer.identity.node_id in {peer.node_id for peer in nodes[0].contacts()}, "it is known all the same"
    await newcomer.publish(key("x"), b"v", lifetime=600)
    assert [record.value for record in await nodes[5].get(key("x"))] == [b"v"], "and can do what others do"
    await trio.sleep(TRIAL_S)
    assert len(await told_of(swarm, nodes[3], newcomer)) > 5


async def test_who_comes_and_goes_is_never_told_of(autojump_clock, nursery):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(25)
    await trio.sleep(120)
    guest = await swarm.start(99, bootstrap=[nodes[0]])
    await trio.sleep(TRIAL_S / 2)
    swarm.kill(guest)
    for _ in range(4):
        assert await told_of(swarm, nodes[3], guest) == []
        await trio.sleep(TRIAL_S)


def make_liars(swarm, liars):
    """They tell only of each other, have nothing, and say that they store what they throw away."""
    contacts = tuple(contact_of(swarm, liar) for liar in liars)[:16]
    for liar in liars:
        honest = liar._overlay._handlers.answer

        def lie(request, asker, *, honest=honest, **circumstances):
            told = {"transaction": request.transaction, "observed": asker.address}
            if isinstance(request, FindNode):
                return Nodes(**told, token=bytes(8), contacts=contacts)
            if isinstance(request, FindValue):
                return Values(**told, token=bytes(8), records=(), total=0, next_cursor=None, contacts=contacts)
            if isinstance(request, Store):
                return Stored(**told)
            return honest(request, asker, **circumstances)

        liar._overlay._handlers = type(
            "Liar", (), {"answer": staticmethod(lie), "has_token": liar._overlay._handlers.has_token}
        )()


@pytest.mark.parametrize("seed", [0, 1])
async def test_liars_who_act_together_hide_nothing_from_disjoint_paths(autojump_clock, nursery, seed):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(50)
    make_liars(swarm, nodes[1::5])
    honest = [node for node in nodes if node not in nodes[1::5]]
    for number in range(15):
        name = key(f"{seed} {number}")
        published = await honest[number].publish(name, b"v", lifetime=600, disjoint_paths=4)
        assert published.stored >= 8
        found = await honest[-1 - number].get(name, disjoint_paths=4)
        assert [record.value for record in found] == [b"v"]


def slow_down(swarm, node, seconds):
    """Whatever is sent to `node` takes that much longer."""
    transport = swarm.network._transports[swarm.addresses[node]]
    arrive = transport.arrive
    transport.arrive = lambda at, datagram, source: arrive(at + seconds, datagram, source)


async def test_nobody_waits_for_stragglers_and_yet_they_are_not_forgotten(autojump_clock, nursery):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(12)
    straggler = closest_nodes(nodes[3:], key("x"), 1)[0]
    slow_down(swarm, straggler, 3.0)
    start = trio.current_time()
    published = await nodes[0].publish(key("x"), b"v", lifetime=600)
    assert published.stored == 8
    found = await nodes[1].get(key("x"))
    assert [record.value for record in found] == [b"v"]
    await nodes[2].find_nodes(key("x"))
    assert trio.current_time() - start < 2.5
    await trio.sleep(5)
    for node in nodes[:3]:
        entry = next(entry for entry in node._overlay.table if entry.contact == contact_of(swarm, straggler))
        assert entry.seen >= start + 3.0, "its late answer counted"


async def test_records_come_as_they_are_found(autojump_clock, nursery):
    """The first one does not wait for holders that take long, and are asked all the same."""
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(12)
    for publisher in nodes[:3]:
        await publisher.publish(key("x"), b"v", lifetime=600)
    ranked = closest_nodes(nodes[3:], key("x"), 9)
    for slow in ranked[1:4]:
        slow_down(swarm, slow, 0.2)
    start = trio.current_time()
    async with ranked[-1].find(key("x")) as records:
        times = [trio.current_time() - start async for _ in records]
    assert len(times) == 3
    assert times[0] < 0.1
    assert trio.current_time() - start > 0.2
