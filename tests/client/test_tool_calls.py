"""Calls are read out of a text whatever pieces it comes in, and what is none stays text."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llamanet.client.tool_calls import LONGEST, CallReader, Parsed
from llamanet.wire.tools import FORMATS

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('ab"\\{}[]<>/tool_call ', max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=6,
)
arguments = st.dictionaries(st.text('k"{', max_size=3), values, max_size=3)
made = st.lists(st.tuples(names, arguments), min_size=1, max_size=3)
spaces = st.sampled_from(["", " ", "\n", "\n  "])


def reader(form: str) -> CallReader:
    ids = iter(f"id{number}" for number in range(1_000))
    return CallReader(FORMATS[form], ids.__next__)


def read(form: str, pieces: list[str]) -> tuple[str, list[tuple[str | None, str | None, str]], CallReader]:
    """The words, and of each call its id, its name and its arguments."""
    calls = reader(form)
    words: list[str] = []
    told: list[tuple[str | None, str | None, str]] = []
    for text, deltas in [*map(calls.feed, pieces), calls.finish()]:
        words.append(text)
        assert len({delta.index for delta in deltas}) == len(deltas)
        for delta in deltas:
            if delta.index == len(told):
                told.append((delta.id, delta.name, ""))
            id, name, before = told[delta.index]
            assert delta.index == len(told) - 1
            assert (delta.id, delta.name) == ((id, name) if not before and delta.id else (None, None))
            told[delta.index] = (id, name, before + delta.arguments)
    assert [(call.id, call.name, call.arguments) for call in calls.calls] == told
    return "".join(words), told, calls


def written(form: str, calls: list[tuple[str, str]], space: str = " ") -> str:
    """Calls as a model writes them."""
    how = FORMATS[form]
    texts = [f'{{"name":{space}{json.dumps(name)},{space}"{how.arguments}":{space}{text}}}' for name, text in calls]
    return how.marker + how.begin + how.between.join(texts) + how.end


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    places = sorted({cut % (len(text) + 1) for cut in cuts})
    return [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]


PARTS = [
    *("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<tool", '{"name":', '"f"', ', "arguments":'),
    *(', "parameters": ', "{", "}", "[", "]", '"', "\\", "\n", " ", "; ", '"id": "1"', "x", "é🦙", "x" * LONGEST),
]
cuts = st.lists(st.integers(0, 10_000), max_size=12)


@settings(deadline=None)
@given(st.sampled_from(sorted(FORMATS)), made, st.sampled_from(["", "Let me see.", "a < b\n\n<tool"]), spaces, cuts)
def test_calls_come_out_whatever_the_pieces(form, calls, before, space, cuts):
    if FORMATS[form].bare:
        before = ""
    texts = [(name, json.dumps(value, indent=len(space) or None)) for name, value in calls]
    text = before + space + written(form, texts, space) if not FORMATS[form].bare else written(form, texts, space)
    words, told, read_by = read(form, pieces_of(text, cuts))
    assert words == before
    assert [(name, arguments) for _, name, arguments in told] == texts
    assert [id for id, _, _ in told] == [f"id{number}" for number in range(len(told))]
    assert read_by.whole


@settings(deadline=None)
@given(
    st.sampled_from(sorted(FORMATS)),
    st.lists(
        st.sampled_from(PARTS),
        max_size=14,
    ).map("".join),
    cuts,
)
@example("hermes", '<tool_call>{"name": "f", "arguments":{}}</tool_call>\n<tool_call>{"name": "g"', [40])
def test_any_text_reads_alike_in_any_pieces(form, text, cuts):
    whole, in_pieces, by_characters = (read(form, pieces)[:2] for pieces in ([text], pieces_of(text, cuts), list(text)))
    assert whole == in_pieces == by_characters
    if not whole[1]:
        assert whole[0] == text


def test_a_call_is_told_as_it_is_written():
    calls = reader("hermes")
    assert calls.feed("I look. \n<tool") == Parsed("I look.")
    assert calls.feed('_call>\n{"name": "weather", "argu') == Parsed("")
    (first,) = calls.feed('ments": {"city": "B').calls
    assert (first.index, first.id, first.name, first.arguments) == (0, "id0", "weather", '{"city": "B')
    (second,) = calls.feed("er").calls
    assert (second.index, second.id, second.name, second.arguments) == (0, None, None, "er")
    assert not calls.whole
    assert [delta.arguments for delta in calls.feed('n"}}\n</tool').calls] == ['n"}']
    assert calls.feed("_call>") == calls.finish() == Parsed("")
    assert calls.whole


@pytest.mark.parametrize(
    ("form", "text", "words", "names"),
    [
        ("hermes", "No call. <tool_cal", "No call. <tool_cal", []),
        ("hermes", " \n", " \n", []),
        ("hermes", '<tool_call>\n{"name": "f"', '<tool_call>\n{"name": "f"', []),
        ("hermes", '<tool_call>{"name": "f", "arguments": "text"}</tool_call>', None, []),
        ("hermes", '<tool_call>{"name": "f", "arguments": {}}</tool_call> Done', " Done".strip(), ["f"]),
        ("hermes", '<tool_call>{"name": "f", "arguments": {}}</tool_', "", ["f"]),
        ("hermes", '<tool_call>{"name": "\\ud800", "arguments": {}}', "", ["\\ud800"]),
        ("mistral", '[TOOL_CALLS][{"name":"f","arguments":{},"id":"a"}, {"name":"g","arguments":{}}]', "", ["f", "g"]),
        ("llama3", '{"name": "f", "parameters": {}}', "", ["f"]),
        ("llama3", '{"name": "f", "arguments": {}}', '{"name": "f", "arguments": {}}', []),
        ("llama3", '{"nam', '{"nam', []),
        ("llama3", '{"title": 1} <|python_tag|>', '{"title": 1} <|python_tag|>', []),
    ],
)  # fmt: skip
def test_what_is_no_call_stays_text(form, text, words, names):
    found, told, _ = read(form, [text])
    assert found == (text if words is None else words)
    assert [name for _, name, _ in told] == names


def test_a_call_that_is_cut_off_is_not_whole():
    words, told, calls = read("hermes", ['<tool_call>{"name": "f", "arguments": {"a": [1, "}"'])
    assert (words, told, calls.whole) == ("", [("id0", "f", '{"a": [1, "}"')], False)


def test_ids_are_what_every_template_takes():
    calls = CallReader(FORMATS["llama3"])
    calls.feed('{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}')
    first, second = (call.id for call in calls.calls)
    assert first != second
    assert len(first) == 9
    assert first.isalnum()
