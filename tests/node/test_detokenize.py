import itertools

from hypothesis import given
from hypothesis import strategies as st

from llamanet.node.detokenize import TextStream


def fed(stream: TextStream, pieces: list[bytes]) -> list[str]:
    return [stream.feed(piece) for piece in pieces]


def test_a_character_in_two_pieces_comes_out_whole() -> None:
    assert fed(TextStream(), [b"caf\xc3", b"\xa9!"]) == ["caf", "é!"]


def test_an_unfinished_character_is_replaced_at_the_end() -> None:
    stream = TextStream()
    assert stream.feed(b"caf\xc3") == "caf"
    assert stream.flush() == "�"


def test_a_stop_string_over_several_pieces_never_shows() -> None:
    stream = TextStream(["END"])
    assert fed(stream, [b"the E", b"N", b"D of it"]) == ["the ", "", ""]
    assert stream.stopped
    assert stream.flush() == ""


def test_a_half_matched_stop_string_comes_out_when_it_turns_out_otherwise() -> None:
    stream = TextStream(["END"])
    assert fed(stream, [b"the EN", b"ERGY"]) == ["the ", "ENERGY"]
    assert not stream.stopped


def test_a_half_matched_stop_string_comes_out_at_the_end() -> None:
    stream = TextStream(["END"])
    assert fed(stream, [b"EN"]) == [""]
    assert stream.flush() == "EN"


def test_the_first_of_several_stop_strings_counts() -> None:
    stream = TextStream(["world", "lo w"])
    assert fed(stream, [b"hello world"]) == ["hel"]


@given(
    text=st.text(alphabet="ab é€\U0001f999", max_size=40),
    stops=st.lists(st.text(alphabet="ab é", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 160), max_size=12),
)
def test_the_text_is_what_stands_before_the_first_stop_string(text: str, stops: list[str], cuts: list[int]) -> None:
    data = text.encode()
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    stream = TextStream(stops)
    shown = ""
    for start, end in itertools.pairwise(places):
        shown += stream.feed(data[start:end])
        assert not any(stop in shown for stop in stops)
        if stream.stopped:
            break
    shown += stream.flush()
    assert text.startswith(shown)
    if stream.stopped:
        assert any(text[len(shown) :].startswith(stop) for stop in stops)
    else:
        assert shown == text
        assert not any(stop in text for stop in stops)
