"""Tools and structured answers through the `openai` SDK and LangChain, unmocked: a gateway, a node, the real model."""

import json
import threading
from typing import Literal

import openai
import pydantic
import pytest
import trio
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

from llamanet.gateway.config import GatewayConfig
from llamanet.gateway.service import serve_gateway
from llamanet.swarm import Swarm

NAME = "SmolLM2-135M-Instruct.Q4_1"
ASKED = [{"role": "user", "content": "What is the weather in Bern, in celsius?"}]
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "The weather now.", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now", "description": "The time."}},
]
CHOOSE_WEATHER = {"type": "function", "function": {"name": "weather"}}


class Weather(pydantic.BaseModel):
    """The weather in a city."""

    city: str = pydantic.Field(max_length=12)
    unit: Literal["celsius", "fahrenheit"]


@pytest.fixture(scope="module")
def url(model):
    ready, told = threading.Event(), []

    async def main():
        async with Swarm(host="127.0.0.1", no_tls=True) as swarm, trio.open_nursery() as nursery:
            await swarm.serve(model, n_ctx=1024, n_parallel=2, n_threads=1)
            server = await nursery.start(serve_gateway, swarm, GatewayConfig(http_port=0))
            told.extend([server.url, nursery.cancel_scope, trio.lowlevel.current_trio_token()])
            ready.set()

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    assert ready.wait(60)
    yield f"{told[0]}/v1"
    trio.from_thread.run_sync(told[1].cancel, trio_token=told[2])
    thread.join()


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def check(call):
    assert call.type == "function"
    assert call.id
    assert call.function.name in ("weather", "now")
    arguments = json.loads(call.function.arguments)
    if call.function.name == "weather":
        Weather.model_validate(arguments)
    else:
        assert arguments == {}


@pytest.mark.parametrize(
    ("choice", "tools"), [("required", TOOLS[:1]), (CHOOSE_WEATHER, TOOLS)], ids=["required", "named"]
)
def test_a_call_that_must_be(client, choice, tools):
    for seed in (1, 2):
        options = {"model": NAME, "messages": ASKED, "tools": tools, "tool_choice": choice, "seed": seed}
        answer = client.chat.completions.create(**options)
        told = answer.choices[0]
        assert (told.finish_reason, told.message.content) == ("tool_calls", None)
        (call,) = told.message.tool_calls
        check(call)
        chunks = list(client.chat.completions.create(**options, stream=True))
        deltas = [delta for chunk in chunks for delta in chunk.choices[0].delta.tool_calls or []]
        first, *others = deltas
        assert (first.index, first.type, first.function.name) == (0, "function", "weather")
        assert first.id
        assert all(delta.id is delta.function.name is None and delta.index == 0 for delta in others)
        Weather.model_validate_json("".join(delta.function.arguments for delta in deltas))
        assert not any(chunk.choices[0].delta.content for chunk in chunks)
        assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_the_sdk_puts_a_stream_together(client):
    with client.chat.completions.stream(model=NAME, messages=ASKED, tools=TOOLS, tool_choice="required") as stream:
        for _ in stream:
            pass
        told = stream.get_final_completion().choices[0]
    assert told.finish_reason == "tool_calls"
    check(told.message.tool_calls[0])


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_may_be(client, stream):
    options = {"model": NAME, "messages": ASKED, "tools": TOOLS, "max_tokens": 60, "temperature": 1.0}
    for seed in range(2):
        if stream:
            with client.chat.completions.stream(**options, seed=seed) as told:
                for _ in told:
                    pass
                choice = told.current_completion_snapshot.choices[0]
        else:
            choice = client.chat.completions.create(**options, seed=seed).choices[0]
        if choice.finish_reason == "tool_calls":
            for call in choice.message.tool_calls:
                check(call)
        else:
            assert choice.message.content
            assert choice.finish_reason in ("stop", "length")


def test_a_conversation_goes_on_after_a_call(client):
    options = {"model": NAME, "tools": TOOLS, "seed": 1, "temperature": 0.0, "max_tokens": 40}
    called = client.chat.completions.create(messages=ASKED, tool_choice=CHOOSE_WEATHER, **options).choices[0].message
    result = {"role": "tool", "tool_call_id": called.tool_calls[0].id, "content": '{"degrees": 21}'}
    later = client.chat.completions.create(messages=[*ASKED, called, result], tool_choice="none", **options)
    assert later.choices[0].message.content
    assert later.choices[0].message.tool_calls is None


def test_what_is_wrong_is_400(client):
    for wrong, param in [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": TOOLS, "tool_choice": "perhaps"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "nonsense"}}}]}, None),
    ]:
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model=NAME, messages=ASKED, **wrong)
        assert param is None or caught.value.param == param


def test_parsed_answers(client):
    told = client.chat.completions.parse(model=NAME, messages=ASKED, response_format=Weather, temperature=0.0)
    assert isinstance(told.choices[0].message.parsed, Weather)
    told = client.chat.completions.parse(
        model=NAME, messages=ASKED, tools=[openai.pydantic_function_tool(Weather)], tool_choice="required"
    )
    assert isinstance(told.choices[0].message.tool_calls[0].function.parsed_arguments, Weather)


@tool
def weather(city: str, unit: Literal["celsius", "fahrenheit"]) -> str:
    """The weather in a city now."""
    return f"21 degrees {unit} in {city}"


def test_langchain(url):
    chat = ChatOpenAI(base_url=url, api_key="none", model=NAME, temperature=0.0, max_tokens=120, seed=1)
    bound = chat.bind_tools([weather], tool_choice="any")
    question = HumanMessage("What is the weather in Bern, in celsius?")
    said = bound.invoke([question])
    (call,) = said.tool_calls
    assert call["name"] == "weather"
    result = weather.invoke(call)
    assert isinstance(result, ToolMessage)
    assert chat.bind_tools([weather]).invoke([question, said, result])
    streamed = None
    for chunk in bound.stream([question]):
        streamed = chunk if streamed is None else streamed + chunk
    assert [each["args"] for each in streamed.tool_calls] == [call["args"]]
    for method in ("function_calling", "json_schema"):
        answer = chat.with_structured_output(Weather, method=method).invoke([question])
        assert isinstance(answer, Weather)
