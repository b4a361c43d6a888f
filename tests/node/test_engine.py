"""The engine's behaviour, on a script and a virtual clock."""

import struct
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from random import Random
from typing import Any, ClassVar

import attrs
import pytest
import trio
from trio.testing import MockClock

from llamanet.errors import EngineBusy, ModelFileError
from llamanet.node.backend import BackendError, Chunk
from llamanet.node.engine import Engine, EngineConfig, Generation
from llamanet.testing.backend import (
    ScriptedBackend,
    scripted_text,
    scripted_tokens,
    scripted_vector,
    serve_scripted_engine,
)
from llamanet.wire.inference import (
    Accepted,
    ChatMessage,
    Embed,
    Embeddings,
    Failed,
    Finished,
    Generate,
    Sampling,
    Tokens,
    Usage,
)

Serve = Callable[..., Awaitable[tuple[Engine, ScriptedBackend]]]


@pytest.fixture
def serve(nursery: trio.Nursery) -> Serve:
    async def start(
        config: EngineConfig | None = None, make: type[ScriptedBackend] = ScriptedBackend, **script: Any
    ) -> tuple[Engine, ScriptedBackend]:
        backend = make(**{"step_time": 0.01, **script})
        engine = await nursery.start(
            serve_scripted_engine, "model", bytes(32), lambda: backend, config or EngineConfig(node_id="bob")
        )
        return engine, backend

    return start


def request(prompt: str = "one two three", *, id: int = 7, resume: tuple[int, ...] = (), **sampling: Any) -> Generate:
    return Generate(
        id=id, prompt=prompt, resume=resume, sampling=Sampling(**{"temperature": 0.0, "max_tokens": 20, **sampling})
    )


@attrs.define
class Reply:
    messages: list[Accepted | Tokens | Finished | Failed]

    @property
    def text(self) -> str:
        return "".join(message.text for message in self.messages if isinstance(message, Tokens))

    @property
    def tokens(self) -> list[int]:
        return [token for message in self.messages if isinstance(message, Tokens) for token in message.token_ids]

    @property
    def last(self) -> Accepted | Tokens | Finished | Failed:
        return self.messages[-1]


class Parrot(ScriptedBackend):
    """`#3` in a prompt is token 3, so that a prompt can hold what was answered before."""

    def tokenize(self, text: str, *, whole: bool = False) -> list[int]:
        return [int(word[1:]) if word[0] == "#" else super(Parrot, self).tokenize(word)[0] for word in text.split()]


class Embedding(ScriptedBackend):
    """Notes how many tokens were drawn before each batch of texts, or piece of one, and how many texts it had."""

    batches: ClassVar[list[tuple[int, int]]] = []

    def embed(self, texts: Sequence[Sequence[int]], *, done: int = 0) -> list[bytes]:
        self.batches.append((self.drawn, len(texts)))
        return super().embed(texts, done=done)

    def embed_piece(self, text: Sequence[int], start: int, end: int) -> None:
        self.batches.append((self.drawn, 0))
        super().embed_piece(text, start, end)


class FailingOnce(ScriptedBackend):
    """The second step after `armed` is set loses what it computed."""

    armed = 0

    def decode(self, chunks: Sequence[Chunk]) -> None:
        super().decode(chunks)
        FailingOnce.armed -= 1
        if FailingOnce.armed == 0:
            raise BackendError("scripted")


async def read(generation: Generation) -> Reply:
    return Reply([message async for message in generation])


async def ask(engine: Engine, *args: Any, **kwargs: Any) -> Reply:
    return await read(engine.submit(request(*args, **kwargs)))


async def test_a_request_is_accepted_streamed_and_finished(autojump_clock: MockClock, serve: Serve) -> None:
    engine, _ = await serve()
    reply = await ask(engine)
    assert reply.messages[0] == Accepted(id=7, node_id="bob", prompt_tokens=3)
    assert reply.tokens == scripted_tokens("one two three", 20)
    assert reply.text == scripted_text(reply.tokens)
    assert "café" in reply.text
    assert isinstance(reply.last, Finished)
    assert reply.last.id == 7
    assert reply.last.reason == "length"
    assert reply.last.usage == Usage(prompt_tokens=3, completion_tokens=20)
    assert len(reply.messages) == 22, "a reader that keeps up gets every token in a message of its own"
    assert engine.state().running == engine.state().waiting == 0


async def test_timings_tell_queue_prefill_and_decode(autojump_clock: MockClock, serve: Serve) -> None:
    engine, _ = await serve(slots=1, token_time=0.1)
    first = engine.submit(request(max_tokens=11))
    await first.receive()
    second = engine.submit(request(max_tokens=2))
    finished = (await read(first)).last
    assert isinstance(finished, Finished)
    assert finished.timings.queue_s == pytest.approx(0)
    later = (await read(second)).last
    assert isinstance(later, Finished)
    assert later.timings.queue_s == pytest.approx(0.2 + 11 * 0.01, abs=0.02)


async def test_messages_go_through_the_chat_template(autojump_clock: MockClock, serve: Serve) -> None:
    engine, _ = await serve()
    chat = Generate(
        id=1, messages=(ChatMessage(role="user", content="hi"),), sampling=Sampling(temperature=0, max_tokens=4)
    )
    reply = await read(engine.submit(chat))
    assert reply.tokens == scripted_tokens("<user> hi <assistant>", 4)


async def test_the_models_end_ends_the_answer(autojump_clock: MockClock, serve: Serve) -> None:
    engine, _ = await serve(answer_tokens=5)
    reply = await ask(engine)
    assert reply.tokens == scripted_tokens("one two three", 9, answer_tokens=5)
    assert reply.tokens[-1] == 0
    assert isinstance(reply.last, Finished)
    assert (reply.last.reason, reply.last.usage.completion_tokens) == ("stop", 6)


async def test_a_stop_string_ends_the_answer_and_is_not_shown(autojump_clock: MockClock, serve: Serve) -> None:
    engine, _ = await serve()
    reply = await ask(engine, stop=("fé",))
    assert reply.text == scripted_text(scripted_tokens("one two three", 9)[:8]) + " ca"
    assert len(reply.tokens) == 10
    assert isinstance(reply.last, Finished)
    assert reply.last.reason == "stop"


async def test_a_full_context_ends_the_answer(autojump_clock: MockClock, serve: Serve) -> None:
    engine, _ = await serve(n_ctx=10)
    reply = await ask(engine, max_tokens=None)
    assert isinstance(reply.last, Finished)
    assert (reply.last.reason, reply.last.usage.completion_tokens) == ("context", 7)
    assert (await ask(engine, max_tokens=7)).last.reason == "length"  # type: ignore[union-attr]
    assert (await ask(engine, max_tokens=8)).last.reason == "context"  # type: ignore[union-attr]


async def test_a_context_full_elsewhere_is_gone_on_from(autojump_clock: MockClock, serve: Serve) -> None:
    engine, _ = await serve(n_ctx=12)
    reply = await ask(engine, resume=tuple(scripted_tokens("one two three", 7)), max_tokens=None)
    assert reply.tokens == scripted_tokens("one two three", 9)[7:]
    assert reply.last.reason == "context"  # type: ignore[union-attr]


async def test_what_an_engine_did_is_counted(autojump_clock: MockClock, serve: Serve) -> None:
    engine, _ = await serve(slots=1, token_time=0.001)
    async with trio.open_nursery() as users:
        for _ in range(2):
            users.start_soon(ask, engine)
    rates = engine.rates
    assert (rates.prompt_tokens, rates.cached_tokens, rates.completion_tokens) == (6, 2, 40)
    assert rates.memory_tokens == 3 + 19
    assert rates.gap_s == pytest.approx(0.01)
    assert 0 < rates.queue_s < 0.22
    # The first asked waits for its prompt, the second for the first's answer too: their average, the newer a tenth.
    first = 0.012
    assert rates.first_s == pytest.approx(first + 0.1 * (0.2 + 0.01), abs=0.005)
    assert 1 <= rates.batch < 3


@pytest.mark.parametrize("cut", range(21))
@pytest.mark.parametrize("stop", [(), ("fé sl", "zzz"), (" peer café swarm token no",)])
async def test_a_resumed_stream_is_the_same_stream(
    autojump_clock: MockClock, serve: Serve, cut: int, stop: tuple[str, ...]
) -> None:
    engine, _ = await serve()
    whole = await ask(engine, temperature=0.7, seed=5, stop=stop)
    tokens, texts = [], []
    for message in whole.messages:
        if isinstance(message, Tokens):
            tokens += message.token_ids
            texts.append(message.text)
    sequel = await ask(engine, temperature=0.7, seed=5, stop=stop, resume=tuple(tokens[:cut]))
    assert tokens[:cut] + sequel.tokens == tokens
    assert "".join(texts[:cut]) + sequel.text == whole.text
    assert isinstance(sequel.last, Finished)
    assert isinstance(whole.last, Finished)
    assert sequel.last.reason == whole.last.reason
    assert attrs.evolve(sequel.last.usage, cached_tokens=0) == whole.last.usage


KINDS_OF_MEMORY = [{}, {"window": 4}, {"window": 64}, {"recurrent": True}]


@pytest.mark.parametrize("memory", KINDS_OF_MEMORY)
async def test_a_follow_up_computes_only_its_new_tokens(
    autojump_clock: MockClock, serve: Serve, memory: dict[str, Any]
) -> None:
    engine, backend = await serve(make=Parrot, **memory)
    prompt = "a long system prompt and a question"
    for turn in range(4):
        before = backend.computed
        reply = await ask(engine, prompt, max_tokens=6)
        asked = len(backend.tokenize(prompt))
        held = 0 if turn == 0 else asked - 3
        accepted, finished = reply.messages[0], reply.last
        assert isinstance(accepted, Accepted)
        assert isinstance(finished, Finished)
        assert accepted.cached_tokens == finished.usage.cached_tokens == held
        assert backend.computed - before == asked - held + 5
        prompt += "".join(f" #{token}" for token in reply.tokens) + " and more"


@pytest.mark.parametrize("memory", KINDS_OF_MEMORY)
async def test_any_mix_of_shared_beginnings_is_answered_rightly(
    autojump_clock: MockClock, serve: Serve, memory: dict[str, Any]
) -> None:
    random = Random(3)
    engine, _ = await serve(slots=3, n_ctx=64, n_batch=8, **memory)

    async def one(prompt: str) -> None:
        await trio.sleep(random.uniform(0, 3))
        tokens = scripted_tokens(prompt, 20)
        resume = tuple(tokens[: random.choice((0, 0, 5, 12))])
        generation = engine.submit(request(prompt, resume=resume))
        with trio.move_on_after(random.choice((0.05, 0.3, 60))):
            assert list(resume) + (await read(generation)).tokens == tokens
        generation.cancel()

    shared = " ".join(f"system{word}" for word in range(12))
    async with trio.open_nursery() as users:
        for _ in range(60):
            users.start_soon(one, " ".join(shared.split()[: random.randint(1, 12)] + ["q"] * random.randint(0, 4)))
    assert engine.state().running == engine.state().waiting == 0


async def test_what_a_failed_step_left_is_not_reused(autojump_clock: MockClock, serve: Serve) -> None:
    engine, _ = await serve(make=FailingOnce, slots=1)
    await ask(engine)
    FailingOnce.armed = 2
    assert isinstance((await ask(engine)).last, Failed)
    reply = await ask(engine)
    assert isinstance(reply.last, Finished)
    assert reply.last.usage.cached_tokens == 0


async def test_a_resume_that_is_already_over_ends_at_once(autojump_clock: MockClock, serve: Serve) -> None:
    engine, backend = await serve(answer_tokens=5)
    ended = tuple(scripted_tokens("one two three", 9, answer_tokens=5))
    before = backend.drawn
    for resume, reason in [(ended, "stop"), (ended[:4], "length")]:
        reply = await ask(engine, resume=resume, max_tokens=4 if reason == "length" else 20)
        assert [type(message) for message in reply.messages] == [Accepted, Finished]
        assert isinstance(reply.last, Finished)
        assert (reply.last.reason, reply.last.usage.completion_tokens) == (reason, len(resume))
    assert backend.drawn == before


async def test_a_seed_decides_and_without_one_the_engine_draws_one(autojump_clock: MockClock, serve: Serve) -> None:
    engine, _ = await serve()
    same = [(await ask(engine, temperature=1.0, seed=3)).tokens for _ in range(2)]
    assert same[0] == same[1] == scripted_tokens("one two three", 20, seed=3, temperature=1.0)
    free = [(await ask(engine, temperature=1.0)).tokens for _ in range(2)]
    assert free[0] != free[1]


async def test_streams_run_together_and_the_rest_waits(autojump_clock: MockClock, serve: Serve) -> None:
    engine, _ = await serve(slots=2)
    start = trio.current_time()
    generations = [engine.submit(request(f"prompt {number}", max_tokens=10)) for number in range(5)]
    assert (engine.state().running, engine.state().waiting) == (0, 5)
    await trio.sleep(0.015)
    assert (engine.state().running, engine.state().waiting) == (2, 3)
    for number, generation in enumerate(generations):
        assert (await read(generation)).tokens == scripted_tokens(f"prompt {number}", 10)
    # Five requests of ten steps, two at a time, are three rounds.
    assert trio.current_time() - start == pytest.approx(0.30, abs=0.05)


async def test_a_long_prompt_does_not_stall_a_stream(autojump_clock: MockClock, serve: Serve) -> None:
    engine, _ = await serve(n_batch=16)
    stream = engine.submit(request(max_tokens=100))
    for _ in range(5):
        await stream.receive()
    engine.submit(request("word " * 1000))
    gaps = []
    for _ in range(50):
        before = trio.current_time()
        await stream.receive()
        gaps.append(trio.current_time() - before)
    assert max(gaps) == pytest.approx(0.01)


async def test_a_full_queue_refuses_at_once(autojump_clock: MockClock, serve: Serve) -> None:
    engine, _ = await serve(EngineConfig(max_waiting=2), slots=1, step_time=0.1)
    generations = [engine.submit(request(max_tokens=50)) for _ in range(3)]
    for seconds in (5.0, 3.0):
        with pytest.raises(EngineBusy) as caught:
            engine.submit(request())
        assert caught.value.waiting == 2
        assert caught.value.retry_after == pytest.approx(seconds, abs=0.3)
        await trio.sleep(2)
    generations[1].cancel()
    generations[2].cancel()
    await read(generations[0])
    assert isinstance((await ask(engine)).last, Finished)
    generations = [engine.submit(request(max_tokens=50)) for _ in range(3)]
    with pytest.raises(EngineBusy) as caught:
        engine.submit(request())
    assert caught.value.retry_after == pytest.approx(5.0, abs=0.3), "whatever was short or cancelled before"


async def test_embedding_is_seen_and_promised_by_its_own_rate(
    autojump_clock: MockClock, nursery: trio.Nursery, serve: Serve
) -> None:
    engine, _ = await serve(
        EngineConfig(max_waiting=4), generates=False, slots=2, n_batch=100, step_time=0, token_time=0.004
    )
    text = ("word " * 100,) * 5
    for number in range(4):
        nursery.start_soon(engine.embed, Embed(id=number, texts=text))
    await trio.sleep(4)
    state = engine.state()
    assert (state.running, state.waiting) == (2, 2)
    assert state.ttft_s == pytest.approx(8, rel=0.1)
    with pytest.raises(EngineBusy) as caught:
        await engine.embed(Embed(id=9, texts=text))
    assert caught.value.retry_after == pytest.approx(8, rel=0.1)
    await trio.sleep(30)
    assert (engine.state().running, engine.state().waiting, engine.state().ttft_s) == (0, 0, 0)


@pytest.mark.parametrize(
    ("wrong", "code", "field", "told"),
    [
        ({"prompt": "word " * 50}, "too_long", "prompt", ["50", "32", "31 tokens"]),
        ({"prompt": " "}, "bad_request", "prompt", ["empty"]),
        ({"resume": (1,) * 30}, "too_long", "resume", ["3", "30", "32", "29 tokens"]),
        ({"resume": (2**31 - 1,)}, "bad_request", "resume", ["2147483647"]),
    ],
)
async def test_what_does_not_fit_is_refused_with_its_numbers(
    autojump_clock: MockClock, serve: Serve, wrong: dict[str, Any], code: str, field: str, told: list[str]
) -> None:
    engine, _ = await serve(n_ctx=32)
    reply = await ask(engine, **wrong)
    (failed,) = reply.messages
    assert isinstance(failed, Failed)
    assert (failed.id, failed.code, failed.field) == (7, code, field)
    assert all(word in f"{failed.message} {failed.limit}" for word in told)
    assert engine.state().waiting == 0
    assert isinstance((await ask(engine)).last, Finished)


async def test_messages_without_a_template_are_refused(autojump_clock: MockClock, serve: Serve) -> None:
    engine, _ = await serve(chat_template=None)
    reply = await read(engine.submit(Generate(id=3, messages=(ChatMessage(role="user", content="hi"),))))
    assert isinstance(reply.last, Failed)
    assert (reply.last.code, reply.last.field) == ("bad_request", "messages")
    assert "no chat template" in reply.last.message


async def test_cancelling_frees_the_slot_within_a_step(autojump_clock: MockClock, serve: Serve) -> None:
    engine, backend = await serve(slots=1, n_batch=10)
    streaming = engine.submit(request(max_tokens=1000))
    while not isinstance(await streaming.receive(), Tokens):
        pass
    follower = engine.submit(request("next in line", max_tokens=1))
    start = trio.current_time()
    streaming.cancel()
    streaming.cancel()
    with pytest.raises(trio.EndOfChannel):
        await streaming.receive()
    assert (await read(follower)).tokens == scripted_tokens("next in line", 1)
    assert trio.current_time() - start <= 0.021

    prompt = engine.submit(request("word " * 1000))
    await trio.sleep(0.1)
    computed = backend.computed
    prompt.cancel()
    await trio.sleep(1)
    assert backend.computed <= computed + 10
    assert engine.state().running == engine.state().waiting == 0


async def test_a_prompt_alone_is_computed_in_steps_of_bounded_length(autojump_clock: MockClock, serve: Serve) -> None:
    engine, backend = await serve(slots=1, n_batch=512, step_time=0, token_time=0.0015)
    for at in (0.01, 0.5, 1.5):
        before = backend.computed
        prompt = engine.submit(request("word " * 2000))
        await trio.sleep(at)
        computed = backend.computed
        prompt.cancel()
        await ask(engine, "next in line", max_tokens=1)
        assert backend.computed - computed <= 3, "no step of the prompt is begun any more"
        assert computed - before <= at / 0.0015 + 192, "0.3 s of prompt at most are computed in one step"


async def test_a_request_can_be_cancelled_before_it_runs(autojump_clock: MockClock, serve: Serve) -> None:
    engine, backend = await serve(slots=1)
    running = engine.submit(request(max_tokens=50))
    at_once = engine.submit(request())
    at_once.cancel()
    waiting = engine.submit(request())
    await trio.sleep(0.1)
    waiting.cancel()
    assert engine.state().waiting == 0
    assert isinstance((await read(running)).last, Finished)
    assert backend.drawn == 50


async def test_cancelling_the_reader_loses_no_token(autojump_clock: MockClock, serve: Serve) -> None:
    engine, _ = await serve()
    generation = engine.submit(request(max_tokens=50))
    tokens: list[int] = []
    while True:
        with trio.move_on_after(0.0037):
            try:
                message = await generation.receive()
            except trio.EndOfChannel:
                break
            if isinstance(message, Tokens):
                tokens += message.token_ids
    assert tokens == scripted_tokens("one two three", 50)


async def test_a_lagging_reader_gets_several_tokens_in_one_message(autojump_clock: MockClock, serve: Serve) -> None:
    engine, _ = await serve()
    generation = engine.submit(request(max_tokens=50))
    await generation.receive()
    await trio.sleep(0.205)
    message = await generation.receive()
    assert isinstance(message, Tokens)
    assert list(message.token_ids) == scripted_tokens("one two three", 20)
    assert message.text == scripted_text(message.token_ids)


async def test_a_reader_that_stops_pauses_only_itself(autojump_clock: MockClock, serve: Serve) -> None:
    engine, backend = await serve(EngineConfig(buffer_tokens=8, reader_timeout=30.0))
    idle = engine.submit(request("idle reader", max_tokens=40))
    start = trio.current_time()
    assert (await ask(engine, max_tokens=100)).tokens == scripted_tokens("one two three", 100)
    assert trio.current_time() - start == pytest.approx(1.0, abs=0.05)
    assert backend.drawn == 108
    assert engine.state().running == 1
    await trio.sleep(20)
    assert (await read(idle)).tokens == scripted_tokens("idle reader", 40)


async def test_the_buffer_is_counted_from_what_was_read(autojump_clock: MockClock, serve: Serve) -> None:
    engine, backend = await serve(EngineConfig(buffer_tokens=8))
    generation = engine.submit(request(max_tokens=100))
    seen = 0
    while seen < 20:
        message = await generation.receive()
        seen += len(message.token_ids) if isinstance(message, Tokens) else 0
    await trio.sleep(1)
    assert backend.drawn == seen + 8


async def test_a_reader_that_stays_away_loses_its_sequence(autojump_clock: MockClock, serve: Serve) -> None:
    engine, _ = await serve(EngineConfig(buffer_tokens=8, reader_timeout=30.0))
    idle = engine.submit(request(max_tokens=40))
    await trio.sleep(29)
    assert engine.state().running == 1
    await trio.sleep(2)
    assert engine.state().running == 0
    reply = await read(idle)
    assert reply.tokens == scripted_tokens("one two three", 8)
    assert isinstance(reply.last, Failed)
    assert (reply.last.code, reply.last.message) == ("slow_reader", "the reader took nothing for 30 s")


async def test_a_failed_computation_ends_the_sequences_in_it(autojump_clock: MockClock, serve: Serve) -> None:
    engine, _ = await serve(fail_at=10)
    reply = await ask(engine)
    assert reply.tokens == scripted_tokens("one two three", 9)
    assert isinstance(reply.last, Failed)
    assert (reply.last.code, reply.last.message) == ("internal", "scripted failure at token 10")
    assert (await ask(engine)).tokens == scripted_tokens("one two three", 20)


async def test_a_model_that_hangs_is_seen_by_its_readers_only_as_silence(
    autojump_clock: MockClock, serve: Serve
) -> None:
    engine, _ = await serve(hang_at=5)
    generation = engine.submit(request())
    with trio.move_on_after(1000) as scope:
        await read(generation)
    assert scope.cancelled_caught
    generation.cancel()
    assert engine.state().running == 0


async def test_stopping_the_engine_ends_what_is_open(autojump_clock: MockClock) -> None:
    backend = ScriptedBackend(step_time=0.01, slots=1)
    async with trio.open_nursery() as nursery:
        engine = await nursery.start(serve_scripted_engine, "model", bytes(32), lambda: backend, EngineConfig())
        generations = [engine.submit(request(max_tokens=1000)) for _ in range(2)]
        await trio.sleep(0.055)
        nursery.cancel_scope.cancel()
    assert backend.closed
    for generation in [*generations, engine.submit(request())]:
        last = (await read(generation)).last
        assert isinstance(last, Failed)
        assert last.code == "draining"


async def test_a_model_that_does_not_load_is_one_plain_error(autojump_clock: MockClock) -> None:
    def fail() -> ScriptedBackend:
        raise ModelFileError("model.gguf is not a GGUF file")

    with pytest.raises(ModelFileError):
        await serve_scripted_engine("model", bytes(32), fail, EngineConfig())


async def test_a_model_that_cannot_compute_is_closed_again(autojump_clock: MockClock) -> None:
    @attrs.define(kw_only=True)
    class Broken(ScriptedBackend):
        def decode(self, chunks: Any) -> None:
            raise BackendError("out of memory")

    backend = Broken()
    with pytest.raises(BackendError, match="out of memory"):
        await serve_scripted_engine("model", bytes(32), lambda: backend, EngineConfig())
    assert backend.closed


async def test_the_state_tells_rates(autojump_clock: MockClock, serve: Serve) -> None:
    engine, _ = await serve(slots=1, token_time=0.001, step_time=0.02)
    idle = engine.state()
    assert (idle.name, idle.slots, idle.n_ctx) == ("model", 1, 2048)
    assert idle.tokens_per_second > 0, "measured before the first request"
    for _ in range(10):
        await ask(engine, "word " * 100)
    state = engine.state()
    assert state.tokens_per_second == pytest.approx(50, rel=0.1)
    assert state.prefill_tokens_per_second == pytest.approx(1 / 0.001, rel=0.01), "beside what a step costs anyway"
    assert state.ttft_s == pytest.approx(32 / 1000 + 0.02, rel=0.2)
    generation = engine.submit(request(max_tokens=20))
    await generation.receive()
    assert engine.state().ttft_s > 0.4


async def test_texts_to_embed_do_not_hold_streams_up(autojump_clock: MockClock, serve: Serve) -> None:
    Embedding.batches.clear()
    engine, _ = await serve(make=Embedding, slots=16, token_time=0.001, step_time=0.02)
    generation = engine.submit(request(max_tokens=200))
    # A step's length is known only after one was measured.
    await ask(engine, "word " * 400, max_tokens=1)
    arrivals: list[float] = []

    async def stream() -> None:
        arrivals.extend([trio.current_time() async for message in generation if isinstance(message, Tokens)])

    async with trio.open_nursery() as users:
        users.start_soon(stream)
        for number in range(3):
            users.start_soon(engine.embed, Embed(id=number, texts=("word " * 40,) * 16))
    assert sum(texts for _, texts in Embedding.batches) == 48
    assert max(later - earlier for earlier, later in pairwise(arrivals)) < 0.15 + 0.02
    assert len({drawn for drawn, _ in Embedding.batches}) == len(Embedding.batches), "a token comes between any two"
    assert engine.rates.embedded_tokens == 48 * 40


async def test_streams_have_as_long_to_themselves_as_a_long_text_took(autojump_clock: MockClock, serve: Serve) -> None:
    Embedding.batches.clear()
    engine, _ = await serve(make=Embedding, slots=8, token_time=0.001, step_time=0.02, embeds_pieces=False)
    stream = engine.submit(request(max_tokens=300))
    answer: list[object] = []

    async def embed() -> None:
        answer.append(await engine.embed(Embed(id=1, texts=("word " * 500,) * 4)))

    async with trio.open_nursery() as users:
        users.start_soon(read, stream)
        users.start_soon(embed)
    assert isinstance(answer[0], Embeddings)
    drawn = [drawn for drawn, _ in Embedding.batches]
    assert len(drawn) == 4, "a text a step"
    # A text takes 0.52 s, and a step with one token some 0.02 s.
    assert min(later - earlier for earlier, later in pairwise(drawn)) >= 20


async def test_a_long_text_is_embedded_in_pieces_beside_a_stream(autojump_clock: MockClock, serve: Serve) -> None:
    Embedding.batches.clear()
    engine, _ = await serve(make=Embedding, slots=8, token_time=0.001, step_time=0.02)
    stream = engine.submit(request(max_tokens=300))
    texts = ("word " * 500, "a short one", "other " * 300)
    answer: list[object] = []

    async def embed() -> None:
        answer.append(await engine.embed(Embed(id=1, texts=texts)))

    async with trio.open_nursery() as users:
        users.start_soon(embed)
        arrivals = [trio.current_time() async for message in stream if isinstance(message, Tokens)]
    (embeddings,) = answer
    assert isinstance(embeddings, Embeddings)
    for text, vector in zip(texts, embeddings.vectors, strict=True):
        assert struct.unpack("<4f", vector) == scripted_vector(text)
    assert max(later - earlier for earlier, later in pairwise(arrivals)) < 0.15 + 0.02
    assert engine.rates.embedded_tokens == 803
    drawn = [drawn for drawn, _ in Embedding.batches]
    assert len(drawn) == len(set(drawn)) > 800 / 130, "a token comes between any two"


async def test_what_nobody_wants_embedded_any_more_is_not_gone_on_with(
    autojump_clock: MockClock, nursery: trio.Nursery, serve: Serve
) -> None:
    engine, _ = await serve(token_time=0.001, step_time=0.02, n_batch=512)
    generation = engine.submit(request(max_tokens=300))
    await trio.sleep(1)
    with trio.move_on_after(1) as patience:
        await engine.embed(Embed(id=1, texts=("word " * 500,) * 4))
    assert patience.cancelled_caught
    embedded = engine.rates.embedded_tokens
    assert 0 < embedded < 500
    with trio.move_on_after(0.01):
        await engine.embed(Embed(id=2, texts=("other " * 500,)))
    answer = await engine.embed(Embed(id=3, texts=("a third one",)))
    assert isinstance(answer, Embeddings)
    assert struct.unpack("<4f", answer.vectors[0]) == scripted_vector("a third one")
    assert engine.rates.embedded_tokens - embedded < 100
    generation.cancel()


async def test_a_text_waits_for_its_share_beside_a_paused_stream(autojump_clock: MockClock, serve: Serve) -> None:
    config = EngineConfig(buffer_tokens=2, reader_timeout=60.0)
    engine, _ = await serve(config, token_time=0.001, step_time=0.02, embeds_pieces=False)
    generation = engine.submit(request(max_tokens=300))
    await trio.sleep(5)
    start = trio.current_time()
    with trio.fail_after(10):
        answer = await engine.embed(Embed(id=1, texts=("word " * 500,) * 3))
    assert isinstance(answer, Embeddings)
    assert trio.current_time() - start == pytest.approx(5 * 0.52, rel=0.1)
    generation.cancel()


async def test_texts_are_embedded_in_full_batches_while_nobody_generates(
    autojump_clock: MockClock, serve: Serve
) -> None:
    engine, _ = await serve(n_batch=512, slots=4, step_time=0.02)
    # A step's length is known only after one was measured.
    await ask(engine, "word " * 1000, max_tokens=1)
    start = trio.current_time()
    answer = await engine.embed(Embed(id=1, texts=("word " * 100,) * 16))
    assert isinstance(answer, Embeddings)
    assert trio.current_time() - start == pytest.approx(4 * 0.02)


async def test_prompts_in_the_way_are_told(autojump_clock: MockClock, serve: Serve) -> None:
    engine, _ = await serve(slots=4, token_time=0.01, step_time=0.02, n_batch=64)
    await ask(engine, "word " * 60)
    idle = engine.state().ttft_s
    engine.submit(request("word " * 400, max_tokens=1))
    await trio.sleep(0.1)
    assert idle < 0.5
    assert 2.0 < engine.state().ttft_s < 5.0
    await trio.sleep(10)
    assert engine.state().ttft_s == pytest.approx(idle, rel=0.3)


@pytest.mark.parametrize(
    ("options", "code", "field"),
    [
        ({"resume": (2**31 - 1,), "grammar": 'root ::= "a"'}, "bad_request", "resume"),
        ({"resume": (1,) * 600_000, "grammar": "root ::= .*"}, "too_long", "resume"),
        ({"prompt": "word " * 100_000}, "too_long", "prompt"),
        ({"json_schema": '{"type": "string", "pattern": "^\\ud800$"}'}, "bad_request", "sampling.json_schema"),
    ],
)
async def test_what_is_cheap_to_refuse_is_refused_before_the_rest(
    autojump_clock: MockClock, serve: Serve, options: dict[str, Any], code: str, field: str
) -> None:
    class Untouched(ScriptedBackend):
        def tokenize(self, text: str, *, whole: bool = False) -> list[int]:
            assert len(text) < 1000
            return super().tokenize(text)

        def check_grammar(self, grammar: str, resume: Sequence[int]) -> None:
            raise AssertionError("followed a grammar")

    engine, _ = await serve(make=Untouched, n_ctx=128, n_vocab=2**31 - 1)
    (failed,) = (await ask(engine, **options)).messages
    assert isinstance(failed, Failed)
    assert (failed.code, failed.field) == (code, field)


async def test_what_nobody_foresaw_ends_one_request_only(
    autojump_clock: MockClock, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    class Surprising(ScriptedBackend):
        def tokenize(self, text: str, *, whole: bool = False) -> list[int]:
            if text == "surprise":
                raise RuntimeError("unforeseen")
            return super().tokenize(text)

    engine, _ = await serve(make=Surprising)
    for answer in ((await ask(engine, "surprise")).last, await engine.embed(Embed(id=7, texts=("surprise",)))):
        assert answer == Failed(id=7, code="internal", message="the request could not be prepared (RuntimeError)")
    assert "unforeseen" in caplog.text
    assert isinstance((await ask(engine)).last, Finished)


@pytest.mark.parametrize("template", ['{{ "\\ud800" }}', '{{ raise_exception("\\ud800") }}'])
async def test_a_template_that_writes_no_text_is_told(autojump_clock: MockClock, serve: Serve, template: str) -> None:
    engine, _ = await serve(chat_template=template)
    reply = await read(engine.submit(Generate(id=3, messages=(ChatMessage(role="user", content="hi"),))))
    assert isinstance(reply.last, Failed)
    assert (reply.last.code, reply.last.field) == ("bad_request", "messages")
    reply.last.message.encode()


async def test_what_has_no_limit_is_promised_by_a_typical_answer(autojump_clock: MockClock, serve: Serve) -> None:
    engine, _ = await serve(EngineConfig(max_waiting=0), slots=1, step_time=0.05)
    engine.submit(request(max_tokens=None))
    for _ in range(2):
        with pytest.raises(EngineBusy) as caught:
            engine.submit(request())
        assert caught.value.retry_after == pytest.approx(128 * 0.05)
        await trio.sleep(1)
