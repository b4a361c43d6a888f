"""Every kind of memory that llama.cpp has: what is drawn from a reused one is what is drawn from one computed anew."""

import struct
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import llama_cpp.llama_cpp as lib
import pytest
import tiny_models
import trio
from asking import Reply, ask, serve
from tiny_models import GENERATING

from llamanet.errors import ModelFileError
from llamanet.node import llama_embedder
from llamanet.node.backend import Chunk
from llamanet.node.engine import Engine, Generation
from llamanet.node.llama import LlamaBackend, LlamaConfig
from llamanet.wire.inference import ChatMessage, Embed, Embeddings, Failed, Generate, Sampling, Tokens

NEAR = 1e-3
"""A logit may be so far off, of a range of some 30: the same sums in batches of another shape."""
NO_CUTS = ("mamba", "jamba", "lfm2")
LENGTH = 12


class IdBackend(LlamaBackend):
    """A prompt is written as its token ids, so that it can hold what was answered before."""

    moves = 0

    def move(self, slot: int, target: int) -> None:
        IdBackend.moves += 1
        super().move(slot, target)

    def tokenize(self, text: str, *, whole: bool = False) -> list[int]:
        return [int(word) for word in text.split()]


class Model:
    """One architecture: an engine with a cache, and a backend beside it that computes everything anew."""

    def __init__(self, engine: Engine, anew: LlamaBackend, *, seed: int, short: bool) -> None:
        self.engine, self.anew = engine, anew
        self.random = Random(seed)
        self.keeps_all = anew.cuts and not short
        """Whether its memory can be cut anywhere."""

    def words(self, count: int) -> list[int]:
        return [self.random.randrange(3, self.anew.n_vocab) for _ in range(count)]

    async def check(self, prompt: list[int], resume: Sequence[int] = (), length: int = LENGTH) -> Reply:
        """Ask, and compare each token with one drawn from a fresh memory."""
        reply = await ask(
            self.engine, " ".join(map(str, prompt)), resume=tuple(resume), max_tokens=length, ignore_eos=True
        )
        assert reply.finished.reason == "length"
        self.compare([*prompt, *resume], reply.tokens)
        return reply

    def compare(self, prompt: list[int], tokens: Sequence[int]) -> None:
        """Each token must have been the likeliest, or as near to it as rounding goes."""
        backend, text = self.anew, [*prompt, *tokens]
        backend.forget(0, 0)
        backend.begin(0, Sampling(temperature=0, ignore_eos=True, logprobs=1), 0, prompt, [])
        done = 0
        while done < len(text) - 1:
            end = min(done + backend.n_batch, max(len(prompt), done + 1))
            backend.decode([Chunk(0, done, text[done:end], True)])
            if end >= len(prompt):
                best = backend.draw(0, end - len(prompt))
                likeliest, drawn = (backend.logprobs(0, token, 0).logprob for token in (best, text[end]))
                assert likeliest - drawn < NEAR, f"token {end - len(prompt)} is {text[end]}, and {best} anew"
            done = end
        backend.end(0)


async def some_tokens(generation: Generation, count: int) -> list[int]:
    """The next tokens, `count` or a few more; less at the end."""
    tokens: list[int] = []
    async for message in generation:
        tokens += message.token_ids if isinstance(message, Tokens) else ()
        if len(tokens) >= count:
            break
    return tokens


@pytest.fixture
def slots() -> int:
    return 3


@pytest.fixture(params=[*GENERATING, "gemma3, short memory"])
async def model(
    request: pytest.FixtureRequest,
    nursery: trio.Nursery,
    tiny: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    slots: int,
) -> Any:
    name, _, short = request.param.partition(", ")
    if short:
        # llama.cpp then keeps little more than the window of the layers that have one.
        defaults = lib.llama_context_default_params

        def short_memory() -> Any:
            params = defaults()
            params.swa_full = False
            return params

        monkeypatch.setattr(lib, "llama_context_default_params", short_memory)
    config = LlamaConfig(model_path=tiny[name], n_ctx=512, n_batch=32, n_parallel=slots, n_threads=1)
    engine = await serve(nursery, config, IdBackend)
    anew = IdBackend(config)
    assert anew.cuts == (name not in NO_CUTS)
    yield Model(engine, anew, seed=len(name), short=bool(short))
    anew.close()


async def test_a_follow_up_computes_only_its_new_tokens(model: Model) -> None:
    prompt, held = model.words(250), 0
    for _ in range(4):
        reply = await model.check(prompt)
        assert reply.finished.usage.cached_tokens == held
        # The last token was drawn, and nothing after it.
        held = len(prompt) + LENGTH - 1
        prompt = [*prompt, *reply.tokens, *model.words(10)]


async def test_a_cut_memory(model: Model) -> None:
    prompt = model.words(320)
    await model.check(prompt)
    reused = []
    for kept in (319, 300, 160, 10, 1):
        reply = await model.check([*prompt[:kept], *model.words(320 - kept)])
        reused.append(reply.finished.usage.cached_tokens)
    if model.keeps_all:
        assert reused == [319, 300, 160, 10, 1]
    elif not model.anew.cuts:
        assert reused == [0] * 5
    await model.check(prompt, length=180)
    again = await model.check(prompt[:200])
    assert again.finished.usage.cached_tokens == (199 if model.keeps_all else 0)


async def test_a_copy_of_a_live_memory(model: Model) -> None:
    prompt = model.words(300)
    live = model.engine.submit(
        Generate(
            id=2,
            prompt=" ".join(map(str, prompt)),
            sampling=Sampling(temperature=0, ignore_eos=True, max_tokens=100),
        )
    )
    tokens = await some_tokens(live, 3)
    for shared in (300, 270, 20):
        await model.check([*prompt[:shared], *model.words(20)])
    async for message in live:
        tokens += message.token_ids if isinstance(message, Tokens) else ()
    assert len(tokens) == 100
    model.compare(prompt, tokens)


@pytest.mark.parametrize("slots", [4])
async def test_a_moved_memory(model: Model) -> None:
    moves = IdBackend.moves
    asked, tokens = [], []
    for id in range(3):
        prompt = model.words(50)
        sampling = Sampling(temperature=0, ignore_eos=True, max_tokens=400)
        generation = model.engine.submit(Generate(id=id, prompt=" ".join(map(str, prompt)), sampling=sampling))
        asked.append((prompt, generation))
        tokens.append(await some_tokens(generation, 1))
    # Not before all three have a slot: else the third would take that of the second.
    asked[1][1].cancel()
    for place in (0, 2):
        tokens[place] += await some_tokens(asked[place][1], 50)
    assert IdBackend.moves == moves + 1, "the second one is gone, and the others close its gap"
    for _, generation in asked:
        generation.cancel()
    for got, (prompt, _) in zip(tokens, asked, strict=True):
        model.compare(prompt, got)


async def test_a_resumed_answer(model: Model) -> None:
    prompt = model.words(70)
    whole = await model.check(prompt, length=40)
    for cut in (1, 17, 39):
        sequel = await model.check(prompt, whole.tokens[:cut], length=40)
        assert len(sequel.tokens) == 40 - cut


async def test_any_mix_of_shared_beginnings(model: Model) -> None:
    trunk = model.words(400)
    done = 0

    async def one(kept: int, new: list[int], length: int, patience: float) -> None:
        nonlocal done
        with trio.move_on_after(patience):
            await model.check([*trunk[:kept], *new], length=length)
            done += 1

    async with trio.open_nursery() as users:
        for number in range(16):
            kept, new = model.random.randrange(400), model.random.randrange(1, 30)
            patience = model.random.uniform(0, 0.2) if number % 4 == 3 else 60
            users.start_soon(one, kept, model.words(new), model.random.randrange(1, 20), patience)
    assert done >= 12


async def test_a_model_that_only_embeds(nursery: trio.Nursery, tiny: dict[str, Path]) -> None:
    config = LlamaConfig(model_path=tiny["bert"], n_ctx=256, n_batch=64, n_parallel=3, n_threads=1)
    engine = await serve(nursery, config)
    reply = await ask(engine, "a cat")
    assert (reply.failed.code, reply.failed.field) == ("bad_request", "model")
    assert "only embeds" in reply.failed.message
    texts = ("a cat", "the quick brown fox", "ab" * 20)
    together = await engine.embed(Embed(id=1, texts=texts))
    assert isinstance(together, Embeddings)
    for text, vector in zip(texts, together.vectors, strict=True):
        alone = await engine.embed(Embed(id=1, texts=(text,)))
        assert isinstance(alone, Embeddings)
        assert numbers(vector) == pytest.approx(numbers(alone.vectors[0]), abs=1e-4)
        assert sum(number**2 for number in numbers(vector)) == pytest.approx(1, abs=1e-5)
    assert engine.capabilities == ("embeddings",)
    too_long = await engine.embed(Embed(id=1, texts=("a", "b " * 80)))
    assert isinstance(too_long, Failed)
    assert (too_long.code, too_long.field, too_long.limit) == ("too_long", "texts[1]", "64 tokens")
    assert "82 tokens" in too_long.message


def test_texts_to_embed_begin_and_end_as_the_model_wants(tiny: dict[str, Path]) -> None:
    backend = LlamaBackend(LlamaConfig(model_path=tiny["bert"], n_ctx=64, n_batch=64, n_parallel=1, n_threads=1))
    whole = backend.tokenize("ab", whole=True)
    assert (whole[0], whole[-1], len(whole)) == (2, 3, 4), "[CLS] and [SEP]"
    backend.close()


def test_vectors_are_pooled_as_the_model_says(tmp_path: Path) -> None:
    vectors = []
    # llama.cpp's LLAMA_POOLING_TYPE: none, mean, the first token's, the last token's; and nothing said.
    for pooling in (0, 1, 2, 3, None):
        path = tmp_path / f"{pooling}.gguf"
        tiny_models.bert(path, pooling)
        backend = LlamaBackend(LlamaConfig(model_path=path, n_ctx=64, n_batch=64, n_parallel=1, n_threads=1))
        vectors.append(numbers(backend.embed([backend.tokenize("abcdef", whole=True)])[0]))
        backend.close()
    none, mean, first, last, unsaid = vectors
    assert none == mean == unsaid
    assert len({mean, first, last}) == 3


@pytest.mark.parametrize("pooling", ["MEAN", "CLS", "LAST"])
@pytest.mark.parametrize("name", GENERATING)
def test_a_text_in_pieces_has_the_vector_of_the_whole(
    tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch, name: str, pooling: str
) -> None:
    monkeypatch.setattr(llama_embedder, "_own_pooling", lambda model: getattr(lib, f"LLAMA_POOLING_TYPE_{pooling}"))
    backend = LlamaBackend(LlamaConfig(model_path=tiny[name], n_ctx=256, n_batch=256, n_parallel=3, n_threads=1))
    assert backend.embeds_pieces
    random = Random(7)
    text, *others = ([random.randrange(3, backend.n_vocab) for _ in range(count)] for count in (150, 9, 40))
    whole = [numbers(vector) for vector in backend.embed([text, *others])]
    backend.embed_piece(others[0], 0, 5)
    backend.embed_piece(text, 0, 64)
    backend.embed_piece(text, 64, 141)
    parted = [numbers(vector) for vector in backend.embed([text, *others], done=141)]
    for one, other in zip(whole, parted, strict=True):
        assert product(one, other) > 0.9999
    assert product(parted[0], parted[1]) < 0.99
    backend.close()


def test_a_model_whose_tokens_look_ahead_takes_texts_whole(tiny: dict[str, Path], tmp_path: Path) -> None:
    tiny_models.llama(tmp_path / "ahead.gguf", causal=False)
    vectors = []
    for path in (tiny["llama"], tmp_path / "ahead.gguf"):
        backend = LlamaBackend(LlamaConfig(model_path=path, n_ctx=64, n_batch=64, n_parallel=1, n_threads=1))
        assert backend.embeds_pieces == (path == tiny["llama"])
        vectors.append(numbers(backend.embed([backend.tokenize("abcdef", whole=True)])[0]))
        backend.close()
    assert product(*vectors) < 0.99
    backend = LlamaBackend(LlamaConfig(model_path=tiny["bert"], n_ctx=64, n_batch=64, n_parallel=1, n_threads=1))
    assert not backend.embeds_pieces
    backend.close()


def test_an_encoder_with_a_decoder_is_refused(tiny: dict[str, Path]) -> None:
    with pytest.raises(ModelFileError, match=r"t5\.gguf: .*encoder and a decoder") as caught:
        LlamaBackend(LlamaConfig(model_path=tiny["t5"]))
    assert "\n" not in str(caught.value)


def test_a_model_that_only_scores_is_refused(tmp_path: Path) -> None:
    tiny_models.bert(tmp_path / "ranks.gguf", 4)
    with pytest.raises(ModelFileError, match=r"ranks\.gguf: .*neither"):
        LlamaBackend(LlamaConfig(model_path=tmp_path / "ranks.gguf"))


async def test_a_model_without_a_chat_template_takes_prompts(nursery: trio.Nursery, tiny: dict[str, Path]) -> None:
    config = LlamaConfig(model_path=tiny["llama"], n_ctx=64, n_batch=64, n_parallel=1, n_threads=1)
    engine = await serve(nursery, config)
    refused = await ask(engine, None, messages=(ChatMessage(role="user", content="hello"),))
    assert (refused.failed.code, refused.failed.field) == ("bad_request", "messages")
    assert "--chat-template" in refused.failed.message
    assert len((await ask(engine, "hello", ignore_eos=True)).tokens) == 16


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_texts_come_back_from_their_tokens(tiny: dict[str, Path], name: str) -> None:
    backend = LlamaBackend(LlamaConfig(model_path=tiny[name], n_ctx=64, n_batch=64, n_parallel=1, n_threads=1))
    for text in ("the other", "naïve café ☕ 漢字", "two  spaces\n"):
        pieces = b"".join(map(backend.piece, backend.tokenize(text))).decode()
        assert pieces.removeprefix(" ") == text
    backend.close()


def numbers(vector: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(vector) // 4}f", vector)


def product(one: Sequence[float], other: Sequence[float]) -> float:
    """The cosine of the angle between vectors of length 1."""
    return sum(a * b for a, b in zip(one, other, strict=True))
