"""A request as log, metrics and limits see it: its id, its end, and a log line without a word of the prompt."""

import json
import logging
import re

import pytest
import trio
from asgi import ask

from llamanet.cli.logs import JsonFormatter
from llamanet.gateway.access_log import log_access
from llamanet.gateway.events import Events, RequestAnswered, RequestEnded, RequestMoved
from llamanet.gateway.exchange import Exchanges

SECRET = "my secret prompt"


class Answering:
    """An app that the swarm answers with two nodes."""

    def __init__(self, events, model="m", pause=0.0):
        self.events, self.model, self.pause = events, model, pause

    async def __call__(self, scope, receive, send):
        known = {"request_id": scope["state"]["request_id"], "model": self.model}
        self.events.publish(RequestAnswered(**known, node_id="first", ttft=0.25))
        self.events.publish(RequestMoved(**known, from_node="first", to_node="second", reason="it died"))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-request-id", b"not this")]})
        await send({"type": "http.response.body", "body": SECRET.encode(), "more_body": True})
        await trio.sleep(self.pause)
        self.events.publish(
            RequestEnded(**known, node_id="second", tokens=7, prompt_tokens=5, cached_tokens=3, seconds=1.0, status=200)
        )
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def watched(**options):
    events, told = Events(), []
    return Exchanges(Answering(events, **options), events, [told.append, log_access]), told


async def test_an_exchange_knows_what_the_swarm_did(autojump_clock):
    app, told = watched(pause=2.0)
    got = await ask(app, "POST", "/v1/completions?user=me")
    (exchange,) = told
    assert got.headers["x-request-id"] == exchange.request_id
    assert (exchange.client, exchange.method, exchange.path) == ("192.0.2.1", "POST", "/v1/completions")
    assert (exchange.status, exchange.model, exchange.node_id, exchange.ttft) == (200, "m", "second", 0.25)
    assert (exchange.prompt_tokens, exchange.cached_tokens, exchange.tokens) == (5, 3, 7)
    assert exchange.seconds == 2.0


async def test_a_plain_id_is_kept_and_any_other_is_replaced():
    app, told = watched()
    assert (await ask(app, "GET", "/", x_request_id="my-id_1.2:3")).headers["x-request-id"] == "my-id_1.2:3"
    for odd in (None, "", "a b", "x" * 65, 'a"b', "ü"):
        assert re.fullmatch("req_[0-9a-f]{32}", (await ask(app, "GET", "/", x_request_id=odd)).headers["x-request-id"])
    assert len({exchange.request_id for exchange in told}) == 7


async def test_two_requests_with_one_id_are_not_confused(autojump_clock):
    app, told = watched(pause=1.0)
    got = []

    async def one():
        got.append(await ask(app, "GET", "/", x_request_id="same"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one)
        nursery.start_soon(one)
    assert len({answer.headers["x-request-id"] for answer in got}) == 2
    assert [exchange.tokens for exchange in told] == [7, 7]
    assert not app._open


async def test_a_reader_who_leaves_is_told_as_that_and_nothing_stays(autojump_clock):
    app, told = watched(pause=100.0)
    with trio.move_on_after(1):
        await ask(app, "POST", "/v1/completions")
    assert [(exchange.status, exchange.seconds) for exchange in told] == [(499, 1.0)]
    assert not app._open


async def test_the_log_line(caplog):
    caplog.set_level(logging.INFO)
    app, _ = watched()
    await ask(
        app, "POST", f"/v1/completions?prompt={SECRET}", json.dumps({"prompt": SECRET}).encode(), x_request_id="id-1"
    )
    (record,) = caplog.records
    line = re.sub(r"seconds=[0-9.e-]+", "seconds=0.1", record.getMessage())
    assert line == (
        "request_id=id-1 client=192.0.2.1 method=POST path=/v1/completions status=200 model=m node=second "
        "prompt_tokens=5 cached_tokens=3 completion_tokens=7 ttft_s=0.25 seconds=0.1"
    )
    entry = json.loads(JsonFormatter().format(record))
    assert (entry["request_id"], entry["status"], entry["key"], entry["ttft_s"]) == ("id-1", 200, None, 0.25)
    assert SECRET not in JsonFormatter().format(record)


@pytest.mark.parametrize("model", ["a\nrequest_id=forged status=200", "two words", 'quo"te', "\x1b[2J", "x" * 10_000])
async def test_no_client_forges_a_line(caplog, model):
    caplog.set_level(logging.INFO)
    app, _ = watched(model=model)
    await ask(app, "GET", "/a\nb" + "y" * 10_000)
    (record,) = caplog.records
    line = record.getMessage()
    assert line.isprintable()
    assert len(re.sub(r'"(\\.|[^"\\])*"', "", line).split("status=")) == 2
    assert len(line) < 1_000
