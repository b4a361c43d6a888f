"""What a client tells about itself: requests, hedges, those that wait and those that nodes have."""

import trio
import trio.testing

from llamanet.testing.cluster import Cluster

GREEDY = {"temperature": 0.0}


async def test_requests_are_counted_where_they_are(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(1, slots=1, max_waiting=0, step_time=0.01)
    client = await cluster.start_client()
    before = client.statistics
    assert (before.requests, before.hedges, before.waiting, before.in_flight) == (0, 0, 0, 0)

    async def ask():
        await client.generate("wait", max_tokens=20, wait=60, **GREEDY)

    async with client.stream("hold the slot", **GREEDY) as stream:
        await stream.__anext__()
        async with trio.open_nursery() as asking:
            for _ in range(3):
                asking.start_soon(ask)
            await trio.sleep(1)
            during = client.statistics
            stream.close()
    assert during.requests == 4
    assert during.waiting == 3
    assert during.in_flight == 1
    assert during.dht.joined
    after = client.statistics
    assert (after.requests, after.waiting, after.in_flight) == (4, 0, 0)


async def test_hedges_are_counted(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(3, step_time=0.01)
    client = await cluster.start_client()
    replies = [await client.generate(f"p {number}", max_tokens=1, **GREEDY) for number in range(200)]
    asked_twice = sum(len(reply.choices) - 1 for reply in replies)
    assert client.statistics.hedges == asked_twice > 0
