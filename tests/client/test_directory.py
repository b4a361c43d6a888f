"""What clients look up: how often, for how many at once, and what an unlucky lookup changes."""

import pytest
import trio
import trio.testing

from llamanet.client import directory
from llamanet.errors import NoNodeServes
from llamanet.testing.cluster import Cluster

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
