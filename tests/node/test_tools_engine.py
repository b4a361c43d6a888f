"""Tools on real engines: whatever the model draws, calls are well-formed, and a resumed answer is the same answer."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import tiny_models
import trio
from asking import serve
from tool_templates import HERMES, LLAMA_3, MISTRAL

from llamanet.client.tool_calls import CallReader
from llamanet.node.engine import Engine
from llamanet.node.llama import LlamaConfig
from llamanet.wire.inference import Accepted, ChatMessage, Failed, Finished, Generate, Sampling, Tokens
from llamanet.wire.tools import FORMATS, Tool, ToolCall

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "days": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["city", "unit"],
}
LIGHT = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
TOOLS = (
    Tool(name="weather", description="The weather in a city.", parameters=json.dumps(WEATHER)),
    Tool(name="light", description="Switch the light on or off.", parameters=json.dumps(LIGHT)),
)
QUESTION = ChatMessage(role="user", content="What is the weather in Bern, in celsius?")
CONTROLS = ("[TOOL_CALLS]", "<|python_tag|>", "<tool_call>")


@attrs.frozen
class Answer:
    form: str
    tokens: list[int]
    text: str
    words: str
    calls: tuple[ToolCall, ...]
    last: Finished


async def ask(engine: Engine, *, resume: tuple[int, ...] = (), **options: Any) -> Answer:
    """An answer that ends well; options of `Sampling`, and of `Generate`."""
    fields = {name: options.pop(name) for name in [*options] if name in ("tools", "tool_choice", "tool_name")}
    if "parallel" in options:
        fields["parallel_tool_calls"] = options.pop("parallel")
    sampling = Sampling(**{"temperature": 0.0, "max_tokens": 400, **options})
    request = Generate(id=1, messages=(QUESTION,), resume=resume, sampling=sampling, **{"tools": TOOLS, **fields})
    form, tokens, text = "", [], ""
    generation = engine.submit(request)
    try:
        async for message in generation:
            assert not isinstance(message, Failed), message
            if isinstance(message, Accepted):
                form = message.tool_format or ""
            elif isinstance(message, Tokens):
                tokens += message.token_ids
                text += message.text
            else:
                last = message
    finally:
        generation.cancel()
    calls = CallReader(FORMATS[form])
    words = calls.feed(text).text + calls.finish().text
    return Answer(form, tokens, text, words, calls.calls, last)


def check(calls: tuple[ToolCall, ...], at_least: int = 1) -> None:
    assert len(calls) >= at_least
    for call in calls:
        arguments = json.loads(call.arguments)
        if call.name == "light":
            assert list(arguments) == ["on"]
            assert isinstance(arguments["on"], bool)
            continue
        assert call.name == "weather"
        assert arguments.keys() - {"days"} == {"city", "unit"}
        assert arguments["unit"] in ("celsius", "fahrenheit")
        assert len(arguments["city"]) <= 12
        assert set(map(type, arguments.get("days", []))) <= {bool}


@pytest.fixture(scope="module")
def with_markers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("models") / "markers.gguf"
    tiny_models.llama(path, controls=CONTROLS)
    return path


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("template", "form"), [(HERMES, "hermes"), (MISTRAL, "mistral"), (LLAMA_3, "llama3")], ids=lambda text: text[:8]
)
async def test_a_model_that_draws_anything_calls_well(
    nursery: trio.Nursery, with_markers: Path, template: str, form: str, seed: int
) -> None:
    # Byte by byte, the prompt of a few tools is long.
    config = LlamaConfig(model_path=with_markers, n_ctx=512, n_batch=512, n_parallel=1, n_threads=1)
    engine = await serve(nursery, attrs.evolve(config, chat_template=template))
    drawn = {"temperature": 2.0, "seed": seed, "tools": TOOLS[1:], "max_tokens": None}
    must = await ask(engine, tool_choice="required", parallel=False, **drawn)
    assert (must.form, must.words, must.last.reason) == (form, "", "stop")
    check(must.calls)
    assert len(must.calls) == 1
    if form != "llama3":
        # As a special token, or in letters.
        assert must.text.startswith(FORMATS[form].marker)


async def test_a_marker_that_is_a_special_token_is_in_the_text(nursery: trio.Nursery, with_markers: Path) -> None:
    config = LlamaConfig(model_path=with_markers, n_ctx=512, n_batch=512, n_parallel=1, n_threads=1)
    for template, marker in [(MISTRAL, "[TOOL_CALLS]"), (LLAMA_3, "<|python_tag|>"), (HERMES, "<tool_call>")]:
        async with trio.open_nursery() as inner:
            engine = await serve(inner, attrs.evolve(config, chat_template=template))
            backend = engine._core.backend
            (token,) = backend.tokenize(marker)
            assert backend.piece(token) == b""
            answer = await ask(
                engine, tool_choice="required", parallel=False, tools=TOOLS[1:], logit_bias=((token, 50.0),)
            )
            assert answer.tokens[0] == token
            assert answer.text.startswith(marker)
            check(answer.calls)
            # Without tools it adds nothing.
            plain = engine.submit(
                Generate(
                    id=1, prompt="x", sampling=Sampling(logit_bias=((token, 50.0),), temperature=0.0, max_tokens=3)
                )
            )
            assert "".join([m.text async for m in plain if isinstance(m, Tokens)]) == ""
            inner.cancel_scope.cancel()


@pytest.mark.parametrize(
    "options",
    [
        {"tool_choice": "required"},
        {"tool_name": "light"},
        {"tool_choice": "required", "parallel": True, "temperature": 1.0},
        {"tool_choice": "required", "temperature": 1.5},
        {"tool_name": "weather", "temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
    ],
    ids=str,
)
async def test_the_real_model_calls_when_it_must(engine: Engine, options: dict[str, Any]) -> None:
    for seed in (1, 2):
        answer = await ask(engine, seed=seed, tools=TOOLS[:1] if "parallel" in options else TOOLS, **options)
        assert answer.form == "hermes"
        assert (answer.words, answer.last.reason) == ("", "stop") or "parallel" in options
        check(answer.calls[:1])
        if "tool_name" in options:
            assert [call.name for call in answer.calls] == [options["tool_name"]]


async def test_the_real_model_answers_or_calls_as_it_likes(engine: Engine) -> None:
    for seed in range(4):
        answer = await ask(engine, temperature=1.0, seed=seed, max_tokens=60)
        if answer.last.reason == "stop":
            check(answer.calls, 0)
            assert "<tool_call>" not in answer.words
    # Whatever the model would say: once it begins a call, it is held to it.
    begun = tuple(engine._core.backend.tokenize("Well. <tool_call>"))
    answer = await ask(engine, resume=begun, temperature=1.0, seed=1)
    assert answer.last.reason == "stop"
    calls = CallReader(FORMATS["hermes"])
    calls.feed("<tool_call>" + answer.text)
    calls.finish()
    check(calls.calls)


async def test_a_schema_for_the_words_leaves_room_for_calls(engine: Engine) -> None:
    schema = json.dumps({"type": "object", "properties": {"warm": {"type": "boolean"}}, "required": ["warm"]})
    answer = await ask(engine, json_schema=schema)
    assert answer.last.reason == "stop"
    if answer.calls:
        check(answer.calls)
    else:
        assert isinstance(json.loads(answer.words)["warm"], bool)


@pytest.mark.parametrize("options", [{"tool_choice": "required"}, {"temperature": 1.0, "max_tokens": 24}], ids=str)
async def test_a_resumed_answer_is_the_same(engine: Engine, options: dict[str, Any]) -> None:
    whole = await ask(engine, seed=3, **options)
    for cut in {1, len(whole.tokens) // 2, len(whole.tokens) - 1}:
        sequel = await ask(engine, seed=3, resume=tuple(whole.tokens[:cut]), **options)
        assert whole.tokens[:cut] + sequel.tokens == whole.tokens
        assert whole.text.endswith(sequel.text)
        assert sequel.form == whole.form
