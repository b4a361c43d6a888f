"""Bodies that are too large, too deep, too slow, or never come."""

import json

import pytest
import trio
from asgi import ask
from hypothesis import given
from hypothesis import strategies as st

from llamanet.gateway import limits
from llamanet.gateway.limits import BODY_S, MAX_BODY_BYTES, MAX_DEPTH, BodyLimits, deeper_than


async def echo(scope, receive, send):
    message = await receive()
    assert not message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": message["body"]})


async def test_a_body_in_pieces_arrives_whole():
    pieces = [(b'{"a"', True), (b":1}", True), (b"", False)]

    async def receive():
        body, more = pieces.pop(0)
        return {"type": "http.request", "body": body, "more_body": more}

    assert (await ask(BodyLimits(echo), "POST", "/", receive=receive)).body == b'{"a":1}'


async def test_after_the_body_the_app_hears_of_a_disconnect():
    async def app(scope, receive, send):
        assert (await receive())["type"] == "http.request"
        assert (await receive())["type"] == "http.disconnect"
        await send({"type": "http.response.start", "status": 204, "headers": []})

    heard = [{"type": "http.disconnect"}, {"type": "http.request", "body": b"", "more_body": False}]

    async def receive():
        return heard.pop()

    assert (await ask(BodyLimits(app), "POST", "/", receive=receive)).status == 204


@pytest.mark.parametrize("announced", [True, False])
async def test_too_large_is_413_once_the_client_is_done_sending(autojump_clock, announced):
    piece, taken = b"x" * 2**20, 0

    async def receive():
        nonlocal taken
        taken += 1
        return {"type": "http.request", "body": piece, "more_body": taken < 20}

    length = str(20 * 2**20) if announced else None
    got = await ask(BodyLimits(echo), "POST", "/", receive=receive, content_length=length)
    assert (got.status, got.code) == (413, "request_too_large")
    assert str(MAX_BODY_BYTES) in got.json()["error"]["message"]
    assert taken == 20


async def test_who_never_stops_sending_is_not_listened_to_for_ever(autojump_clock):
    async def receive():
        await trio.sleep(0.5)
        return {"type": "http.request", "body": b"x", "more_body": True}

    started = trio.current_time()
    got = await ask(BodyLimits(echo), "POST", "/", receive=receive, content_length=str(2**40))
    assert got.status == 413
    assert trio.current_time() - started == limits.LINGER_S


async def test_too_slow_is_408(autojump_clock):
    async def receive():
        await trio.sleep(1)
        return {"type": "http.request", "body": b"x", "more_body": True}

    started = trio.current_time()
    got = await ask(BodyLimits(echo), "POST", "/", receive=receive)
    assert (got.status, got.code) == (408, "request_timeout")
    assert trio.current_time() - started == BODY_S


async def test_who_leaves_before_the_end_reaches_no_endpoint():
    async def app(scope, receive, send):
        raise AssertionError

    async def receive():
        return {"type": "http.disconnect"}

    with pytest.raises(IndexError):  # There is no response.
        await ask(BodyLimits(app), "POST", "/", receive=receive)


async def test_too_deep_is_400():
    got = await ask(BodyLimits(echo), "POST", "/", b"[" * 100_000 + b"]" * 100_000)
    assert (got.status, got.code) == (400, "json_too_deep")
    just = b'{"a":' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH
    assert (await ask(BodyLimits(echo), "POST", "/", just)).status == 200


def depth_of(value):
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    return 0


brackets = st.text('[]{}"\\ab', max_size=8)
values = st.recursive(
    st.none() | brackets | st.integers(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(brackets, inner, max_size=4),
)


@given(values, st.integers(1, 6))
def test_depth_is_that_of_the_value(value, limit):
    assert deeper_than(json.dumps(value).encode(), limit) == (depth_of(value) > limit)


@given(st.binary(), st.integers(1, 3))
def test_any_bytes_have_some_depth_or_other(body, limit):
    assert deeper_than(body, limit) in (True, False)
