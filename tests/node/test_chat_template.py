import sys

import pytest

from llamanet.errors import RequestRefused
from llamanet.node import chat_template
from llamanet.node.chat_template import ChatTemplate
from llamanet.wire.inference import ChatMessage

HELLO = [ChatMessage(role="user", content="Hello <b>")]


def test_a_template_sees_messages_special_tokens_and_the_generation_prompt() -> None:
    source = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    template = ChatTemplate(source, bos_text="<s>", eos_text="</s>")
    assert template.render(HELLO) == "<s>[user]Hello <b></s>[assistant]"


def test_block_lines_leave_no_blank_lines() -> None:
    source = "{% for m in messages %}\n    {% if true %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}\n"
    assert ChatTemplate(source).render(HELLO) == "Hello <b>\n"


def test_helpers_that_templates_use() -> None:
    source = "{{ messages[0] | tojson }} {{ strftime_now('%Y') | length }}{% for i in [1, 2] %}{% break %}{% endfor %}"
    assert ChatTemplate(source).render(HELLO) == '{"role": "user", "content": "Hello <b>"} 4'


def test_a_model_without_a_template_says_so() -> None:
    with pytest.raises(RequestRefused, match="no chat template; send a prompt") as caught:
        ChatTemplate(None).render(HELLO)
    assert caught.value.field == "messages"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for %}", "Expected"),
        ("{{ messages[7].content.x }}", "has no"),
        ("{{ 1 // 0 }}", "division"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe|append"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "recursion"),
        ('{{ "a" * 100000000000000 }}', "refuses"),
    ],
)
def test_what_a_template_refuses_is_told(source: str, reason: str) -> None:
    with pytest.raises(RequestRefused, match=reason):
        ChatTemplate(source).render(HELLO)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro a(n) %}{% if n %}{{ a(n - 1) }}{{ a(n - 1) }}{% endif %}{% endmacro %}{{ a(60) }}",
    ],
)
def test_a_template_without_end_is_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "RENDER_S", 0.05)
    tracing = sys.gettrace()
    with pytest.raises(RequestRefused, match=r"not done after 0\.05 s"):
        ChatTemplate(source).render(HELLO)
    assert sys.gettrace() is tracing
