"""When all nodes are busy: requests wait in turn, callers are served alike, and nobody waits longer than was said."""

import pytest
import trio
import trio.testing

from llamanet.client.hedge import SHARE, HedgeBudget
from llamanet.client.lobby import Lobby
from llamanet.errors import SwarmBusy
from llamanet.testing.backend import scripted_text, scripted_tokens
from llamanet.testing.cluster import Cluster

GREEDY = {"temperature": 0.0}


def expected(prompt, count):
    return scripted_text(scripted_tokens(prompt, count))


async def start(nursery, nodes=2, **options):
    cluster = Cluster(nursery)
    await cluster.start_nodes(nodes, **{"slots": 1, "max_waiting": 0, "step_time": 0.05, **options})
    return cluster


async def test_forty_requests_for_two_places_all_come_in_turn(autojump_clock, nursery):
    cluster = await start(nursery)
    client = await cluster.start_client()
    replies = {}

    async def one(number):
        replies[number] = await client.generate(f"prompt {number}", max_tokens=4, wait=60, **GREEDY)

    async with trio.open_nursery() as inner:
        for number in range(40):
            inner.start_soon(one, number)
    assert {n: reply.text for n, reply in replies.items()} == {n: expected(f"prompt {n}", 4) for n in range(40)}
    # The first rush hits the busy nodes; from then on one at a time asks.
    busy = sum(hop.reason == "busy" for reply in replies.values() for hop in reply.hops)
    assert busy < 40 * 2 + 40 * 4


async def test_who_may_not_wait_is_told_the_soonest_time(autojump_clock, nursery):
    cluster = await start(nursery)
    client = await cluster.start_client()
    async with client.stream("a", **GREEDY) as first, client.stream("b", **GREEDY) as second:
        await first.__anext__()
        await second.__anext__()
        for wait in (0, 0.01, 5):
            began = trio.current_time()
            with pytest.raises(SwarmBusy) as caught:
                await client.generate("c", wait=wait)
            assert trio.current_time() - began <= wait + 0.3
            assert caught.value.retry_after > 0
            assert caught.value.tried == 2
        async with trio.open_nursery() as inner:

            @inner.start_soon
            async def ask():
                reply = await client.generate("c", max_tokens=3, wait=30, **GREEDY)
                assert reply.text == expected("c", 3)
                inner.cancel_scope.cancel()

            await trio.sleep(1)
            first.close()
            await trio.sleep(20)
            pytest.fail("the free place was not taken")
    assert client._access.lobby.waiting == 0


async def test_nobody_rushes_at_nodes_that_said_when_to_come_back(autojump_clock, nursery, monkeypatch):
    cluster = await start(nursery)
    client = await cluster.start_client()
    asked = []
    submit = client._access.pool.submit
    monkeypatch.setattr(client._access.pool, "submit", lambda *given: asked.append(given) or submit(*given))
    async with client.stream("a", **GREEDY) as first, client.stream("b", **GREEDY) as second:
        await first.__anext__()
        await second.__anext__()
        with pytest.raises(SwarmBusy):
            await client.generate("c", wait=0)
        asked.clear()

        async def refused(wait):
            with pytest.raises(SwarmBusy) as caught:
                await client.generate("c", wait=wait)
            assert caught.value.retry_after > 0

        async with trio.open_nursery() as inner:
            for _ in range(50):
                inner.start_soon(refused, 0)
        assert asked == []
        async with trio.open_nursery() as inner:
            for _ in range(50):
                inner.start_soon(refused, 10)
        assert len(asked) < 50


async def test_waiting_is_cancelled_everywhere_and_nothing_is_left(autojump_clock, nursery):
    cluster = await start(nursery)
    client = await cluster.start_client()
    async with client.stream("a", **GREEDY) as first, client.stream("b", **GREEDY) as second:
        await first.__anext__()
        await second.__anext__()
        for delay in range(1, 30):
            async with trio.open_nursery() as inner:
                for _ in range(3):
                    inner.start_soon(lambda: client.generate("c", wait=1000))
                await trio.sleep(delay * 0.011)
                inner.cancel_scope.cancel()
            assert client._access.lobby.waiting == 0


async def test_turns_go_round_among_callers(autojump_clock):
    lobby, order = Lobby(), []
    await lobby.enter("m", "holder")

    async def one(caller, number):
        await lobby.enter("m", caller)
        order.append((caller, number))
        lobby.leave("m")

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(one, "batch", number)
            await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(one, "single", 0)
        await trio.testing.wait_all_tasks_blocked()
        assert lobby.crowded("m")
        assert not lobby.crowded("other")
        lobby.leave("m")
    assert order == [("batch", 0), ("single", 0), ("batch", 1), ("batch", 2)]
    assert not lobby.crowded("m")


def test_hedges_are_a_twentieth():
    budget = HedgeBudget()
    spent = 0
    for count in range(1, 2001):
        budget.earn()
        spent += budget.spend()
        assert spent <= count * SHARE + 1e-9
    assert spent == 100


async def test_a_slow_first_token_is_asked_of_a_second_node(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(3, step_time=0.01)
    client = await cluster.start_client()
    requests = 200
    replies = [await client.generate(f"p {number}", max_tokens=1, **GREEDY) for number in range(requests)]
    assert 0 < sum(len(reply.choices) - 1 for reply in replies) <= SHARE * requests
    await trio.sleep(1)
    client._access.hedges._saved = 1.0
    slow = []

    def stall(node):
        def tamper(data):
            if b"accepted" in data and not slow:
                slow.append(node.label)
                node.thawed = trio.Event()  # No token comes; its UDP goes on.
            return data

        return tamper

    for node in cluster.nodes.values():
        node.tamper = stall(node)
    reply = await client.generate("hello", max_tokens=5, **GREEDY)
    assert reply.text == expected("hello", 5)
    assert reply.hops == ((slow[0], "another node spoke sooner"),)
    assert reply.node_id != slow[0]
    assert reply.usage.completion_tokens == 5
    assert reply.ttft < 1
    cluster.nodes[slow[0]].thawed.set()
    await trio.sleep(0.1)
    for node in cluster.nodes.values():
        for engine in node.host.endpoint.engines.values():
            assert (engine.state().running, engine.state().waiting) == (0, 0)
    assert all(client._access.peers.in_flight(node.dht.identity.node_id) == 0 for node in cluster.nodes.values())
