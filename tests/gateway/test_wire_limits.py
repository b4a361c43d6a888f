"""Limits as a client meets them, over a real socket: too many headers, too large a body, too many messages."""

import json

import pytest
import trio

from llamanet.gateway.config import GatewayConfig
from llamanet.gateway.limits import MAX_BODY_BYTES, MAX_HEADER_BYTES
from llamanet.gateway.service import serve_gateway
from llamanet.swarm import Swarm
from llamanet.wire.inference import MAX_CHAT_MESSAGES


@pytest.fixture
async def port(nursery):
    async with Swarm() as swarm:
        server = await nursery.start(serve_gateway, swarm, GatewayConfig(http_port=0))
        yield int(server.url.rpartition(":")[2])
        server.stop.set()


async def status_of(port, head, body=b""):
    with trio.fail_after(20):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(head.encode() + b"\r\n\r\n")
            for start in range(0, len(body), 2**16):
                await stream.send_all(body[start : start + 2**16])
            answer = b""
            while b"\r\n" not in answer:
                answer += await stream.receive_some()
    return int(answer.split()[1])


def post(body, **headers):
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in {"Content-Length": len(body), **headers}.items()]
    return "\r\n".join(lines)


async def test_too_many_headers_are_431(port):
    assert await status_of(port, f"GET /health HTTP/1.1\r\nHost: localhost\r\nX: {'x' * MAX_HEADER_BYTES}") == 431
    assert await status_of(port, f"GET /health HTTP/1.1\r\nHost: localhost\r\nX: {'x' * 20_000}") == 200


async def test_too_large_a_body_is_413_and_the_client_reads_it(port):
    body = b" " * (3 * MAX_BODY_BYTES)
    assert await status_of(port, post(body), body) == 413


async def test_too_many_messages_are_400(port):
    turn = {"role": "user", "content": "x"}
    body = json.dumps({"model": "m", "messages": [turn] * (MAX_CHAT_MESSAGES + 1)}).encode()
    assert await status_of(port, post(body), body) == 400


async def test_another_name_for_this_machine_is_403(port):
    assert await status_of(port, "GET /v1/models HTTP/1.1\r\nHost: evil.example") == 403
