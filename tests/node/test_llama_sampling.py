"""Every way of bending the draw, on the real model: that it does what it says, and is the same after a resumption."""

import ctypes
import json
import math
import re
import threading
import time
from typing import Any

import attrs
import llama_cpp.llama_cpp as lib
import pytest
import trio
from asking import STORY, Reply, ask, finished

from llamanet.errors import RequestRefused
from llamanet.node import llama_sampler
from llamanet.node.backend import Chunk
from llamanet.node.engine import Engine
from llamanet.node.llama import LlamaBackend
from llamanet.node.llama_dry import MADE, DrySamplers
from llamanet.node.llama_grammar import MAX_SLOW, SLOW_S, SlowGrammars
from llamanet.wire.inference import Failed, Finished, Sampling

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}, "people": {"type": "integer"}},
        "required": ["city", "people"],
    }
)
BENT: list[dict[str, Any]] = [
    {"logit_bias": ((28, 3.0), (253, -5.0))},
    {"dry_multiplier": 2.0, "dry_allowed_length": 1},
    {"dry_multiplier": 2.0, "dry_penalty_last_n": 8, "repeat_penalty": 1.3, "frequency_penalty": 0.4},
    {"ignore_eos": True},
    {"min_tokens": 20},
    {"grammar": 'root ::= ([a-z]+ " "?)+ "."'},
    {"json_schema": SCHEMA},
    {"json_schema": SCHEMA, "repeat_penalty": 1.2, "dry_multiplier": 1.0, "logit_bias": ((34, 4.0),)},
    {"logprobs": 2},
    {"typical_p": 0.5, "top_p": 0.9, "min_p": 0.02, "presence_penalty": 0.5},
]


@pytest.mark.parametrize("sampling", BENT, ids=lambda sampling: "+".join(sampling))
@pytest.mark.parametrize("temperature", [0.0, 1.2])
async def test_a_resumed_stream_draws_what_the_first_node_would_have(
    engine: Engine, sampling: dict[str, Any], temperature: float
) -> None:
    options = {"temperature": temperature, "seed": 5, "max_tokens": 24, **sampling}
    whole = await finished(engine, **options)
    assert len(whole.tokens) > 3
    for cut in {1, len(whole.tokens) // 2, len(whole.tokens) - 1, len(whole.tokens)}:
        sequel = await finished(engine, resume=tuple(whole.tokens[:cut]), **options)
        assert whole.tokens[:cut] + sequel.tokens == whole.tokens
        assert whole.text.endswith(sequel.text)
        assert isinstance(sequel.last, Finished)
        assert isinstance(whole.last, Finished)
        assert (sequel.last.reason, sequel.last.usage.completion_tokens) == (whole.last.reason, len(whole.tokens))
        assert [told.token for told in sequel.logprobs] == (sequel.tokens if "logprobs" in sampling else [])


async def test_a_bias_forbids_and_forces(engine: Engine) -> None:
    plain = await finished(engine, max_tokens=4)
    without = await finished(engine, max_tokens=4, logit_bias=((plain.tokens[0], -100.0),))
    assert without.tokens[0] != plain.tokens[0]
    forced = await finished(engine, max_tokens=4, temperature=1.0, seed=1, logit_bias=((198, 100.0),))
    assert forced.tokens == [198] * 4
    twice = await finished(engine, max_tokens=1, logit_bias=((198, 50.0), (198, 50.0)))
    assert twice.tokens == [198]


async def test_sequence_breakers_are_looked_up_beside_the_engine(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_in = []
    make = lib.llama_sampler_init_dry

    def spy(*args: Any) -> Any:
        made_in.append(threading.current_thread().name)
        return make(*args)

    monkeypatch.setattr(lib, "llama_sampler_init_dry", spy)
    for _ in range(2):
        await finished(engine, max_tokens=2, dry_multiplier=1.0, dry_sequence_breakers=("qz", "zq"))
    assert len(made_in) == 1
    assert not made_in[0].startswith("engine")


def test_dry_samplers_of_the_latest_settings_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[object] = []
    monkeypatch.setattr(lib, "llama_sampler_init_dry", lambda *args: object())
    monkeypatch.setattr(lib, "llama_sampler_free", freed.append)
    samplers = DrySamplers(ctypes.c_void_p(), n_ctx=64)
    for number in range(MADE + 3):
        samplers.ready(Sampling(dry_multiplier=1.0, dry_allowed_length=number))
    samplers.ready(Sampling())
    assert len(freed) == 3
    samplers.close()
    assert len(set(freed)) == len(freed) == MADE + 3


async def test_the_smallest_temperatures_are_greedy(engine: Engine) -> None:
    greedy = await finished(engine, max_tokens=8)
    for temperature in (1e-38, 1e-45, 9e-7):
        cold = await finished(engine, max_tokens=8, temperature=temperature, seed=1, top_k=0, top_p=1.0, min_p=0.0)
        assert cold.tokens == greedy.tokens


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_the_end_is_put_off_or_does_not_come(engine: Engine, temperature: float) -> None:
    # A bias makes the end certain.
    options = {"logit_bias": ((2, 100.0),), "temperature": temperature, "seed": 3}
    assert (await finished(engine, **options)).tokens == [2]
    later = await finished(engine, min_tokens=5, **options)
    assert (len(later.tokens), later.tokens[5:]) == (6, [2])
    never = await finished(engine, ignore_eos=True, **options)
    assert isinstance(never.last, Finished)
    assert (never.last.reason, len(never.tokens)) == ("length", 16)


async def test_dry_breaks_a_loop_and_stops_at_breakers(engine: Engine) -> None:
    prompt = "one two three four five\n" * 12 + "one two"
    loop = await finished(engine, prompt, max_tokens=8)
    assert "three four five" in loop.text
    dry = {"dry_multiplier": 5.0, "max_tokens": 8}
    assert "three four five" not in (await finished(engine, prompt, **dry)).text
    assert (await finished(engine, prompt, **dry, dry_penalty_last_n=1)).tokens == loop.tokens
    assert (await finished(engine, prompt, **dry, dry_allowed_length=500)).tokens == loop.tokens
    assert (await finished(engine, prompt, **dry, dry_sequence_breakers=(" two",))).tokens[0] == loop.tokens[0]


async def test_narrower_draws_are_greedier(engine: Engine) -> None:
    greedy = await finished(engine)
    options = {"temperature": 3.0, "seed": 4, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    wild = await finished(engine, **options)
    assert wild.tokens != greedy.tokens
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-3}):
        assert (await finished(engine, **{**options, **narrow})).tokens == greedy.tokens, narrow
    typical = await finished(engine, **{**options, "typical_p": 1e-6})
    assert typical.tokens != wild.tokens
    assert typical.tokens == (await finished(engine, **{**options, "typical_p": 1e-6, "seed": 5})).tokens


async def test_penalties_reach_as_far_as_they_are_told(engine: Engine) -> None:
    prompt = "la la la la la la la la la la"
    plain = await finished(engine, prompt)
    for penalty in ({"repeat_penalty": 10.0}, {"presence_penalty": 10.0}, {"frequency_penalty": 10.0}):
        bent = await finished(engine, prompt, **penalty)
        assert bent.tokens != plain.tokens, penalty
        assert (await finished(engine, prompt, penalty_last_n=0, **penalty)).tokens == plain.tokens
    # A negative one draws towards what was said.
    loop = await finished(engine, prompt, frequency_penalty=-10.0)
    assert len(set(loop.tokens)) == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_a_stop_string_never_shows_wherever_tokens_end(engine: Engine, temperature: float) -> None:
    options = {"temperature": temperature, "seed": 9, "max_tokens": 20, "ignore_eos": True}
    # Bytes of a character, and of a word, that come as tokens of their own.
    grammar = 'root ::= "one" " two" " ☕" "漢字" " three" " four"'
    for sampling in (options, {**options, "ignore_eos": False, "grammar": grammar}):
        whole = await finished(engine, **sampling)
        for start in range(0, len(whole.text) - 1, 9):
            for length in (1, 4):
                stop = whole.text[start : start + length]
                cut = await finished(engine, **sampling, stop=(stop, "never said"))
                assert cut.text == whole.text[: whole.text.index(stop)]
                assert cut.finished.reason == "stop"
        unmatched = await finished(engine, **sampling, stop=(whole.text[-2:] + "X", whole.text + "X"))
        assert unmatched.text == whole.text


@pytest.mark.parametrize("temperature", [0.0, 1.5])
async def test_text_follows_a_schema(engine: Engine, temperature: float) -> None:
    for seed in range(3):
        reply = await finished(
            engine, "A city as JSON:", json_schema=SCHEMA, temperature=temperature, seed=seed, max_tokens=100
        )
        city = json.loads(reply.text)
        assert isinstance(city["people"], int)
        assert len(city["city"]) <= 12


@pytest.mark.parametrize("temperature", [0.0, 1.5])
async def test_text_follows_a_grammar(engine: Engine, temperature: float) -> None:
    grammar = 'root ::= "é" [0-9]{3} ("ja" | "nein") "\\n"'
    for seed in range(3):
        reply = await finished(engine, grammar=grammar, temperature=temperature, seed=seed)
        assert re.fullmatch(r"é[0-9]{3}(ja|nein)\n", reply.text)
        assert isinstance(reply.last, Finished)
        assert reply.last.reason == "stop"


async def test_a_grammar_that_nothing_can_follow_ends_the_text(engine: Engine) -> None:
    reply = await finished(engine, grammar='root ::= "a" [^\\x00-\\U0010FFFF]')
    assert isinstance(reply.last, Finished)
    assert (reply.text, reply.last.reason) == ("a", "stop")
    again = await finished(engine, grammar='root ::= "a" [^\\x00-\\U0010FFFF]', resume=tuple(reply.tokens))
    assert isinstance(again.last, Finished)
    assert (again.tokens, again.last.reason) == ([], "stop")


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"grammar": "root ::= ("}, "sampling.grammar"),
        ({"grammar": "root ::= x"}, "sampling.grammar"),
        ({"grammar": 'stem ::= "a"'}, "sampling.grammar"),
        ({"grammar": 'root ::= root "a"'}, "sampling.grammar"),
        ({"grammar": 'root ::= "a"{3000}'}, "sampling.grammar"),
        ({"grammar": "\0"}, "sampling.grammar"),
        ({"grammar": 'root ::= "yes"', "resume": (28,)}, "resume"),
        ({"json_schema": '{"type": "nonsense"}'}, "sampling.json_schema"),
        ({"logit_bias": ((49_152, 1.0),)}, "sampling.logit_bias"),
        ({"min_tokens": 17}, "sampling.min_tokens"),
    ],
)
async def test_what_cannot_be_used_is_refused_and_the_engine_goes_on(
    engine: Engine, wrong: dict[str, Any], field: str
) -> None:
    reply = await ask(engine, **wrong)
    assert isinstance(reply.last, Failed)
    assert (reply.last.code, reply.last.field) == ("bad_request", field)
    assert reply.last.message
    assert (await finished(engine)).tokens


async def test_grammars_in_one_batch_do_not_meet(engine: Engine) -> None:
    replies: dict[int, Reply] = {}

    async def one(digit: int) -> None:
        replies[digit] = await finished(engine, grammar=f'root ::= "{digit}"{{8}}', temperature=1.0, seed=digit)

    async with trio.open_nursery() as streams:
        for digit in range(6):
            streams.start_soon(one, digit)
    assert {digit: reply.text for digit, reply in replies.items()} == {digit: str(digit) * 8 for digit in range(6)}


async def test_log_probabilities_are_the_models(engine: Engine) -> None:
    reply = await finished(engine, logprobs=5, max_tokens=6)
    for token, told in zip(reply.tokens, reply.logprobs, strict=True):
        assert told.token == token
        assert told.top[0] == attrs.evolve(told.top[0], token=token, piece=told.piece, logprob=told.logprob)
        ordered = [chance.logprob for chance in told.top]
        assert ordered == sorted(ordered, reverse=True)
        assert sum(map(math.exp, ordered)) <= 1 + 1e-6
    assert b"".join(told.piece for told in reply.logprobs).decode() == reply.text
    # Nothing that bends the draw shows in them.
    forced = await finished(engine, logprobs=5, max_tokens=1, logit_bias=((198, 100.0),), temperature=2.0, seed=1)
    assert forced.logprobs[0].token == 198
    assert forced.logprobs[0].top == reply.logprobs[0].top
    assert forced.logprobs[0].logprob < reply.logprobs[0].logprob
    assert (await finished(engine, logprobs=0, max_tokens=2)).logprobs[0].top == ()


def test_all_probabilities_make_one(backend: LlamaBackend) -> None:
    prompt = backend.tokenize(STORY)
    backend.begin(0, Sampling(temperature=0, logprobs=20), 0, prompt, [])
    backend.decode([Chunk(0, 0, prompt, True)])
    drawn = backend.draw(0, 0)
    total = sum(math.exp(backend.logprobs(0, token, 0).logprob) for token in range(0, backend.n_vocab, 16))
    assert 0 < total < 1
    assert backend.logprobs(0, drawn, 20).top[0].token == drawn
    backend.end(0)
    backend.forget(0, 0)


def test_log_probabilities_that_were_not_asked_for_are_a_mistake(backend: LlamaBackend) -> None:
    prompt = backend.tokenize(STORY)
    backend.begin(0, Sampling(temperature=0), 0, prompt, [])
    with pytest.raises(ValueError, match="not asked for"):
        backend.logprobs(0, 1, 0)
    backend.end(0)


async def test_a_grammar_that_cannot_be_used_is_told_to_the_client_alone(
    engine: Engine, capfd: pytest.CaptureFixture[str]
) -> None:
    for grammar in ("root ::= (", "root ::= x", 'root ::= root "a"', 'root ::= "a"{3000}', '"', "root ::= <[5]>"):
        reply = await ask(engine, grammar=grammar)
        assert (reply.failed.code, reply.failed.field) == ("bad_request", "sampling.grammar")
    assert capfd.readouterr() == ("", "")


async def test_a_grammar_that_takes_too_long_fails_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_sampler, "MAX_GRAMMAR_S", 0.0)
    reply = await ask(engine, grammar="root ::= [a-z ]+")
    assert (reply.failed.code, reply.failed.field) == ("bad_request", "sampling.grammar")
    assert reply.failed.limit
    monkeypatch.undo()
    again = await ask(engine, grammar="root ::= [a-z ]+")
    assert "a while ago" in again.failed.message
    assert not isinstance((await ask(engine, grammar="root ::= [a-z]+")).last, Failed)
    assert (await finished(engine)).tokens
    assert engine.state().running == 0


async def test_a_slow_grammar_is_not_tried_again_by_those_that_wait(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_sampler, "MAX_GRAMMAR_S", 0.0)
    replies: list[Reply] = []

    async def one() -> None:
        replies.append(await ask(engine, grammar="root ::= [a-z ]+"))

    async with trio.open_nursery() as clients:
        for _ in range(3):
            clients.start_soon(one)
    assert sorted("took more" in reply.failed.message for reply in replies) == [False, False, True]


def test_slow_grammars_are_forgotten_in_time() -> None:
    now = 0.0
    slow = SlowGrammars(lambda: now)
    for number in range(MAX_SLOW + 1):
        slow.add(f"root ::= {number}")
    slow.check("root ::= 0")
    with pytest.raises(RequestRefused, match="a while ago"):
        slow.check("root ::= 1")
    now = SLOW_S
    slow.check("root ::= 1")


def test_a_refused_grammar_leaves_nothing(backend: LlamaBackend) -> None:
    start = time.perf_counter()
    for _ in range(200):
        with pytest.raises(RequestRefused, match="cannot use this grammar"):
            backend.check_grammar("root ::= (", [])
    assert time.perf_counter() - start < 5
