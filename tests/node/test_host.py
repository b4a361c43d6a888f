"""A node's life, seen by those who ask: models come and go, nodes drain and come back, and nobody gets an error."""

from functools import partial
from random import Random

import pytest
import trio
import trio.testing

from llamanet.errors import ModelFileError, NoNodeServes, UserError
from llamanet.node.host import Model
from llamanet.testing.backend import ScriptedBackend, scripted_text, scripted_tokens
from llamanet.testing.cluster import SETTLE_S, Cluster
from llamanet.wire.facts import key_of, model_key_name

STEP_S = 0.02
GREEDY = {"temperature": 0.0}


@pytest.fixture
def cluster(autojump_clock, nursery):
    return Cluster(nursery)


def scripted(name, **script):
    return Model(name=name, digest=bytes(32), make_backend=lambda: ScriptedBackend(step_time=STEP_S, **script))


def expected(prompt, count):
    return scripted_text(scripted_tokens(prompt, count))


async def load(nursery, node, name, **script):
    await nursery.start(node.host.serve_model, scripted(name, **script))
    await node.host.wait_announced()


async def test_a_model_comes_while_streams_run_and_leaves_when_its_own_have_ended(autojump_clock, cluster, nursery):
    [node] = await cluster.start_nodes(1, step_time=STEP_S)
    client = await cluster.start_client()
    async with client.stream("one", model="alpha", max_tokens=100, **GREEDY) as first:
        await first.__anext__()
        await load(nursery, node, "beta")
        async with client.stream("two", model="beta", max_tokens=100, **GREEDY) as second:
            await second.__anext__()
            assert [model.name for model in await client.models()] == ["alpha", "beta"]
            started = trio.current_time()
            async with trio.open_nursery() as unloading:
                unloading.start_soon(node.host.unload, "beta")
                await trio.testing.wait_all_tasks_blocked()
                assert [state.name for state in node.host.live_state(None)[1]] == ["alpha"]
                async for _ in second:
                    pass
            assert 1.5 < trio.current_time() - started < 3.0
            assert (second.reply().text, second.hops) == (expected("two", 100), ())
        async for _ in first:
            pass
        assert (first.reply().text, first.hops) == (expected("one", 100), ())
    assert [model.name for model in await client.models()] == ["alpha"]
    assert await client.nodes("beta") == []
    await trio.sleep(1)
    assert not (await client._access.dht.get(key_of(model_key_name("beta"))))
    with pytest.raises(NoNodeServes):
        await client.generate("three", model="beta", max_tokens=3)


async def test_a_stream_that_takes_too_long_goes_on_elsewhere(autojump_clock, cluster, nursery):
    nodes = await cluster.start_nodes(2, step_time=STEP_S)
    client = await cluster.start_client()
    async with client.stream("one", max_tokens=200, **GREEDY) as stream:
        await stream.__anext__()
        [node] = [node for node in nodes if node.label == stream.node_id]
        started = trio.current_time()
        await node.host.unload("alpha", timeout=0.5)
        assert trio.current_time() - started == pytest.approx(0.5, abs=2 * STEP_S)
        assert node.backend.closed
        async for _ in stream:
            pass
    assert stream.reply().text == expected("one", 200)
    assert [hop.node_id for hop in stream.hops] == [node.label]


async def test_what_is_not_there_cannot_leave(autojump_clock, cluster, nursery):
    [node] = await cluster.start_nodes(1)
    with pytest.raises(UserError, match="the node has no model 'beta'; it has alpha"):
        await node.host.unload("beta")
    with pytest.raises(UserError, match="two models are named 'alpha'"):
        await nursery.start(node.host.serve_model, scripted("alpha"))


async def test_a_drained_node_finishes_what_runs_and_comes_back(autojump_clock, cluster, nursery):
    [node] = await cluster.start_nodes(1, step_time=STEP_S)
    client = await cluster.start_client()
    async with client.stream("one", max_tokens=100, **GREEDY) as stream:
        await stream.__anext__()
        node.host.hold("operator")
        assert node.host.live_state(None)[0]
        with pytest.raises(NoNodeServes):
            await client.generate("two", max_tokens=2, **GREEDY)
        async for _ in stream:
            pass
        assert (stream.reply().text, stream.hops) == (expected("one", 100), ())
    assert await client.nodes() == []
    node.host.hold("owner")
    node.host.release("operator")
    assert node.host.live_state(None)[0]  # the owner still wants it
    node.host.release("owner")
    await node.host.wait_announced()
    assert (await client.generate("two", max_tokens=2, **GREEDY)).text == expected("two", 2)
    assert [view.draining for view in await client.nodes()] == [False]
    node.host.hold("operator")
    node.host.drain()  # a held node can leave
    await trio.sleep(5)
    assert node.host._announcer is None


async def test_nobody_notices_what_the_operators_do(autojump_clock, cluster, nursery):
    """Streams go on for a minute while, on one node at a time, models come and go, and nodes drain and resume."""
    rng = Random(11)
    nodes = await cluster.start_nodes(3, step_time=STEP_S, slots=8)
    for node in nodes:
        await load(nursery, node, "beta", slots=8)
    await trio.sleep(SETTLE_S)
    client = await cluster.start_client()
    replies = []
    over = False

    async def ask(number):
        asked = 0
        while not over:
            asked += 1
            prompt, count = f"task {number} question {asked}", rng.randrange(5, 60)
            async with client.stream(prompt, model=rng.choice(["alpha", "beta"]), max_tokens=count, **GREEDY) as stream:
                async for _ in stream:
                    pass
            reply = stream.reply()
            assert reply.text == expected(prompt, count)
            replies.append(reply)

    async with trio.open_nursery() as asking:
        for number in range(8):
            asking.start_soon(ask, number)
        for _ in range(12):
            node, name = rng.choice(nodes), rng.choice(["alpha", "beta"])
            if rng.random() < 0.5:
                await node.host.unload(name)
                await trio.sleep(rng.uniform(0, 2))
                await load(nursery, node, name, slots=8)
            else:
                node.host.hold("operator")
                await node.host.endpoint.wait_idle()
                await trio.sleep(rng.uniform(0, 2))
                node.host.release("operator")
                await node.host.wait_announced()
            await trio.sleep(rng.uniform(0, 2))
        over = True
    assert len(replies) > 100
    reasons = {hop.reason for reply in replies for hop in reply.hops}
    assert reasons <= {
        "another node spoke sooner",
        "the node takes no new requests",
        "the node serves alpha no more",
        "the node serves beta no more",
    }
    assert all(reply.usage.completion_tokens == len(reply.token_ids) for reply in replies)


async def test_an_idle_model_sleeps_and_the_next_request_wakes_it(autojump_clock, cluster, nursery):
    node = await cluster.start_node("node-0", idle_unload=5.0, step_time=STEP_S, spent=3.0)
    await trio.sleep(SETTLE_S)
    client = await cluster.start_client()
    assert (await client.generate("one", max_tokens=50, **GREEDY)).text == expected("one", 50)
    await trio.sleep(4.9)
    assert not node.backend.closed
    await trio.sleep(0.2)
    assert node.backend.closed
    assert [model.name for model in await client.models()] == ["alpha"]  # announced as before
    [view] = await client.nodes()
    assert 3.0 < view.ttft_s < 4.0  # what loading took is counted
    started = trio.current_time()
    replies = []

    async def ask(prompt):
        replies.append(await client.generate(prompt, max_tokens=5, **GREEDY))

    async with trio.open_nursery() as asking:
        for prompt in ("two", "three"):
            asking.start_soon(ask, prompt)
        asking.start_soon(partial(client.embed, ["four"]))
    assert sorted(reply.text for reply in replies) == sorted([expected("two", 5), expected("three", 5)])
    assert all(reply.hops == () for reply in replies)
    assert 3.0 < trio.current_time() - started < 4.0
    assert [backend.closed for backend in node.backends] == [True, False]


async def test_a_model_that_is_asked_for_stays(autojump_clock, cluster, nursery):
    node = await cluster.start_node("node-0", idle_unload=5.0, step_time=STEP_S)
    await trio.sleep(SETTLE_S)
    client = await cluster.start_client()
    for number in range(10):
        await client.generate(f"one {number}", max_tokens=5, **GREEDY)
        await trio.sleep(4)
    await client.generate("two", max_tokens=500, **GREEDY)  # takes longer than it would sleep after
    assert len(node.backends) == 1


async def test_giving_up_on_a_sleeper_leaves_nothing_behind(autojump_clock, cluster, nursery):
    node = await cluster.start_node("node-0", idle_unload=2.0, step_time=STEP_S, spent=3.0)
    await trio.sleep(SETTLE_S)
    client = await cluster.start_client()
    with trio.move_on_after(1.0) as impatient:
        await client.generate("one", max_tokens=5, **GREEDY)
    assert impatient.cancelled_caught
    await trio.sleep(1.0)
    assert node.host.endpoint.requests == 0
    await trio.sleep(10)
    assert [backend.closed for backend in node.backends] == [True, True]
    await node.host.unload("alpha")
    assert node.host.endpoint.served() == {}
    assert node.host.sources() == {}


async def test_a_sleeper_that_cannot_wake_is_withdrawn_and_nobody_gets_an_error(autojump_clock, cluster, nursery):
    broken = await cluster.start_node("broken", model="other", step_time=STEP_S, idle_unload=3.0)
    loads = []

    def make_backend():
        loads.append(trio.current_time())
        if len(loads) > 1:
            raise ModelFileError("alpha.gguf does not exist")
        return ScriptedBackend(step_time=0.001)

    await nursery.start(broken.host.serve_model, Model(name="alpha", digest=bytes(32), make_backend=make_backend))
    await cluster.start_node("whole", step_time=0.5)
    await trio.sleep(SETTLE_S)
    client = await cluster.start_client()
    await trio.sleep(5)
    while len(loads) < 2:
        reply = await client.generate("one", model="alpha", max_tokens=3, **GREEDY)
        assert (reply.text, reply.node_id) == (expected("one", 3), "whole")
    await trio.sleep(1)
    assert list(broken.host.endpoint.served()) == ["other"]
    assert [view.node_id for view in await client.nodes("alpha")] == ["whole"]
