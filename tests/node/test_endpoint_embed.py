"""`Embed` on one websocket: answered beside other requests, cancelled by its id, and bounded like them."""

import pytest
import trio
from test_endpoint import DIGEST, FIVE, close_code, ids_in, receive, send, start_node

from llamanet.node import connection
from llamanet.testing.backend import scripted_tokens, scripted_vector
from llamanet.wire.inference import (
    SUBPROTOCOL_JSON,
    SUBPROTOCOL_MSGPACK,
    Cancel,
    Embed,
    Embeddings,
    Failed,
    Finished,
    Generate,
)

TEXTS = tuple(f"text {number}" for number in range(12))


@pytest.mark.parametrize("subprotocol", [SUBPROTOCOL_MSGPACK, SUBPROTOCOL_JSON])
async def test_vectors_come_beside_a_generation(autojump_clock, nursery, subprotocol):
    node = await start_node(nursery)
    async with node.connect(subprotocol) as websocket:
        generate = Generate(id=1, prompt="hello", sampling=FIVE)
        await send(websocket, generate, Embed(id=2, texts=TEXTS, model="alpha", digest=DIGEST))
        messages = [await receive(websocket)]
        while {type(message) for message in messages}.isdisjoint({Finished}) or len(messages) < 8:
            messages.append(await receive(websocket))
    (embeddings,) = [message for message in messages if isinstance(message, Embeddings)]
    assert (embeddings.id, embeddings.node_id, embeddings.prompt_tokens) == (2, "node-a", 24)
    assert len(embeddings.vectors) == 12
    assert len(embeddings.vectors[0]) == 4 * len(scripted_vector(TEXTS[0]))
    assert ids_in(messages) == scripted_tokens("hello", 5)


@pytest.mark.parametrize(
    ("wrong", "code", "field"),
    [
        ({"model": "beta"}, "no_such_model", "model"),
        ({"digest": bytes([1]) * 32}, "wrong_digest", "digest"),
        ({"texts": ("a", " ")}, "bad_request", "texts[1]"),
        ({"texts": ("word " * 513,)}, "too_long", "texts[0]"),
    ],
)
async def test_refusals(autojump_clock, nursery, wrong, code, field):
    node = await start_node(nursery)
    async with node.connect() as websocket:
        await send(websocket, Embed(**{"id": 1, "texts": TEXTS, **wrong}))
        failed = await receive(websocket)
        assert isinstance(failed, Failed)
        assert (failed.id, failed.code, failed.field) == (1, code, field)
        assert failed.limit
        await send(websocket, Embed(id=1, texts=("again",)))
        assert isinstance(await receive(websocket), Embeddings)


async def test_a_model_without_embeddings_and_a_draining_node_refuse(autojump_clock, nursery):
    node = await start_node(nursery, n_embd=0)
    assert node.engine.capabilities == ("grammar", "json", "live-state")
    async with node.connect() as websocket:
        await send(websocket, Embed(id=1, texts=TEXTS))
        failed = await receive(websocket)
        assert (failed.code, failed.field) == ("bad_request", "model")
        node.endpoint.draining = True
        await send(websocket, Embed(id=2, texts=TEXTS))
        assert (await receive(websocket)).code == "draining"


async def test_a_cancelled_one_is_not_answered(autojump_clock, nursery):
    node = await start_node(nursery, step_time=0.1)
    async with node.connect() as websocket:
        await send(websocket, Embed(id=1, texts=TEXTS), Cancel(id=1), Embed(id=2, texts=("hello",)))
        answer = await receive(websocket)
        assert (type(answer), answer.id) == (Embeddings, 2)
        assert not node.engine._embeddings


async def test_an_id_in_flight_cannot_be_used_again(autojump_clock, nursery):
    node = await start_node(nursery, step_time=0.1)
    async with node.connect() as websocket:
        await send(websocket, Embed(id=1, texts=TEXTS), Generate(id=1, prompt="hello", sampling=FIVE))
        assert await close_code(websocket) == 1008
    await trio.sleep(1)
    assert node.endpoint.requests == 0
    assert not node.engine._embeddings


async def test_requests_are_bounded_together(autojump_clock, nursery, monkeypatch):
    monkeypatch.setattr(connection, "MAX_REQUESTS", 2)
    node = await start_node(nursery, step_time=0.1)
    async with node.connect() as websocket:
        await send(websocket, *[Embed(id=number, texts=TEXTS) for number in range(3)])
        assert await close_code(websocket) == 1008
    await trio.sleep(1)
    assert not node.engine._embeddings
