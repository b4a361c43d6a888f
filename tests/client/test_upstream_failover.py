"""Streams from nodes that offer other servers: whichever of them dies, and when, nothing is lost or said twice."""

import json

import httpx
import pytest
import trio

from llamanet.errors import SwarmBusy
from llamanet.node.upstream import UpstreamEngine, UpstreamModel
from llamanet.testing.cluster import SETTLE_S, Cluster

STEP_S = 0.02
PROMPT = "Count:"
WORDS = [f" {number}" for number in range(12)]
TEXT = "".join(WORDS)


class Server(httpx.AsyncBaseTransport):
    """Counts on from where a prompt ends, a word each `STEP_S`, and does so `running` times now."""

    def __init__(self):
        self.running = 0
        self.breaks_at = None
        self.status = 200

    async def handle_async_request(self, request):
        if self.status != 200:
            return httpx.Response(self.status, headers={"retry-after": "2"})
        body = json.loads(request.content)
        said = body["prompt"].removeprefix(PROMPT)
        assert TEXT.startswith(said)
        return httpx.Response(200, stream=Words(self, said.count(" ")))


class Words(httpx.AsyncByteStream):
    def __init__(self, server, begin):
        self.server, self.begin = server, begin

    async def __aiter__(self):
        self.server.running += 1
        try:
            for number in range(self.begin, len(WORDS)):
                await trio.sleep(STEP_S)
                if number == self.server.breaks_at:
                    raise httpx.ReadError("the connection is broken")
                yield f"data: {json.dumps({'choices': [{'text': WORDS[number]}]})}\n\n".encode()
            yield b'data: {"choices": [{"text": "", "finish_reason": "stop"}]}\n\n'
        finally:
            self.server.running -= 1


@pytest.fixture
async def cluster(autojump_clock, nursery):
    """Three nodes, each with a server of its own, in `servers` by the node's label."""
    cluster = Cluster(nursery)
    cluster.servers = {}
    for number in range(3):
        node = await cluster.start_node(f"node-{number}", model="own")
        server = cluster.servers[node.label] = Server()
        http = httpx.AsyncClient(transport=server, base_url="http://server/v1/")
        model = UpstreamModel(id="m", name="counting", digest=bytes([7]) * 32, n_ctx=512)
        node.host.offer(UpstreamEngine(model, http, nursery, label=node.label, slots=2), "http://server/v1")
    await trio.sleep(SETTLE_S)
    return cluster


async def collect(client, strike=lambda stream, words: None):
    words = 0
    async with client.stream(PROMPT, model="counting", temperature=0.0) as stream:
        async for chunk in stream:
            words += chunk.text.count(" ")
            strike(stream, words)
    return stream.reply()


async def assert_nothing_runs(cluster):
    await trio.sleep(2 * STEP_S)
    for label, node in cluster.nodes.items():
        state = node.host.endpoint.engines["counting"].state()
        assert (label, state.running, state.waiting, cluster.servers[label].running) == (label, 0, 0, 0)


@pytest.mark.parametrize("at", range(1, len(WORDS)))
@pytest.mark.parametrize("disaster", ["kill", "freeze"])
async def test_a_node_that_dies_at_any_word(cluster, at, disaster):
    struck = []

    def strike(stream, words):
        if words == at and not struck:
            struck.append(stream.node_id)
            getattr(cluster, disaster)(stream.node_id)

    reply = await collect(await cluster.start_client(), strike)
    assert (reply.text, reply.finish_reason, [hop.node_id for hop in reply.hops]) == (TEXT, "stop", struck)
    assert reply.usage.completion_tokens == len(WORDS)
    if disaster == "freeze":
        cluster.thaw(struck[0])
        await trio.sleep(1)
    await assert_nothing_runs(cluster)


@pytest.mark.parametrize("at", range(len(WORDS)))
async def test_a_server_that_breaks_off_at_any_word(cluster, at):
    client = await cluster.start_client()
    first = (await collect(client)).node_id
    broken = cluster.servers[first]
    broken.breaks_at = at
    for _ in range(3):
        reply = await collect(client)
        assert (reply.text, reply.finish_reason) == (TEXT, "stop")
        assert [hop.node_id for hop in reply.hops] in ([], [first])
    await assert_nothing_runs(cluster)


@pytest.mark.parametrize("status", [404, 429, 500, 503])
async def test_a_server_that_refuses_is_left_for_another(cluster, status):
    client = await cluster.start_client()
    for server in list(cluster.servers.values())[:2]:
        server.status = status
    for _ in range(3):
        assert (await collect(client)).text == TEXT
    await trio.sleep(3)  # until then a server that was busy counts as full
    await assert_nothing_runs(cluster)


async def test_servers_that_are_all_busy_are_waited_for_and_then_told(cluster):
    client = await cluster.start_client()
    for server in cluster.servers.values():
        server.status = 429
    with pytest.raises(SwarmBusy):
        await collect(client)
    for server in cluster.servers.values():
        server.status = 200
    await trio.sleep(10)
    assert (await collect(client)).text == TEXT


async def test_who_leaves_stops_the_server(cluster):
    client = await cluster.start_client()
    async with client.stream(PROMPT, model="counting") as stream:
        await stream.__anext__()
        assert sum(server.running for server in cluster.servers.values()) == 1
    await assert_nothing_runs(cluster)


async def test_a_drained_node_ends_its_streams_uncut(cluster, nursery):
    client = await cluster.start_client()
    replies = []

    async def one():
        replies.append(await collect(client))

    async with trio.open_nursery() as asking:
        for _ in range(6):
            asking.start_soon(one)
        await trio.sleep(3 * STEP_S)
        node = cluster.nodes["node-0"]
        node.host.hold("operator")
        with trio.fail_after(5):
            await node.host.endpoint.wait_idle()
        for _ in range(6):
            asking.start_soon(one)
    assert [reply.text for reply in replies] == [TEXT] * 12
    assert all(hop.node_id != "node-0" for reply in replies for hop in reply.hops)
    assert all(reply.node_id != "node-0" for reply in replies[6:])
