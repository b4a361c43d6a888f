"""Chat templates as the families of models ship them, against the prompts that their makers document."""

import pytest

from llamanet.errors import RequestRefused, UserError
from llamanet.node.chat_template import MAX_TEMPLATE_BYTES, ChatTemplate, load_chat_template
from llamanet.wire.inference import ChatMessage

CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim "
    "+ '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
    "{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
QWEN = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {{- "# Tools\\n\\n" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""  # noqa: E501
PHI_3 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + "
    "'<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
LLAMA_3_1_DATE = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}{%- endif %}{{- date_string | length > 5 }}"
)

SYSTEM = ChatMessage(role="system", content="Be brief.")
TALK = [
    ChatMessage(role="user", content="Hi <b>"),
    ChatMessage(role="assistant", content="Hello"),
    ChatMessage(role="user", content=" Bye "),
]


def render(source: str, messages: list[ChatMessage]) -> str:
    return ChatTemplate(source, bos_text="<s>", eos_text="</s>").render(messages)


@pytest.mark.parametrize(
    ("source", "messages", "prompt"),
    [
        (
            CHATML,
            [SYSTEM, *TALK],
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi <b><|im_end|>\n"
            "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\n Bye <|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            LLAMA_3,
            [SYSTEM, *TALK],
            "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nHi <b><|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            GEMMA,
            TALK,
            "<s><start_of_turn>user\nHi <b><end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n"
            "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
        ),
        (MISTRAL, TALK, "<s>[INST] Hi <b> [/INST]Hello</s>[INST]  Bye  [/INST]"),
        (
            QWEN,
            TALK[:1],
            "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\nHi <b><|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            QWEN,
            [SYSTEM, *TALK[:2]],
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi <b><|im_end|>\n"
            "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            PHI_3,
            [SYSTEM, *TALK[:1]],
            "<|system|>\nBe brief.<|end|>\n<|user|>\nHi <b><|end|>\n<|assistant|>\n",
        ),
        (LLAMA_3_1_DATE, TALK, "<s>True"),
    ],
    ids=["chatml", "llama-3", "gemma", "mistral", "qwen", "qwen-system", "phi-3", "llama-3.1-date"],
)
def test_families(source: str, messages: list[ChatMessage], prompt: str) -> None:
    assert render(source, messages) == prompt


@pytest.mark.parametrize(
    ("source", "messages", "reason"),
    [
        (GEMMA, [SYSTEM, *TALK], "System role not supported"),
        (GEMMA, [TALK[0], TALK[0]], "roles must alternate"),
        (MISTRAL, [SYSTEM, *TALK], "roles must alternate"),
        (MISTRAL, [TALK[0], ChatMessage(role="tool", content="x")], "Only user and assistant roles"),
    ],
)
def test_what_a_family_does_not_take_is_told_in_its_words(
    source: str, messages: list[ChatMessage], reason: str
) -> None:
    with pytest.raises(RequestRefused, match=f"the model's chat template refuses: .*{reason}") as caught:
        render(source, messages)
    assert caught.value.field == "messages"


def test_a_template_from_a_file(tmp_path) -> None:
    path = tmp_path / "template.jinja"
    path.write_text(CHATML, encoding="utf-8")
    assert load_chat_template(path) == CHATML


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"{% for %}", "is not valid Jinja: line 1: "),
        (b"\xff\xfe", "is not UTF-8"),
        (b" \n", "is empty"),
        (b"x" * (MAX_TEMPLATE_BYTES + 1), f"more than {MAX_TEMPLATE_BYTES} bytes"),
        (None, "cannot read the chat template"),
    ],
)
def test_a_file_that_is_no_template_is_one_line(tmp_path, content, told) -> None:
    path = tmp_path / "template.jinja"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=told) as caught:
        load_chat_template(path)
    assert "template.jinja" in str(caught.value)
    assert "\n" not in str(caught.value)
