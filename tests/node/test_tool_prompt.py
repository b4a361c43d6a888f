"""Templates of each family, and of none: what they are found to do, and what becomes of tools, calls and results."""

import pytest
from test_template_families import CHATML, GEMMA, MISTRAL, QWEN
from tool_templates import HERMES, LLAMA_3, XML
from tool_templates import MISTRAL as MISTRAL_TOOLS

from llamanet.errors import RequestRefused
from llamanet.node.chat_template import ChatTemplate
from llamanet.wire.inference import ChatMessage
from llamanet.wire.tools import Tool, ToolCall

TOOLS = (
    Tool(name="weather", description="The weather <now>.", parameters='{"type": "object", "properties": {"city": {}}}'),
    Tool(name="now"),
)
USER = ChatMessage(role="user", content="Weather in Bern?")
CALL = ToolCall(id="call_LongerThanNine", name="weather", arguments='{"city": "Bern"}')
CALLED = ChatMessage(role="assistant", content="", tool_calls=(CALL,))
RESULT = ChatMessage(role="tool", content="rain", tool_call_id=CALL.id)


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, bos_text="<s>", eos_text="</s>")


@pytest.mark.parametrize(
    ("source", "name", "native", "several"),
    [
        (HERMES, "hermes", True, True),
        (MISTRAL_TOOLS, "mistral", True, True),
        (LLAMA_3, "llama3", True, False),
        (XML, "hermes", False, True),
        (CHATML, "hermes", False, True),
        (GEMMA, "hermes", False, True),
        (MISTRAL, "hermes", False, True),
        (QWEN, "hermes", False, True),  # It offers tools, and leaves calls out.
    ],
    ids=["hermes", "mistral", "llama3", "xml", "chatml", "gemma", "mistral without", "qwen without calls"],
)
def test_what_a_template_makes_of_calls_is_found_out(source, name, native, several):
    style = template(source).call_style
    assert (style.name, style.native, style.several) == (name, native, several)


@pytest.mark.parametrize(
    ("source", "prompt"),
    [
        (
            HERMES,
            "<|im_start|>system\nFunctions:\n"
            '{"type": "function", "function": {"name": "weather", "description": "The weather <now>.", '
            '"parameters": {"type": "object", "properties": {"city": {}}}}}\n'
            '{"type": "function", "function": {"name": "now", "description": "", '
            '"parameters": {"type": "object", "properties": {}}}}\n<|im_end|>\n'
            "<|im_start|>user\nWeather in Bern?<|im_end|>\n<|im_start|>assistant\n<tool_call>\n"
            '{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call><|im_end|>\n'
            "<|im_start|>user\n<tool_response>\nrain\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            MISTRAL_TOOLS,
            '<s>[AVAILABLE_TOOLS][{"type": "function", "function": {"name": "weather", "description": '
            '"The weather <now>.", "parameters": {"type": "object", "properties": {"city": {}}}}}, '
            '{"type": "function", "function": {"name": "now", "description": "", "parameters": {"type": "object", '
            '"properties": {}}}}][/AVAILABLE_TOOLS][INST]Weather in Bern?[/INST]'
            '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Bern"}, "id": "ID"}]</s>'
            '[TOOL_RESULTS]{"content": rain, "call_id": "ID"}[/TOOL_RESULTS]',
        ),
        (
            LLAMA_3,
            '<s>Answer with {"name": a function, "parameters": its arguments}.\n[{"type": "function", "function": '
            '{"name": "weather", "description": "The weather <now>.", "parameters": {"type": "object", "properties": '
            '{"city": {}}}}}, {"type": "function", "function": {"name": "now", "description": "", "parameters": '
            '{"type": "object", "properties": {}}}}]<|user|>Weather in Bern?<|eot_id|><|assistant|>'
            '{"name": "weather", "parameters": {"city": "Bern"}}<|eot_id|><|ipython|>weather: "rain"<|eot_id|>'
            "<|assistant|>",
        ),
    ],
    ids=["hermes", "mistral", "llama3"],
)
def test_a_template_that_knows_tools_writes_them_itself(source, prompt):
    # Mistral's takes ids of 9 characters; another client made this one.
    short = "e5d1a0b1c"
    text = template(source).render([USER, CALLED, RESULT], TOOLS)
    if source is MISTRAL_TOOLS:
        short = text.split('"id": "')[1][:9]
        assert short.isalnum()
    assert text == prompt.replace("ID", short)
    # Without tools, what was called before stays in the conversation.
    assert "weather" in template(source).render([USER, CALLED, RESULT])


def test_other_templates_get_plain_turns():
    system = ChatMessage(role="system", content="Be brief.")
    text = template(CHATML).render([system, USER, CALLED, RESULT, RESULT], TOOLS)
    first, rest = text.split("<|im_end|>\n", 1)
    assert first.startswith("<|im_start|>system\nBe brief.\n\n# Tools\n")
    assert (
        '\n<tools>\n{"type": "function", "function": {"name": "weather", "description": "The weather <now>."' in first
    )
    assert rest == (
        "<|im_start|>user\nWeather in Bern?<|im_end|>\n<|im_start|>assistant\n<tool_call>\n"
        '{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call><|im_end|>\n<|im_start|>user\n'
        "<tool_response>\nrain\n</tool_response>\n<tool_response>\nrain\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert template(CHATML).render([USER], TOOLS).startswith("<|im_start|>system\n# Tools\n")
    without = template(CHATML).render([USER, CALLED, RESULT])
    assert "# Tools" not in without
    assert "<tool_response>\nrain" in without


def test_a_template_without_a_system_is_told_of_tools_by_the_user():
    said = ChatMessage(role="assistant", content="I look.", tool_calls=(CALL, CALL))
    text = template(GEMMA).render([USER, said, RESULT], TOOLS)
    assert text.startswith("<s><start_of_turn>user\n# Tools\n")
    assert "</tool_response>.\n\nWeather in Bern?<end_of_turn>\n<start_of_turn>model\nI look.\n<tool_call>\n" in text
    assert "\n</tool_call>\n<tool_call>\n" in text


def test_arguments_that_were_cut_off_do_no_harm():
    cut = ToolCall(id="a", name="weather", arguments='{"city": "Be')
    turns = [USER, ChatMessage(role="assistant", content="", tool_calls=(cut,)), USER]
    assert '"arguments": "{\\"city\\": \\"Be"' in template(HERMES).render(turns, TOOLS)
    assert '"arguments": "{\\"city\\": \\"Be"' in template(CHATML).render(turns, TOOLS)


def test_a_model_without_a_template_takes_no_tools():
    with pytest.raises(RequestRefused, match="no chat template"):
        template(None).render([USER], TOOLS)
