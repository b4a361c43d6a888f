"""What clients look up: how often, whose word they take, for how many at once, and what an unlucky lookup changes."""

from types import SimpleNamespace

import pytest
import trio
import trio.testing

from llamanet.client import directory
from llamanet.client.directory import Directory
from llamanet.errors import NoNodeServes
from llamanet.testing.cluster import Cluster
from llamanet.wire.facts import ServiceFacts, encode_facts

GREEDY = {"temperature": 0.0, "max_tokens": 1}


@pytest.fixture
async def cluster(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(3, slots=300)
    return cluster


@pytest.fixture
async def client(cluster):
    client = await cluster.start_client()
    await client._dht.wait_joined()
    return client


@pytest.fixture
def lookups(client, monkeypatch):
    """The keys that the client looked up."""
    keys = []
    get = client._dht.get

    async def count(key, **options):
        keys.append(key)
        return await get(key, **options)

    monkeypatch.setattr(client._dht, "get", count)
    return keys


@pytest.mark.parametrize(("model", "keys"), [("alpha", 1), (None, 2)])
async def test_two_hundred_first_requests_share_one_lookup(autojump_clock, client, lookups, model, keys):
    async with trio.open_nursery() as inner:
        for number in range(200):
            inner.start_soon(lambda number=number: client.generate(f"prompt {number}", model=model, **GREEDY))
    assert len(lookups) == len(set(lookups)) == keys


async def test_who_cancels_does_not_end_the_lookup_of_the_others(autojump_clock, client, lookups):
    replies = []

    async def ask():
        replies.append(await client.generate("hello", model="alpha", **GREEDY))

    async with trio.open_nursery() as inner:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as first:
                first.start_soon(ask)
                await trio.testing.wait_all_tasks_blocked()
                assert len(lookups) == 1
                inner.start_soon(ask)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
    assert len(replies) == len(lookups) == 1


async def test_a_new_model_is_noticed_by_whoever_takes_any(autojump_clock, cluster, client):
    await client.generate("hello", **GREEDY)
    await cluster.start_node("node-b", model="beta")
    await trio.sleep(2 * directory.REFRESH_S)
    await client.generate("hello", **GREEDY)
    await trio.sleep(1)
    start = trio.current_time()
    assert list(await client._directory.models()) == ["alpha", "beta"]
    assert trio.current_time() == start


async def test_a_lookup_that_finds_nothing_takes_nothing_away_for_a_while(autojump_clock, cluster, client, monkeypatch):
    await client.generate("hello", model="alpha", **GREEDY)
    found = 0

    async def nothing(key, **options):
        nonlocal found
        found += 1
        await trio.sleep(0.1)
        return []

    monkeypatch.setattr(client._dht, "get", nothing)
    for _ in range(5):
        await trio.sleep(1.5 * directory.REFRESH_S)
        await client.generate("hello", model="alpha", **GREEDY)
    assert found == 5
    await trio.sleep(directory.FRESH_S)
    with pytest.raises(NoNodeServes):
        await client.generate("hello", model="alpha", **GREEDY)


def record(publisher):
    facts = ServiceFacts(
        hosts=("10.0.0.1",),
        port=1,
        dht_port=2,
        tls=True,
        label=f"node-{publisher}",
        digest=bytes(32),
        n_ctx=1,
        slots=1,
        version="1",
    )
    return SimpleNamespace(public_key=bytes([publisher]) * 32, value=encode_facts(facts))


@pytest.fixture
def swarm(monkeypatch):
    """Who is told of by several holders (`complete`) and by one node near the client (`near`), and who was asked."""
    swarm = SimpleNamespace(complete=[1, 2], near=[1, 2], asked=[])

    async def sample(dht, name, limit, *, copies):
        await trio.lowlevel.checkpoint()
        swarm.asked.append(copies)
        return [record(publisher) for publisher in (swarm.near if copies else swarm.complete)]

    monkeypatch.setattr(directory, "sample", sample)
    return swarm


async def labels(known):
    """Those known once the lookup that this causes has ended."""
    await known.services("m")
    await trio.testing.wait_all_tasks_blocked()
    return {service.facts.label for service in await known.services("m")}


async def test_most_lookups_in_the_background_take_one_nodes_word(autojump_clock, nursery, swarm):
    known = Directory(None, nursery)
    for _ in range(int(5 * directory.COMPLETE_S)):
        await known.services("m")
        await trio.sleep(1)
    assert not swarm.asked[0]
    complete = len(swarm.asked) - sum(swarm.asked)
    assert complete <= 1 + 5
    assert len(swarm.asked) > 5 * directory.COMPLETE_S / (directory.REFRESH_S + 1) - 2


async def test_one_nodes_word_adds_and_takes_nothing_away(autojump_clock, nursery, swarm):
    known = Directory(None, nursery)
    assert await labels(known) == {"node-1", "node-2"}
    swarm.near, swarm.complete = [3], [1, 3]
    await trio.sleep(directory.REFRESH_S + 1)
    assert await labels(known) == {"node-1", "node-2", "node-3"}
    await trio.sleep(directory.COMPLETE_S)
    assert await labels(known) == {"node-1", "node-3"}
    assert swarm.asked == [False, True, False]
