"""A conversation on the terminal, without one."""

import json

import pytest

from llamanet.cli.conversation import COMMANDS, Conversation, parse_line
from llamanet.cli.terminal import harmless
from llamanet.errors import UserError


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        ("hello", (None, "hello")),
        ("  /model x", (None, "  /model x")),
        ("//etc is a folder", (None, "/etc is a folder")),
        ("/model  a b ", ("/model", "a b")),
        ("/mo", ("/model", "")),
        ("/quit", ("/quit", "")),
    ],
)
def test_what_a_line_means(line, meaning):
    assert parse_line(line) == meaning


@pytest.mark.parametrize(("line", "says"), [("/nix", "no command"), ("/s x", "not clear"), ("/", "not clear")])
def test_a_command_that_is_none_is_told(line, says):
    with pytest.raises(UserError, match=says):
        parse_line(line)


def test_every_command_is_understood():
    assert [parse_line(name)[0] for name in COMMANDS] == list(COMMANDS)


def test_a_conversation_keeps_what_was_said():
    talk = Conversation(system="Be brief.")
    talk.ask("one?")
    talk.answer("two")
    talk.ask("stopped before a word")
    talk.answer("")
    assert [turn["content"] for turn in talk.messages()] == ["Be brief.", "one?", "two"]
    assert talk.undo() == "one?"
    assert talk.turns == []
    assert talk.undo() is None


def test_settings_are_numbers_or_words_and_are_taken_back():
    talk = Conversation()
    for name, value in (("temperature", "0.5"), ("stop", "END"), ("max_tokens", "5"), ("max_tokens", "default")):
        talk.set(name, value)
    assert talk.settings == {"temperature": 0.5, "stop": "END"}


def test_a_conversation_is_saved_for_people_and_for_programs():
    talk = Conversation(model="m")
    talk.ask("a ``` b?")
    talk.answer("# c\n")
    assert talk.as_markdown() == "## You\n\na ``` b?\n\n## m\n\n# c\n"
    assert json.loads(talk.as_json())["messages"] == talk.messages()


def test_no_escape_sequence_reaches_the_terminal():
    assert harmless("a\x1b]0;title\x07b\x1b[2Jc\x9b1md\r\n\te\x00") == "a]0;titleb[2Jc1md\n\te"
