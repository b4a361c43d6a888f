"""Embeddings through a whole swarm: one vector a text, in order, from one file, beside streams, and over lost nodes."""

import pytest
import trio

from llamanet.client.attempt import EMBED_STEP_S
from llamanet.errors import NoNodeServes, RequestRefused, SwarmBusy
from llamanet.testing.backend import ScriptedBackend, scripted_text, scripted_tokens, scripted_vector
from llamanet.testing.cluster import Cluster
from llamanet.wire.inference import MAX_TEXTS

TEXTS = [f"text number {number}" for number in range(MAX_TEXTS + 8)]
VECTORS = tuple(scripted_vector(text) for text in TEXTS)


@pytest.fixture
async def cluster(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(2, step_time=0.05)
    return cluster


async def test_every_text_has_its_vector(autojump_clock, cluster):
    client = await cluster.start_client()
    reply = await client.embed(iter(TEXTS))
    assert reply.vectors == VECTORS
    assert all(sum(number * number for number in vector) == pytest.approx(1) for vector in reply.vectors)
    assert reply.prompt_tokens == 3 * len(TEXTS)
    assert reply.node_id in cluster.nodes
    assert reply.model
    assert reply.hops == ()


async def test_a_lost_node_is_replaced(autojump_clock, cluster, nursery):
    client = await cluster.start_client()
    results = []

    async def embed():
        results.append(await client.embed(TEXTS))

    nursery.start_soon(embed)
    await trio.sleep(0.15)
    busy = [label for label, node in cluster.nodes.items() if node.host.endpoint.requests]
    assert len(busy) == 1
    cluster.kill(busy[0])
    await trio.sleep(5)
    (reply,) = results
    assert reply.vectors == VECTORS
    assert [hop.node_id for hop in reply.hops] == busy


async def test_streams_go_on_beside(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(1, step_time=0.05)
    client = await cluster.start_client()
    gaps = []

    async def embed():
        await client.embed(TEXTS)

    async with client.stream("hello", temperature=0, max_tokens=30) as stream:
        nursery.start_soon(embed)
        heard = trio.current_time()
        async for _ in stream:
            gaps.append(trio.current_time() - heard)
            heard = trio.current_time()
    assert stream.reply().text == scripted_text(scripted_tokens("hello", 30))
    assert max(gaps[1:]) <= 0.11, "one batch of texts between two steps"


@pytest.mark.parametrize(
    ("texts", "field", "limit"),
    [
        ("one text", "texts", None),
        ([], "texts", "at least one"),
        (["a", ""], "texts[1]", "at least one token"),
        (["word " * 513], "texts[0]", "512 tokens"),
        ([1], "texts[0]", "text"),
        (["x" * 2_000_001], "texts[0]", "2000000"),
        (["x" * 200_000] * 32, "texts", "4194304"),
    ],
)
async def test_what_cannot_be_embedded_is_refused(autojump_clock, cluster, texts, field, limit):
    with pytest.raises(RequestRefused) as caught:
        await (await cluster.start_client()).embed(texts)
    assert caught.value.field == field
    assert limit is None or limit in caught.value.limit


async def test_nodes_whose_model_gives_none_are_passed_over(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_node("node-a", n_embd=0)
    await trio.sleep(1)
    client = await cluster.start_client()
    with pytest.raises(NoNodeServes, match="it has no embeddings"):
        await client.embed(["hello"])
    await cluster.start_node("node-b")
    await trio.sleep(3)
    for _ in range(4):
        assert (await client.embed(["hello"])).node_id == "node-b"


async def test_all_vectors_are_of_one_file(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_node("node-a", digest=bytes(32))
    await cluster.start_node("node-b", digest=bytes([1]) * 32)
    await trio.sleep(3)
    client = await cluster.start_client()
    assert (await client.embed(TEXTS, digest=bytes([1]) * 32)).node_id == "node-b"
    with pytest.raises(NoNodeServes, match="its file is another one"):
        await client.embed(TEXTS, digest=bytes([2]) * 32)


async def test_cancelling_leaves_nothing(autojump_clock, cluster):
    client = await cluster.start_client()
    with trio.move_on_after(0.12):
        await client.embed(TEXTS * 4)
    await trio.sleep(1)
    for node in cluster.nodes.values():
        assert node.host.endpoint.requests == 0
        assert all(not engine._embeddings for engine in node.host.endpoint.engines.values())
    assert (await client.embed(["hello"])).vectors == (scripted_vector("hello"),)


@pytest.mark.parametrize(("wait", "expected"), [(0, [1, 1, MAX_TEXTS]), (10, [MAX_TEXTS] * 3)])
async def test_a_full_node_is_busy_and_waited_for(autojump_clock, nursery, wait, expected):
    cluster = Cluster(nursery)
    await cluster.start_nodes(1, step_time=0.05, max_waiting=1)
    client = await cluster.start_client()
    outcomes = []

    async def embed():
        try:
            outcomes.append(len((await client.embed(TEXTS[:MAX_TEXTS], wait=wait)).vectors))
        except SwarmBusy as error:
            outcomes.append(error.retry_after > 0)

    async with trio.open_nursery() as calls:
        for _ in range(3):
            calls.start_soon(embed)
    assert sorted(outcomes) == expected
    assert (client._access.lobby.waiting, client._access.lobby.under_way(None)) == (0, 0)


async def test_who_asks_for_any_model_gets_none_that_only_embeds(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_node("embedder", model="bge", generates=False)
    await cluster.start_node("writer")
    await trio.sleep(4)
    client = await cluster.start_client()
    for number in range(8):
        assert (await client.generate(f"prompt {number}", max_tokens=1)).model == "alpha"
    cluster.kill("writer")
    with pytest.raises(NoNodeServes, match="embedder: its bge only embeds"):
        await client.generate("hello", max_tokens=1)
    assert (await client.embed(["hello"])).node_id == "embedder"


async def test_a_model_by_name_that_is_of_the_other_kind_is_not_asked_at_all(autojump_clock, nursery):
    cluster = Cluster(nursery)
    embedder = await cluster.start_node("embedder", model="bge", generates=False)
    writer = await cluster.start_node("writer", n_embd=0)
    await trio.sleep(4)
    client = await cluster.start_client()
    with pytest.raises(RequestRefused) as caught:
        await client.generate("hello", model="bge", max_tokens=1)
    assert (str(caught.value), caught.value.field) == ("model 'bge' only embeds: use embed()", "model")
    with pytest.raises(RequestRefused) as caught:
        await client.embed(["hello"], model="alpha")
    assert (str(caught.value), caught.value.field) == ("model 'alpha' does not embed: use generate()", "model")
    assert not embedder.links
    assert not writer.links


async def test_of_nodes_with_a_model_by_name_those_of_its_kind_are_asked(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_node("embeds", generates=False)
    await cluster.start_node("writes", n_embd=0)
    await trio.sleep(4)
    client = await cluster.start_client()
    for number in range(6):
        assert (await client.generate(f"prompt {number}", model="alpha", max_tokens=1)).node_id == "writes"
        assert (await client.embed([f"text {number}"], model="alpha")).node_id == "embeds"
    cluster.kill("writes")
    with pytest.raises(NoNodeServes, match=r"embeds: its alpha only embeds.*writes: it does not answer"):
        await client.generate("hello", model="alpha", max_tokens=1)


class StuckBackend(ScriptedBackend):
    """Its first batch of texts never ends."""

    def embed(self, texts, *, done=0):
        self._spend(1e6)
        return super().embed(texts, done=done)


class SlowBackend(ScriptedBackend):
    """Each batch of texts takes its time."""

    def embed(self, texts, *, done=0):
        self._spend(20.0)
        return super().embed(texts, done=done)


async def test_a_node_whose_batch_does_not_end_is_left(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_node("stuck", make_backend=StuckBackend)
    await trio.sleep(3)
    client = await cluster.start_client()
    replies = []

    async def embed():
        replies.append(await client.embed(TEXTS[:4]))

    async with trio.open_nursery() as asking:
        asking.start_soon(embed)
        await trio.sleep(1)
        await cluster.start_node("well")
        asked_at = trio.current_time()
    assert replies[0].vectors == VECTORS[:4]
    assert replies[0].hops == (("stuck", "it hangs: alive, but no token comes"),)
    assert EMBED_STEP_S - 2 < trio.current_time() - asked_at < EMBED_STEP_S + 10


async def test_a_node_that_embeds_for_minutes_is_waited_for(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_node("slow", make_backend=SlowBackend, slots=4)
    await trio.sleep(3)
    client = await cluster.start_client()
    asked_at = trio.current_time()
    reply = await client.embed(TEXTS[:40])
    assert (reply.vectors, reply.hops) == (VECTORS[:40], ())
    assert trio.current_time() - asked_at > 5 * EMBED_STEP_S
