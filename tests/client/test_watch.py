"""Streams whose node falls silent: one asks for all, all leave together, and who speaks to others is not dead."""

import pytest
import trio
import trio.testing

from llamanet.client.watch import ANSWER_S, Watch
from llamanet.errors import RpcTimeout
from llamanet.testing.backend import scripted_text, scripted_tokens
from llamanet.testing.cluster import Cluster
from llamanet.wire.rpc import Address, Contact

COUNT = 40


@pytest.fixture
async def cluster(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(1, slots=16, step_time=0.05)
    return cluster


async def stream_many(client, count, replies):
    async def one(number):
        replies.append(await client.generate(f"prompt {number}", max_tokens=COUNT, temperature=0.0))

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(one, number)


def count_pings(client, monkeypatch, node):
    """The times at which the client sends a PING to `node`."""
    times = []
    ping = client._dht.ping

    async def count(contact, **options):
        if contact.public_key == node.dht.identity.public_key:
            times.append(trio.current_time())
        return await ping(contact, **options)

    monkeypatch.setattr(client._dht, "ping", count)
    return times


async def test_all_streams_leave_a_node_that_fell_silent_at_once(autojump_clock, nursery, monkeypatch):
    cluster = Cluster(nursery)
    await cluster.start_nodes(2, slots=16, step_time=0.05)
    client = await cluster.start_client()
    silent, other = cluster.nodes.values()
    replies = []
    async with trio.open_nursery() as asking:
        asking.start_soon(stream_many, client, 16, replies)
        await trio.sleep(0.8)
        lost = silent.host.endpoint.requests
        assert lost > 3
        pings = count_pings(client, monkeypatch, silent)
        cluster.freeze(silent.label)
        await trio.sleep(0.3 + ANSWER_S + 0.2)
        assert other.host.endpoint.requests == 16
        assert len(pings) == 2
        assert pings[1] - pings[0] == pytest.approx(ANSWER_S / 2)
    assert sorted(reply.text for reply in replies) == sorted(
        scripted_text(scripted_tokens(f"prompt {number}", COUNT)) for number in range(16)
    )
    assert [reply.hops for reply in replies if reply.hops] == [((silent.label, "it fell silent"),)] * lost
    cluster.thaw(silent.label)
    await trio.sleep(1)
    assert (silent.host.endpoint.requests, len(silent.links)) == (0, 0)


async def test_a_node_that_speaks_to_others_is_not_dead_though_no_datagram_comes(
    autojump_clock, nursery, cluster, monkeypatch
):
    """A long prompt waits for its first token, while the node's other streams go on."""
    client = await cluster.start_client()
    replies = []

    async def lost(contact, **options):
        await trio.sleep(options["timeout"])
        raise RpcTimeout("node-0", options["timeout"])

    async with trio.open_nursery() as asking:
        asking.start_soon(stream_many, client, 16, replies)
        await trio.sleep(0.5)
        asking.start_soon(stream_many, client, 1, replies)
        await trio.sleep(0.2)
        monkeypatch.setattr(client._dht, "ping", lost)
    assert [reply.hops for reply in replies] == [()] * 17


class Silence:
    """A DHT that nobody answers."""

    def __init__(self):
        self.pings = 0

    async def ping(self, contact, *, model, timeout):
        self.pings += 1
        await trio.sleep(timeout)
        raise RpcTimeout("somebody", timeout)


async def test_when_the_one_who_asks_gives_up_another_asks(autojump_clock, nursery, cluster):
    client = await cluster.start_client()
    contact = Contact(cluster.nodes["node-0"].dht.identity.public_key, Address("10.0.0.1", 8001))
    dht = Silence()
    watch = Watch(dht, client._access.probes)
    signs = []

    async def look():
        signs.append(await watch.look(contact, "alpha", 0.01))

    start = trio.current_time()
    async with trio.open_nursery() as looking:
        first = trio.CancelScope()

        async def look_in_vain():
            with first:
                await look()

        looking.start_soon(look_in_vain)
        await trio.testing.wait_all_tasks_blocked()
        looking.start_soon(look)
        looking.start_soon(look)
        await trio.sleep(ANSWER_S / 4)
        first.cancel()
    assert trio.current_time() - start == pytest.approx(ANSWER_S * 5 / 4)
    assert (dht.pings, len(signs)) == (3, 2)
    assert signs[0] is signs[1]
    assert signs[0].pong is None
    before = client._access.probes.sent
    await look()
    assert client._access.probes.sent == before, "what is known needs no PING"
