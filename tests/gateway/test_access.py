"""Who may ask: keys and their limits, foreign origins, names that are not this machine's."""

import hashlib
import re

import pytest
import trio
import trio.testing
from asgi import ask

from llamanet.errors import UserError
from llamanet.gateway.access import Access, allow_origins
from llamanet.gateway.config import GatewayConfig
from llamanet.gateway.events import Events, RequestEnded
from llamanet.gateway.exchange import Exchanges
from llamanet.gateway.keys import Keys, parse_keys
from llamanet.settings import is_loopback

KEY = "sk-alice-0123456789abcdef"


class Echo:
    """An app that answers everything, and may take its time."""

    def __init__(self):
        self.go_on = trio.Event()
        self.go_on.set()
        self.asked = 0
        self.ids = []

    async def __call__(self, scope, receive, send):
        self.asked += 1
        self.ids.append(scope["state"]["request_id"])
        await self.go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


def guarded(app, keys=None, events=None, told=None, **settings):
    config = GatewayConfig(**settings)
    ring = None if keys is None else Keys(parse_keys(keys))
    layers = allow_origins(Access(app, config, ring), config.cors_origin)
    return Exchanges(layers, events or Events(), [told.append] if told is not None else [])


@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/v1/nothing", "/live", "/metrics"])
async def test_without_its_key_nobody_gets_in(path):
    app = Echo()
    guard = guarded(app, f"alice {KEY}")
    hashed = hashlib.sha256(KEY.encode()).hexdigest()
    for header in (None, "", "Bearer", "Bearer ", "Bearer wrong", f"Basic {KEY}", KEY, f"Bearer sha256:{hashed}"):
        got = await ask(guard, "POST", path, authorization=header)
        assert (got.status, got.code) == (401, "invalid_api_key")
        assert got.json()["error"]["type"] == "invalid_request_error"
        assert got.headers["www-authenticate"] == "Bearer"
        assert "wrong" not in got.body.decode()
    assert not app.asked
    for header in (f"Bearer {KEY}", f"bearer  {KEY} "):
        assert (await ask(guard, "POST", path, authorization=header)).status == 200


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/openapi.json", "/static/page.js"])
async def test_what_holds_no_secret_needs_no_key(path):
    assert (await ask(guarded(Echo(), f"alice {KEY}"), "GET", path)).status == 200


async def test_metrics_may_be_opened():
    assert (await ask(guarded(Echo(), f"alice {KEY}", open_metrics=True), "GET", "/metrics")).status == 200


async def test_no_path_sneaks_past_the_keys():
    guard = guarded(Echo(), f"alice {KEY}")
    for path in ("/v1", "/v1/", "/v1//models", "/v1/../v1/models"):
        assert (await ask(guard, "GET", path)).status == 401


async def test_a_key_that_is_not_ascii():
    guard = guarded(Echo(), "alice schlüssel-0123456789")
    assert (await ask(guard, "GET", "/v1/models", authorization="Bearer schlüssel-0123456789")).status == 200


async def test_a_key_runs_into_its_rate(autojump_clock):
    guard = guarded(Echo(), f"alice {KEY} rpm=2\nbob {KEY}2")
    for left in ("1", "0"):
        got = await ask(guard, "GET", "/v1/models", authorization=f"Bearer {KEY}")
        assert got.headers["x-ratelimit-limit-requests"] == "2"
        assert got.headers["x-ratelimit-remaining-requests"] == left
        assert re.fullmatch(r"[0-9.]+s", got.headers["x-ratelimit-reset-requests"])
    got = await ask(guard, "GET", "/v1/models", authorization=f"Bearer {KEY}")
    assert (got.status, got.code) == (429, "rate_limit_exceeded")
    assert got.headers["retry-after"] == "30"
    assert got.headers["x-ratelimit-remaining-requests"] == "0"
    assert "'alice' may have 2 requests a minute" in got.json()["error"]["message"]
    assert (await ask(guard, "GET", "/v1/models", authorization=f"Bearer {KEY}2")).status == 200
    assert (await ask(guard, "GET", "/live", authorization=f"Bearer {KEY}")).status == 200
    await trio.sleep(30)
    assert (await ask(guard, "GET", "/v1/models", authorization=f"Bearer {KEY}")).status == 200


async def test_a_key_has_so_many_requests_at_a_time_and_a_cancelled_one_is_over(autojump_clock):
    app = Echo()
    guard = guarded(app, f"alice {KEY} concurrent=1")
    app.go_on = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: ask(guard, "GET", "/v1/models", authorization=f"Bearer {KEY}"))
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(5):
            got = await ask(guard, "GET", "/v1/models", authorization=f"Bearer {KEY}")
        assert (got.status, got.headers["retry-after"]) == (429, "1")
        nursery.cancel_scope.cancel()
    app.go_on.set()
    assert (await ask(guard, "GET", "/v1/models", authorization=f"Bearer {KEY}")).status == 200


async def test_tokens_of_an_answer_count(autojump_clock):
    events = Events()

    class Answering(Echo):
        async def __call__(self, scope, receive, send):
            ended = RequestEnded(
                request_id=scope["state"]["request_id"],
                model="m",
                node_id="n",
                tokens=80,
                prompt_tokens=20,
                seconds=1.0,
                status=200,
            )
            events.publish(ended)
            await super().__call__(scope, receive, send)

    guard = guarded(Answering(), f"alice {KEY} tpm=60", events=events)
    assert (await ask(guard, "POST", "/v1/completions", authorization=f"Bearer {KEY}")).status == 200
    got = await ask(guard, "POST", "/v1/completions", authorization=f"Bearer {KEY}")
    assert (got.status, got.json()["error"]["type"]) == (429, "tokens")
    assert got.headers["retry-after"] == "41"


async def test_who_asked_is_known_by_the_label():
    told = []
    guard = guarded(Echo(), f"alice {KEY}", told=told)
    await ask(guard, "GET", "/v1/models", authorization=f"Bearer {KEY}")
    await ask(guard, "GET", "/metrics", authorization=f"Bearer {KEY}")
    await ask(guard, "GET", "/v1/models")
    assert [(exchange.key, exchange.status) for exchange in told] == [("alice", 200), ("alice", 200), (None, 401)]
    assert KEY not in repr(told)


@pytest.mark.parametrize("host", ["localhost:8080", "127.0.0.1", "[::1]:8080", "LocalHost:1"])
async def test_this_machine_by_its_names(host):
    assert (await ask(guarded(Echo()), "GET", "/v1/models", host=host)).status == 200


@pytest.mark.parametrize("host", ["evil.example:8080", "", "localhost.evil.example", "127.0.0.1.nip.io", "[::2]:8080"])
async def test_a_name_that_was_bound_to_this_machine_by_others_is_refused(host):
    got = await ask(guarded(Echo()), "POST", "/v1/models", host=host)
    assert (got.status, got.code) == (403, "host_not_allowed")
    for settings in ({"no_auth": True}, {"keys": f"alice {KEY}"}):
        guard = guarded(Echo(), **settings)
        assert (await ask(guard, "POST", "/v1/models", host=host, authorization=f"Bearer {KEY}")).status == 200


async def test_pages_of_other_origins_cannot_make_a_keyless_gateway_work():
    got = await ask(guarded(Echo()), "POST", "/v1/chat/completions", origin="https://evil.example")
    assert (got.status, got.code) == (403, "origin_not_allowed")
    got = await ask(guarded(Echo()), "POST", "/v1/chat/completions", origin="null")
    assert got.status == 403
    got = await ask(guarded(Echo()), "POST", "/v1/chat/completions", origin="http://127.0.0.1:8080")
    assert got.status == 200


async def test_cors_is_closed_unless_opened():
    got = await ask(guarded(Echo(), no_auth=True), "GET", "/v1/models", origin="https://chat.example")
    assert not [name for name in got.headers if name.startswith("access-control")]
    guard = guarded(Echo(), f"alice {KEY}", cors_origin=("https://chat.example",))
    wish = {"access_control_request_method": "POST", "access_control_request_headers": "authorization,x-stainless-os"}
    got = await ask(guard, "OPTIONS", "/v1/chat/completions", origin="https://chat.example", **wish)
    assert got.status == 200
    assert got.headers["access-control-allow-origin"] == "https://chat.example"
    assert "x-stainless-os" in got.headers["access-control-allow-headers"]
    assert (await ask(guard, "OPTIONS", "/v1/models", origin="https://evil.example", **wish)).status == 400
    got = await ask(guard, "GET", "/v1/models", origin="https://chat.example")
    assert (got.status, got.headers["access-control-allow-origin"]) == (401, "https://chat.example")
    got = await ask(
        guarded(Echo(), cors_origin=("https://chat.example",)), "POST", "/v1/models", origin="https://chat.example"
    )
    assert got.status == 200
    assert "x-request-id" in got.headers["access-control-expose-headers"].lower()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_keys(host):
    assert is_loopback(host)
    GatewayConfig(http_host=host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "gateway.example"])
def test_a_public_gateway_needs_keys_or_a_word(host, tmp_path):
    assert not is_loopback(host)
    with pytest.raises(UserError, match=r"--http-host .* lets others ask: give --api-key-file .*, or say --no-auth"):
        GatewayConfig(http_host=host)
    GatewayConfig(http_host=host, no_auth=True)
    GatewayConfig(http_host=host, api_key_file=tmp_path / "keys")


def test_keys_and_no_auth_do_not_agree(tmp_path):
    with pytest.raises(UserError, match="not both"):
        GatewayConfig(api_key_file=tmp_path / "keys", no_auth=True)


@pytest.mark.parametrize("origin", ["chat.example", "https://chat.example/", "https://", "HTTPS://x", "https://a b"])
def test_an_origin_that_is_none(origin):
    with pytest.raises(UserError, match=r"--cors-origin \(CORS_ORIGIN\)"):
        GatewayConfig(cors_origin=(origin,))
