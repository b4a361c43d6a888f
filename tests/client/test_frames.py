"""Whatever is read, in whatever pieces: the same messages and the same end as if wsproto had read all of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Message, Ping, TextMessage

from llamanet.client.frames import Frames

MOST = 70_000


def message(*parts, text=False):
    kind = TextMessage if text else BytesMessage
    *begun, last = parts
    return [*(kind(part, message_finished=False) for part in begun), kind(last)]


payloads = st.sampled_from([0, 1, 125, 126, 127, 300, 65_535, 65_536, MOST]).map(lambda size: b"p" * size)
messages = st.one_of(
    payloads.map(message),
    st.lists(st.binary(max_size=200), min_size=2, max_size=4).map(lambda parts: message(*parts)),
    st.text(max_size=20).map(lambda text: message(text, text=True)),
    st.binary(max_size=125).map(lambda payload: [Ping(payload)]),
)


def written(*events):
    server = Connection(ConnectionType.SERVER)
    return [server.send(event) for event in events]


@st.composite
def streams(draw):
    """The frames of some messages, perhaps with pings inside of them, perhaps with strange bytes somewhere."""
    events = [event for made in draw(st.lists(messages, max_size=8)) for event in made]
    if draw(st.booleans()):
        events.insert(draw(st.integers(0, len(events))), Ping(b"inside"))
    if draw(st.booleans()):
        events.append(CloseConnection(1001, "away"))
    frames = written(*events)
    if draw(st.booleans()):
        strange = st.binary(max_size=20) | st.just(b"\x82\x05plain")
        frames.insert(draw(st.integers(0, len(frames))), draw(strange))
    return b"".join(frames)


def told(protocol, data, heard):
    """Adds what `data` means to `heard`, until the end."""
    if heard and isinstance(heard[-1], CloseConnection):
        return
    protocol.receive_data(data)
    for event in protocol.events():
        begun = heard[-1] if heard and isinstance(heard[-1], list) and not heard[-1][1] else None
        if not isinstance(event, Message):
            heard.append(event)
        elif begun is None:
            heard.append([event.data, event.message_finished])
        else:
            begun[0] += event.data
            begun[1] = event.message_finished


def whole(heard):
    """Messages that are complete, and all else, apart: a ping in a message comes before it or after it."""
    return [one for one in heard if isinstance(one, list) and one[1]], [
        one for one in heard if not isinstance(one, list)
    ]


@given(data=streams(), cuts=st.lists(st.integers(0, 300), max_size=6), most=st.integers(1, 20))
def test_frames_are_what_wsproto_takes_them_for(data, cuts, most):
    expected, heard = [], []
    told(Connection(ConnectionType.CLIENT), data, expected)
    frames, protocol = Frames(MOST), Connection(ConnectionType.CLIENT)
    pieces = []
    for cut in cuts:
        pieces.append(data[:cut])
        data = data[cut:]
    for piece in (*pieces, data):
        frames.feed(piece)
        more = True
        while more:
            plain = frames.plain(most)
            if not (heard and isinstance(heard[-1], CloseConnection)):
                heard += [[one, True] for one in plain]
            other = frames.other()
            if other:
                told(protocol, other, heard)
            more = bool(plain or other)
    assert whole(heard) == whole(expected)


def test_a_message_in_one_frame_is_plain_and_given_once_it_is_there():
    (frame,) = written(BytesMessage(b"x" * 300))
    frames = Frames(MOST)
    for place in range(len(frame)):
        frames.feed(frame[place : place + 1])
        last = place == len(frame) - 1
        assert frames.plain(9) == ([b"x" * 300] if last else [])
        assert frames.other() == b""


def test_nothing_is_plain_in_the_middle_of_another_message():
    begun, ended = written(BytesMessage(b"ab", message_finished=False), BytesMessage(b"cd"))
    frames = Frames(MOST)
    for piece, other in ((begun[:3], begun[:3]), (begun[3:], begun[3:]), (b"\x82\x01x", b"\x82\x01x"), (ended, ended)):
        frames.feed(piece)
        assert (frames.plain(9), frames.other()) == ([], other)
    frames.feed(b"\x82\x01x")
    assert (frames.plain(9), frames.other()) == ([b"x"], b"")


def test_no_more_are_given_than_are_wanted():
    frames = Frames(MOST)
    frames.feed(b"".join(written(BytesMessage(b"a"), BytesMessage(b"b"), BytesMessage(b"c"))))
    assert [frames.plain(2), frames.plain(2), frames.plain(2)] == [[b"a", b"b"], [b"c"], []]


@pytest.mark.parametrize(
    "frame",
    [
        b"\x82\x7e\x00\x05hello",  # a length in two bytes that one can say
        b"\x82\x7f\x00\x00\x00\x00\x00\x00\x00\x05hello",
        b"\x82\x85\x00\x00\x00\x00hello",  # masked
        b"\xc2\x05hello",  # compressed
        b"\x82\x7e\xff\xff" + b"x" * 65_535,  # too long
        b"\x02\x05hello",  # not the end
        b"\x81\x05hello",  # text
    ],
)
def test_what_is_not_plain(frame):
    frames = Frames(1_000)
    frames.feed(frame)
    assert frames.plain(9) == []
    assert frames.other() == frame
