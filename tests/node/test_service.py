"""A whole node over real sockets; only its models are scripted."""

import json
import logging
import os
import signal
import socket
import threading
import time
from contextlib import suppress

import pytest
import trio
import trio.testing

from llamanet.errors import ModelFileError, UserError
from llamanet.models.shards import model_name
from llamanet.node import service
from llamanet.node.config import NodeConfig
from llamanet.node.host import DRAIN_S, Model
from llamanet.node.service import run_node, serve_node
from llamanet.swarm import Swarm
from llamanet.testing.backend import ScriptedBackend, scripted_text, scripted_tokens

GREEDY = {"temperature": 0.0}
GGUF = b"GGUF" + bytes(20)


@pytest.fixture
def backends(monkeypatch):
    """Every model file holds a script; the backends that were made of them."""
    made = []

    async def open_scripted(path, settings, data_dir, report):
        def make_backend():
            made.append(ScriptedBackend(step_time=0.005, sleep=time.sleep, slots=settings.n_parallel))
            return made[-1]

        return Model(name=model_name(path), digest=bytes(32), make_backend=make_backend)

    monkeypatch.setattr(service, "open_model", open_scripted)
    return made


@pytest.fixture
def config(tmp_path, backends):
    def make(*models, **settings):
        for name in models or ("alpha",):
            (tmp_path / f"{name}.gguf").write_bytes(GGUF)
        paths = tuple(tmp_path / f"{name}.gguf" for name in models or ("alpha",))
        defaults = {"host": "127.0.0.1", "port": 0, "dht_port": 0, "data_dir": tmp_path / "data"}
        return NodeConfig(model_path=paths, **{**defaults, **settings})

    return make


def bootstrap(node):
    return f"127.0.0.1:{node.dht.port}"


async def test_control_is_answered_while_models_load(nursery, config, tmp_path, monkeypatch):
    open_scripted = service.open_model
    loading, load, started = trio.Event(), trio.Event(), trio.Event()

    async def open_late(*arguments):
        loading.set()
        await load.wait()
        return await open_scripted(*arguments)

    async def start():
        await nursery.start(serve_node, config(control=tmp_path / "node.sock"))
        started.set()

    async def status():
        async with await trio.open_unix_socket(tmp_path / "node.sock") as stream:
            await stream.send_all(b'{"do": "status"}\n')
            return json.loads(b"".join([data async for data in stream]))["ok"]

    monkeypatch.setattr(service, "open_model", open_late)
    nursery.start_soon(start)
    with trio.fail_after(10):
        await loading.wait()
        before = await status()
        load.set()
        await started.wait()
        await trio.testing.wait_all_tasks_blocked()
        after = await status()
    assert (before["serving"], after["serving"]) == (False, True)
    assert [(told["id"], told["port"], told["dht_port"]) for told in (before, after)] == [
        (after["id"], after["port"], after["dht_port"])
    ] * 2


async def test_a_node_serves_all_its_models(nursery, config, backends, caplog):
    caplog.set_level(logging.INFO)
    node = await nursery.start(serve_node, config("alpha", "beta", node_id="node-a", n_parallel=2))
    await node.host.wait_announced()
    async with Swarm(bootstrap(node)) as swarm:
        for model in ("alpha", "beta"):
            reply = await swarm.generate("hello", model=model, max_tokens=5, **GREEDY)
            assert (reply.text, reply.node_id) == (scripted_text(scripted_tokens("hello", 5)), "node-a")
        [view] = await swarm.nodes()
    assert (view.models, view.slots, view.address) == (("alpha", "beta"), 4, f"127.0.0.1:{node.port}")
    assert any(f"serves alpha, beta on 127.0.0.1:{node.port} (TCP, TLS)" in message for message in caplog.messages)


async def test_an_ipv6_address_is_told_in_brackets(nursery, config, caplog):
    caplog.set_level(logging.INFO)
    node = await nursery.start(serve_node, config(host="::1"))
    assert any(f" on [::1]:{node.port} (TCP, TLS)" in message for message in caplog.messages)


async def test_nodes_join_through_each_other_whoever_starts_first(nursery, config):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    peers = (f"127.0.0.1:{port}",)
    started = trio.current_time()
    nodes = [
        await nursery.start(serve_node, config(node_id="node-a", bootstrap_nodes=peers)),
        await nursery.start(serve_node, config(node_id="node-b", bootstrap_nodes=peers)),
        await nursery.start(serve_node, config(node_id="node-c", dht_port=port)),
    ]
    for node in nodes:
        async with Swarm(bootstrap(node)) as swarm:
            seen = []
            while seen != ["node-a", "node-b", "node-c"]:
                assert trio.current_time() - started < 5
                seen = [view.node_id for view in await swarm.nodes()]


async def test_the_key_stays_with_the_port(config, tmp_path):
    ids = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    for dht_port in (port, port, 0, 0):
        async with trio.open_nursery() as nursery:
            node = await nursery.start(serve_node, config(dht_port=dht_port))
            ids.append(node.dht.identity.node_id)
            assert node.host.label == f"node-{ids[-1][:4].hex()}"
            nursery.cancel_scope.cancel()
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3
    assert (tmp_path / "data" / f"node-{port}.key").stat().st_mode & 0o777 == 0o600


async def test_draining_finishes_what_runs_and_withdraws(nursery, config, backends):
    stays = await nursery.start(serve_node, config(node_id="stays"))
    async with Swarm(bootstrap(stays)) as swarm:
        ended = trio.Event()

        async def leaves(task_status):
            await serve_node(config(node_id="leaves", bootstrap_nodes=(bootstrap(stays),)), task_status=task_status)
            ended.set()

        node = await nursery.start(leaves)
        await node.host.wait_announced()
        drained = False
        while not drained:  # until the choice falls on the node that leaves
            async with swarm.stream("hello", max_tokens=60, **GREEDY) as stream:
                await stream.__anext__()
                if stream.node_id == "leaves":
                    node.host.drain()
                    drained = True
                    async for _ in stream:
                        pass
        assert (stream.reply().text, stream.hops) == (scripted_text(scripted_tokens("hello", 60)), ())
        with trio.fail_after(5):
            await ended.wait()
        assert [view.node_id for view in await swarm.nodes()] == ["stays"]
        assert [view.node_id for view in await swarm.nodes("alpha")] == ["stays"]
    assert [backend.closed for backend in backends] == [False, True]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(None, "does not exist"), (b"", "is not a GGUF file"), (b"hello world", "is not a GGUF file")],
)
async def test_a_bad_model_is_refused_before_any_port_is_open(config, tmp_path, monkeypatch, content, complaint):
    settings = config("good", "bad")
    bad = tmp_path / "bad.gguf"
    bad.unlink() if content is None else bad.write_bytes(content)

    def opened(*_):
        raise AssertionError("a port was opened")

    monkeypatch.setattr(service, "bind", opened)
    monkeypatch.setattr(service.UdpTransport, "bind", opened)
    with pytest.raises(ModelFileError, match=complaint):
        await serve_node(settings)


def test_two_models_of_one_name(config, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "alpha").write_bytes(GGUF)  # the suffix is no part of a model's name
    settings = config()
    with pytest.raises(UserError, match="two models are named 'alpha'"):
        NodeConfig(model_path=(*settings.model_path, tmp_path / "other" / "alpha"), port=0, dht_port=0)


async def test_taken_ports(config, backends):
    with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        for taken in (tcp, udp):
            taken.bind(("127.0.0.1", 0))
        tcp.listen()
        port, dht_port = tcp.getsockname()[1], udp.getsockname()[1]
        with pytest.raises(UserError) as caught:
            await serve_node(config(port=port))
        assert backends == []  # before a model is loaded
        assert str(caught.value) == f"cannot listen on TCP 127.0.0.1:{port}: the port is taken (--port (PORT))"
        with pytest.raises(UserError) as caught:
            await serve_node(config(dht_port=dht_port))
        assert backends == []
        assert (
            str(caught.value) == f"cannot listen on UDP 127.0.0.1:{dht_port}: the port is taken (--dht-port (DHT_PORT))"
        )


@pytest.mark.parametrize(
    ("host", "complaint"), [("no-such-host.invalid", "is not known"), ("203.0.113.7", "cannot listen on TCP")]
)
async def test_addresses_that_are_not_ours(config, host, complaint):
    with pytest.raises(UserError, match=complaint) as caught:
        await serve_node(config(host=host))
    assert "--host (HOST)" in str(caught.value)


async def test_plain_websockets(nursery, config):
    node = await nursery.start(serve_node, config(no_tls=True))
    await node.host.wait_announced()
    async with Swarm(bootstrap(node)) as swarm:
        assert not (await swarm.nodes())[0].tls
        assert (await swarm.generate("hello", max_tokens=2, **GREEDY)).finish_reason == "length"


def raise_when(condition, number):
    """Send ourselves a signal as soon as `condition()`; in a thread, for the main one runs trio."""

    def run():
        while not condition():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(config, caplog, number):
    caplog.set_level(logging.INFO)
    thread = raise_when(lambda: any("Published node info" in message for message in caplog.messages), number)
    start = time.monotonic()
    trio.run(run_node, config())
    thread.join()
    assert time.monotonic() - start < 5
    assert any("draining" in message for message in caplog.messages)


def test_a_second_signal_stops_at_once(config, caplog, backends):
    caplog.set_level(logging.INFO)
    threads = [
        raise_when(lambda: backends and backends[0].drawn > 5, signal.SIGTERM),
        raise_when(lambda: any("draining" in message for message in caplog.messages), signal.SIGTERM),
    ]

    async def main():
        async with trio.open_nursery() as nursery:
            settings = config(dht_port=free_udp_port())
            nursery.start_soon(occupy, settings.dht_port)
            await run_node(settings)
            nursery.cancel_scope.cancel()

    start = time.monotonic()
    trio.run(main)
    for thread in threads:
        thread.join()
    assert time.monotonic() - start < DRAIN_S / 2


def free_udp_port():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as reserved:
        reserved.bind(("127.0.0.1", 0))
        return reserved.getsockname()[1]


async def occupy(dht_port):
    """Ask the node for something that never ends."""
    async with Swarm(f"127.0.0.1:{dht_port}") as swarm:
        while True:
            with suppress(Exception):
                await swarm.generate("hello", **GREEDY)
            await trio.sleep(0.05)
