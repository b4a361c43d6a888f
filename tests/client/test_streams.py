"""What a stream does when nodes are busy, missing, hanging or many, and what it leaves behind when it is cancelled."""

import pytest
import trio
import trio.testing

from llamanet.client import connection, peers
from llamanet.errors import NoNodeServes, NotJoined, RequestRefused, SwarmBusy
from llamanet.testing.backend import scripted_text, scripted_tokens
from llamanet.testing.cluster import Cluster

GREEDY = {"temperature": 0.0}


async def ask(client, count, prompt="hello", **options):
    return await client.generate(prompt, **{"max_tokens": count, **GREEDY, **options})


def expected(count, prompt="hello"):
    return scripted_text(scripted_tokens(prompt, count))


def busy_with(nursery, client, prompt="wait for me", **options):
    """Something that keeps a slot busy for ever."""

    async def run():
        async with client.stream(prompt, **GREEDY, **options) as stream:
            async for _ in stream:
                pass

    nursery.start_soon(run)


def load(cluster):
    return {
        node.label: sum(engine.state().running for engine in node.host.endpoint.engines.values())
        for node in cluster.nodes.values()
    }


def links(cluster):
    return sum(len(node.links) for node in cluster.nodes.values())


async def test_any_model_will_do_and_the_reply_says_which(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_node("node-a", model="beta")
    await trio.sleep(1)
    reply = await ask(await cluster.start_client(), 3)
    assert (reply.model, reply.node_id, reply.text) == ("beta", "node-a", expected(3))


async def test_the_model_that_was_asked_for(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_node("node-a", model="alpha")
    await cluster.start_node("node-b", model="beta")
    await trio.sleep(3)
    client = await cluster.start_client()
    for _ in range(5):
        assert (await ask(client, 1, model="beta")).node_id == "node-b"
    assert [view.name for view in await client.models()] == ["alpha", "beta"]


async def test_the_digest_that_was_asked_for(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_node("node-a", digest=bytes(32))
    await cluster.start_node("node-b", digest=bytes([1]) * 32)
    await trio.sleep(3)
    client = await cluster.start_client()
    for _ in range(5):
        assert (await ask(client, 1, digest=bytes([1]) * 32)).node_id == "node-b"
    with pytest.raises(NoNodeServes, match="its file is another one"):
        await ask(client, 1, digest=bytes([2]) * 32)


async def test_a_stream_never_goes_on_with_another_file(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_node("node-a", digest=bytes(32), step_time=0.01)
    await cluster.start_node("node-b", digest=bytes([1]) * 32, step_time=0.01)
    await trio.sleep(3)
    async with (await cluster.start_client()).stream("hello", max_tokens=9, **GREEDY) as stream:
        await stream.__anext__()
        first = stream.node_id
        cluster.kill(first)
        with pytest.raises(NoNodeServes, match="its file is another one"):
            async for _ in stream:
                pass
    assert [hop.node_id for hop in stream.hops] == [first]


async def test_newcomers_are_found_while_requests_go_on(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_node("node-a")
    await trio.sleep(1)
    client = await cluster.start_client()
    await ask(client, 1, model="alpha")
    await cluster.start_node("node-b")
    await trio.sleep(3)
    await ask(client, 1, model="alpha")
    await trio.sleep(1)
    assert {(await ask(client, 1, model="alpha")).node_id for _ in range(20)} == {"node-a", "node-b"}


async def test_nobody_serves_the_model(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(2)
    with pytest.raises(NoNodeServes) as caught:
        await ask(await cluster.start_client(), 1, model="gamma")
    assert (caught.value.model, caught.value.tried, caught.value.served) == ("gamma", 0, ("alpha",))


async def test_no_swarm_at_all(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_node("node-a")
    cluster.network.kill(cluster.nodes["node-a"].dht._overlay.transport.addresses[0])
    client = await cluster.start_client()
    with pytest.raises(NotJoined, match=r"10\.0\.0\.1:8001"):
        await ask(client, 1)


async def test_wishes_bind_and_errors_say_so(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(2, step_time=0.1, slots=2)
    client = await cluster.start_client(min_tps=50.0)
    with pytest.raises(NoNodeServes, match=r"node-0: 10.0 tokens/s is below min_tps 50"):
        await ask(client, 1)
    assert (await ask(client, 1, min_tps=5.0)).node_id
    for _ in range(2):
        busy_with(nursery, client, min_tps=0.0)
        await trio.sleep(1)
    assert load(cluster) == {"node-0": 1, "node-1": 1}
    with pytest.raises(SwarmBusy, match=r"max_load 0.4 was asked, and the idlest, node-\d, has load 0.50"):
        await ask(client, 1, min_tps=0.0, max_load=0.4, wait=3)
    assert (await ask(client, 1, min_tps=0.0, max_load=0.5)).text == expected(1)


async def test_all_busy_before_the_first_token_is_an_error(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(2, slots=1, max_waiting=0, step_time=0.01)
    client = await cluster.start_client()
    busy_with(nursery, client)
    await trio.sleep(0.5)
    busy_with(nursery, client)
    await trio.sleep(0.5)
    with pytest.raises(SwarmBusy) as caught:
        await ask(client, 1)
    assert caught.value.tried == 2
    assert caught.value.retry_after > 0


async def test_a_busy_node_is_passed_by(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(2, slots=1, max_waiting=0, step_time=0.01)
    client = await cluster.start_client()
    for _ in range(10):
        async with client.stream("occupy", **GREEDY) as first:
            await first.__anext__()
            assert (await ask(client, 2)).node_id != first.node_id


async def test_a_begun_stream_waits_for_busy_nodes(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(2, slots=1, max_waiting=0, step_time=0.05)
    client, other = await cluster.start_client(), await cluster.start_client()
    async with client.stream("hello", max_tokens=40, **GREEDY) as stream:
        text = (await stream.__anext__()).text
        async with trio.open_nursery() as inner:
            busy_with(inner, other)
            await trio.sleep(1)
            assert load(cluster) == {"node-0": 1, "node-1": 1}
            cluster.kill(stream.node_id)
            with trio.move_on_after(5) as patience:
                async for chunk in stream:
                    text += chunk.text
            assert patience.cancelled_caught
            inner.cancel_scope.cancel()
        async for chunk in stream:
            text += chunk.text
    assert text == expected(40)


async def test_a_hanging_engine_is_left_though_its_node_lives(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_node("node-a", hang_at=4, step_time=0.01)
    await trio.sleep(1)
    async with (await cluster.start_client()).stream("hello", max_tokens=9, **GREEDY) as stream:
        text = (await stream.__anext__()).text
        await cluster.start_node("node-b", step_time=0.01)
        start = trio.current_time()
        async for chunk in stream:
            text += chunk.text
    assert text == expected(9)
    assert stream.hops == (("node-a", "it hangs: alive, but no token comes"),)
    assert trio.current_time() - start < peers.GAP_LIMITS_S[1] + 2


async def test_a_slow_node_is_waited_for(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_node("node-a", step_time=20.0)
    await trio.sleep(1)
    reply = await ask(await cluster.start_client(), 6)
    assert (reply.text, reply.hops) == (expected(6), ())


async def test_a_long_queue_is_waited_for(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_node("node-a", slots=1, step_time=0.5)
    await trio.sleep(1)
    client = await cluster.start_client()
    replies = []

    async def one():
        replies.append(await ask(client, 30))

    async with trio.open_nursery() as inner:
        for _ in range(5):
            inner.start_soon(one)
    assert [(reply.text, reply.hops) for reply in replies] == [(expected(30), ())] * 5


async def test_the_last_in_a_queue_is_waited_for_when_its_turn_comes(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(1, slots=1, step_time=0.5)
    client = await cluster.start_client()
    await ask(client, 2)
    replies = []

    async def one():
        replies.append(await ask(client, 40))

    async with trio.open_nursery() as inner:
        for _ in range(2):
            inner.start_soon(one)
    assert [(reply.text, reply.hops) for reply in replies] == [(expected(40), ())] * 2


@pytest.mark.parametrize(("nodes", "slots", "count"), [(1, 4, 40), (2, 2, 60)])
async def test_a_queue_of_minutes_is_waited_for(autojump_clock, nursery, nodes, slots, count):
    cluster = Cluster(nursery)
    await cluster.start_nodes(nodes, slots=slots, step_time=0.5)
    client = await cluster.start_client()
    await ask(client, 2)
    replies = []

    async def one(number):
        replies.append(await ask(client, count, f"prompt {number}", wait=1000))

    async with trio.open_nursery() as inner:
        for number in range(40):
            inner.start_soon(one, number)
    assert len(replies) == 40
    assert {hop.reason for reply in replies for hop in reply.hops} <= {"busy"}


async def test_a_queue_at_an_engine_that_hangs_is_left(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(1, slots=1, step_time=0.05, hang_at=120)
    client = await cluster.start_client()
    await ask(client, 10)
    async with trio.open_nursery() as inner:
        left = []

        async def one():
            with pytest.raises(NoNodeServes, match="it hangs"):
                await ask(client, 300)
            left.append(trio.current_time())

        began = trio.current_time()
        for _ in range(2):
            inner.start_soon(one)
    # It hangs after 5.5 s; each may try it twice, for four times the 1.7 s that it said last.
    assert max(left) - began < 5.5 + 2 * 7


async def test_three_failures_in_one_stream(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(4, step_time=0.02)
    killed = []
    async with (await cluster.start_client()).stream("hello", max_tokens=20, **GREEDY) as stream:
        async for _ in stream:
            if len(stream.token_ids) in (5, 10, 15) and len(killed) < len(stream.token_ids) // 5:
                killed.append(stream.node_id)
                cluster.kill(stream.node_id)
    assert stream.reply().text == expected(20)
    assert [hop.node_id for hop in stream.hops] == killed
    assert len(killed) == 3


async def test_a_lost_connection_to_the_only_node_is_opened_again(autojump_clock, nursery):
    cluster = Cluster(nursery)
    node = await cluster.start_node("node-a", step_time=0.02)
    await trio.sleep(1)
    async with (await cluster.start_client()).stream("hello", max_tokens=20, **GREEDY) as stream:
        async for _ in stream:
            if len(stream.token_ids) == 5 and not stream.hops:
                for link in list(node.links):
                    link.cut()
    assert stream.reply().text == expected(20)
    assert len(stream.hops) == 1


async def test_the_last_node_dies(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_node("node-a", step_time=0.02)
    await trio.sleep(1)
    async with (await cluster.start_client()).stream("hello", max_tokens=20, **GREEDY) as stream:
        await stream.__anext__()
        cluster.kill("node-a")
        with pytest.raises(NoNodeServes, match="node-a: it does not answer"):
            async for _ in stream:
                pass
    assert list(stream.token_ids) == scripted_tokens("hello", len(stream.token_ids))


async def test_a_drained_node_finishes_and_the_next_request_goes_elsewhere(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(2, step_time=0.02)
    client = await cluster.start_client()
    async with client.stream("hello", max_tokens=20, **GREEDY) as stream:
        await stream.__anext__()
        cluster.nodes[stream.node_id].host.drain()
        for _ in range(5):
            assert (await ask(client, 1)).node_id != stream.node_id
        async for _ in stream:
            pass
    assert (stream.reply().text, stream.hops) == (expected(20), ())


async def test_too_long_a_prompt_goes_to_a_node_with_more_room(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_node("small", n_ctx=64)
    await trio.sleep(1)
    client = await cluster.start_client()
    prompt = "word " * 100
    with pytest.raises(RequestRefused, match="the prompt has 100 tokens") as caught:
        await ask(client, 3, prompt)
    assert caught.value.field == "prompt"
    await cluster.start_node("large", n_ctx=256)
    await trio.sleep(15)
    for _ in range(5):
        assert (await ask(client, 3, prompt)).node_id == "large"


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({}, "prompt or messages"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "prompt or messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "b", "name": "c"}]}, "messages[0].name"),
        ({"prompt": "a", "max_tokens": 0}, "sampling.max_tokens"),
        ({"prompt": "a", "temperature": float("nan")}, "sampling.temperature"),
        ({"prompt": "a", "stop": ["x"] * 17}, "sampling.stop"),
        ({"prompt": "a", "max_token": 5}, "sampling.max_token"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "x" * 2_000_001}, "prompt"),
    ],
)
async def test_bad_requests_are_refused_before_they_are_sent(autojump_clock, nursery, request_, field):
    client = await Cluster(nursery).start_client()
    with pytest.raises(RequestRefused) as caught:
        await client.generate(**request_)
    assert caught.value.field == field


async def test_stop_strings_messages_and_seeds(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_node("node-a")
    await trio.sleep(1)
    client = await cluster.start_client()
    full = expected(9)
    word = full.split()[3]
    reply = await ask(client, 9, stop=word)
    assert (reply.text, reply.finish_reason) == (full[: full.index(word)], "stop")
    chat = [{"role": "user", "content": "Hi"}]
    reply = await client.generate(messages=chat, max_tokens=4, **GREEDY)
    assert reply.text == expected(4, "<user> Hi <assistant>")
    texts = {(await client.generate("hello", max_tokens=8, temperature=1.0)).text for _ in range(5)}
    assert len(texts) > 1
    texts = {(await client.generate("hello", max_tokens=8, temperature=1.0, seed=3)).text for _ in range(5)}
    assert len(texts) == 1


async def test_a_slow_reader_loses_nothing(autojump_clock, nursery, monkeypatch):
    monkeypatch.setattr(connection, "MAX_AHEAD", 100)
    cluster = Cluster(nursery)
    await cluster.start_nodes(1, step_time=0.01)
    client = await cluster.start_client()
    async with client.stream("hello", max_tokens=200, **GREEDY) as stream:
        async for _ in stream:
            await trio.sleep(1)
    assert stream.reply().text == expected(200)
    assert {hop.reason for hop in stream.hops} == {"the reader was too slow"}


async def test_many_at_once_share_one_connection_to_each_node(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(3, step_time=0.01)
    client = await cluster.start_client()
    replies = {}

    async def one(number):
        replies[number] = await ask(client, 10, f"prompt {number}")

    async with trio.open_nursery() as inner:
        for number in range(60):
            inner.start_soon(one, number)
    assert {number: reply.text for number, reply in replies.items()} == {
        number: expected(10, f"prompt {number}") for number in range(60)
    }
    assert {reply.node_id for reply in replies.values()} == set(cluster.nodes)
    assert links(cluster) == 3


async def test_connections_end_when_they_are_idle(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(1)
    client = await cluster.start_client()
    await ask(client, 1)
    assert links(cluster) == 1
    await trio.sleep(3 * connection.IDLE_S)
    assert links(cluster) == 0
    assert (await ask(client, 1)).hops == ()


async def test_tls_and_its_pinned_key(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(2, tls=True, step_time=0.01)
    client = await cluster.start_client()
    reply = await ask(client, 5)
    assert (reply.text, reply.hops) == (expected(5), ())
    # Who answers at the address of another node is found out, and left.
    honest, liar = cluster.nodes.values()
    honest.listener, liar.listener = liar.listener, honest.listener
    with pytest.raises(NoNodeServes, match="another node's"):
        await ask(await cluster.start_client(), 5)


async def test_nodes_and_models(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(3, step_time=0.01, slots=2)
    client = await cluster.start_client()
    busy_with(nursery, client)
    await trio.sleep(1)
    views = await client.nodes()
    assert [view.node_id for view in views] == ["node-0", "node-1", "node-2"]
    assert sorted((view.running, view.load) for view in views) == [(0, 0.0), (0, 0.0), (1, 0.5)]
    assert {view.address for view in views} == {f"10.0.0.{number}:8000" for number in (1, 2, 3)}
    assert all(view.models == ("alpha",) and view.tokens_per_second == pytest.approx(100, 0.01) for view in views)
    assert await client.nodes("gamma") == []
    cluster.kill("node-1")
    assert [view.node_id for view in await client.nodes("alpha")] == ["node-0", "node-2"]
    [model] = await client.models()
    assert (model.name, model.nodes, model.slots, model.running, model.digests) == ("alpha", 2, 4, 1, ("00" * 32,))


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("checkpoints", [0, 2, 9])
async def test_cancelled_at_every_moment_nothing_is_left(autojump_clock, nursery, tls, checkpoints):
    """A stream is cancelled ever later: before the lookup, in it, probing, connecting, streaming, until it is over."""
    cluster = Cluster(nursery)
    await cluster.start_nodes(2, step_time=0.01, tls=tls)
    await trio.testing.wait_all_tasks_blocked()
    before = trio.lowlevel.current_statistics().tasks_living
    finished = False
    delay = 0.0
    while not finished:
        delay += 0.004
        async with trio.open_nursery() as clients:
            client = await cluster.start_client(clients)
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as asking:
                    asking.start_soon(ask, client, 3)
                    asking.start_soon(cancel_later, scope, delay, checkpoints)
            finished = not scope.cancelled_caught
            await trio.sleep(0.03)
            assert load(cluster) == {"node-0": 0, "node-1": 0}
            clients.cancel_scope.cancel()
        await trio.sleep(0.02)
        await trio.testing.wait_all_tasks_blocked()
        assert links(cluster) == 0
        assert trio.lowlevel.current_statistics().tasks_living == before
    assert delay > 0.03


async def cancel_later(scope, delay, checkpoints):
    await trio.sleep(delay)
    for _ in range(checkpoints):
        await trio.lowlevel.checkpoint()
    scope.cancel()
