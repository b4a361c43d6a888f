"""The gateway over real sockets: what connections do, and what is done to them."""

import contextlib
import json
import re
import socket
import time

import pytest
import trio

from llamanet.errors import UserError
from llamanet.gateway import service
from llamanet.gateway.config import GatewayConfig
from llamanet.gateway.service import serve_gateway
from llamanet.node.host import Model
from llamanet.swarm import Swarm
from llamanet.testing.backend import ScriptedBackend

GARBAGE = (b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/9", b"\xff" * 100_000, b"PRI * HTTP/2.0\r\n\r\n\xff")
STREAM = {"prompt": "hello", "stream": True, "temperature": 0}


@pytest.fixture
async def server(nursery):
    def make_backend():
        return ScriptedBackend(step_time=0.005, sleep=time.sleep)

    async with Swarm(host="127.0.0.1", node_id="first") as swarm:
        await swarm.serve(Model(name="alpha", digest=bytes(32), make_backend=make_backend))
        async with trio.open_nursery() as serving:
            yield await serving.start(serve_gateway, swarm, GatewayConfig(http_port=0))
            serving.cancel_scope.cancel()


def port_of(server):
    return int(server.url.rpartition(":")[2])


async def connect(server):
    return await trio.open_tcp_stream("127.0.0.1", port_of(server))


def request(path, body=None, method="POST"):
    raw = b"" if body is None else json.dumps(body).encode()
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}"
    )
    return head.encode() + b"\r\n\r\n" + raw


async def receive_until(stream, end):
    got = b""
    with trio.fail_after(20):
        while end not in got:
            piece = await stream.receive_some()
            assert piece, got
            got += piece
    return got


async def test_requests_on_one_connection_are_answered_in_turn(server):
    async with await connect(server) as stream:
        await stream.send_all(request("/v1/models", method="GET") + request("/nothing", method="GET"))
        await stream.send_all(request("/v1/completions", {**STREAM, "max_tokens": 2}))
        got = await receive_until(stream, b"[DONE]")
    assert re.findall(rb"HTTP/1.1 (\d+)", got) == [b"200", b"404", b"200"]


async def test_garbage_ends_its_own_connection_only(server):
    for garbage in (
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/9\r\n\r\n",
        b"\xff" * 100_000,
        b"PRI * HTTP/2.0\r\n\r\n\xff",
    ):
        async with await connect(server) as stream:
            await stream.send_all(garbage + b"\r\n\r\n")
            with trio.move_on_after(1), contextlib.suppress(trio.BrokenResourceError):
                await stream.receive_some()
    async with await connect(server) as stream:
        await stream.send_all(request("/v1/models", method="GET"))
        assert b"alpha" in await receive_until(stream, b"}]}")


async def test_a_body_that_is_refused_does_not_hold_its_connection(server):
    async with await connect(server) as stream:
        head = b"POST /nothing HTTP/1.1\r\nHost: elsewhere.example\r\nContent-Length: 4000000\r\n\r\n"
        await stream.send_all(head)
        with trio.fail_after(20):
            try:
                await stream.send_all(b"x" * 4_000_000)
                got = await receive_until(stream, b"\r\n\r\n")
                assert got.startswith(b"HTTP/1.1 4")
                while await stream.receive_some():
                    pass
            except trio.BrokenResourceError:
                pass


async def test_draining_finishes_what_runs(server):
    async with await connect(server) as stream, await connect(server) as idle:
        await stream.send_all(request("/v1/completions", {**STREAM, "max_tokens": 60}))
        await receive_until(stream, b"data: ")
        server.stop.set()
        with trio.fail_after(10):
            assert await idle.receive_some() == b""
        await receive_until(stream, b"[DONE]")
        with pytest.raises(OSError):
            await connect(server)


async def test_draining_waits_for_no_reader_who_stalls(server, monkeypatch):
    monkeypatch.setattr(service, "DRAIN_S", 0.5)
    client = trio.socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await client.connect(("127.0.0.1", port_of(server)))
    with client:
        await client.send(request("/v1/completions", {**STREAM, "n": 16, "logprobs": 20, "max_tokens": 1_500}))
        with trio.fail_after(10):
            while server.gateway.swarm.statistics.in_flight < 4:  # noqa: ASYNC110 -- there is no event
                await trio.sleep(0.05)
            server.stop.set()
            while server.gateway.swarm.statistics.in_flight:  # noqa: ASYNC110 -- there is no event
                await trio.sleep(0.05)


async def test_draining_waits_for_no_answer_behind_which_more_is_asked(server, monkeypatch):
    monkeypatch.setattr(service, "DRAIN_S", 0.1)
    whole = {"prompt": "hello", "temperature": 0, "max_tokens": 2_000}
    async with await connect(server) as stream:
        await stream.send_all(request("/v1/completions", whole) + request("/health", method="GET"))
        with trio.fail_after(5):
            while not server.gateway.swarm.statistics.in_flight:  # noqa: ASYNC110 -- there is no event
                await trio.sleep(0.05)
            server.stop.set()
            while server.gateway.swarm.statistics.in_flight:  # noqa: ASYNC110 -- there is no event
                await trio.sleep(0.05)


async def test_a_taken_port_is_one_line(server):
    async with Swarm() as swarm:
        with pytest.raises(UserError, match=r"the port is taken \(--http-port \(HTTP_PORT\)\)"):
            await serve_gateway(swarm, GatewayConfig(http_port=port_of(server)))
