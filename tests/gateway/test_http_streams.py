"""Streams through the gateway while readers leave or lag, and nodes die, hang or drain."""

import pytest
import trio
from asgi import app_for
from reader import reading

from llamanet.gateway import sse
from llamanet.gateway.events import RequestEnded, RequestMoved
from llamanet.gateway.sse import Buffer
from llamanet.testing.backend import scripted_text, scripted_tokens
from llamanet.testing.cluster import Cluster

STREAM = {"model": "alpha", "prompt": "hello", "temperature": 0, "stream": True}


async def start(nursery, count=1, **script):
    cluster = Cluster(nursery)
    await cluster.start_nodes(count, step_time=0.01, **script)
    app, gateway = app_for(await cluster.start_client())
    told = []
    gateway.events.listeners.append(told.append)
    return cluster, app, told


@pytest.mark.parametrize("stream", [True, False])
async def test_a_reader_who_leaves_stops_the_work(autojump_clock, nursery, stream):
    cluster, app, told = await start(nursery)
    node = cluster.nodes["node-0"]
    async with reading(app, "/v1/completions", {**STREAM, "stream": stream}) as reader:
        if stream:
            await reader.take()
        else:
            await trio.sleep(0.5)
        assert node.host.endpoint.requests == 1
    await trio.sleep(0.05)
    drawn = node.backend.drawn
    assert node.host.endpoint.requests == 0
    await trio.sleep(1)
    assert node.backend.drawn == drawn
    assert [event.status for event in told if isinstance(event, RequestEnded)] == [499]


async def test_a_slow_reader_is_waited_for_within_a_bound(autojump_clock, nursery):
    _, app, _ = await start(nursery)
    async with reading(app, "/v1/completions", {**STREAM, "max_tokens": 1_500}) as reader:
        await reader.take()
        await trio.sleep(10)
        piece = await reader.take()  # Was on its way.
        piece = await reader.take()
        assert len(piece) < sse.BUFFER_BYTES + 1_000
        await reader.read()
    assert reader.said == scripted_text(scripted_tokens("hello", 1_500))


async def test_a_node_that_dies_is_not_noticed(autojump_clock, nursery):
    cluster, app, told = await start(nursery, 2)
    async with reading(app, "/v1/completions", {**STREAM, "max_tokens": 60}) as reader:
        await reader.take()
        first = reader.headers["x-llamanet-node"]
        await trio.sleep(0.1)
        cluster.kill(first)
        await reader.read()
    assert reader.said == scripted_text(scripted_tokens("hello", 60))
    [move] = [event for event in told if isinstance(event, RequestMoved)]
    assert (move.from_node, move.to_node) == (first, next(iter(cluster.nodes)))
    assert [event.tokens for event in told if isinstance(event, RequestEnded)] == [60]


async def test_a_failure_in_the_middle_is_an_event(autojump_clock, nursery):
    cluster, app, _ = await start(nursery)
    async with reading(app, "/v1/completions", {**STREAM, "max_tokens": 60}) as reader:
        await reader.take()
        cluster.kill("node-0")
        await reader.read()
    assert reader.status == 200
    assert "event: error\ndata: " in reader.text
    assert reader.events[-1]["error"]["code"] == "no_node_serves"
    assert "[DONE]" not in reader.text


async def test_the_head_waits_for_the_first_token_but_not_for_ever(autojump_clock, nursery):
    _, app, _ = await start(nursery, token_time=6.0)
    began = trio.current_time()
    async with reading(app, "/v1/completions", {**STREAM, "prompt": "a b c d", "max_tokens": 2}) as reader:
        assert await reader.take() == sse.COMMENT
        assert trio.current_time() - began == pytest.approx(sse.HEAD_AFTER_S, abs=0.5)
        assert "x-llamanet-node" not in reader.headers
        await reader.read()
    assert reader.said == scripted_text(scripted_tokens("a b c d", 2))


async def test_a_buffer_holds_what_fits_and_ends_with_its_error(autojump_clock):
    buffer = Buffer()
    with trio.move_on_after(1) as scope:
        for _ in range(3):
            await buffer.put(b"x" * sse.BUFFER_BYTES)
    assert scope.cancelled_caught
    assert len(await buffer.take(1)) == 2 * sse.BUFFER_BYTES
    assert await buffer.take(1) is None
    buffer.end()
    assert await buffer.take(1) == b""


async def test_events_go_out_one_piece_at_a_time_and_comments_where_there_are_none(autojump_clock):
    buffer, sent = Buffer(), []

    async def send(piece):
        sent.append((trio.current_time() - start, piece))
        await trio.sleep(1)

    async def write():
        await trio.sleep(sse.IDLE_S + 5)
        async with trio.open_nursery() as writers:
            for piece in (b"b", b"c", b"d"):
                writers.start_soon(buffer.put, piece)
        buffer.end()

    start = trio.current_time()
    await buffer.put(b"a")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await buffer.pass_on(send)
    (began, first), (silent, comment), (busy, one), (later, rest) = sent
    assert (began, first) == (0, b"a")
    assert (silent, comment) == (sse.IDLE_S + 1, sse.COMMENT)
    assert (busy, later) == (sse.IDLE_S + 5, sse.IDLE_S + 6)
    assert sorted(one + rest) == list(b"bcd")
    assert len(one) == 1
