"""Prefixes of text, and the nodes that were asked for them."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from llamanet.client.affinity import (
    BLOCK_CHARS,
    MAX_AGE_S,
    MAX_BLOCKS,
    MAX_CHAIN,
    MAX_HOLDERS,
    Affinity,
    blocks_of,
    request_blocks,
)
from llamanet.wire.identity import NodeId
from llamanet.wire.inference import ChatMessage, Generate

A, B = NodeId(b"a" * 32), NodeId(b"b" * 32)


def chat(*contents):
    turns = (ChatMessage(role="user", content=content) for content in contents)
    return request_blocks(Generate(id=0, messages=tuple(turns)))


@given(st.lists(st.text(min_size=1, max_size=600), min_size=1, max_size=5), st.text(min_size=1))
def test_more_text_keeps_the_blocks_before_it(texts, more):
    blocks = blocks_of(texts)
    assert blocks_of([*texts, more])[: len(blocks)] == blocks
    assert blocks[-1].end == sum(map(len, texts))
    assert all(later.end - earlier.end <= BLOCK_CHARS for earlier, later in itertools.pairwise(blocks))


@given(st.text(min_size=1, max_size=600), st.data())
def test_another_beginning_gives_other_blocks_from_there_on(text, data):
    place = data.draw(st.integers(0, len(text) - 1))
    other = text[:place] + ("x" if text[place] != "x" else "y") + text[place + 1 :]
    same = place // BLOCK_CHARS
    ours, theirs = blocks_of([text]), blocks_of([other])
    assert ours[:same] == theirs[:same]
    assert not {block.digest for block in ours[same:]} & {block.digest for block in theirs[same:]}


def test_messages_are_apart():
    assert chat("ab", "c") != chat("a", "bc")
    assert chat("ab")[0] == chat("ab", "c")[0]
    prompt = request_blocks(Generate(id=0, prompt="user\nab"))
    assert prompt == chat("ab")


def test_a_long_text_is_looked_at_up_to_a_bound():
    assert len(blocks_of(["x" * (MAX_CHAIN + 9) * BLOCK_CHARS])) == MAX_CHAIN


def test_the_next_turn_finds_the_node_of_the_last():
    affinity = Affinity()
    affinity.asked(chat("Hello"), A, 0.0)
    affinity.asked(chat("Other"), B, 0.0)
    expected = affinity.expected(chat("Hello", "Hi!", "How are you?"), 0.0)
    assert expected == {A: len("user\nHello")}
    assert affinity.expected(chat("Unknown"), 0.0) == {}


def test_a_shared_beginning_is_expected_of_all_who_had_it():
    affinity = Affinity()
    system = "You are a llama. " * 50
    affinity.asked(chat(system, "one"), A, 0.0)
    affinity.asked(chat(system, "two"), B, 0.0)
    expected = affinity.expected(chat(system, "two"), 0.0)
    assert expected[B] > expected[A] == chat(system)[-1].end


def test_memories_end():
    affinity = Affinity()
    affinity.asked(chat("x" * 1000), A, 0.0)
    assert affinity.expected(chat("x" * 1000), MAX_AGE_S) == {A: chat("x" * 1000)[-1].end}
    assert affinity.expected(chat("x" * 1000), MAX_AGE_S + 1) == {}


def test_of_two_that_were_asked_the_one_that_spoke_remembers_the_end():
    affinity = Affinity()
    affinity.asked(chat("Hello"), A, 0.0)
    turn = chat("Hello", "Hi!", "How are you?")
    affinity.asked(turn, A, 1.0)
    affinity.asked(turn, B, 2.0)
    affinity.gave_up(turn, A)
    expected = affinity.expected(turn, 3.0)
    assert expected == {A: turn[1].end, B: turn[2].end}
    affinity.gave_up((), A)
    affinity.gave_up(chat("Unknown"), A)


def test_bounds():
    affinity = Affinity()
    for number in range(MAX_HOLDERS + 3):
        affinity.asked(chat("same"), NodeId(bytes([number]) * 32), float(number))
    assert list(affinity.expected(chat("same"), 9.0)) == [NodeId(bytes([n]) * 32) for n in range(3, MAX_HOLDERS + 3)]
    for number in range(MAX_BLOCKS // 64 + 1):
        affinity.asked(blocks_of([f"{number}" + "x" * 64 * BLOCK_CHARS]), A, 10.0)
    assert len(affinity._holders) == MAX_BLOCKS
    # What is left of the oldest is its beginning, or nothing: never an end that nothing leads to.
    assert affinity.expected(chat("same"), 10.0) == {}
