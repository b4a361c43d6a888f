"""Embeddings by the real model: of length 1, alike for like texts, the same alone and in a batch, beside streams."""

import struct

import pytest
import trio

from llamanet.node.backend import BackendError
from llamanet.node.engine import Engine
from llamanet.node.llama import LlamaBackend
from llamanet.wire.inference import Embed, Embeddings, Failed, Finished, Generate, Sampling

TEXTS = ("A cat sat on the mat.", "The kitten lies on the rug.", "Interest rates rose by half a percent.", "Ähm ☕")


def embed(backend: LlamaBackend, *texts: str) -> list[tuple[float, ...]]:
    vectors = backend.embed([backend.tokenize(text) for text in texts])
    return [struct.unpack(f"<{backend.n_embd}f", vector) for vector in vectors]


def product(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_vectors_have_length_one_and_like_texts_are_alike(backend: LlamaBackend) -> None:
    cat, kitten, rates = embed(backend, *TEXTS[:3])
    for vector in (cat, kitten, rates):
        assert len(vector) == backend.n_embd == 576
        assert product(vector, vector) == pytest.approx(1, abs=1e-5)
    assert product(cat, kitten) > product(cat, rates)


def test_a_text_has_the_same_vector_alone_and_in_a_batch(backend: LlamaBackend) -> None:
    together = embed(backend, *TEXTS[:3])
    for text, vector in zip(TEXTS, together, strict=False):
        (alone,) = embed(backend, text)
        assert product(alone, vector) == pytest.approx(1, abs=1e-4)


def test_too_much_at_once_is_an_error_and_nothing_is_lost(backend: LlamaBackend) -> None:
    before = embed(backend, TEXTS[0])
    with pytest.raises(BackendError, match="could not embed"):
        backend.embed([[1], [1], [1], [1]])
    assert embed(backend, TEXTS[0]) == before


async def test_streams_say_the_same_beside_embeddings(engine: Engine) -> None:
    request = Generate(id=1, prompt="Once upon a time", sampling=Sampling(temperature=0, max_tokens=24))
    quiet = [message async for message in engine.submit(request)]
    answers = []

    async def embed_all() -> None:
        answers.append(await engine.embed(Embed(id=2, texts=TEXTS * 3)))

    async with trio.open_nursery() as beside:
        beside.start_soon(embed_all)
        disturbed = [message async for message in engine.submit(request)]
    tokens = [[id for message in run for id in getattr(message, "token_ids", ())] for run in (quiet, disturbed)]
    assert tokens[0] == tokens[1]
    assert isinstance(disturbed[-1], Finished)
    (answer,) = answers
    assert isinstance(answer, Embeddings)
    assert len(answer.vectors) == 12
    refused = await engine.embed(Embed(id=3, texts=("word " * 80,)))
    assert isinstance(refused, Failed)
    assert (refused.code, refused.field, refused.limit) == ("too_long", "texts[0]", "64 tokens")
