"""What a request may take is its caller's: tries, time, places; and callers share the nodes alike."""

import math

import pytest
import trio
import trio.testing

from llamanet.errors import DeadlineExceeded, NoNodeServes, RequestRefused, SwarmBusy
from llamanet.testing.backend import scripted_text, scripted_tokens
from llamanet.testing.cluster import Cluster

GREEDY = {"temperature": 0.0}


def expected(prompt, count):
    return scripted_text(scripted_tokens(prompt, count))


def running(cluster):
    states = [engine.state() for node in cluster.nodes.values() for engine in node.host.endpoint.engines.values()]
    return sum(state.running + state.waiting for state in states)


def assert_nothing_is_left(client):
    lobby = client._access.lobby
    assert (lobby.waiting, lobby.under_way(None), client._access.peers.all_in_flight) == (0, 0, 0)


@pytest.mark.parametrize("tries", [1, 2, 3])
async def test_a_request_fails_as_often_as_its_caller_allows(autojump_clock, nursery, tries):
    cluster = Cluster(nursery)
    await cluster.start_nodes(5, step_time=0.02)
    client = await cluster.start_client()
    killed = []
    async with client.stream("hello", max_tokens=100, tries=tries, **GREEDY) as stream:
        with pytest.raises(NoNodeServes, match=f"tries={tries} was given") as caught:  # noqa: PT012
            async for _ in stream:
                killed.append(stream.node_id)
                cluster.kill(stream.node_id)
    assert [hop.node_id for hop in stream.hops] == killed
    assert (len(killed), caught.value.tried) == (tries, tries)
    assert caught.value.served == ("alpha",)
    assert_nothing_is_left(client)


async def test_one_node_may_be_tried_as_often_as_the_caller_allows(autojump_clock, nursery):
    cluster = Cluster(nursery)
    node = await cluster.start_node("node-a", step_time=0.02)
    await trio.sleep(3)
    client = await cluster.start_client()

    async def ask(**options):
        async with client.stream("hello", max_tokens=12, **GREEDY, **options) as stream:
            async for _ in stream:
                if len(stream.token_ids) % 2 == 0 and len(stream.hops) < 5:
                    for link in list(node.links):
                        link.cut()
        return stream.reply()

    with pytest.raises(NoNodeServes, match="it failed repeatedly"):
        await ask()
    reply = await ask(tries=6)
    assert (reply.text, len(reply.hops)) == (expected("hello", 12), 5)


@pytest.mark.parametrize("timeout", [0.0, 0.001, 0.3, 1.0])
async def test_a_request_ends_with_its_time(autojump_clock, nursery, timeout):
    cluster = Cluster(nursery)
    await cluster.start_nodes(2, step_time=0.1)
    client = await cluster.start_client()
    async with client.stream("hello", max_tokens=1000, timeout=timeout, **GREEDY) as stream:
        start = trio.current_time()
        with pytest.raises(DeadlineExceeded) as caught:
            async for _ in stream:
                pass
        assert trio.current_time() - start <= timeout + 1e-9
        assert (caught.value.timeout, caught.value.tokens) == (timeout, len(stream.token_ids))
        await trio.sleep(0.2)
        assert running(cluster) == 0
        assert_nothing_is_left(client)
    with pytest.raises(DeadlineExceeded):
        await client.embed(["x"] * 500, timeout=timeout / 10)
    assert (await client.generate("hello", max_tokens=3, timeout=20, **GREEDY)).text == expected("hello", 3)


@pytest.mark.parametrize("option", [{"wait": -1}, {"wait": math.nan}, {"tries": 0}, {"timeout": "5"}])
async def test_a_budget_that_is_none_is_refused(autojump_clock, nursery, option):
    client = await Cluster(nursery).start_client()
    with pytest.raises(RequestRefused) as caught:
        await client.generate("hello", **option)
    assert caught.value.field in option
    with pytest.raises(RequestRefused):
        await client.embed(["hello"], **option)


async def test_a_large_batch_keeps_no_question_waiting_in_the_nodes_queues(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(2, slots=2, step_time=0.05)
    client = await cluster.start_client()
    prompts = [f"prompt {number}" for number in range(100)]
    most, ttfts = 0, []
    async with trio.open_nursery() as inner:

        @inner.start_soon
        async def batch():
            async with client.map(prompts, concurrency=100, max_tokens=20, **GREEDY) as results:
                texts = [result.text async for result in results]
            assert texts == [expected(prompt, 20) for prompt in prompts]

        await trio.sleep(3)
        for number in range(5):
            most = max(most, running(cluster))
            ttfts.append((await client.generate(f"question {number}", max_tokens=1, **GREEDY)).ttft)
    # Twenty tokens last a second; 94 of the batch are before the first question.
    assert max(ttfts) < 3
    assert most <= 2 * (2 + 1)
    assert_nothing_is_left(client)


async def test_who_cannot_wait_goes_to_the_nodes_queues(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(1, slots=1, step_time=0.5)
    client = await cluster.start_client()
    replies = []

    async def one(number):
        replies.append(await client.generate(f"prompt {number}", max_tokens=30, wait=2, **GREEDY))

    async with trio.open_nursery() as inner:
        for number in range(5):
            inner.start_soon(one, number)
        await trio.sleep(1)
        assert running(cluster) == 2
        await trio.sleep(2)
        assert running(cluster) == 5
    assert len(replies) == 5


async def test_too_much_load_is_waited_out(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(2, slots=2, step_time=0.05)
    client = await cluster.start_client()
    async with client.stream("a", **GREEDY) as first, client.stream("b", **GREEDY) as second:
        await first.__anext__()
        await second.__anext__()
        with pytest.raises(SwarmBusy, match=r"busy \(max_load 0.4 was asked, and the idlest, node-\d, has load 0.50\)"):
            await client.generate("c", max_load=0.4, wait=0, **GREEDY)
        async with trio.open_nursery() as inner:

            @inner.start_soon
            async def ask():
                reply = await client.generate("c", max_load=0.4, max_tokens=2, **GREEDY)
                assert reply.text == expected("c", 2)

            await trio.sleep(3)
            start = trio.current_time()
            assert (await client.generate("d", max_tokens=1, **GREEDY)).text == expected("d", 1)
            assert trio.current_time() - start < 0.5, "it allows more load, and need not wait behind"
            first.close()
    assert_nothing_is_left(client)


async def test_what_a_node_must_be_able_to_do(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_node("small", n_ctx=256)
    await trio.sleep(3)
    client = await cluster.start_client()
    with pytest.raises(NoNodeServes, match="small: its context of 256 tokens is too short"):
        await client.generate("hello", min_context=1000)
    await cluster.start_node("embeds", generates=False, n_ctx=1024)
    await trio.sleep(3)
    with pytest.raises(NoNodeServes, match="embeds: it has no json"):
        await client.generate("hello", min_context=1000, response_format={"type": "json_object"})
    await cluster.start_node("large", n_ctx=2048)
    await trio.sleep(3)
    for options in ({"min_context": 2048}, {"grammar": 'root ::= "x"', "min_context": 257}):
        assert (await client.generate("hello", max_tokens=1, **options)).node_id == "large"


async def test_another_file_is_gone_on_with_at_once(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_node("node-a", digest=bytes(32), step_time=0.02)
    await trio.sleep(3)
    client = await cluster.start_client()
    async with client.stream("hello", max_tokens=300, any_version=True, **GREEDY) as stream:
        await stream.__anext__()
        await cluster.start_node("node-b", digest=bytes([1]) * 32, step_time=0.02)
        await trio.sleep(3)
        await client.generate("another", max_tokens=1, **GREEDY)  # So the records are looked up again.
        await trio.sleep(0.5)
        cluster.kill("node-a")
        stall, heard = 0.0, trio.current_time()
        async for _ in stream:
            stall, heard = max(stall, trio.current_time() - heard), trio.current_time()
    assert stream.reply().text == expected("hello", 300)
    assert stream.digests == ("00" * 32, "01" * 32)
    assert stall < 0.3
