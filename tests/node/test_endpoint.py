import json
import random
from contextlib import asynccontextmanager, suppress

import attrs
import msgpack
import pytest
import trio
import trio.testing
from trio_websocket import ConnectionClosed, ConnectionRejected, wrap_client_stream

from llamanet.client.tls import client_tls
from llamanet.node import connection
from llamanet.node import endpoint as endpoint_module
from llamanet.node.endpoint import Endpoint
from llamanet.node.engine import EngineConfig
from llamanet.node.tls import server_tls
from llamanet.testing.backend import ScriptedBackend, scripted_text, scripted_tokens, serve_scripted_engine
from llamanet.wire.identity import Identity
from llamanet.wire.inference import (
    SUBPROTOCOL_JSON,
    SUBPROTOCOL_MSGPACK,
    Accepted,
    Cancel,
    Failed,
    Finished,
    Generate,
    Sampling,
    Status,
    StatusReply,
    Tokens,
    decode_node_message_untrusted,
    encode_message,
)

DIGEST = bytes(32)
FIVE = Sampling(temperature=0.0, max_tokens=5)


@attrs.define
class Node:
    endpoint: Endpoint
    backend: ScriptedBackend
    nursery: trio.Nursery

    @property
    def engine(self):
        return self.endpoint.engines["alpha"]

    def connect_raw(self):
        """A byte stream to the endpoint."""
        ours, theirs = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self.endpoint.serve_stream, theirs)
        return ours

    @asynccontextmanager
    async def connect(self, *subprotocols):
        stream = self.connect_raw()
        async with trio.open_nursery() as nursery:
            websocket = await wrap_client_stream(
                nursery, stream, "node", "/", subprotocols=subprotocols or [SUBPROTOCOL_MSGPACK]
            )
            yield websocket
            nursery.cancel_scope.cancel()
        await stream.aclose()


async def start_node(nursery, *, max_waiting=64, tls=None, **script):
    backend = ScriptedBackend(**{"step_time": 0.01, **script})
    config = EngineConfig(node_id="node-a", max_waiting=max_waiting)
    engine = await nursery.start(serve_scripted_engine, "alpha", DIGEST, lambda: backend, config)
    endpoint = Endpoint("node-a", tls)
    endpoint.engines["alpha"] = engine
    return Node(endpoint, backend, nursery)


async def send(websocket, *messages):
    as_json = websocket.subprotocol == SUBPROTOCOL_JSON
    for message in messages:
        await websocket.send_message(encode_message(message, as_json=as_json))


async def receive(websocket):
    return decode_node_message_untrusted(await websocket.get_message())


async def answers(websocket, request_id):
    """All answers to one request, when no other is in flight."""
    messages = []
    while not messages or not isinstance(messages[-1], Finished | Failed):
        messages.append(await receive(websocket))
        assert messages[-1].id == request_id
    return messages


async def close_code(websocket):
    """The code that the endpoint closes with, after whatever it still says."""
    with suppress(ConnectionClosed):
        while True:
            await websocket.get_message()
    return websocket.closed.code


def ids_in(messages):
    return [token for message in messages if isinstance(message, Tokens) for token in message.token_ids]


@pytest.mark.parametrize("subprotocols", [[SUBPROTOCOL_MSGPACK], [SUBPROTOCOL_JSON], ["other", SUBPROTOCOL_JSON]])
async def test_a_generation(autojump_clock, nursery, subprotocols):
    node = await start_node(nursery)
    async with node.connect(*subprotocols) as websocket:
        assert websocket.subprotocol == subprotocols[-1]
        await send(websocket, Generate(id=7, model="alpha", prompt="say it", digest=DIGEST, sampling=FIVE))
        accepted, *tokens, finished = await answers(websocket, 7)
    expected = scripted_tokens("say it", 5)
    assert accepted == Accepted(id=7, node_id="node-a", prompt_tokens=2)
    assert ids_in(tokens) == expected
    assert "".join(message.text for message in tokens) == scripted_text(expected)
    assert (finished.reason, finished.usage.completion_tokens) == ("length", 5)


async def test_json_is_text_and_msgpack_is_the_default(autojump_clock, nursery):
    node = await start_node(nursery)
    async with node.connect(SUBPROTOCOL_JSON) as websocket:
        await websocket.send_message('{"type": "status", "id": 1}')
        assert json.loads(await websocket.get_message())["node_id"] == "node-a"
    async with trio.open_nursery() as inner:
        websocket = await wrap_client_stream(inner, node.connect_raw(), "node", "/anything")
        await websocket.send_message(msgpack.packb({"type": "status", "id": 1}))
        assert msgpack.unpackb(await websocket.get_message())["node_id"] == "node-a"
        inner.cancel_scope.cancel()


async def test_a_model_is_optional_and_a_chat_goes_through_its_template(autojump_clock, nursery):
    node = await start_node(nursery)
    message = {"type": "generate", "id": 1, "messages": [{"role": "user", "content": "Hi"}]}
    async with node.connect(SUBPROTOCOL_JSON) as websocket:
        await websocket.send_message(json.dumps(message | {"sampling": {"max_tokens": 3, "temperature": 0}}))
        messages = await answers(websocket, 1)
    assert ids_in(messages) == scripted_tokens("<user> Hi <assistant>", 3)


async def test_status(autojump_clock, nursery):
    node = await start_node(nursery)
    async with node.connect() as websocket:
        await send(websocket, Status(id=3))
        reply = await receive(websocket)
    assert isinstance(reply, StatusReply)
    assert (reply.id, reply.draining, len(reply.models)) == (3, False, 1)
    assert (reply.models[0].name, reply.models[0].digest, reply.models[0].slots) == ("alpha", DIGEST, 4)


async def test_the_live_state_comes_with_an_answer_that_was_asked_for_it(autojump_clock, nursery):
    node = await start_node(nursery, slots=2, step_time=0.1)
    asking = Generate(id=1, prompt="how busy", sampling=FIVE, live_state=True)
    async with node.connect() as websocket:
        await send(websocket, asking)
        accepted = await receive(websocket)
        await send(websocket, Generate(id=2, prompt="not that", sampling=Sampling(max_tokens=50)))
        said = [await receive(websocket) for _ in range(30)]
    [finished] = [message for message in said if isinstance(message, Finished)]
    [other] = [message for message in said if isinstance(message, Accepted)]
    assert (accepted.state.name, accepted.state.slots, accepted.state.n_ctx) == ("alpha", 2, node.engine.n_ctx)
    assert accepted.state.running + accepted.state.waiting == 1
    assert finished.id == 1
    assert (finished.state.running, finished.state.waiting) == (1, 0)
    assert finished.state.tokens_per_second == pytest.approx(10)
    assert other.state is None


async def test_a_node_that_drains_tells_no_state(autojump_clock, nursery):
    node = await start_node(nursery, step_time=0.1)
    async with node.connect() as websocket:
        await send(websocket, Generate(id=1, prompt="how busy", sampling=FIVE, live_state=True))
        assert (await receive(websocket)).state is not None
        node.endpoint.draining = True
        *_, finished = await answers(websocket, 1)
    assert (finished.reason, finished.state) == ("length", None)


async def test_many_requests_share_a_connection(autojump_clock, nursery):
    node = await start_node(nursery)
    async with node.connect() as websocket:
        prompts = {request_id: f"prompt {request_id}" for request_id in range(20)}
        await send(websocket, *(Generate(id=n, prompt=prompt, sampling=FIVE) for n, prompt in prompts.items()))
        seen = {n: [] for n in prompts}
        finished = 0
        while finished < len(prompts):
            message = await receive(websocket)
            seen[message.id] += ids_in([message])
            finished += isinstance(message, Finished)
    assert seen == {n: scripted_tokens(prompt, 5) for n, prompt in prompts.items()}


async def wait_all_free(node):
    """Time passes for one engine step, and nothing is left of any request."""
    await trio.sleep(0.02)
    await trio.testing.wait_all_tasks_blocked()
    state = node.engine.state()
    assert (state.running, state.waiting) == (0, 0)
    with trio.fail_after(0):
        await node.endpoint.wait_idle()


async def test_cancel_frees_the_slot_within_a_step(autojump_clock, nursery):
    node = await start_node(nursery)
    async with node.connect() as websocket:
        await send(websocket, Generate(id=1, prompt="go on"), Cancel(id=99))
        for _ in range(10):
            await receive(websocket)
        await send(websocket, Cancel(id=1))
        await wait_all_free(node)
        drawn = node.backend.drawn
        await send(websocket, Generate(id=1, prompt="again", sampling=FIVE))
        while not isinstance(message := await receive(websocket), Accepted):
            pass
        assert ids_in(await answers(websocket, message.id)) == scripted_tokens("again", 5)
    assert node.backend.drawn == drawn + 5


async def test_a_closed_socket_frees_the_slots_within_a_step(autojump_clock, nursery):
    node = await start_node(nursery)
    async with node.connect() as websocket:
        await send(websocket, *(Generate(id=n, prompt="go on") for n in range(6)))
        for _ in range(20):
            await receive(websocket)
    await wait_all_free(node)


async def test_cancelling_the_endpoint_leaves_nothing(autojump_clock, nursery):
    node = await start_node(nursery)
    async with trio.open_nursery() as inner:
        ours, theirs = trio.testing.memory_stream_pair()
        inner.start_soon(node.endpoint.serve_stream, theirs)
        websocket = await wrap_client_stream(inner, ours, "node", "/", subprotocols=[SUBPROTOCOL_MSGPACK])
        await send(websocket, Generate(id=1, prompt="go on"))
        await receive(websocket)
        inner.cancel_scope.cancel()
    await wait_all_free(node)


async def test_refusals_leave_the_connection_usable(autojump_clock, nursery):
    node = await start_node(nursery, slots=1, max_waiting=1)
    async with node.connect() as websocket:

        async def refusal(**request):
            await send(websocket, Generate(**{"id": 5, "prompt": "hello", **request}))
            return await receive(websocket)

        failed = await refusal(model="beta")
        assert (failed.code, failed.id, failed.field, failed.limit) == ("no_such_model", 5, "model", "alpha")
        failed = await refusal(digest=bytes([1]) * 32)
        assert (failed.code, failed.field, failed.limit) == ("wrong_digest", "digest", DIGEST.hex())
        await websocket.send_message(
            msgpack.packb({"type": "generate", "id": 5, "prompt": "a", "sampling": {"top_p": 7}})
        )
        failed = await receive(websocket)
        assert (failed.code, failed.id, failed.field) == ("bad_request", 5, "sampling.top_p")
        assert "0 to 1" in failed.limit

        await send(
            websocket, Generate(id=1, prompt="one"), Generate(id=2, prompt="two"), Generate(id=3, prompt="three")
        )
        while not isinstance(failed := await receive(websocket), Failed):
            pass
        assert (failed.code, failed.id) == ("busy", 3)
        assert failed.retry_after > 0


async def test_draining_refuses_new_requests_and_finishes_running_ones(autojump_clock, nursery):
    node = await start_node(nursery)
    async with node.connect() as websocket:
        await send(websocket, Generate(id=1, prompt="say it", sampling=FIVE))
        first = [await receive(websocket), await receive(websocket)]
        node.endpoint.draining = True
        await send(websocket, Generate(id=2, prompt="too late"), Status(id=3))
        rest = []
        async with trio.open_nursery() as waiting:
            waiting.start_soon(node.endpoint.wait_idle)
            while not rest or not isinstance(rest[-1], Finished):
                rest.append(await receive(websocket))
    assert Failed(id=2, code="draining", message="the node takes no new requests") in rest
    assert any(isinstance(message, StatusReply) and message.draining for message in rest)
    assert ids_in(first + rest) == scripted_tokens("say it", 5)


async def test_closing_says_so_after_all_else_and_does_not_wait_for_the_silent(autojump_clock, nursery):
    node = await start_node(nursery)
    async with node.connect() as idle, node.connect() as streaming:
        await send(streaming, Generate(id=1, prompt="go on"))
        assert isinstance(await receive(streaming), Accepted)
        silent = node.connect_raw()
        await silent.send_all(b"GET / HTTP/1.1\r\n")
        start = trio.current_time()
        await node.endpoint.close()
        assert trio.current_time() - start <= connection.CLOSE_S
        assert await close_code(idle) == await close_code(streaming) == 1001
    await wait_all_free(node)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\xc1 garbage", 1007),
        (msgpack.packb([1, 2, 3]), 1007),
        (msgpack.packb({"type": "nonsense"}), 1007),
        ('{"type": "status", "id": 1}', 1003),
    ],
)
async def test_what_names_no_request_ends_the_connection(autojump_clock, nursery, data, code):
    node = await start_node(nursery)
    async with node.connect() as bystander, node.connect() as websocket:
        await send(bystander, Generate(id=1, prompt="say it", sampling=FIVE))
        await websocket.send_message(data)
        failed = await receive(websocket)
        assert (failed.code, failed.id) == ("bad_request", None)
        assert await close_code(websocket) == code
        assert ids_in(await answers(bystander, 1)) == scripted_tokens("say it", 5)


async def test_an_id_in_flight_is_not_used_twice(autojump_clock, nursery):
    node = await start_node(nursery)
    async with node.connect() as websocket:
        await send(websocket, Generate(id=1, prompt="one"), Generate(id=1, prompt="two"))
        assert await close_code(websocket) == 1008
    await wait_all_free(node)


async def test_too_many_requests_end_the_connection(autojump_clock, nursery, monkeypatch):
    monkeypatch.setattr(connection, "MAX_REQUESTS", 3)
    node = await start_node(nursery)
    async with node.connect() as websocket:
        await send(websocket, *(Generate(id=n, prompt="go on") for n in range(4)))
        assert await close_code(websocket) == 1008
    await wait_all_free(node)


async def test_an_oversized_message_ends_the_connection(autojump_clock, nursery):
    node = await start_node(nursery)
    async with node.connect() as websocket:
        await websocket.send_message(bytes(5 * 2**20))
        assert await close_code(websocket) == 1009


async def test_unknown_subprotocols_are_rejected(autojump_clock, nursery):
    node = await start_node(nursery)
    with pytest.RaisesGroup(ConnectionRejected) as rejected:
        async with node.connect("llamanet.v9"):
            pass
    error = rejected.value.exceptions[0]
    assert error.status_code == 400
    assert b"llamanet.v1.msgpack" in error.body


async def read_all(stream):
    data = b""
    with trio.fail_after(60):
        async for part in stream:
            data += part
    return data


async def test_plain_http_gets_a_status(autojump_clock, nursery):
    node = await start_node(nursery)
    stream = node.connect_raw()
    await stream.send_all(b"GET / HTTP/1.1\r\nHost: node\r\n\r\n")
    assert (await read_all(stream)).startswith(b"HTTP/1.1 4")


async def test_plain_http_on_a_tls_port_is_told_so(autojump_clock, nursery):
    node = await start_node(nursery, tls=server_tls(Identity.generate()))
    stream = node.connect_raw()
    await stream.send_all(b"GET / HTTP/1.1\r\nHost: node\r\n\r\n")
    assert b"speaks TLS" in await read_all(stream)


async def test_silent_peers_are_dropped(autojump_clock, nursery):
    tls = await start_node(nursery, tls=server_tls(Identity.generate()))
    plain = await start_node(nursery)
    for node in (tls, plain):
        stream = node.connect_raw()
        start = trio.current_time()
        assert await read_all(stream) == b""
        assert trio.current_time() - start == pytest.approx(endpoint_module.HANDSHAKE_S)


async def test_idle_connections_are_closed_and_busy_ones_are_not(autojump_clock, nursery):
    node = await start_node(nursery, step_time=100.0)
    async with node.connect() as websocket:
        await send(websocket, Generate(id=1, prompt="slowly", sampling=FIVE))
        assert ids_in(await answers(websocket, 1)) == scripted_tokens("slowly", 5)
        assert await close_code(websocket) == 1001


async def test_a_busy_connection_keeps_its_place(autojump_clock, nursery, monkeypatch):
    monkeypatch.setattr(endpoint_module, "MAX_CONNECTIONS", 1)
    node = await start_node(nursery, step_time=1.0)
    async with node.connect() as busy:
        await send(busy, Generate(id=1, prompt="slowly", sampling=FIVE))
        async with node.connect() as refused:
            with pytest.raises(ConnectionClosed):
                await refused.get_message()
        assert ids_in(await answers(busy, 1)) == scripted_tokens("slowly", 5)


async def test_an_idle_connection_gives_way(autojump_clock, nursery, monkeypatch):
    monkeypatch.setattr(endpoint_module, "MAX_CONNECTIONS", 2)
    node = await start_node(nursery)
    async with node.connect() as oldest, node.connect() as younger:
        await trio.sleep(1)
        await send(oldest, Status(id=1))
        assert (await receive(oldest)).id == 1
        async with node.connect() as newest:
            await send(newest, Status(id=2))
            assert (await receive(newest)).id == 2
            with pytest.raises(ConnectionClosed):
                await younger.get_message()
            await send(oldest, Status(id=3))
            assert (await receive(oldest)).id == 3


async def test_silent_handshakes_keep_nobody_out(autojump_clock, nursery, monkeypatch):
    monkeypatch.setattr(endpoint_module, "MAX_HANDSHAKES", 3)
    node = await start_node(nursery)
    start = trio.current_time()
    silent = []
    for _ in range(10):
        silent.append(node.connect_raw())
        await trio.testing.wait_all_tasks_blocked()
    async with node.connect() as websocket:
        await send(websocket, Status(id=1))
        assert (await receive(websocket)).id == 1
    assert trio.current_time() - start < endpoint_module.HANDSHAKE_S
    assert await read_all(silent[0]) == b""


async def test_a_stalled_socket_is_given_up(autojump_clock, nursery):
    node = await start_node(nursery)
    ours, theirs = trio.testing.lockstep_stream_pair()
    nursery.start_soon(node.endpoint.serve_stream, theirs)
    async with trio.open_nursery() as inner:
        websocket = await wrap_client_stream(inner, ours, "node", "/", subprotocols=[SUBPROTOCOL_MSGPACK])
        await send(websocket, Generate(id=1, prompt="go on"))
        inner.cancel_scope.cancel()  # nothing is read any more, and the socket stays open
    async with node.connect() as other:
        await send(other, Generate(id=1, prompt="say it", sampling=FIVE))
        assert ids_in(await answers(other, 1)) == scripted_tokens("say it", 5)
    await trio.sleep(connection.SEND_S + 1)
    await wait_all_free(node)


async def test_tls_carries_the_same(autojump_clock, nursery):
    node = await start_node(nursery, tls=server_tls(Identity.generate()))
    stream = trio.SSLStream(node.connect_raw(), client_tls(), https_compatible=True)
    async with trio.open_nursery() as inner:
        websocket = await wrap_client_stream(inner, stream, "node", "/", subprotocols=[SUBPROTOCOL_MSGPACK])
        await send(websocket, Generate(id=1, prompt="say it", sampling=FIVE))
        assert ids_in(await answers(websocket, 1)) == scripted_tokens("say it", 5)
        inner.cancel_scope.cancel()


@pytest.mark.parametrize("seed", range(20))
async def test_mutated_conversations_never_take_the_endpoint_down(autojump_clock, nursery, seed):
    """A recorded conversation, with bytes changed, cut, doubled, or replaced, at any place of the byte stream."""
    rng = random.Random(seed)
    node = await start_node(nursery)
    recorded = bytearray(await record_conversation())
    for _ in range(20):
        data = bytearray(recorded)
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(data))
            match rng.randrange(4):
                case 0:
                    data[at] = rng.randrange(256)
                case 1:
                    del data[at : at + rng.randint(1, 50)]
                case 2:
                    data[at:at] = data[at : at + rng.randint(1, 50)]
                case 3:
                    data[at : at + 10] = rng.randbytes(rng.randint(0, 40))
            data = data or bytearray(b"x")
        stream = node.connect_raw()
        await stream.send_all(bytes(data))
        await stream.send_eof()
        await read_all(stream)
    async with node.connect() as websocket:
        await send(websocket, Generate(id=1, prompt="say it", sampling=FIVE))
        assert ids_in(await answers(websocket, 1)) == scripted_tokens("say it", 5)
    await wait_all_free(node)


async def record_conversation():
    """What a well-behaved client writes."""
    ours, theirs = trio.testing.memory_stream_pair()
    written = bytearray()
    inner_send = ours.send_all

    class Recorder(trio.abc.Stream):
        async def send_all(self, data):
            written.extend(data)
            await inner_send(data)

        async def wait_send_all_might_not_block(self):
            await ours.wait_send_all_might_not_block()

        async def receive_some(self, max_bytes=None):
            return await ours.receive_some(max_bytes)

        async def aclose(self):
            await ours.aclose()

    endpoint = Endpoint("recorded", None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(endpoint.serve_stream, theirs)
        websocket = await wrap_client_stream(nursery, Recorder(), "node", "/", subprotocols=[SUBPROTOCOL_MSGPACK])
        await send(websocket, Status(id=1), Generate(id=2, prompt="hello there", sampling=FIVE), Cancel(id=2))
        for _ in range(2):
            await websocket.get_message()
        await websocket.aclose()
        nursery.cancel_scope.cancel()
    return bytes(written)
