"""A websocket's client end against a server that the test plays, byte for byte."""

import pytest
import trio
import trio.testing
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, Pong, RejectConnection, TextMessage

from llamanet.client.websocket import TOGETHER, Websocket, WebsocketClosed


class Server:
    def __init__(self, stream):
        self.stream = stream
        self.protocol = WSConnection(ConnectionType.SERVER)

    async def send(self, *events):
        """In one piece."""
        await self.stream.send_all(b"".join(self.protocol.send(event) for event in events))

    async def events(self):
        self.protocol.receive_data(await self.stream.receive_some())
        return list(self.protocol.events())

    async def upgrade(self, *first):
        (request,) = await self.events()
        await self.send(AcceptConnection(subprotocol=request.subprotocols[0]), *first)


def pair(most=1000):
    ours, theirs = trio.testing.memory_stream_pair()
    return Websocket(ours, max_message_bytes=most), Server(theirs)


async def opened(*first, most=1000):
    websocket, server = pair(most)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.upgrade, *first)
        await websocket.open("node", "/", "protocol")
    return websocket, server


async def test_messages_that_came_together_are_given_together():
    websocket, server = await opened()
    await server.send(BytesMessage(b"one"), TextMessage("two"), BytesMessage(b""))
    assert await websocket.receive() == [b"one", "two", b""]
    await server.send(BytesMessage(b"three"))
    assert await websocket.receive() == [b"three"]


async def test_many_messages_are_given_some_at_a_time_and_others_run_between(nursery):
    websocket, server = await opened()
    sent = [b"%d" % number for number in range(5 * TOGETHER + 1)]
    await server.send(*map(BytesMessage, sent))
    heard, others = [], []

    async def other(number):
        others.append(number)

    for number in range(6):
        assert set(others) >= set(range(number - 2))  # Of two that are ready, trio runs either first.
        heard.append(await websocket.receive())
        nursery.start_soon(other, number)
    assert list(map(len, heard)) == [TOGETHER] * 5 + [1]
    assert [message for messages in heard for message in messages] == sent


async def test_messages_may_come_with_the_upgrade():
    websocket, _ = await opened(BytesMessage(b"early"))
    assert await websocket.receive() == [b"early"]


async def test_a_message_in_pieces_is_one():
    websocket, server = await opened()
    whole = server.protocol.send(BytesMessage(b"ab", message_finished=False)) + server.protocol.send(
        BytesMessage(b"cd")
    )
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def send():
            for byte in whole:
                await trio.testing.wait_all_tasks_blocked()
                await server.stream.send_all(bytes([byte]))

        assert await websocket.receive() == [b"abcd"]


async def test_what_is_sent_arrives():
    websocket, server = await opened()
    await websocket.send(b"bytes")
    await websocket.send("text")
    assert await server.events() == [BytesMessage(b"bytes"), TextMessage("text")]


async def test_a_ping_is_answered_while_messages_are_read():
    websocket, server = await opened()
    await server.send(Ping(b"there?"), BytesMessage(b"message"))
    assert await websocket.receive() == [b"message"]
    assert await server.events() == [Pong(b"there?")]


async def test_a_goodbye_is_answered_and_told_after_the_last_message():
    websocket, server = await opened()
    await server.send(BytesMessage(b"last"), CloseConnection(1001, "away"))
    assert await websocket.receive() == [b"last"]
    with pytest.raises(WebsocketClosed, match=r"closed \(1001 away\)"):
        await websocket.receive()
    assert await server.events() == [CloseConnection(1001, "away")]
    with pytest.raises(WebsocketClosed, match="closed"):
        await websocket.send(b"late")


async def test_a_goodbye_to_somebody_who_reads_nothing_is_not_waited_for(autojump_clock):
    websocket, server = await opened()
    websocket._stream.send_stream.send_all_hook = trio.sleep_forever
    await server.send(CloseConnection(1000))
    with pytest.raises(WebsocketClosed, match=r"closed \(1000 NORMAL_CLOSURE\)"):
        await websocket.receive()


async def test_our_goodbye_is_answered():
    websocket, server = await opened()
    await websocket.close()
    (event,) = await server.events()
    await server.send(event.response())
    with pytest.raises(WebsocketClosed, match=r"closed \(1000 "):
        await websocket.receive()


async def test_an_end_without_a_goodbye():
    websocket, server = await opened()
    await server.send(BytesMessage(b"last"))
    await server.stream.aclose()
    assert await websocket.receive() == [b"last"]
    with pytest.raises(WebsocketClosed, match="the connection was closed"):
        await websocket.receive()


@pytest.mark.parametrize("pieces", [1, 2])
async def test_a_message_that_is_too_long(pieces):
    websocket, server = await opened(most=10)
    await server.send(
        *(BytesMessage(b"x" * (12 // pieces), message_finished=n == pieces) for n in range(1, pieces + 1))
    )
    with pytest.raises(WebsocketClosed, match="more than 10 bytes"):
        await websocket.receive()


async def test_garbage_after_a_message():
    websocket, server = await opened()
    await server.stream.send_all(server.protocol.send(BytesMessage(b"good")) + b"\xff" * 20)
    assert await websocket.receive() == [b"good"]
    with pytest.raises(WebsocketClosed, match=r"1002 Invalid opcode"):
        await websocket.receive()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 101 \xff\r\nUpgrade: \xff\r\n\r\n",
        b"\xff" * 30,
        b"",
    ],
)
async def test_somebody_who_does_not_upgrade(answer):
    websocket, server = pair()
    if answer:
        await server.stream.send_all(answer)
    await server.stream.send_eof()
    with pytest.raises(WebsocketClosed):
        await websocket.open("node", "/", "protocol")


async def test_a_refusal_is_told():
    websocket, server = pair()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def refuse():
            await server.events()
            await server.send(RejectConnection(status_code=503))

        with pytest.raises(WebsocketClosed, match="503"):
            await websocket.open("node", "/", "protocol")
