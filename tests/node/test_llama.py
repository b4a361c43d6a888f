"""The backend and the engine on the real model, with one thread, so that a busy machine changes nothing."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import llama_cpp.llama_cpp as lib
import pytest
import trio
from asking import Reply, ask, serve

from llamanet.errors import ModelFileError, UserError
from llamanet.node.backend import BackendError, Chunk
from llamanet.node.engine import Engine
from llamanet.node.llama import LlamaBackend, LlamaConfig
from llamanet.wire.inference import ChatMessage, Failed, Finished, Generate, Sampling


def test_tokens_and_pieces_round_trip(backend: LlamaBackend) -> None:
    for text in ["Hello, world", " two  spaces\n", "naïve café ☕ 漢字 \U0001f999", "x" * 5000]:
        assert b"".join(map(backend.piece, backend.tokenize(text))).decode() == text


def test_special_tokens_are_parsed_and_not_shown(backend: LlamaBackend) -> None:
    start, *_, end = backend.tokenize("<|im_start|>user<|im_end|>")
    assert backend.piece(start) == backend.piece(end) == b""
    assert backend.is_end(end)
    assert not backend.is_end(backend.tokenize("a")[0])
    assert (backend.bos_text, backend.eos_text) == ("<|im_start|>", "<|im_end|>")


def test_an_empty_text_has_no_tokens_and_a_nul_is_text(backend: LlamaBackend) -> None:
    assert backend.tokenize("") == []
    assert b"".join(map(backend.piece, backend.tokenize("a\0b"))) == b"a\0b"


def greedy(backend: LlamaBackend, slot: int, prompt: list[int], count: int, **sampling: Any) -> list[int]:
    backend.forget(slot, 0)
    backend.begin(slot, Sampling(temperature=0, **sampling), 0, prompt, [])
    tokens = list(prompt)
    done = 0
    while len(tokens) < len(prompt) + count:
        backend.decode([Chunk(slot, done, tokens[done:], True)])
        done = len(tokens)
        tokens.append(backend.draw(slot, done - len(prompt)))
    backend.end(slot)
    return tokens[len(prompt) :]


def test_slots_do_not_see_each_other(backend: LlamaBackend) -> None:
    prompts = [backend.tokenize(text) for text in ("The capital of France is", "One, two, three,", "Once upon a time")]
    alone = [greedy(backend, 0, prompt, 8) for prompt in prompts]
    assert len(set(map(tuple, alone))) == 3
    for slot, prompt in enumerate(prompts):
        backend.forget(slot, 0)
        backend.begin(slot, Sampling(temperature=0), 0, prompt, [])
    together: list[list[int]] = [[], [], []]
    chunks = [Chunk(slot, 0, prompt, True) for slot, prompt in enumerate(prompts)]
    for step in range(8):
        backend.decode(chunks)
        chunks = []
        for slot, prompt in enumerate(prompts):
            token = backend.draw(slot, step)
            together[slot].append(token)
            chunks.append(Chunk(slot, len(prompt) + step, [token], True))
    for slot in range(3):
        backend.end(slot)
    assert together == alone


def test_a_cut_memory_goes_on_from_the_cut(backend: LlamaBackend) -> None:
    prompt = backend.tokenize("The quick brown fox jumps over the lazy dog. The quick brown")
    first = greedy(backend, 1, prompt, 5)
    assert backend.forget(1, 6)
    backend.begin(1, Sampling(temperature=0), 0, prompt, [])
    backend.decode([Chunk(1, 6, prompt[6:], True)])
    assert backend.draw(1, 0) == first[0]
    backend.end(1)


def test_a_copied_memory_goes_on_from_any_cut(backend: LlamaBackend) -> None:
    prompt = backend.tokenize("The quick brown fox jumps over the lazy dog. The quick brown")
    expected = greedy(backend, 0, prompt, 5)
    for cut in (len(prompt) - 1, 5, 1):
        backend.copy(0, 2)
        assert backend.forget(2, cut)
        # What the source does before the next step does not change the copy.
        backend.forget(0, 3)
        backend.begin(2, Sampling(temperature=0), 0, prompt, [])
        backend.decode([Chunk(2, cut, prompt[cut:], True)])
        assert backend.draw(2, 0) == expected[0]
        backend.end(2)
        assert greedy(backend, 0, prompt, 5) == expected


def test_a_memory_with_a_sliding_window_is_not_cut_where_the_window_is_gone(backend: LlamaBackend) -> None:
    prompt = backend.tokenize("one two three four five six seven eight nine ten")
    greedy(backend, 0, prompt, 1)
    lib.llama_memory_seq_rm(backend._memory, 0, 0, 4)
    assert not backend.forget(0, 8), "position 0 must be seen"
    backend._window = 4
    assert backend.forget(0, 8)
    assert not backend.forget(0, 7)
    backend._window = 0
    assert backend.forget(0, 8), "nothing to cut"
    assert backend.forget(0, 0)


def test_penalties_count_what_came_before(backend: LlamaBackend) -> None:
    prompt = backend.tokenize("la la la la la la la la la la")
    assert greedy(backend, 0, prompt, 4) != greedy(backend, 0, prompt, 4, repeat_penalty=2.0)
    looping = greedy(backend, 0, prompt, 4)
    backend.forget(0, 0)
    backend.begin(0, Sampling(temperature=0, presence_penalty=10), 0, prompt[:1], looping)
    backend.decode([Chunk(0, 0, prompt, True)])
    assert backend.draw(0, 4) not in looping
    backend.end(0)


def test_a_batch_that_does_not_fit_is_an_error_and_nothing_is_lost(backend: LlamaBackend) -> None:
    prompt = backend.tokenize("The capital of France is")
    expected = greedy(backend, 0, prompt, 3)
    with pytest.raises(BackendError, match="code -1"):
        backend.decode([Chunk(2, 7, prompt, True), Chunk(2, 3, prompt, True)])
    backend.forget(2, 0)
    assert greedy(backend, 0, prompt, 3) == expected


async def test_streams_in_one_batch_say_what_each_says_alone(engine: Engine) -> None:
    prompts = [f"The number {number} is" for number in range(6)]
    alone = [await ask(engine, prompt) for prompt in prompts]
    together: dict[int, Reply] = {}

    async def one(number: int) -> None:
        together[number] = await ask(engine, prompts[number])

    async with trio.open_nursery() as streams:
        for number in range(6):
            streams.start_soon(one, number)
    assert [together[number].tokens for number in range(6)] == [reply.tokens for reply in alone]


async def test_answers_are_the_same_with_the_cache_and_without(engine: Engine) -> None:
    system = "You are a guide to a city by the sea, and you answer in one sentence. " * 6
    questions = [f"{system}{question}" for question in ("Where is the port?", "Where is the port now?", "Who rules?")]
    cold = []
    for question in questions:
        for slot in range(3):
            await ask(engine, f"{slot} " * 9, max_tokens=1)
        cold.append(await ask(engine, question))
    warm = [await ask(engine, question) for question in questions]
    assert [reply.tokens for reply in warm] == [reply.tokens for reply in cold]
    reused = [reply.last.usage.cached_tokens for reply in warm if isinstance(reply.last, Finished)]
    assert min(reused) > 80


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 11, "repeat_penalty": 1.2}])
async def test_a_resumed_stream_goes_on_exactly(engine: Engine, sampling: dict[str, Any]) -> None:
    whole = await ask(engine, "Once upon a time", max_tokens=24, **sampling)
    for cut in (1, 9, 23, 24):
        sequel = await ask(engine, "Once upon a time", max_tokens=24, resume=tuple(whole.tokens[:cut]), **sampling)
        assert whole.tokens[:cut] + sequel.tokens == whole.tokens
        assert whole.text.endswith(sequel.text)
        assert isinstance(sequel.last, Finished)
        assert sequel.last.usage.completion_tokens == 24


async def test_a_long_prompt_resumes_exactly(nursery: trio.Nursery, llama_config: LlamaConfig) -> None:
    config = attrs.evolve(llama_config, n_batch=512, n_parallel=1)
    # llama.cpp's attention rounds otherwise in chunks of 64 tokens and more: prompt and resumed ids must not share one.
    prompt = "The quick brown fox jumps over the lazy dog near the old stone bridge. " * 5
    whole = await ask(await serve(nursery, config), prompt, max_tokens=24, temperature=1.0, seed=8)
    for cut in (1, 9, 17):
        # Each on an engine of its own, for what an earlier one remembers was computed in other pieces.
        engine = await serve(nursery, config)
        sequel = await ask(engine, prompt, max_tokens=24, temperature=1.0, seed=8, resume=tuple(whole.tokens[:cut]))
        assert sequel.tokens == whole.tokens[cut:], cut


async def test_seeds_decide_at_every_temperature(engine: Engine) -> None:
    first = await ask(engine, "Once upon a time", temperature=1.5, seed=1)
    again = await ask(engine, "Once upon a time", temperature=1.5, seed=1)
    other = await ask(engine, "Once upon a time", temperature=1.5, seed=2)
    assert first.tokens == again.tokens
    assert first.tokens != other.tokens


async def test_a_chat_is_answered_to_its_end(engine: Engine) -> None:
    messages = (ChatMessage(role="user", content="Say hello."),)
    reply = await ask(engine, None, messages=messages, max_tokens=200)
    assert isinstance(reply.last, Finished)
    assert reply.last.reason == "stop"
    assert reply.text
    assert "<|im_end|>" not in reply.text


async def test_a_cancelled_prompt_frees_its_slot(engine: Engine) -> None:
    expected = await ask(engine, "Once upon a time")
    for _ in range(3):
        generation = engine.submit(Generate(id=1, prompt="word " * 400, sampling=Sampling(max_tokens=1)))
        await generation.receive()
        generation.cancel()
    assert (await ask(engine, "Once upon a time")).tokens == expected.tokens
    assert engine.state().running == engine.state().waiting == 0


async def test_an_answer_fills_the_context_and_no_more(engine: Engine) -> None:
    reply = await ask(engine, "word " * 505, max_tokens=None)
    assert isinstance(reply.last, Finished)
    assert reply.last.reason in ("context", "stop")
    assert reply.last.usage.prompt_tokens + reply.last.usage.completion_tokens <= 512
    refused = await ask(engine, "word " * 600)
    assert isinstance(refused.last, Failed)
    assert refused.last.code == "too_long"


@pytest.mark.parametrize("size", [100, 2_000_000, 98_000_000])
def test_a_truncated_model_is_one_line(tmp_path: Path, model: Path, size: int) -> None:
    path = tmp_path / "cut.gguf"
    with model.open("rb") as file:
        path.write_bytes(file.read(size))
    with pytest.raises(ModelFileError, match=r"cut\.gguf: llama\.cpp cannot load it \(.+\)") as caught:
        LlamaBackend(LlamaConfig(model_path=path))
    assert "\n" not in str(caught.value)


def test_a_context_that_does_not_fit_into_memory_is_one_line(llama_config: LlamaConfig) -> None:
    with pytest.raises(UserError, match="at most"):
        LlamaBackend(attrs.evolve(llama_config, n_parallel=100_000))


def test_a_slot_holds_no_more_than_the_model_was_trained_on(llama_config: LlamaConfig) -> None:
    backend = LlamaBackend(attrs.evolve(llama_config, n_ctx=1_000_000, n_parallel=1))
    assert backend.n_ctx == 8192
    backend.close()


def test_nothing_is_written_to_the_terminal(model: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from llamanet.node.llama import *; "
        "backend = LlamaBackend(LlamaConfig(model_path=Path(sys.argv[1]), n_threads=1)); "
        "backend.decode([Chunk(0, 0, [1], True)]); backend.close()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(model)], capture_output=True, text=True, timeout=60, env={**os.environ}
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
