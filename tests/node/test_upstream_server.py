"""Offering a server that is already there: whatever it does, a request ends with its text or with a reason."""

import gzip
import json

import attrs
import pytest
import trio
import trio.lowlevel
from fake_upstream import END, HEAD, FakeServer, event, says, status

from llamanet.errors import EngineBusy, UserError, ungrouped
from llamanet.node import upstreams
from llamanet.node.host import Host, Model
from llamanet.node.upstreams import UpstreamSettings, serve_upstream
from llamanet.testing.backend import ScriptedBackend
from llamanet.wire.identity import Identity
from llamanet.wire.inference import (
    Accepted,
    ChatMessage,
    Embed,
    Failed,
    Finished,
    Generate,
    Sampling,
    Tokens,
    encode_message,
)
from llamanet.wire.tools import Tool

SLOTS = 4
# httpx does not close its generators when a response is left before its end; they go with the connection.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <async_generator object:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
async def server(nursery):
    return await nursery.start(FakeServer().serve)


@pytest.fixture
def host():
    return Host(Identity.generate(), tls=False)


async def offer(nursery, host, server, **settings):
    with ungrouped():
        await nursery.start(following, host, UpstreamSettings(url=server.url, slots=SLOTS, **settings))
    return host.endpoint.engines["m"]


async def following(host, settings, *, task_status=trio.TASK_STATUS_IGNORED):
    with ungrouped():
        await serve_upstream(host, settings, task_status=task_status)


@pytest.fixture
async def engine(nursery, host, server):
    return await offer(nursery, host, server)


def request(**sampling):
    return Generate(id=1, model="m", messages=(ChatMessage(role="user", content="hi"),), sampling=Sampling(**sampling))


@attrs.define
class Heard:
    text: str = ""
    tokens: int = 0
    last: Finished | Failed | None = None


async def ask(engine, *, asked=None, **sampling):
    heard = Heard()
    relay = engine.submit(asked or request(**sampling))
    try:
        with trio.fail_after(10):
            async for message in relay:
                encode_message(message)
                if isinstance(message, Tokens):
                    heard.text += message.text
                    heard.tokens += len(message.token_ids)
                elif not isinstance(message, Accepted):
                    heard.last = message
    finally:
        relay.cancel()
    return heard


async def test_the_text_and_its_end(engine, server):
    server.answer = says(event("Hello"), event(", you"), event(reason="length"), b"data: [DONE]\n\n")
    heard = await ask(engine)
    assert (heard.text, heard.last.reason, heard.last.usage.completion_tokens) == ("Hello, you", "length", 2)


@pytest.mark.parametrize(
    "text", ["a\u2028b", "a\u2029b", "a\x85b", "a\x0bb\x0cc\x1cd", "\u00e9\u4e2d\U0001f999", "\\n\ttab", "data: x"]
)
async def test_whatever_the_text_holds(engine, server, text):
    server.answer = says(event(text), END)
    assert (await ask(engine)).text == text


async def test_half_a_character_of_utf_16_does_not_end_the_stream(engine, server):
    server.answer = says(b'data: {"choices": [{"delta": {"content": "a\\ud83db"}}]}\n\n', END)
    assert (await ask(engine)).text == "a\ufffdb"


@pytest.mark.parametrize("size", [1, 2, 7])
async def test_wherever_the_bytes_are_cut(engine, server, size):
    whole = event("caf\u00e9 \U0001f999") + b": a comment\n\n" + event(" ol\u00e9").replace(b"\n", b"\r\n") + END
    server.answer = says(*(whole[at : at + size] for at in range(0, len(whole), size)))
    assert (await ask(engine)).text == "caf\u00e9 \U0001f999 ol\u00e9"


async def test_compressed_and_chunked(engine, server):
    body = gzip.compress(event("packed") + END)
    head = HEAD.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n")
    server.answer = says(
        *(b"%x\r\n%s\r\n" % (1, body[at : at + 1]) for at in range(len(body))), b"0\r\n\r\n", head=head
    )
    assert (await ask(engine)).text == "packed"


@pytest.mark.parametrize(
    "odd",
    [
        b"data: {not json\n\n",
        b"data: " + b"[" * 100_000 + b"\n\n",
        b'data: [1, 2]\n\ndata: null\n\ndata: {}\n\ndata: {"choices": 7}\n\ndata: {"choices": [null]}\n\n',
        b"event: ping\nid: 3\nretry: 10\n\n",
        b'data: {"choices": [], "usage": null, "error": null}\n\n',
        b'data: {"choices": [{"index": 1, "delta": {"content": "another answer"}}]}\n\n',
        b'data: {"choices": [{"delta": {"content": null, "tool_calls": null, "role": "assistant"}}]}\n\n',
        b"\xff\xfe garbage \x00\n\n",
    ],
)
async def test_what_is_not_understood_is_left_out(engine, server, odd):
    server.answer = says(event("be"), odd, event("fore"), END)
    heard = await ask(engine)
    assert (heard.text, type(heard.last)) == ("before", Finished)


async def test_a_line_without_end_is_given_up(engine, server):
    async def answer(stream, body):
        await stream.send_all(HEAD + b"data: ")
        while True:
            await stream.send_all(b"x" * 2**20)

    server.answer = answer
    heard = await ask(engine)
    assert (heard.last.code, "too long" in heard.last.message) == ("internal", True)


@pytest.mark.parametrize(
    ("answer", "code", "says_what"),
    [
        (status("429 Too Many Requests", b'{"error": {"message": "slow down"}}', "retry-after: 7"), "busy", "slow"),
        (status("503 Service Unavailable", b"Loading model"), "busy", "503"),
        (status("429 Too Many Requests", b"", "retry-after: nan"), "busy", "429"),
        (status("404 Not Found", b'{"error": "model m not found"}'), "no_such_model", "m not found"),
        (status("400 Bad Request", b'{"error": {"message": "context length"}}'), "too_long", "context"),
        (status("400 Bad Request", b'{"detail": "no"}'), "bad_request", "400"),
        (status("400 Bad Request", b"[" * 10_000), "bad_request", "400"),
        (status("401 Unauthorized"), "internal", "401"),
        (status("500 Error", b'{"error": {"message": "two\\n  lines"}}'), "internal", "two lines"),
        (status("500 Internal Server Error", b'{"error": {"message": "\\ud83d"}}'), "internal", ""),
        (status("307 Temporary Redirect", b"", "location: http://127.0.0.1:1/"), "internal", "307"),
        (says(head=b"nonsense\r\n\r\n"), "internal", "cannot be used"),
        (says(), "internal", "in the middle"),
        (says(event("a")), "internal", "in the middle"),
        (says(event("a"), b"data: [DONE]\n\n"), "internal", "in the middle"),
        (says(event("a"), b'data: {"error": {"message": "out of memory"}}\n\n'), "internal", "out of memory"),
        (says(b"zzz", head=HEAD.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n")), "internal", "used"),
    ],
)
async def test_what_goes_wrong_there_is_told(engine, server, answer, code, says_what):
    server.answer = answer
    last = (await ask(engine)).last
    assert (last.code, says_what in last.message) == (code, True)
    if code == "busy":
        assert 0.1 <= last.retry_after <= 60
    server.answer = says(event("well"), END)
    assert (await ask(engine)).text == "well"


async def test_leaving_closes_the_request(engine, server):
    server.answer = server.hang
    relay = engine.submit(request())
    assert isinstance(await relay.receive(), Accepted)
    await relay.receive()
    assert (server.open, engine.state().running) == (1, 1)
    relay.cancel()
    with trio.fail_after(5):
        await engine.wait_idle()
        while server.open:
            await trio.lowlevel.checkpoint()
    assert (server.left, engine.state().running) == (1, 0)


async def test_no_more_requests_there_than_slots(engine, server):
    server.answer = server.hang
    relays = [engine.submit(request()) for _ in range(SLOTS + 64)]
    with pytest.raises(EngineBusy):
        engine.submit(request())
    with trio.fail_after(5):
        while server.open < SLOTS:
            await trio.lowlevel.checkpoint()
    state = engine.state()
    assert (state.running, state.waiting, server.open) == (SLOTS, 64, SLOTS)
    # Those that wait never ask if nobody waits for them.
    for relay in relays[SLOTS:]:
        relay.cancel()
    for relay in relays[:SLOTS]:
        relay.cancel()
    with trio.fail_after(5):
        await engine.wait_idle()
    assert len(server.asked) == SLOTS


async def test_speed_is_measured_over_what_comes_in_bursts(engine, server):
    async def answer(stream, body):
        await stream.send_all(HEAD)
        for _ in range(8):
            await trio.sleep(0.05)
            await stream.send_all(event("a") * 5)
        await stream.send_all(END)

    server.answer = answer
    assert (await ask(engine)).tokens == 40
    state = engine.state()
    assert 40 < state.tokens_per_second < 130
    assert 0 < state.ttft_s < 1
    server.answer = says(event("a") * 8, END)
    await ask(engine)
    assert engine.state().tokens_per_second < 130


async def test_no_connection_is_taken_twice(engine, server):
    body = event("hello") + END
    server.keeps = True
    head = HEAD.replace(b"connection: close", b"content-length: %d" % len(body))
    server.answer = says(body, head=head)
    for _ in range(3):
        assert (await ask(engine)).text == "hello"
    assert server.reused == 0


async def test_many_streams_at_once_are_not_mixed_up(engine, server):
    async def echo(stream, body):
        word = str(body["seed"])
        await stream.send_all(HEAD)
        for _ in range(20):
            await stream.send_all(event(f"{word} "))
        await stream.send_all(END)

    server.answer = echo
    texts = {}

    async def one(seed):
        texts[seed] = (await ask(engine, seed=seed)).text

    async with trio.open_nursery() as nursery:
        for seed in range(64):
            nursery.start_soon(one, seed)
    assert texts == {seed: f"{seed} " * 20 for seed in range(64)}


@pytest.mark.parametrize(
    "settings",
    [
        {"url": "http://localhost:notaport/v1"},
        {"url": "http://localhost:99999/v1"},
        {"url": "http://[::1/v1"},
        {"url": "http://local host/v1"},
        {"url": "http://" + "a" * 300 + "/v1"},
        {"url": "http://127.0.0.1:1/v1", "api_key": "schl\u00fcssel"},
        {"url": "http://127.0.0.1:1/v1", "api_key": "two\nlines"},
    ],
)
async def test_a_setting_that_cannot_be_right_is_named(host, nursery, settings):
    with pytest.raises(UserError, match="--upstream"):
        await following(host, UpstreamSettings(**settings))


@pytest.mark.parametrize(
    "models",
    [
        b"",
        b"[" * 100_000,
        b'{"data": 7}',
        b'{"data": [7]}',
        b'{"data": [{"id": 7}]}',
        b'{"data": [{}]}',
        b'{"data": [{"id": "\\ud83d"}]}',
    ],
)
async def test_a_list_of_models_that_is_none(host, nursery, server, models):
    server.models = models
    with pytest.raises(UserError, match="--upstream"):
        await offer(nursery, host, server)


async def test_vectors_that_are_none(engine, server):
    for vector in ([], [None], ["x"], [float("nan")], [10**400], 7):
        server.answer = status("200 OK", json.dumps({"data": [{"index": 0, "embedding": vector}]}).encode())
        answer = await engine.embed(Embed(id=1, model="m", texts=("a",)))
        assert isinstance(answer, Failed), vector
        encode_message(answer)


async def test_the_owner_sees_where_it_is_and_cannot_unload_it(engine, server, host):
    assert host.sources() == {"m": server.url}
    with pytest.raises(UserError, match="unload it there"):
        await host.unload("m")


async def test_a_name_that_is_taken_is_not_offered_over_it(nursery, engine, server, host):
    with pytest.raises(UserError, match="two models are named 'm'"), ungrouped():
        await nursery.start(host.serve_model, Model(name="m", digest=bytes(32), make_backend=ScriptedBackend))
    assert host.endpoint.engines["m"] is engine


async def test_what_it_has_now_is_followed(nursery, host, server, monkeypatch, caplog):
    monkeypatch.setattr(upstreams, "LOOK_EVERY_S", 0.01)
    await offer(nursery, host, server)
    await nursery.start(
        host.serve_model,
        Model(name="mine", digest=bytes(32), make_backend=ScriptedBackend),
    )

    async def until(*names):
        with trio.fail_after(10):
            while set(host.sources()) != set(names):  # noqa: ASYNC110 - nobody tells
                await trio.sleep(0.01)

    server.models = b'{"data": [{"id": "n"}]}'
    await until("mine", "n")
    server.models = b'{"data": [{"id": "m"}, {"id": "mine"}, {"id": "n"}]}'
    await until("mine", "m", "n")
    assert "Not offering mine" in caplog.text
    server.models = b"gone"
    await until("mine")
    server.models = b'{"data": [{"id": "m"}]}'
    await until("mine", "m")


@pytest.mark.parametrize("forced", [{"tool_choice": "required"}, {"tool_name": "weather"}])
async def test_a_server_that_ignores_tool_choice_is_told_of(engine, server, forced):
    server.answer = says(event("Sunny"), END)
    asked = attrs.evolve(request(), tools=(Tool(name="weather", description="", parameters=None),), **forced)
    heard = await ask(engine, asked=asked)
    assert heard.text == ""
    assert (heard.last.code, heard.last.field) == ("bad_request", "tool_choice")
    assert "answered without one" in heard.last.message
