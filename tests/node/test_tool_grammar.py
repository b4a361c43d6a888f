"""What an answer with tools may look like: each text of a few is a text of the grammar, or is not."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamanet.errors import RequestRefused
from llamanet.node.gbnf import Characters, Grammar
from llamanet.node.tool_grammar import MAX_CALLS_AT_ONCE, tools_grammar
from llamanet.node.tool_prompt import CallStyle
from llamanet.wire.inference import ChatMessage, Generate, Sampling
from llamanet.wire.tools import FORMATS, Tool

WEATHER = Tool(
    name="weather",
    parameters=json.dumps(
        {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/value"}, "days": {"type": "integer"}},
            "required": ["city"],
            "$defs": {"value": {"enum": ["Bern", "Rom"]}},
        }
    ),
)
PAINT = Tool(
    name='say "hi"\n',
    parameters='{"type": "object", "properties": {"c": {"$ref": "#/$defs/value"}}, "required": ["c"], '
    '"$defs": {"value": {"type": "object", "properties": {"of": {"$ref": "#/$defs/value"}}}}}',
)
NOW = Tool(name="now")
BERN = '{"name": "weather", "arguments": {"city": "Bern"}}'
ROM = '{"name":"weather","arguments":{"city":"Rom","days":3}}'
TIME = '{"name": "now", "arguments": {}}'


def grammar_of(form: str, *tools: Tool, several: bool = True, native: bool = True, **options: Any) -> str:
    request = Generate(
        id=1, messages=(ChatMessage(role="user", content="?"),), tools=tools or (WEATHER, NOW), **options
    )
    return tools_grammar(request, CallStyle(form, native=native, several=several))


def follows(grammar: str, text: str) -> bool | None:
    """Whether `text` is one of the grammar's; None if it is the beginning of one."""
    rules = Grammar(grammar)
    stacks: set[tuple[Any, ...]] = expand(rules, {(rules.root,)})
    for character in text:
        taken = {
            stack[1:] for stack in stacks if stack and isinstance(stack[0], Characters) and ord(character) in stack[0]
        }
        stacks = expand(rules, taken)
        if not stacks:
            return False
    return True if () in stacks else None


def expand(rules: Grammar, stacks: set[tuple[Any, ...]]) -> set[tuple[Any, ...]]:
    todo, found = list(stacks), set()
    while todo:
        stack = todo.pop()
        if stack in found:
            continue
        found.add(stack)
        if stack and isinstance(stack[0], int):
            todo += [(*alternative, *stack[1:]) for alternative in rules.rules[stack[0]]]
    return {stack for stack in found if not stack or isinstance(stack[0], Characters)}


@pytest.mark.parametrize(
    ("form", "text", "right"),
    [
        ("hermes", "", True),
        ("hermes", "It is warm <b> in <tool_", True),
        ("hermes", f"<tool_call>\n{BERN}\n</tool_call>", True),
        ("hermes", f"<tool_call>{ROM}</tool_call>", True),
        ("hermes", f"I look. <tool<tool_call>\n{BERN}\n</tool_call>\n<tool_call>\n{TIME}\n</tool_call>", True),
        ("hermes", "<tool_call>", None),
        ("hermes", f"<tool_call>\n{BERN}", None),
        ("hermes", "<tool_call>\nweather", False),
        ("hermes", f"<tool_call>\n{BERN}\n</tool_call> and", False),
        ("hermes", f"<tool_call>\n{BERN.replace('Bern', 'Paris')}\n</tool_call>", False),
        ("hermes", f"<tool_call>\n{BERN.replace('weather', 'other')}\n</tool_call>", False),
        ("hermes", '<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>', False),
        ("mistral", f"[TOOL_CALLS] [{BERN}, {TIME}]", True),
        ("mistral", f'Well.[TOOL_CALLS][{{"name":"now","arguments":{{}},"id":"a1b2c3d4e"}},{TIME}]', True),
        ("mistral", f"[TOOL_CALLS] {BERN}", False),
        ("mistral", f"[[TOOL_CALLS] [{BERN}", None),
        ("llama3", BERN.replace("arguments", "parameters"), True),
        ("llama3", "<|python_tag|>" + BERN.replace("arguments", "parameters"), True),
        ("llama3", BERN, False),
        ("llama3", '{"nam', True),
        ("llama3", '{"title": "x"} {"name": "other"}', True),
        ("llama3", "", True),
        ("llama3", '{"name": "other"', False),
    ],
)
def test_texts_of_each_format(form, text, right):
    assert follows(grammar_of(form), text) is right


@pytest.mark.parametrize(
    ("options", "text", "right"),
    [
        ({"tool_choice": "required"}, "", None),
        ({"tool_choice": "required"}, "Well", False),
        ({"tool_choice": "required"}, f"<tool_call>\n{TIME}\n</tool_call>", True),
        ({"tool_name": "now"}, f"<tool_call>\n{TIME}\n</tool_call>", True),
        ({"tool_name": "now"}, "<tool_call>\n" + '{"name": "we', False),
        ({"tool_name": "now"}, f"<tool_call>\n{TIME}\n</tool_call>\n<", False),
        ({"several": False}, f"<tool_call>\n{TIME}\n</tool_call>\n<", False),
        ({"parallel_tool_calls": False}, f"<tool_call>\n{TIME}\n</tool_call>\n<", False),
        ({"native": False}, f"<tool_call>\n{TIME}\n</tool_call>\n<", False),
        ({"native": False, "parallel_tool_calls": True}, f"<tool_call>\n{TIME}\n</tool_call>\n<", None),
        ({"sampling": Sampling(json_schema='{"type": "integer"}')}, "12", True),
        ({"sampling": Sampling(json_schema='{"type": "integer"}')}, f"<tool_call>\n{TIME}\n</tool_call>", True),
        ({"sampling": Sampling(json_schema='{"type": "integer"}')}, "It", False),
    ],
)
def test_what_is_asked_for(options, text, right):
    assert follows(grammar_of("hermes", **options), text) is right


def test_calls_end_some_time():
    call = f"<tool_call>\n{TIME}\n</tool_call>\n"
    assert follows(grammar_of("hermes"), call * MAX_CALLS_AT_ONCE) is False
    assert follows(grammar_of("hermes"), (call * MAX_CALLS_AT_ONCE).rstrip()) is True


def test_schemas_with_the_same_names_inside_do_not_mix():
    grammar = grammar_of("hermes", WEATHER, PAINT)
    calls = [
        '{"name": "say \\"hi\\"\\n", "arguments": {"c": {"of": {"of": {}}}}}',
        '{"name": "weather", "arguments": {"city": "Rom"}}',
    ]
    for call in calls:
        assert follows(grammar, f"<tool_call>\n{call}\n</tool_call>") is True
    assert follows(grammar, '<tool_call>\n{"name": "weather", "arguments": {"city": {') is False


@settings(deadline=None)
@given(
    st.sampled_from(sorted(FORMATS)),
    st.lists(st.sampled_from(['<tool_call>', "<tool", "_call>", "[TOOL_CALLS]", "[", '{"name":', '{"', "x", "é"])),
)  # fmt: skip
def test_words_are_all_text_that_is_no_call(form, parts):
    text, how = "".join(parts), FORMATS[form]
    beginnings = (how.marker, '{"name":')
    calls = text.startswith(beginnings) if how.bare else how.marker in text
    assert (follows(grammar_of(form), text) is True) is not calls


@pytest.mark.parametrize(
    ("tools", "options", "field"),
    [
        ([Tool(name="f", parameters="{")], {}, "tools[0].parameters"),
        ([NOW, Tool(name="f", parameters='{"type": "string"}')], {}, "tools[1].parameters"),
        ([Tool(name="f", parameters='{"properties": 1}')], {}, "tools[0].parameters"),
        ([NOW, NOW], {}, "tools"),
        ([Tool(name=name, parameters="[" * 65_536) for name in "abc"], {}, "tools"),
        ([NOW], {"tool_name": "f"}, "tool_name"),
        ([NOW], {"sampling": Sampling(grammar='root ::= "x"')}, "sampling.grammar"),
        ([NOW], {"sampling": Sampling(json_schema="[]")}, "sampling.json_schema"),
    ],
)
def test_what_cannot_be_asked_for(tools, options, field):
    with pytest.raises(RequestRefused) as caught:
        grammar_of("hermes", *tools, **options)
    assert caught.value.field == field
    assert str(caught.value)
