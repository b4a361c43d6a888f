"""Our websocket frames against wsproto's, in pieces of any size, and every way to break the protocol."""

from random import Random

import pytest
import wsproto.events as events
from wsproto import ConnectionType, WSConnection
from wsproto.connection import Connection

from llamanet.wire.websocket import ClientOpening, Close, HandshakeRefused, ServerOpening, WebSocket

MOST = 100_000
LENGTHS = (0, 1, 125, 126, 127, 65_535, 65_536)


def pieces(rng, data):
    while data:
        size = rng.choice([1, 2, 3, 7, 100, 5000])
        yield data[:size]
        data = data[size:]


def unmasked(*frame):
    return bytes(frame)


@pytest.mark.parametrize("client", [True, False])
def test_wsproto_reads_what_we_send_and_we_read_what_it_sends(client):
    rng = Random(1)
    ours = WebSocket(client=client, max_message_bytes=MOST)
    theirs = Connection(ConnectionType.SERVER if client else ConnectionType.CLIENT)
    messages = [bytes(rng.randbytes(length)) for length in LENGTHS] + ["", "text", "é" * 70, "x" * 70_000]
    for message in messages:
        theirs.receive_data(ours.send(message))
        kind = type(message)()
        assert kind.join(event.data for event in theirs.events()) == message
    sent = b"".join(
        theirs.send(events.BytesMessage(data=m) if isinstance(m, bytes) else events.TextMessage(data=m))
        for m in messages
    )
    assert [m for piece in pieces(rng, sent) for m in ours.receive(piece)] == messages
    assert ours.receive(sent) == messages


def test_a_message_in_parts_with_a_ping_between():
    ours = WebSocket(client=False, max_message_bytes=MOST)
    theirs = Connection(ConnectionType.CLIENT)
    sent = theirs.send(events.TextMessage(data="caf\u00e9 ", message_finished=False))
    sent += theirs.send(events.Ping(payload=b"old")) + theirs.send(events.Ping(payload=b"new"))
    sent += theirs.send(events.TextMessage(data="noir"))
    assert ours.receive(sent) == ["café noir"]
    theirs.receive_data(ours.to_send())
    assert [event.payload for event in theirs.events()] == [b"new"]
    assert not ours.due


def test_closing_by_either_side():
    ours = WebSocket(client=False, max_message_bytes=MOST)
    theirs = Connection(ConnectionType.CLIENT)
    assert ours.receive(theirs.send(events.CloseConnection(code=1001, reason="bye"))) == []
    assert ours.closed == Close(1001, "bye")
    theirs.receive_data(ours.to_send())
    assert [event.code for event in theirs.events()] == [1001]
    assert ours.close_sent
    ours = WebSocket(client=True, max_message_bytes=MOST)
    theirs = Connection(ConnectionType.SERVER)
    ours.close(1008, "é" * 100)
    theirs.receive_data(ours.to_send())
    [event] = theirs.events()
    assert event.code == 1008
    ours.receive(theirs.send(event.response()))
    assert ours.closed.code == 1008
    assert not ours.due


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (unmasked(0xC2, 0), 1002),  # a reserved bit
        (unmasked(0x83, 0), 1002),  # an unknown opcode
        (unmasked(0x82, 0x80, 0, 0, 0, 0), 1002),  # a masked frame from a server
        (unmasked(0x82, 126, 0, 5), 1002),  # a length longer than it need be
        (unmasked(0x82, 127, *(0,) * 6, 255, 255), 1002),
        (unmasked(0x89, 126, 0, 200), 1002),  # a long ping
        (unmasked(0x09, 0), 1002),  # a ping in parts
        (unmasked(0x80, 0), 1002),  # a continuation of nothing
        (unmasked(0x02, 0, 0x82, 0), 1002),  # a message inside another
        (unmasked(0x81, 1, 0xFF), 1007),
        (unmasked(0x82, 127, 0, 0, 0, 0, 0, 1, 134, 161), 1009),
        (unmasked(0x02, 126, 255, 255, *(0,) * 65_535, 0x80, 126, 255, 255), 1009),  # too much in parts
        (unmasked(0x88, 1, 3), 1002),
        (unmasked(0x88, 2, 3, 237), 1002),  # 1005 is never sent
        (unmasked(0x88, 3, 3, 232, 0xFF), 1002),
    ],
)
def test_violations_end_it_after_what_was_whole(data, code):
    ours = WebSocket(client=True, max_message_bytes=MOST)
    assert ours.receive(unmasked(0x82, 1, 7) + data) == [b"\x07"]
    assert ours.closed.code == code
    assert ours.due
    assert ours.receive(unmasked(0x82, 1, 7)) == []


def test_no_mask_from_a_client_is_a_violation():
    ours = WebSocket(client=False, max_message_bytes=MOST)
    assert ours.receive(unmasked(0x82, 1, 7)) == []
    assert ours.closed.code == 1002


def test_the_handshake_with_wsproto_and_what_follows_it():
    opening, theirs = ClientOpening("node", "a"), WSConnection(ConnectionType.SERVER)
    theirs.receive_data(opening.request)
    assert [event.subprotocols for event in theirs.events()] == [["a"]]
    answer = theirs.send(events.AcceptConnection(subprotocol="a"))
    assert not any(opening.receive(answer[at : at + 1]) for at in range(len(answer) - 1))
    assert opening.receive(answer[-1:] + b"\x82\x00")
    assert opening.rest == b"\x82\x00"
    server, theirs = ServerOpening(), WSConnection(ConnectionType.CLIENT)
    request = theirs.send(events.Request(host="node", target="/", subprotocols=["a", "b"]))
    assert not server.receive(request[:10])
    assert server.receive(request[10:] + b"rest")
    assert (list(server.offered), server.rest) == (["a", "b"], b"rest")
    theirs.receive_data(server.accept("b"))
    assert [event.subprotocol for event in theirs.events()] == ["b"]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"x" * 20_000,
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: \xff\r\nConnection: Upgrade\r\n\r\n",
    ],
)
def test_what_opens_no_websocket(answer):
    with pytest.raises(HandshakeRefused):
        ClientOpening("node", "a").receive(answer)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: node\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nHost: node\r\nContent-Length: 0\r\n\r\n", b"400"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000, b"4"),
        (b"GET / HTTP/1.1\r\nHost: xn--\xff\r\nUpgrade: websocket\r\n\r\n", b"400"),
    ],
)
def test_what_asks_for_no_websocket_is_answered(request_, status):
    with pytest.raises(HandshakeRefused) as caught:
        ServerOpening().receive(request_)
    assert caught.value.answer.startswith(b"HTTP/1.1 " + status)
