"""A stream is cancelled ever later: in a hedge race, in the client's queue, while its silent node is asked, while it
moves to the next one. Nothing is left of it, here or there."""

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
