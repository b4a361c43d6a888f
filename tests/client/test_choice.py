"""Choosing in a swarm: what is probed, what is told of it, what the errors say, and what goes over the wire."""

import itertools
from collections import Counter

import pytest
import trio

from llamanet.client.attempt import MAX_SILENCE_S
from llamanet.client.probe import TIMEOUT_S, TRIES
from llamanet.client.probe_budget import MOST_OWED, PROBES
from llamanet.errors import NoNodeServes, UserError
from llamanet.swarm import Swarm
from llamanet.testing.cluster import Cluster
from llamanet.wire.inference import CAPABILITY_LIVE_STATE

GREEDY = {"temperature": 0.0}
PROBE_BYTES = 200


async def ask(client, prompt="hello", **options):
    return await client.generate(prompt, **{"max_tokens": 2, **GREEDY, **options})


async def test_each_reply_says_why_its_node_was_asked(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(5, step_time=0.01)
    client = await cluster.start_client()
    reply = await ask(client, model="alpha")
    [decision] = reply.choices
    assert (decision.node_id, decision.strategy, decision.known) == (reply.node_id, "soonest", 5)
    assert decision.probes == PROBES
    assert len(decision.considered) == PROBES
    first = decision.considered[0]
    assert (first.node_id, first.verdict, first.slots, first.running) == (reply.node_id, "the soonest", 4, 0)
    assert {node.verdict for node in decision.considered[1:]} == {"later"}
    assert first.age_s < 0.1
    table = str(decision).splitlines()
    assert f"chose {reply.node_id} by soonest, of 5 known, with 3 probes" in table[0]
    assert table[1].split()[:4] == ["node", "age", "rtt", "load"]
    assert table[2].startswith(f"{reply.node_id}  ")
    assert table[2].endswith("the soonest")


async def test_what_a_node_says_is_told_beside_what_was_seen_of_it(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(1, step_time=0.02)
    client = await cluster.start_client()
    async with client.stream("one", max_tokens=50, **GREEDY) as stream:
        for _ in range(20):
            await stream.__anext__()
        [told] = (await ask(client)).choices[0].considered
    assert (told.ours, told.running) == (1, 1)
    assert told.seen_tokens_per_second == pytest.approx(told.tokens_per_second, rel=0.2)


async def test_a_move_is_a_second_choice_and_says_why_the_first_is_out(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(2, step_time=0.01)
    client = await cluster.start_client()
    async with client.stream("hello", max_tokens=9, **GREEDY) as stream:
        async for _ in stream:
            if len(stream.choices) == 1:
                cluster.kill(stream.node_id)
    first, second = stream.reply().choices
    assert {first.node_id, second.node_id} == {"node-0", "node-1"}
    assert [node.node_id for node in second.considered] == [second.node_id]


async def test_why_is_told_before_a_node_is_asked_and_also_if_all_fail(autojump_clock, nursery):
    cluster = Cluster(nursery)
    nodes = await cluster.start_nodes(2)
    for node in nodes:
        node.tamper = lambda data: None
    client = await cluster.start_client()
    told = []
    with pytest.raises(NoNodeServes):
        await ask(client, on_choice=told.append)
    assert {decision.node_id for decision in told} == {"node-0", "node-1"}


async def test_what_is_not_met_is_told_with_the_best_offer(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(3, step_time=0.02)
    client = await cluster.start_client(min_tps=1000.0)
    with pytest.raises(NoNodeServes) as caught:
        await ask(client)
    assert caught.value.reasons[0].startswith("min_tps 1000 was asked, and the fastest, node-")
    assert caught.value.reasons[0].endswith(", has 50.0 tokens/s")
    assert len(caught.value.reasons) == 4
    assert (await ask(client, min_tps=50.0)).tokens_generated == 2


@pytest.mark.parametrize("strategy", ["soonest", "random", "round_robin", "least_load"])
async def test_every_strategy_answers_and_spreads(autojump_clock, nursery, strategy):
    cluster = Cluster(nursery)
    await cluster.start_nodes(3)
    client = await cluster.start_client(strategy=strategy)
    replies = [await ask(client, f"prompt {number}") for number in range(30)]
    assert {reply.node_id for reply in replies} == {"node-0", "node-1", "node-2"}
    assert {choice.strategy for reply in replies for choice in reply.choices} == {strategy}
    if strategy == "round_robin":
        assert all(a.node_id != b.node_id for a, b in itertools.pairwise(replies))


@pytest.mark.parametrize(("slower", "least"), [(1, 9), (2, 4)])
async def test_forty_at_once_use_four_nodes_also_a_slower_one(autojump_clock, nursery, slower, least):
    cluster = Cluster(nursery)
    for number in range(4):
        await cluster.start_node(f"node-{number}", slots=40, step_time=0.02 * (slower if number == 3 else 1))
    await trio.sleep(3)
    client = await cluster.start_client()
    asked = Counter()

    async def one(number):
        asked[(await ask(client, f"Story {number}", max_tokens=100)).node_id] += 1

    async with trio.open_nursery() as inner:
        for number in range(40):
            inner.start_soon(one, number)
    assert min(asked[f"node-{number}"] for number in range(4)) >= least
    assert max(asked.values()) <= 13
    assert client._access.probes.sent == 40 * PROBES


async def test_a_strategy_may_be_given_for_one_request_and_must_be_known(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(2)
    client = await cluster.start_client()
    assert (await ask(client, strategy="least_load")).choices[0].strategy == "least_load"
    with pytest.raises(UserError, match="strategy 'best' is not known"):
        await ask(client, strategy="best")
    with pytest.raises(UserError, match="strategy 'best' is not known"):
        Swarm(strategy="best")


async def test_a_function_of_the_callers_chooses_among_all_nodes_also_when_the_stream_moves(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(20, step_time=0.01)
    client = await cluster.start_client()

    def mine(nodes):
        return sorted((node for node in nodes if node.node_id in ("node-3", "node-7")), key=lambda node: node.node_id)

    async with client.stream("hello", max_tokens=20, strategy=mine, **GREEDY) as stream:
        await stream.__anext__()
        cluster.kill(stream.node_id)
        async for _ in stream:
            pass
    first, second = stream.choices
    assert {first.node_id, second.node_id} == {"node-3", "node-7"}
    assert (first.strategy, first.considered[0].verdict) == ("mine", "mine")
    assert "mine left it out" in {node.verdict for node in first.considered}


async def test_a_function_that_wants_no_node_is_told_of(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(2)
    client = await cluster.start_client()

    def nobody(nodes):
        assert all(node.id and node.ttft_s is not None and node.slots for node in nodes)
        return ()

    with pytest.raises(NoNodeServes) as refused:
        await ask(client, strategy=nobody)
    assert set(refused.value.reasons) == {"node-0: nobody left it out", "node-1: nobody left it out"}


async def test_a_function_may_return_only_what_it_was_given(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(1)
    client = await cluster.start_client()
    with pytest.raises(UserError, match="strategy <lambda> returned 'node-0', which it was not given"):
        await ask(client, strategy=lambda nodes: [node.node_id for node in nodes])


async def test_a_conversation_stays_where_its_prefix_is(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(6)
    client = await cluster.start_client()
    homes = set()
    for number in range(4):
        turns = [{"role": "user", "content": f"conversation {number} " * 20}]
        nodes = set()
        for _ in range(5):
            reply = await client.generate(messages=turns, max_tokens=3, **GREEDY)
            nodes.add(reply.node_id)
            turns += [{"role": "assistant", "content": reply.text}, {"role": "user", "content": "Go on."}]
            await trio.sleep(5)
        assert len(nodes) == 1
        assert reply.choices[0].considered[0].verdict == "it should remember the prompt's beginning"
        homes |= nodes
    assert len(homes) > 1


async def test_at_most_three_small_probes_a_request(autojump_clock, nursery, monkeypatch):
    cluster = Cluster(nursery)
    await cluster.start_nodes(20)
    client = await cluster.start_client()
    await ask(client, model="alpha")
    pings = []
    ping = client._dht.ping

    async def count(contact, **options):
        pings.append(contact)
        return await ping(contact, **options)

    monkeypatch.setattr(client._dht, "ping", count)
    for number in range(50):
        await ask(client, f"prompt {number}", model="alpha")
    assert len(pings) == 50 * PROBES


async def test_what_a_node_says_with_its_answer_is_a_probe_that_nobody_sent(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(1, step_time=0.1)
    client = await cluster.start_client()
    async with client.stream("hello", max_tokens=9, **GREEDY) as stream:
        await stream.__anext__()
        [told] = client._router.pool.candidates(trio.current_time())
        assert (told.state.running + told.state.waiting, told.at) == (1, stream.accepted_at)
        async for _ in stream:
            pass
    [told] = client._router.pool.candidates(trio.current_time())
    assert (told.state.running, told.state.waiting, told.at) == (0, 0, trio.current_time())
    assert client._access.probes.sent == 1


async def test_a_node_that_does_not_know_the_live_state_is_not_asked_for_it(autojump_clock, nursery):
    """It would refuse the whole request."""
    cluster = Cluster(nursery)
    node = await cluster.start_node("node-0", step_time=0.1)
    [engine] = node.host.endpoint.engines.values()
    engine.capabilities = tuple(name for name in engine.capabilities if name != CAPABILITY_LIVE_STATE)
    node.host._refresh()
    await trio.sleep(5)
    submit, asked = engine.submit, []
    engine.submit = lambda request: asked.append(request) or submit(request)
    client = await cluster.start_client()
    assert (await ask(client)).tokens_generated == 2
    assert [request.live_state for request in asked] == [False]
    [told] = client._router.pool.candidates(trio.current_time())
    assert told.at < trio.current_time() - 0.1


async def test_who_tells_no_state_any_more_takes_no_further_requests(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(2, step_time=0.05)
    client = await cluster.start_client()
    async with client.stream("hello", max_tokens=9, **GREEDY) as stream:
        async for _ in stream:
            cluster.nodes[stream.node_id].host.drain()
    pool = client._router.pool.candidates(trio.current_time())
    assert {told.service.facts.label: told.draining for told in pool}[stream.node_id]
    # Though it is not probed again, for the client owes probes.
    client._access.probes.spend(MOST_OWED)
    for number in range(4):
        reply = await ask(client, f"prompt {number}")
        assert reply.node_id != stream.node_id
        assert reply.hops == ()


async def test_three_probes_a_request_also_with_wishes_hedges_and_silent_nodes(autojump_clock, nursery, monkeypatch):
    cluster = Cluster(nursery)
    for number in range(12):
        await cluster.start_node(f"node-{number}", step_time=0.01 if number < 2 else 0.1)
    await trio.sleep(3)
    client = await cluster.start_client()
    await ask(client, model="alpha")
    pings = 0
    ping = client._dht.ping

    async def count(contact, **options):
        nonlocal pings
        pings += 1
        return await ping(contact, **options)

    monkeypatch.setattr(client._dht, "ping", count)
    requests = 60
    for number in range(requests):
        async with client.stream(f"prompt {number}", model="alpha", min_tps=50.0, max_tokens=5, **GREEDY) as stream:
            async for _ in stream:
                pass
        assert stream.node_id in ("node-0", "node-1")
        if number == 30:
            cluster.freeze("node-0")
    assert client._access.probes.sent == pytest.approx(pings, abs=4 + PROBES)
    assert pings <= PROBES * requests + MOST_OWED


async def test_who_waits_in_a_queue_is_not_asked_about_for_ever(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(1, slots=1, step_time=0.5)
    client = await cluster.start_client()

    async def occupy():
        await ask(client, max_tokens=120)

    nursery.start_soon(occupy)
    await trio.sleep(3)
    before, start = client._access.probes.sent, trio.current_time()
    await ask(client, "after that", max_tokens=1)
    waited = trio.current_time() - start
    assert waited > 50
    assert client._access.probes.sent - before <= PROBES + 8 + waited / MAX_SILENCE_S


async def test_probes_are_small(autojump_clock, nursery, monkeypatch):
    cluster = Cluster(nursery)
    await cluster.start_nodes(3, model="SmolLM2-135M-Instruct.Q4_1")
    client = await cluster.start_client()
    await ask(client)
    sizes = []
    send = type(client._dht._overlay.transport).send

    def measure(transport, data, *rest):
        sizes.append(len(data))
        return send(transport, data, *rest)

    monkeypatch.setattr(type(client._dht._overlay.transport), "send", measure)
    contact = client._dht.contacts()[0]
    await client._dht.ping(contact, model="SmolLM2-135M-Instruct.Q4_1")
    assert len(sizes) == 2
    assert max(sizes) < PROBE_BYTES


async def test_a_dead_node_costs_little_and_is_not_probed_again_at_once(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(3)
    client = await cluster.start_client()
    await ask(client, model="alpha")
    cluster.kill("node-0")
    start = trio.current_time()
    for number in range(20):
        await ask(client, f"prompt {number}", model="alpha")
    assert trio.current_time() - start < 20 * 0.05
    await trio.sleep(TRIES * TIMEOUT_S)
    reply = await ask(client, model="alpha")
    assert {node.node_id for node in reply.choices[0].considered} <= {"node-1", "node-2"}


async def test_a_late_answer_is_heard(autojump_clock, nursery):
    """Who is far is not waited for, but counts for the next request."""
    cluster = Cluster(nursery)
    await cluster.start_nodes(2)
    client = await cluster.start_client()
    await ask(client, model="alpha")
    cluster.freeze("node-0")
    reply = await ask(client, model="alpha")
    assert reply.choices[0].considered[0].node_id == "node-1"
    cluster.thaw("node-0")
    await trio.sleep(TRIES * TIMEOUT_S)
    reply = await ask(client, model="alpha")
    assert {node.node_id for node in reply.choices[0].considered} == {"node-0", "node-1"}


async def test_a_hanging_node_is_left_though_it_says_ever_more(autojump_clock, nursery):
    """Its time to the first token grows with the step that hangs; that must not buy it patience."""
    cluster = Cluster(nursery)
    await cluster.start_nodes(2)
    client = await cluster.start_client(strategy="round_robin")
    for number in range(6):
        await ask(client, f"prompt {number}", model="alpha")
    node = cluster.nodes["node-0"]
    node.backend.step_time = 10_000.0
    [engine] = node.host.endpoint.engines.values()

    hops = []

    async def ask_both():
        for number in range(2):
            hops.extend((await ask(client, f"further prompt {number}", model="alpha")).hops)

    start = trio.current_time()
    async with trio.open_nursery() as inner:
        inner.start_soon(ask_both)
        await trio.sleep(0.2)
        assert engine.state().running == 1
        engine._core.rates.step_began = trio.current_time()
    assert trio.current_time() - start < 10
    assert hops == [("node-0", "it hangs: alive, but no token comes")]


async def test_what_was_cancelled_while_it_probed_finds_the_same_nodes_again(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(2, step_time=0.5)
    client = await cluster.start_client()
    for checkpoints in range(60):
        async with client.stream("hello", max_tokens=1, **GREEDY) as stream:
            async with trio.open_nursery() as inner:

                @inner.start_soon
                async def begin(stream=stream):
                    await stream.__anext__()

                for _ in range(checkpoints):
                    await trio.lowlevel.checkpoint()
                inner.cancel_scope.cancel()
            async for _ in stream:
                pass
        assert len(stream.reply().token_ids) == 1
        await trio.sleep(5)  # Until the pool forgets.
