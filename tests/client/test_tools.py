"""Tools as an application asks for them: what is sent, what comes back, and that a lost node changes nothing of it."""

import json
from typing import Any

import pytest
import trio

from llamanet.client.client import make_request
from llamanet.client.tool_calls import ToolCallDelta
from llamanet.errors import NoNodeServes, RequestRefused
from llamanet.testing.cluster import Cluster
from llamanet.wire.inference import ChatMessage
from llamanet.wire.tools import Tool, ToolCall

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Now.", "parameters": PARAMETERS}}
NOW = {"type": "function", "function": {"name": "now", "strict": True}}
CHOOSE_NOW = {"type": "function", "function": {"name": "now"}}
ASKED = [{"role": "user", "content": "Weather?"}]
RECITED = (
    'Ich schaue nach. 🦙\n<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich <a> }"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
)


def calls_in(deltas: list[ToolCallDelta]) -> list[tuple[str | None, str | None, str]]:
    calls: list[tuple[str | None, str | None, str]] = []
    for delta in deltas:
        if delta.index == len(calls):
            calls.append((delta.id, delta.name, ""))
        id, name, arguments = calls[delta.index]
        calls[delta.index] = (id, name, arguments + delta.arguments)
    return calls


@pytest.mark.parametrize("moments", [(), (3,), (25, 60, 61), (30, 90, 130)])
async def test_calls_come_as_deltas_whatever_becomes_of_nodes(autojump_clock, nursery, moments):
    cluster = Cluster(nursery)
    await cluster.start_nodes(4, step_time=0.02, recites=RECITED)
    client = await cluster.start_client()
    left, text, deltas = list(moments), "", []
    async with client.stream(messages=ASKED, tools=[WEATHER, NOW], parallel_tool_calls=True) as stream:
        async for chunk in stream:
            text += chunk.text
            deltas += chunk.tool_calls
            if left and len(stream.token_ids) >= left[0]:
                left.pop(0)
                cluster.kill(stream.node_id)
    reply = stream.reply()
    assert reply.text == text == "Ich schaue nach. 🦙"
    assert reply.finish_reason == stream.finish_reason == "tool_calls"
    assert [(call.name, json.loads(call.arguments)) for call in reply.tool_calls] == [
        ("weather", {"city": "Zürich <a> }"}),
        ("now", {}),
    ]
    assert calls_in(deltas) == [(call.id, call.name, call.arguments) for call in reply.tool_calls]
    assert len(deltas) > 10
    assert len(reply.hops) == len(moments)


@pytest.mark.parametrize(
    ("recited", "options", "text", "calls", "reason"),
    [
        ("Sunny <tool_", {}, "Sunny <tool_", [], "stop"),
        (
            RECITED,
            {"max_tokens": len(RECITED.partition("ürich")[0].encode())},
            "Ich schaue nach. 🦙",
            ['{"city": "Z'],
            "length",
        ),
        (RECITED, {"stop": ["<a>"]}, "Ich schaue nach. 🦙", ['{"city": "Zürich '], "stop"),
        ('Well. <tool_call>{"name": 5}</tool_call>', {}, 'Well. <tool_call>{"name": 5}</tool_call>', [], "stop"),
    ],
)
async def test_what_is_no_call_or_not_a_whole_one(autojump_clock, nursery, recited, options, text, calls, reason):
    cluster = Cluster(nursery)
    await cluster.start_nodes(1, recites=recited)
    reply = await (await cluster.start_client()).generate(messages=ASKED, tools=[WEATHER, NOW], **options)
    assert (reply.text, [call.arguments for call in reply.tool_calls], reply.finish_reason) == (text, calls, reason)


async def test_what_is_not_offered_is_not_called(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(1, recites=RECITED)
    client = await cluster.start_client()
    for options in ({}, {"tools": []}, {"tools": [WEATHER], "tool_choice": "none"}):
        reply = await client.generate(messages=ASKED, **options)
        assert (reply.text, reply.tool_calls, reply.finish_reason) == (RECITED, (), "stop")


async def test_a_node_that_writes_calls_otherwise_is_left(autojump_clock, nursery):
    cluster = Cluster(nursery)
    native = (
        "{% if tools %}{{ tools }}{% endif %}{% for m in messages %}{{ m.content }}"
        "{% if m.tool_calls %}[TOOL_CALLS][{% for c in m.tool_calls %}{{ c.function | tojson }}"
        "{% if not loop.last %}, {% endif %}{% endfor %}]{% endif %}{% endfor %}"
    )
    await cluster.start_node("other", model="beta")  # A way into the swarm that stays.
    await cluster.start_node("a", recites=RECITED, step_time=0.5)
    await trio.sleep(3)
    client = await cluster.start_client()
    async with client.stream(messages=ASKED, model="alpha", tools=[WEATHER]) as stream:
        await stream.__anext__()
        await cluster.start_node("b", recites=RECITED, chat_template=native)
        await trio.sleep(3)
        cluster.kill("a")
        with pytest.raises(NoNodeServes):
            [chunk async for chunk in stream]
    assert ("b", "it writes calls as 'mistral', and not as hermes") in stream.hops


def test_a_request_in_openais_form():
    request = make_request(
        None,
        [
            *ASKED,
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "c1", "name": "now", "content": "12:00"},
        ],
        None,
        {"tools": [WEATHER, NOW], "tool_choice": CHOOSE_NOW, "parallel_tool_calls": False},
    )
    assert request.tools == (
        Tool(name="weather", description="Now.", parameters=json.dumps(PARAMETERS)),
        Tool(name="now"),
    )
    assert (request.tool_choice, request.tool_name, request.parallel_tool_calls) == ("required", "now", False)
    assert request.messages[1:] == (
        ChatMessage(role="assistant", content="", tool_calls=(ToolCall(id="c1", name="now", arguments="{}"),)),
        ChatMessage(role="tool", content="12:00", tool_call_id="c1"),
    )
    # A turn of our own form stays as it is.
    again = make_request(None, request.messages, None, {"tool_choice": "auto", "tools": None})
    assert (again.messages, again.tools) == (request.messages, ())


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"tools": [{"name": "f"}]}, "tools"),
        ({"tools": [{"type": "retrieval"}]}, "tools"),
        ({"tools": ["f"]}, "tools"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].name"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].name"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {1: object()}}}]}, "tools"),
        ({"tools": [WEATHER] * 129}, "tools"),
        ({"tools": [WEATHER], "tool_choice": "now"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": CHOOSE_NOW}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "parallel_tool_calls": "yes"}, "parallel_tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": "f"}]}, "messages.tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "messages.tool_calls"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f"}}]}]},
            "messages[0].tool_calls[0].arguments",
        ),
        ({"messages": None, "prompt": "a", "tools": [WEATHER]}, "tools"),
    ],
)
async def test_bad_tools_are_refused_before_they_are_sent(autojump_clock, nursery, options: dict[str, Any], field: str):
    client = await Cluster(nursery).start_client()
    with pytest.raises(RequestRefused) as caught:
        await client.generate(**{"messages": ASKED, **options})
    assert caught.value.field == field


async def test_what_a_node_refuses_is_told(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(1)
    client = await cluster.start_client()
    wrong = {"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}
    with pytest.raises(RequestRefused, match="no schema of an object") as caught:
        await client.generate(messages=ASKED, tools=[WEATHER, wrong])
    assert caught.value.field == "tools[1].parameters"
    with pytest.raises(RequestRefused, match="do not go together"):
        await client.generate(messages=ASKED, tools=[WEATHER], grammar='root ::= "x"')


async def test_a_journal_keeps_calls(autojump_clock, nursery, tmp_path):
    cluster = Cluster(nursery)
    await cluster.start_nodes(1, recites=RECITED)
    client = await cluster.start_client()
    options = {"journal": tmp_path / "journal", "tools": [WEATHER, NOW]}
    replies = []
    for _ in range(2):
        async with client.map([ASKED], **options) as results:
            replies += [result.reply async for result in results]
        cluster.nodes["node-0"].backend.recites = "something else"
    assert replies[0].tool_calls == replies[1].tool_calls
    assert [call.name for call in replies[1].tool_calls] == ["weather", "now"]
