"""One connection against a peer that the test plays."""

from contextlib import suppress

import pytest
import trio
import trio.testing
from trio_websocket import ConnectionClosed, wrap_server_stream

from llamanet.client import connection
from llamanet.client.connection import ConnectionPool, Peer
from llamanet.errors import NodeFailed
from llamanet.wire.identity import PublicKey
from llamanet.wire.inference import (
    Accepted,
    Cancel,
    Failed,
    Finished,
    Generate,
    Status,
    StatusReply,
    Tokens,
    Usage,
    decode_client_message_untrusted,
    encode_message,
)

PEER = Peer(public_key=PublicKey(bytes(32)), label="node-a", host="node", port=1, tls=False)
OTHER = Peer(public_key=PublicKey(bytes([1]) * 32), label="node-b", host="node", port=1, tls=False)
REQUEST = Generate(id=0, prompt="hello")


def finished(request_id, tokens):
    return Finished(id=request_id, reason="stop", usage=Usage(prompt_tokens=1, completion_tokens=tokens))


class Server:
    """The other side of the connections that are opened."""

    def __init__(self, nursery):
        self.nursery = nursery
        self.streams = []
        self._opened, self._waiting = trio.open_memory_channel(100)

    async def open_stream(self, host, port):
        ours, theirs = trio.testing.memory_stream_pair()
        self.streams.append(theirs)
        self._opened.send_nowait(theirs)
        return ours

    async def accept(self):
        request = await wrap_server_stream(self.nursery, await self._waiting.receive())
        return await request.accept(subprotocol=request.proposed_subprotocols[0])


@pytest.fixture
async def server(nursery):
    return Server(nursery)


@pytest.fixture
async def pool(nursery, server):
    return ConnectionPool(nursery, server.open_stream)


async def message(websocket):
    return decode_client_message_untrusted(await websocket.get_message())


async def send(websocket, *messages):
    for each in messages:
        await websocket.send_message(encode_message(each))


async def drain(exchange):
    """All that arrives, and the error that ends it."""
    answers = []
    try:
        while True:
            answers.append(await exchange.receive())
    except NodeFailed as error:
        return answers, error.reason


async def test_requests_share_a_connection_and_answers_find_theirs(autojump_clock, server, pool):
    first, second = pool.submit(PEER, REQUEST), pool.submit(PEER, REQUEST)
    websocket = await server.accept()
    pool.submit(OTHER, REQUEST)
    ids = [(await message(websocket)).id, (await message(websocket)).id]
    assert len(set(ids)) == 2
    await send(
        websocket, Accepted(id=ids[1], node_id="a", prompt_tokens=2), Accepted(id=ids[0], node_id="a", prompt_tokens=1)
    )
    assert (await first.receive()).prompt_tokens == 1
    assert (await second.receive()).prompt_tokens == 2
    assert len(server.streams) == 2


async def test_tokens_that_piled_up_come_in_one(autojump_clock, server, pool):
    exchange = pool.submit(PEER, REQUEST)
    websocket = await server.accept()
    await send(
        websocket,
        Accepted(id=0, node_id="a", prompt_tokens=1),
        Tokens(id=0, text="a", token_ids=(1,)),
        Tokens(id=0, text="", token_ids=(2,)),
        Tokens(id=0, text="bc", token_ids=(3, 4)),
        finished(0, 4),
    )
    await trio.testing.wait_all_tasks_blocked()
    assert exchange.ready
    assert isinstance(await exchange.receive(), Accepted)
    assert await exchange.receive() == Tokens(id=0, text="abc", token_ids=(1, 2, 3, 4))
    assert await exchange.receive() == finished(0, 4)
    assert await drain(exchange) == ([], "the request is over")


async def test_a_cancelled_request_is_cancelled_at_the_node_and_forgotten(autojump_clock, server, pool):
    exchange = pool.submit(PEER, REQUEST)
    websocket = await server.accept()
    assert (await message(websocket)).prompt == "hello"
    exchange.cancel()
    exchange.cancel()
    assert await message(websocket) == Cancel(id=0)
    await send(websocket, Accepted(id=0, node_id="a", prompt_tokens=1), Tokens(id=0, text="a", token_ids=(1,)))
    again = pool.submit(PEER, REQUEST)
    assert (await message(websocket)).id == 1
    await send(websocket, Accepted(id=1, node_id="a", prompt_tokens=1))
    assert (await again.receive()).id == 1
    assert len(server.streams) == 1


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([b"\xc1"], "broke the protocol: not valid msgpack"),
        ([encode_message(Tokens(id=0, text="a", token_ids=(1,)))], "broke the protocol: type: an answer out of order"),
        ([encode_message(finished(0, 0))], "out of order"),
        ([encode_message(Accepted(id=0, node_id="a", prompt_tokens=1))] * 2, "out of order"),
        ([encode_message(Status(id=0))], "broke the protocol"),
        ([encode_message(StatusReply(id=0, node_id="a", version="1", draining=False, models=()))], "out of order"),
        ([encode_message(Failed(code="bad_request", message="go away"))], "ended the connection: go away"),
    ],
)
async def test_a_node_that_breaks_the_protocol_is_lost_to_all_requests(autojump_clock, server, pool, answers, reason):
    first, second = pool.submit(PEER, REQUEST), pool.submit(PEER, REQUEST)
    websocket = await server.accept()
    for answer in answers:
        await websocket.send_message(answer)
    assert reason in (await drain(first))[1]
    assert reason in (await drain(second))[1]
    pool.submit(PEER, REQUEST)
    assert (await message(await server.accept())).prompt == "hello"


async def test_what_arrived_before_a_loss_is_still_received(autojump_clock, server, pool):
    exchange = pool.submit(PEER, REQUEST)
    websocket = await server.accept()
    tokens = Tokens(id=0, text="a", token_ids=(1,))
    await send(websocket, Accepted(id=0, node_id="a", prompt_tokens=1), tokens)
    await trio.aclose_forcefully(server.streams[0])
    answers, reason = await drain(exchange)
    assert answers[1] == tokens
    assert "closed" in reason


async def test_nobody_listens(autojump_clock, nursery):
    async def refuse(host, port):
        raise ConnectionRefusedError(111, "Connection refused")

    exchange = ConnectionPool(nursery, refuse).submit(PEER, REQUEST)
    assert await drain(exchange) == ([], "no connection ([Errno 111] Connection refused)")


async def test_somebody_listens_and_says_nothing(autojump_clock, server, pool):
    exchange = pool.submit(PEER, REQUEST)
    start = trio.current_time()
    assert await drain(exchange) == ([], "no connection within 3 s")
    assert trio.current_time() - start == connection.CONNECT_S


async def test_somebody_else_listens(autojump_clock, nursery, server, pool):
    exchange = pool.submit(PEER, REQUEST)
    await trio.testing.wait_all_tasks_blocked()
    await server.streams[0].send_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    answers, reason = await drain(exchange)
    assert answers == []
    assert reason.startswith("no connection")


async def test_a_peer_that_reads_nothing_is_given_up(autojump_clock, nursery, monkeypatch):
    monkeypatch.setattr(connection, "MAX_OUTBOX", 3)

    async def open_stream(host, port):
        return trio.testing.memory_stream_pair()[0]

    pool = ConnectionPool(nursery, open_stream)
    exchanges = [pool.submit(PEER, REQUEST) for _ in range(4)]
    assert [await drain(exchange) for exchange in exchanges] == [([], "it reads nothing")] * 4


async def test_a_reader_that_lags_too_far_is_cut_off_alone(autojump_clock, server, pool, monkeypatch):
    monkeypatch.setattr(connection, "MAX_AHEAD", 10)
    slow, other = pool.submit(PEER, REQUEST), pool.submit(PEER, REQUEST)
    websocket = await server.accept()
    await send(websocket, *(Accepted(id=number, node_id="a", prompt_tokens=1) for number in (0, 1)))
    for number in range(8):
        await send(websocket, Tokens(id=0, text="x", token_ids=(number,)))
    await send(websocket, Tokens(id=1, text="y", token_ids=(1,)))
    assert [type(await message(websocket)) for _ in range(3)] == [Generate, Generate, Cancel]
    answers, _ = await drain(slow)
    assert answers[1].token_ids == (0, 1, 2, 3, 4, 5)
    assert answers[2].code == "slow_reader"
    assert isinstance(await other.receive(), Accepted)
    assert (await other.receive()).text == "y"


async def test_further_connections_are_opened_when_one_is_full(autojump_clock, server, pool, monkeypatch):
    monkeypatch.setattr(connection, "MAX_REQUESTS", 2)
    for _ in range(5):
        pool.submit(PEER, REQUEST)
    await trio.testing.wait_all_tasks_blocked()
    assert len(server.streams) == 3


async def test_idle_connections_are_bounded_and_closed(autojump_clock, nursery, server, pool, monkeypatch):
    monkeypatch.setattr(connection, "MAX_IDLE", 2)
    websockets = []
    for number in range(5):
        exchange = pool.submit(
            Peer(public_key=PEER.public_key, label="n", host="node", port=number, tls=False), REQUEST
        )
        websockets.append(await server.accept())
        await message(websockets[-1])
        exchange.cancel()
        await trio.sleep(1)
    open_now = [websocket for websocket in websockets if websocket.closed is None]
    assert open_now == websockets[-2:]
    await trio.sleep(3 * connection.IDLE_S)
    for websocket in open_now:
        with suppress(ConnectionClosed):
            while True:
                await websocket.get_message()
        assert websocket.closed.code == 1000
