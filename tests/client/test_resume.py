"""What a stream keeps when it changes its node: stop strings, log-probabilities, usage, and its model file."""

import pytest
import trio

from llamanet.errors import NoNodeServes, RequestRefused
from llamanet.testing.backend import scripted_logprobs, scripted_text, scripted_tokens
from llamanet.testing.cluster import Cluster
from llamanet.wire.inference import Generate, Sampling

ONE, TWO = bytes([1]) * 32, bytes([2]) * 32
COUNT = 30
IDS = scripted_tokens("hello", COUNT)


async def killing(cluster, client, moments, **options):
    """A stream whose node is killed after each of so many `moments` tokens."""
    async with client.stream("hello", **{"max_tokens": COUNT, "temperature": 0.0, **options}) as stream:
        left = list(moments)
        async for _ in stream:
            if left and len(stream.token_ids) >= left[0]:
                left.pop(0)
                cluster.kill(stream.node_id)
    return stream.reply()


@pytest.mark.parametrize("moments", [(1, 2), (9, 10, 11), (5, 15, 25)])
async def test_log_probabilities_and_usage_over_several_deaths(autojump_clock, nursery, moments):
    cluster = Cluster(nursery)
    await cluster.start_nodes(4, step_time=0.02)
    reply = await killing(cluster, await cluster.start_client(), moments, logprobs=2)
    assert list(reply.token_ids) == IDS
    assert reply.logprobs == tuple(scripted_logprobs(token, 2) for token in IDS)
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.cached_tokens) == (1, COUNT, 0)
    assert len(reply.hops) == len(moments)
    assert len(reply.digests) == 1


@pytest.mark.parametrize("at", range(1, 20))
async def test_a_stop_string_that_began_on_another_node(autojump_clock, nursery, at):
    cluster = Cluster(nursery)
    await cluster.start_nodes(3, step_time=0.02)
    text = scripted_text(IDS)
    words = text.split(" ")
    stop = " ".join(words[14:17])
    reply = await killing(cluster, await cluster.start_client(), (at, at + 1), stop=[stop], grammar="root ::= .*")
    assert (reply.text, reply.finish_reason) == (text[: text.index(stop)], "stop")


async def test_any_version_goes_on_with_another_file_and_says_so(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_node("other", model="beta")  # A way into the swarm that stays.
    await cluster.start_node("a", digest=ONE, step_time=0.5)
    await trio.sleep(3)
    client = await cluster.start_client()
    async with client.stream("hello", model="alpha", any_version=True, max_tokens=COUNT, temperature=0.0) as stream:
        await stream.__anext__()
        await cluster.start_node("b", digest=ONE, step_time=0.02)
        await cluster.start_node("c", digest=TWO, step_time=0.02)
        await trio.sleep(3)
        cluster.kill("a")
        async for _ in stream:
            if len(stream.token_ids) == 20:
                cluster.kill("b")
    reply = stream.reply()
    assert list(reply.token_ids) == IDS
    # The same file comes first, as long as there is one.
    assert [hop.node_id for hop in reply.hops] == ["a", "b"]
    assert reply.node_id == "c"
    assert reply.digests == (ONE.hex(), TWO.hex())
    with pytest.raises(RequestRefused, match="not both"):
        await client.generate("hello", any_version=True, digest=ONE)


async def test_without_any_version_there_is_no_other_file(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_node("a", digest=ONE, step_time=0.02)
    await cluster.start_node("b", digest=TWO, step_time=0.02)
    await trio.sleep(3)
    with pytest.raises(NoNodeServes, match="its file is another one"):
        await killing(cluster, await cluster.start_client(), (3,))


async def test_a_node_that_drains_too_long_is_left_without_blame(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(2, step_time=0.02)
    client = await cluster.start_client()
    async with client.stream("hello", max_tokens=COUNT, temperature=0.0) as stream:
        async for _ in stream:
            if len(stream.token_ids) == 5:
                node = cluster.nodes[stream.node_id]
                for engine in node.host.endpoint.engines.values():
                    engine._close()
    assert list(stream.token_ids) == IDS
    assert stream.hops == ((node.label, "the node is shutting down"),)
    assert client._access.peers.usable(node.dht.identity.node_id, trio.current_time())


@pytest.mark.parametrize(("waiting", "max_waiting"), [(5, 64), (5, 5)])
async def test_who_is_in_the_middle_of_a_text_does_not_wait_behind_all_others(
    autojump_clock, nursery, waiting, max_waiting
):
    cluster = Cluster(nursery)
    await cluster.start_node("other", model="beta")  # A way into the swarm that stays.
    await cluster.start_node("first", step_time=0.5)
    await trio.sleep(3)
    client = await cluster.start_client()
    async with client.stream("hello", model="alpha", max_tokens=COUNT, temperature=0.0) as stream:
        await stream.__anext__()
        second = await cluster.start_node("second", slots=1, step_time=0.05, max_waiting=max_waiting)
        await trio.sleep(3)
        [engine] = second.host.endpoint.engines.values()
        two_seconds = Sampling(max_tokens=40, temperature=0.0)
        others = [
            engine.submit(Generate(id=number, prompt=f"other {number}", sampling=two_seconds))
            for number in range(1 + waiting)
        ]
        await trio.sleep(0.2)
        cluster.kill("first")
        stall, heard = 0.0, trio.current_time()
        async for _ in stream:
            stall, heard = max(stall, trio.current_time() - heard), trio.current_time()
    assert list(stream.token_ids) == IDS
    assert stream.node_id == "second"
    assert stall < 2.5
    assert engine.state().running + engine.state().waiting == waiting
    for other in others:
        other.cancel()
