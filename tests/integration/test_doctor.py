"""`llamanet doctor` on the real command line: it names the cause of each planted fault, and of no other."""

import json
import os
import socket
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
import trio

from llamanet.dht.keyfile import hold_identity
from llamanet.dht.service import DhtConfig, serve_dht
from llamanet.dht.transport import UdpTransport
from llamanet.gateway.config import GatewayConfig
from llamanet.gateway.service import serve_gateway
from llamanet.node import service
from llamanet.node.config import NodeConfig
from llamanet.swarm import Swarm
from llamanet.testing.processes import NodeProcess
from llamanet.wire.envelope import Network
from llamanet.wire.identity import Identity
from llamanet.wire.rpc import Address

WITHIN_S = 60


def free_ports():
    """A TCP and a UDP port that are free now."""
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        tcp.bind(("127.0.0.1", 0))
        udp.bind(("127.0.0.1", 0))
        return tcp.getsockname()[1], udp.getsockname()[1]


@pytest.fixture
def ports():
    return free_ports()


@pytest.fixture
def examine(run, tmp_path, ports):
    """The findings of `llamanet doctor ARGUMENTS` that are no "ok", by check; the status agrees with them."""

    def examine(*arguments, **options):
        place = ("--host", "127.0.0.1", "--port", ports[0], "--dht-port", ports[1], "--data-dir", tmp_path)
        result = run("doctor", "--json", *place, *arguments, timeout=WITHIN_S, **options)
        assert "Traceback" not in result.stderr
        told = json.loads(result.stdout)
        bad = [finding for finding in told["findings"] if finding["level"] != "ok"]
        assert result.returncode == (told["errors"] > 0)
        assert (told["errors"], told["warnings"]) == tuple(
            sum(finding["level"] == level for finding in bad) for level in ("error", "warning")
        )
        assert all(finding["why"] and finding["do"] for finding in bad)
        return {finding["check"]: (finding["level"], finding["what"]) for finding in bad}

    return examine


async def serve_beside(examine, config, *, arguments=()):
    """What the doctor finds, run in a thread, while a node of the DHT serves in this process."""
    with trio.fail_after(WITHIN_S):
        async with trio.open_nursery() as nursery:
            dht = await nursery.start(serve_dht, Identity.generate(), config)
            given = ("--bootstrap-nodes", f"127.0.0.1:{dht.port}", *arguments)
            found = await trio.to_thread.run_sync(partial(examine, *given))
            nursery.cancel_scope.cancel()
    return found


LOOPBACK = DhtConfig(hosts=("127.0.0.1",))


@pytest.fixture(scope="module")
def node(model, tmp_path_factory):
    """A node with the real model, and another one beside it that can dial it."""
    with ExitStack() as stack:

        def start(*arguments):
            data_dir = tmp_path_factory.mktemp("node")
            port, dht_port = free_ports()
            place = ("--host", "127.0.0.1", "--port", port, "--dht-port", dht_port, "--data-dir", data_dir)
            given = map(str, ("--model", model, "--n-threads", 1, *place, *arguments))
            process = stack.enter_context(NodeProcess(*given)).wait_ready()
            process.data_dir = data_dir
            return process

        first = start("--node-id", "first")
        start("--node-id", "second", "--bootstrap-nodes", first.dht_address)
        yield first


def at(node):
    return ("--port", node.port, "--dht-port", node.dht_port, "--data-dir", node.data_dir)


# --- all well ---------------------------------------------------------------------------------------------------------


def test_nothing_is_named_where_all_is_well(examine, node, model, run):
    assert examine(*at(node), "--model", model, "--bootstrap-nodes", node.dht_address) == {}
    text = run("doctor", *at(node), "--host", "127.0.0.1").stdout
    assert "first runs, and serves" in text
    assert "comes out here" in text
    assert "\n0 errors, 0 warnings\n" in text


async def test_nothing_is_named_before_the_first_start(examine, model):
    assert await serve_beside(examine, LOOPBACK, arguments=("--model", model, "--http-port", "0", "--load")) == {}


async def test_nothing_is_named_to_a_client(examine, tmp_path, ports):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports[0]))
        assert await serve_beside(examine, LOOPBACK, arguments=("--client",)) == {}
    assert list(tmp_path.iterdir()) == []


# --- the ten faults ---------------------------------------------------------------------------------------------------


class Firewall(UdpTransport):
    """Lets in only what comes from where something went out to, as most routers do."""

    def send(self, datagram, address):
        self.__dict__.setdefault("asked", set()).add(address)
        return super().send(datagram, address)

    async def receive(self, deliver):
        asked = self.__dict__.setdefault("asked", set())
        await super().receive(lambda datagram, source: source in asked and deliver(datagram, source))


async def test_a_blocked_udp_port(examine, nursery, monkeypatch, tmp_path, model, ports):
    with trio.fail_after(WITHIN_S):
        other = await nursery.start(serve_dht, Identity.from_seed(b"o" * 32), LOOPBACK)
        config = NodeConfig(
            model_path=(model,),
            n_threads=1,
            host="127.0.0.1",
            port=ports[0],
            dht_port=ports[1],
            data_dir=tmp_path,
            bootstrap_nodes=(f"127.0.0.1:{other.port}",),
        )
        monkeypatch.setattr(service, "UdpTransport", Firewall)
        await nursery.start(service.serve_node, config)
        found = await trio.to_thread.run_sync(partial(examine, "--bootstrap-nodes", f"127.0.0.1:{other.port}"))
        nursery.cancel_scope.cancel()
    assert set(found) == {"udp"}
    assert found["udp"][0] == "error"
    assert "not reached by who was not spoken to before" in found["udp"][1]


def test_a_wrong_announce(examine, node, model, tmp_path, ports):
    port, dht_port = free_ports()
    place = ("--host", "127.0.0.1", "--port", port, "--dht-port", dht_port, "--data-dir", tmp_path / "node")
    given = ("--model", model, "--n-threads", 1, "--bootstrap-nodes", node.dht_address, "--announce", "127.0.0.9")
    with NodeProcess(*map(str, (*place, *given))) as wrong:
        wrong.wait_ready()
        wrong.wait_for(lambda entry: "(at 127.0.0.9 " in entry["message"], WITHIN_S)
        wrong.data_dir = tmp_path / "node"
        found = examine(*at(wrong))
    assert set(found) == {"endpoint"}
    assert "the announced address 127.0.0.9 port" in found["endpoint"][1]
    assert "does not lead here" in found["endpoint"][1]


def test_an_announce_that_the_node_here_does_not_have(examine, node):
    found = examine(*at(node), "--announce", "127.0.0.9")
    assert set(found) == {"announce", "endpoint"}
    assert "the announced address 127.0.0.9 port" in found["endpoint"][1]
    assert "announces 127.0.0.1, and not 127.0.0.9" in found["announce"][1]


async def test_another_swarm_key(examine, tmp_path):
    for name, key in (("ours", "ab" * 32), ("public", None)):
        (tmp_path / name).write_text("cd" * 32)
        (tmp_path / name).chmod(0o600)
        network = Network(swarm_key=bytes.fromhex(key) if key else None)
        config = DhtConfig(hosts=("127.0.0.1",), network=network)
        found = await serve_beside(examine, config, arguments=("--swarm-key-file", tmp_path / name))
        check, says = ("bootstrap", "is silent") if key else ("swarm-key", "not those with ours")
        assert set(found) == {check}
        assert says in found[check][1]


def test_another_swarm_name(examine, node):
    found = examine("--client", "--bootstrap-nodes", node.dht_address, "--swarm-name", "elsewhere")
    assert set(found) == {"bootstrap"}
    assert "silent" in found["bootstrap"][1]


def test_a_node_here_that_is_in_another_swarm(examine, node):
    assert examine(*at(node), "--swarm-name", "elsewhere")["swarm-key"][0] == "warning"


def test_a_missing_model(examine, tmp_path):
    found = examine("--model", tmp_path / "no.gguf")
    assert found == {"model": ("error", f"{tmp_path}/no.gguf does not exist; check the path of the model")}


def test_a_wrong_file(examine, tmp_path, model):
    (tmp_path / "text.gguf").write_text("Once upon a time")
    assert "is not a GGUF file" in examine("--model", tmp_path / "text.gguf")["model"][1]
    content = Path(model).read_bytes()
    place = content.index(b"llama", content.index(b"general.architecture") + 20)
    (tmp_path / "odd.gguf").write_bytes(content[:place] + b"llamx" + content[place + 5 :])
    found = examine("--model", tmp_path / "odd.gguf")
    assert set(found) == {"model"}
    assert "unknown model architecture" in found["model"][1]


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_taken_port(examine, ports, kind):
    port = ports[kind == socket.SOCK_DGRAM]
    with socket.socket(type=kind) as taken:
        taken.bind(("127.0.0.1", port))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        found = examine()
    assert set(found) == {"ports"}
    assert f"port {port}" in found["ports"][1]


async def test_a_skewed_clock(examine):
    config = DhtConfig(hosts=("127.0.0.1",), wall_clock=lambda: time.time() + 300)
    found = await serve_beside(examine, config)
    assert set(found) == {"clock"}
    level, what = found["clock"]
    assert level == "error"
    assert "300 s behind" in what or "299 s behind" in what


@pytest.mark.parametrize(("name", "check"), [("key", "key-file"), ("swarm", "swarm-key")])
def test_a_key_file_that_is_open_to_all(examine, tmp_path, ports, name, check):
    file = tmp_path / (f"node-{ports[1]}.key" if name == "key" else "swarm.key")
    file.write_text("ab" * 32)
    file.chmod(0o644)
    found = examine(*(("--swarm-key-file", file) if name == "swarm" else ()))
    assert set(found) == {check}
    assert "open to others (mode 0644)" in found[check][1]


def test_a_dead_bootstrap_peer(examine, node):
    _, dead = free_ports()
    found = examine("--client", "--bootstrap-nodes", f"127.0.0.1:{dead}")
    assert found == {
        "bootstrap": (
            "error",
            f"nothing listens at the bootstrap peer 127.0.0.1:{dead}: its machine says that the UDP port is closed",
        )
    }
    found = examine("--client", "--bootstrap-nodes", f"{node.dht_address},127.0.0.1:{dead}")
    assert found["bootstrap"][0] == "warning"
    found = examine("--client", "--bootstrap-nodes", "no-such-host.invalid:8001")
    assert "has no address" in found["bootstrap"][1]


def test_no_gateway_key_on_a_public_bind(examine):
    found = examine("--http-host", "0.0.0.0")
    assert set(found) == {"gateway"}
    assert "0.0.0.0" in found["gateway"][1]
    assert set(examine("--http-host", "0.0.0.0", "--no-auth")) == {"gateway"}


# --- more -------------------------------------------------------------------------------------------------------------


def test_a_silent_peer_is_not_taken_for_more_than_silence(examine):
    with socket.socket(type=socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        peer = str(Address(*silent.getsockname()))
        assert examine("--client", "--bootstrap-nodes", peer) == {
            "bootstrap": ("error", f"the bootstrap peer {peer} is silent")
        }


async def test_a_gateway_that_runs_has_its_port(examine):
    port, _ = free_ports()
    async with Swarm() as swarm, trio.open_nursery() as nursery:
        await nursery.start(serve_gateway, swarm, GatewayConfig(http_port=port))
        assert await trio.to_thread.run_sync(partial(examine, "--http-port", port)) == {}
        nursery.cancel_scope.cancel()


def test_a_key_file_that_another_node_holds(examine, tmp_path, ports):
    with hold_identity(tmp_path / f"node-{ports[1]}.key"):
        assert set(examine()) == {"key-file"}


def test_settings_come_from_the_nodes_and_the_gateways_tables(examine, tmp_path):
    (tmp_path / "c.toml").write_text('[node]\nmodel = ["no.gguf"]\nn_batch = 8\n[gateway]\nhttp_host = "0.0.0.0"\n')
    assert set(examine("--config", tmp_path / "c.toml")) == {"model", "gateway"}


def test_a_mistake_is_none_of_the_findings(run):
    result = run("doctor", "--port", "70000")
    assert (result.returncode, result.stdout) == (2, "")
    assert "--port (PORT)" in result.stderr
    assert os.linesep not in result.stderr[:-1]
