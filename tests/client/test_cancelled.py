"""A stream is cancelled ever later: while its client joins, in a hedge race, in the client's queue, while its silent
node is asked, while it moves to the next one. Nothing is left of it, here or there. Nor does a node work on that lost a
race, or that fell silent and was left."""

import pytest
import trio
import trio.testing

from llamanet.testing.cluster import Cluster

STEP_S = 0.02


async def race(cluster, client):
    """All nodes write late, so that a second one is asked."""
    for _ in range(30):
        await client.generate("hello", max_tokens=2, temperature=0.0)
    for node in cluster.nodes.values():
        node.lag = 0.4
    return (await client.open("hello", max_tokens=4, temperature=0.0)), 1.0


async def queue(cluster, client):
    """The client has as many requests under way as the nodes take."""
    return (await client.open("hello", max_tokens=4, temperature=0.0, wait=60)), 1.0


async def silence(cluster, client):
    """The node that answers freezes."""
    stream = await client.open("hello", max_tokens=40, temperature=0.0)
    await stream.__anext__()
    cluster.freeze(stream.node_id)
    return stream, 1.5


async def read(stream):
    try:
        async for _ in stream:
            pass
    finally:
        stream.close()


async def fill(client):
    async with trio.open_nursery() as nursery:
        for number in range(9):
            nursery.start_soon(generate, client, f"prompt {number}", 20)


async def generate(client, prompt, count):
    await client.generate(prompt, max_tokens=count, temperature=0.0, wait=60)


@pytest.mark.parametrize("scene", [race, queue, silence])
async def test_cancelled_ever_later_nothing_is_left(autojump_clock, nursery, scene):
    cluster = Cluster(nursery)
    await cluster.start_nodes(3, step_time=STEP_S, slots=1)
    reached = {"hedges": 0, "waiting": 0, "looking": 0}
    for moment in range(24):
        async with trio.open_nursery() as clients:
            client = await cluster.start_client(clients)
            access = client._access
            async with trio.open_nursery() as others:
                if scene is queue:
                    others.start_soon(fill, client)
                    await trio.sleep(0.1)
                stream, longest = await scene(cluster, client)
                with trio.move_on_after(longest * moment / 23):
                    await read(stream)
                reached["hedges"] += client.statistics.hedges > 0
                reached["waiting"] += client.statistics.waiting > 0
                reached["looking"] += bool(access.watch._watched)
                others.cancel_scope.cancel()
            statistics = client.statistics
            assert (statistics.waiting, statistics.in_flight, access.lobby.under_way(None)) == (0, 0, 0)
            for node in cluster.nodes.values():
                node.lag = 0.0
                cluster.thaw(node.label)
            await trio.sleep(1.0)
            assert [node.host.endpoint.requests for node in cluster.nodes.values()] == [0, 0, 0]
            assert all(watched.asking is None for watched in access.watch._watched.values())
            clients.cancel_scope.cancel()
        await trio.sleep(0.5)
        assert [len(node.links) for node in cluster.nodes.values()] == [0, 0, 0]
    assert reached[{race: "hedges", queue: "waiting", silence: "looking"}[scene]] > 3


@pytest.mark.parametrize("joins", [True, False])
async def test_cancelled_ever_later_while_its_client_joins_nothing_is_left(autojump_clock, nursery, joins):
    cluster = Cluster(nursery)
    await cluster.start_nodes(2, step_time=STEP_S)
    waited = ended = 0
    for moment in range(16):
        async with trio.open_nursery() as clients:
            for label in cluster.nodes:
                cluster.freeze(label)
            client = await cluster.start_client(clients)
            with trio.move_on_after(4.5 * moment / 15) as scope:
                async with trio.open_nursery() as asking:
                    asking.start_soon(generate, client, "hello", 4)
                    asking.start_soon(generate, client, "prompt", 4)
                    await trio.sleep(1.0)
                    waited += not client._dht.joined
                    if joins:
                        for label in cluster.nodes:
                            cluster.thaw(label)
            waited += not client._dht.joined
            ended += not scope.cancelled_caught
            statistics = client.statistics
            assert (statistics.waiting, statistics.in_flight, client._access.lobby.under_way(None)) == (0, 0, 0)
            for label in cluster.nodes:
                cluster.thaw(label)
            await trio.sleep(1.0)
            assert [node.host.endpoint.requests for node in cluster.nodes.values()] == [0, 0]
            clients.cancel_scope.cancel()
        await trio.sleep(0.5)
        assert [len(node.links) for node in cluster.nodes.values()] == [0, 0]
    assert waited > 6
    assert (ended > 3) == joins


def at_work(cluster):
    """How many requests each node computes, or would."""
    engines = {label: engine for label, node in cluster.nodes.items() for engine in node.host.endpoint.engines.values()}
    return {label: engine.state().running + engine.state().waiting for label, engine in engines.items()}


async def test_the_node_that_loses_a_race_works_no_more(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(2, step_time=STEP_S)
    client = await cluster.start_client()
    for number in range(40):
        await client.generate(f"hello {number}", max_tokens=2, temperature=0.0)
        client._access.hedges.earn()
    for node in cluster.nodes.values():
        node.lag = 0.4
    hedges = client.statistics.hedges
    async with client.stream("a long one", max_tokens=1000, temperature=0.0) as stream:
        await stream.__anext__()
        assert client.statistics.hedges == hedges + 1
        [loser] = cluster.nodes.keys() - {stream.node_id}
        await trio.sleep(2 * STEP_S)
        assert at_work(cluster) == {stream.node_id: 1, loser: 0}
        drawn = cluster.nodes[loser].backend.drawn
        while len(stream.token_ids) < 100:
            await stream.__anext__()
        assert cluster.nodes[loser].backend.drawn == drawn


async def test_the_node_that_fell_silent_works_no_more_once_it_hears(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(2, step_time=STEP_S)
    client = await cluster.start_client()
    async with client.stream("a long one", max_tokens=400, temperature=0.0) as stream:
        await stream.__anext__()
        silent = cluster.nodes[stream.node_id]
        cluster.freeze(silent.label)
        async for _ in stream:
            if stream.node_id != silent.label:
                break
        assert at_work(cluster) == {stream.node_id: 1, silent.label: 1}
        cluster.thaw(silent.label)
        await trio.sleep(2 * STEP_S)
        assert at_work(cluster) == {stream.node_id: 1, silent.label: 0}
        drawn = silent.backend.drawn
        async for _ in stream:
            pass
        assert silent.backend.drawn == drawn
    assert stream.hops == ((silent.label, "it fell silent"),)
