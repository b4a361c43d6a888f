"""Walking whole overlays over the in-memory network."""

import pytest
import trio
from swarms import Swarm, contact, seeded

from llamanet._version import __version__
from llamanet.dht.crawl import AT_ONCE, crawl
from llamanet.testing.network import MemoryNetwork


async def start_crawler(swarm, nodes):
    crawler = await swarm.start(999, bootstrap=[nodes[0]], client_mode=True)
    await crawler.wait_joined()
    return crawler


async def test_every_node_is_counted_once(autojump_clock, nursery):
    swarm = Swarm(nursery, MemoryNetwork(seed=3, delay=(0.005, 0.02)))
    nodes = await swarm.start_many(60)
    crawler = await start_crawler(swarm, nodes)
    steps = []
    found = await crawl(crawler, on_progress=lambda *step: steps.append(step), rng=seeded(1))
    assert {node.id for node in found.nodes} == {node.identity.node_id.hex() for node in nodes}
    assert len(found.nodes) == found.answering == 60
    assert found.versions == {__version__: 60}
    assert {node.address for node in found.nodes} == {str(address) for address in swarm.addresses.values()} - {
        str(swarm.addresses[crawler])
    }
    assert abs(found.estimated_size - 60) < 4 * found.estimate_error * 60
    assert found.requests == 3 * 60
    assert steps[-1] == (60, 60)


async def test_the_dead_are_told_apart_and_do_not_hold_it_up(autojump_clock, nursery):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(20)
    crawler = await start_crawler(swarm, nodes)
    for node in nodes[5:9]:
        swarm.network.pause(swarm.addresses[node])
    found = await crawl(crawler, rng=seeded(1))
    silent = {node.id for node in found.nodes if not node.answers}
    assert silent == {node.identity.node_id.hex() for node in nodes[5:9]}
    assert [node.answers for node in found.nodes] == [True] * 16 + [False] * 4
    assert found.elapsed_s < 15


async def test_it_keeps_to_its_rate(autojump_clock, nursery):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(20)
    crawler = await start_crawler(swarm, nodes)
    found = await crawl(crawler, rate=5.0, rng=seeded(1))
    assert found.elapsed_s >= (found.requests - 1) / 5.0
    assert len(found.nodes) == 20


async def test_alone_there_is_nothing_to_count(autojump_clock, nursery):
    alone = await Swarm(nursery).start(0, client_mode=True)
    found = await crawl(alone)
    assert (found.nodes, found.versions, found.requests) == ((), {}, 0)


async def test_a_crawl_can_be_left(autojump_clock, nursery):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(20)
    crawler = await start_crawler(swarm, nodes)
    await trio.sleep(60)
    before = trio.lowlevel.current_statistics().tasks_living
    with trio.move_on_after(1.0) as scope:
        await crawl(crawler, rate=2.0)
    assert scope.cancelled_caught
    assert trio.lowlevel.current_statistics().tasks_living == before


@pytest.mark.parametrize("size", [1, 2])
async def test_a_small_swarm(autojump_clock, nursery, size):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(size)
    found = await crawl(await start_crawler(swarm, nodes))
    assert (len(found.nodes), found.estimated_size, found.estimate_error) == (size, size, 0)
    assert size < AT_ONCE


async def test_a_liar_cannot_make_it_run_on(autojump_clock, nursery, monkeypatch):
    """It tells of 16 more contacts that do not exist whenever it is asked."""
    monkeypatch.setattr("llamanet.dht.crawl.MAX_CONTACTS", 50)
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(3)
    crawler = await start_crawler(swarm, nodes)
    numbers = iter(range(1000, 2000))
    honest = crawler.contacts_of

    async def contacts_of(asked, target):
        return *await honest(asked, target), *(contact(next(numbers)) for _ in range(16))

    monkeypatch.setattr(crawler, "contacts_of", contacts_of)
    found = await crawl(crawler, rng=seeded(1))
    assert (found.answering, len(found.nodes)) == (3, 50)
