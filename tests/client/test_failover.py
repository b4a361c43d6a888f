"""Streams that lose their node at every possible token, and must not show it: text and ids are those of a quiet run."""

import msgpack
import pytest
import trio
import trio.testing

from llamanet.errors import RequestRefused
from llamanet.testing.backend import scripted_text, scripted_tokens
from llamanet.testing.cluster import Cluster
from llamanet.wire.inference import Tokens, encode_message

PROMPT = "tell me a story"
COUNT = 14
IDS = tuple(scripted_tokens(PROMPT, COUNT, seed=5, temperature=0.8))
TEXT = scripted_text(IDS)
SAMPLING = {"max_tokens": COUNT, "temperature": 0.8, "seed": 5}
STEP_S = 0.02


@pytest.fixture
async def cluster(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(2, step_time=STEP_S)
    return cluster


async def collect(client, strike=lambda stream: None, prompt=PROMPT, **options):
    """The reply; `strike(stream)` is called after each chunk. And the longest time without a token, in seconds."""
    gaps = []
    async with client.stream(prompt, **(SAMPLING | options)) as stream:
        heard = trio.current_time()
        async for _ in stream:
            gaps.append(trio.current_time() - heard)
            heard = trio.current_time()
            strike(stream)
    return stream.reply(), max(gaps[1:], default=0.0)


async def assert_nothing_runs(cluster):
    await trio.sleep(2 * STEP_S)
    for node in cluster.nodes.values():
        for engine in node.host.endpoint.engines.values():
            state = engine.state()
            assert (node.label, state.running, state.waiting) == (node.label, 0, 0)


async def test_an_undisturbed_run(autojump_clock, cluster):
    reply, _ = await collect(await cluster.start_client())
    assert (reply.text, reply.token_ids, reply.finish_reason) == (TEXT, IDS, "length")
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (4, COUNT)
    assert reply.hops == ()
    assert reply.node_id in cluster.nodes
    assert reply.tokens_per_second == pytest.approx(1 / STEP_S, rel=0.1)
    assert 0 < reply.ttft < 0.2


@pytest.mark.parametrize("at", range(1, COUNT))
async def test_killed_at_every_token(autojump_clock, cluster, at):
    killed = []

    def strike(stream):
        if len(stream.token_ids) == at and not killed:
            killed.append(stream.node_id)
            cluster.kill(stream.node_id)

    reply, gap = await collect(await cluster.start_client(), strike)
    assert (reply.text, reply.token_ids, reply.finish_reason) == (TEXT, IDS, "length")
    assert reply.usage.completion_tokens == COUNT
    assert [hop.node_id for hop in reply.hops] == killed
    assert reply.node_id in cluster.nodes
    assert gap < 0.2
    await assert_nothing_runs(cluster)


@pytest.mark.parametrize("at", range(1, COUNT))
async def test_frozen_at_every_token(autojump_clock, cluster, at):
    frozen = []

    def strike(stream):
        if len(stream.token_ids) == at and not frozen:
            frozen.append(stream.node_id)
            cluster.freeze(stream.node_id)

    reply, gap = await collect(await cluster.start_client(), strike)
    assert (reply.text, reply.token_ids) == (TEXT, IDS)
    assert reply.hops == ((frozen[0], "it fell silent"),)
    assert gap < 2.2
    cluster.thaw(frozen[0])
    await assert_nothing_runs(cluster)


def frame_of(message):
    """As the websocket carries it, without mask, for tampering with what a node writes."""
    return bytes([0x82, len(message)]) + message if len(message) < 126 else None


def garble(data):
    return data[:2] + bytes(byte ^ 0x55 for byte in data[2:])


TAMPERINGS = {
    "garbled payload": garble,
    "garbled header": lambda data: b"\xff\xff" + data[2:],
    "random bytes": lambda data: b"\x82\x05hello",
    "half a frame": lambda data: data[: len(data) // 2],
    "cut": lambda data: None,
    "text frame": lambda data: b"\x81" + data[1:],
    "twice": lambda data: data + data,
    "not a map": lambda data: frame_of(msgpack.packb([1])),
    "no tokens": lambda data: frame_of(encode_message(Tokens(id=0, text="more", token_ids=()))),
    "an end too soon": lambda data: frame_of(
        msgpack.packb(
            {"type": "finished", "id": 0, "reason": "stop", "usage": {"prompt_tokens": 4, "completion_tokens": 99}}
        )
    ),
    "failed": lambda data: frame_of(msgpack.packb({"type": "failed", "id": 0, "code": "internal", "message": "oh"})),
    "connection failed": lambda data: frame_of(msgpack.packb({"type": "failed", "code": "internal", "message": "oh"})),
    "slow reader": lambda data: frame_of(
        msgpack.packb({"type": "failed", "id": 0, "code": "slow_reader", "message": "slow"})
    ),
    "draining": lambda data: frame_of(msgpack.packb({"type": "failed", "id": 0, "code": "draining", "message": "bye"})),
    "busy": lambda data: frame_of(
        msgpack.packb({"type": "failed", "id": 0, "code": "busy", "message": "b", "retry_after": 0.5})
    ),
    "bad request": lambda data: frame_of(
        msgpack.packb({"type": "failed", "id": 0, "code": "bad_request", "message": "?"})
    ),
}


def tamper_with(cluster, kind, at):
    """From its token frame number `at` on (0 is the first), the first node to write that many is tampered with."""
    struck = []

    def tamperer(node):
        written = 0

        def tamper(data):
            nonlocal written
            if b"tokens" not in data or b"token_ids" not in data:
                return data
            written += 1
            if written - 1 < at or struck not in ([], [node.label]):
                return data
            first = not struck
            struck[:] = [node.label]
            return TAMPERINGS[kind](data) if first or kind == "twice" else data

        return tamper

    for node in cluster.nodes.values():
        node.tamper = tamperer(node)
    return struck


@pytest.mark.parametrize("at", [0, 1, 2, 7, COUNT - 1])
@pytest.mark.parametrize("kind", [kind for kind in TAMPERINGS if kind not in ("twice", "bad request")])
async def test_a_node_that_turns_bad(autojump_clock, cluster, kind, at):
    struck = tamper_with(cluster, kind, at)
    reply, gap = await collect(await cluster.start_client())
    assert (reply.text, reply.token_ids) == (TEXT, IDS)
    assert [hop.node_id for hop in reply.hops] == struck
    assert gap < (1.5 if kind == "half a frame" else 0.8)
    await assert_nothing_runs(cluster)


async def test_a_node_that_says_everything_twice_is_left(autojump_clock, cluster):
    """Ids that come twice cannot be told from ids that are drawn twice, but a node that counts honestly gives itself
    away at the end; a node that lies about everything can say anything."""
    tamper_with(cluster, "twice", 0)
    async with (await cluster.start_client()).stream(PROMPT, **SAMPLING) as stream:
        async for _ in stream:
            pass
    assert stream.usage.completion_tokens == COUNT
    assert len(stream.token_ids) == COUNT


async def test_bad_request_in_the_middle_blames_the_node(autojump_clock, cluster):
    struck = tamper_with(cluster, "bad request", 3)
    reply, _ = await collect(await cluster.start_client())
    assert (reply.text, reply.token_ids) == (TEXT, IDS)
    assert [hop.node_id for hop in reply.hops] == struck


async def test_bad_request_at_the_beginning_is_the_callers(autojump_clock, cluster):
    tamper_with(cluster, "bad request", 0)
    with pytest.raises(RequestRefused, match=r"\?"):
        await collect(await cluster.start_client())
