"""The short way out of a connection: nothing is lost or out of order when the kernel takes only a part, or none."""

import socket
import struct
from typing import Any

import h11
import pytest
import trio
import trio.lowlevel
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext

from llamanet.gateway.connection import Connection

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


async def serve(app: Any, stream: trio.SocketStream) -> None:
    config = Config()
    config.keep_alive_timeout = 60
    await Connection(app, config, WorkerContext(None), stream)


async def pair():
    """Both ends of a connection: the server's, and the client's."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        theirs = await trio.open_tcp_stream(*listener.socket.getsockname())
        return await listener.accept(), theirs


@pytest.mark.parametrize("size", [10, 1_000_000])
async def test_all_pieces_arrive_in_order(nursery, size):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % (5 * size))]})
        for number in range(5):
            await send({"type": "http.response.body", "body": b"%d" % number * size, "more_body": number < 4})

    ours, theirs = await pair()
    nursery.start_soon(serve, app, ours)
    await theirs.send_all(REQUEST)
    got = b""
    with trio.fail_after(10):
        async for data in theirs:
            got += data
    await theirs.aclose()
    body = got.partition(b"\r\n\r\n")[2]
    assert body == b"".join(b"%d" % number * size for number in range(5))


@pytest.mark.parametrize(
    ("method", "version", "status", "body"),
    [
        ("GET", "1.1", 200, b"0" * 10 + b"1" * 100_000 + b"2" * 10),
        ("GET", "1.0", 200, b"0" * 10 + b"1" * 100_000 + b"2" * 10),
        ("HEAD", "1.1", 200, b""),
        ("GET", "1.1", 204, b""),
    ],
)
async def test_a_body_without_a_length_is_what_a_client_reads(method, version, status, body):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": status, "headers": []})
        for number, size in enumerate((10, 100_000, 0, 10)):
            await send({"type": "http.response.body", "body": b"%d" % min(number, 2) * size, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    ours, theirs = await pair()
    client, got, event = h11.Connection(h11.CLIENT), b"", None
    client.send(h11.Request(method=method, target="/", headers=[("Host", "localhost")]))
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, app, ours)
            await theirs.send_all(f"{method} / HTTP/{version}\r\nHost: localhost\r\n\r\n".encode())
            while type(event) is not h11.EndOfMessage:
                event = client.next_event()
                if event is h11.NEED_DATA:
                    client.receive_data(await theirs.receive_some())
                elif isinstance(event, h11.Data):
                    got += event.data
            await theirs.aclose()
    assert got == body


@pytest.mark.parametrize(
    ("target", "host", "path", "query"),
    [
        (b"/a%20b?c", b"received", "/a b", b"c"),
        (b"http://named:8080/a%20b?c=http://d/", b"named:8080", "/a b", b"c=http://d/"),
        (b"HTTPS://named", b"named", "/", b""),
        (b"http://named?c", b"named", "/", b"c"),
        (b"http://user@named/a", b"received", "http://user@named/a", b""),
        (b"*", b"received", "*", b""),
    ],
)
async def test_a_target_may_be_a_whole_url(target, host, path, query):
    scopes = []

    async def app(scope, receive, send):
        scopes.append(scope)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    ours, theirs = await pair()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, app, ours)
            await theirs.send_all(b"OPTIONS " + target + b" HTTP/1.1\r\nHost: received\r\nConnection: close\r\n\r\n")
            async for _ in theirs:
                pass
            await theirs.aclose()
    (scope,) = scopes
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    assert (hosts, scope["path"], scope["query_string"]) == ([host], path, query)


@pytest.mark.parametrize("abruptly", [False, True])
@pytest.mark.parametrize("asked", [b"", REQUEST.replace(b"Connection: close\r\n", b"")])
async def test_a_client_who_leaves_an_idle_connection_is_not_waited_for(asked, abruptly):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    ours, theirs = await pair()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, app, ours)
            if asked:
                await theirs.send_all(asked)
                while b"ok" not in await theirs.receive_some():
                    pass
            if abruptly:
                theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            theirs.socket.close()
    assert ours.socket.fileno() == -1


@pytest.mark.parametrize("behind", [b"", REQUEST, b"garbage" * 20_000])
async def test_who_leaves_with_more_to_say_is_not_waited_for(behind):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def watch():
                while (await receive())["type"] != "http.disconnect":
                    pass
                nursery.cancel_scope.cancel()

            while True:
                await send({"type": "http.response.body", "body": b"piece", "more_body": True})
                await trio.sleep(0.001)

    ours, theirs = await pair()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, app, ours)
            await theirs.send_all(REQUEST.replace(b"Connection: close\r\n", b"") + behind)
            while b"piece" not in await theirs.receive_some():
                pass
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            theirs.socket.close()
    assert ours.socket.fileno() == -1


async def test_a_reader_who_is_gone_ends_the_connection_and_nothing_else():
    sent = 0

    async def app(scope, receive, send):
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while (await receive())["type"] != "http.disconnect":
            pass
        await send({"type": "http.response.body", "body": b"too late"})
        sent += 1

    ours, theirs = await pair()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, app, ours)
            await theirs.send_all(REQUEST)
            await theirs.receive_some()
            await theirs.aclose()
    assert sent == 1
