"""What else a user or a stranger can do wrong, on the real command line: one line and the right status, or no harm."""

import contextlib
import os
import signal
import socket
import ssl

import pytest

from llamanet.dht.keyfile import hold_identity

WITHIN_S = 30
"""A generous deadline: these tests ask whether something happens, not how fast."""


def refused(result, status, *says):
    assert result.returncode == status
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert all(word in result.stderr for word in says)


@pytest.fixture
def bootstrap(swarm_of_three):
    return ("--bootstrap-nodes", swarm_of_three[0].dht_address)


# --- ports ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "flag", "variable", "says"),
    [(socket.SOCK_STREAM, "--port", "PORT", "TCP"), (socket.SOCK_DGRAM, "--dht-port", "DHT_PORT", "UDP")],
)
def test_port_in_use(run, model, tmp_path, kind, flag, variable, says):
    with socket.socket(type=kind) as taken:
        taken.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        port = taken.getsockname()[1]
        ports = {"PORT": "0", "DHT_PORT": "0", "HOST": "127.0.0.1", "DATA_DIR": str(tmp_path), "LOG_LEVEL": "error"}
        result = run("node", "--model-path", model, flag, port, **ports)
    refused(result, 2, says, str(port), flag, variable, "taken")


def test_an_identity_that_another_node_has(run, model, tmp_path):
    with hold_identity(tmp_path / "node-8123.key"):
        result = run("node", "--model-path", model, "--dht-port", 8123, "--data-dir", tmp_path, LOG_LEVEL="error")
    refused(result, 2, "node-8123.key", "--dht-port (DHT_PORT)", "--data-dir (DATA_DIR)")


def test_an_address_that_is_not_ours(run, model, tmp_path):
    result = run("node", "--model-path", model, "--data-dir", tmp_path, "--host", "192.0.2.1", "--log-level", "error")
    refused(result, 2, "192.0.2.1", "--host (HOST)")


def test_a_swarm_key_file_that_is_none(run, model, tmp_path):
    refused(run("node", "--model-path", model, "--swarm-key-file", tmp_path / "no.key"), 2, str(tmp_path / "no.key"))
    (tmp_path / "bad.key").write_text("too short")
    refused(run("node", "--model-path", model, "--swarm-key-file", tmp_path / "bad.key"), 2, str(tmp_path / "bad.key"))


def test_two_models_of_one_name(run, tmp_path):
    paths = [tmp_path / folder / "same.gguf" for folder in ("a", "b")]
    refused(run("node", "--model-path", paths[0], "--model-path", paths[1]), 2, "--model-path", "'same'", "rename")


# --- asking -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["ask", "Hi"], ["nodes"], ["models"]], ids=lambda command: command[0])
def test_nobody_at_the_bootstrap_address(run, command):
    with socket.socket(type=socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        refused(run(*command, "--bootstrap-nodes", address), 1, "not joined to any swarm", address)


def test_unknown_model(run, bootstrap, model):
    refused(run("ask", "Hi", "--model", "gpt-9", *bootstrap), 1, "'gpt-9'", f"the swarm serves {model.stem}")


def test_prompt_too_long(run, bootstrap):
    refused(run("ask", "-", "--max-tokens", 4, *bootstrap, stdin="word " * 5000), 2, "2048")


def test_empty_prompt(run, bootstrap):
    result = run("ask", "-", "--no-chat", "--max-tokens", 4, *bootstrap, stdin="")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [("--temperature", "-1", "temperature"), ("--max-tokens", "0", "max_tokens"), ("--seed", "-1", "seed")],
)
def test_a_parameter_out_of_range(run, bootstrap, option, value, says):
    refused(run("ask", "Hi", option, value, *bootstrap), 2, says)


# --- strangers --------------------------------------------------------------------------------------------------------


def test_garbage_on_udp_and_tcp_changes_nothing(run, bootstrap, swarm_of_three):
    node = swarm_of_three[0]
    with socket.socket(type=socket.SOCK_DGRAM) as udp:
        for size in (0, 1, 8, 100, 1200, 9000):
            udp.sendto(os.urandom(size), ("127.0.0.1", node.dht_port))
            udp.sendto(b"LN\x01" + os.urandom(size), ("127.0.0.1", node.dht_port))
    for greeting in (b"", os.urandom(1000), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01" + os.urandom(500)):
        with socket.create_connection(("127.0.0.1", node.port), timeout=WITHIN_S) as tcp:
            tcp.sendall(greeting)
            tcp.shutdown(socket.SHUT_WR)
            while tcp.recv(4096):
                pass
    result = run("ask", "Count: 1, 2, 3,", "--no-chat", "--max-tokens", 3, "--temperature", 0, *bootstrap)
    assert result.returncode == 0
    assert node.process.poll() is None
    assert not any("Traceback" in entry["message"] or "error" in entry for entry in node.log)


UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: llamanet.v1.json\r\n\r\n"
)


@pytest.mark.parametrize(
    ("greeting", "garbage"),
    [(b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"), (b"", b"\xff" * 1000 + b"\r\n\r\n"), (UPGRADE, b"\xff" * 1000)],
    ids=["http", "bytes", "frames"],
)
def test_garbage_inside_tls_ends_its_own_connection(swarm_of_three, greeting, garbage):
    node = swarm_of_three[0]
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", node.port), timeout=WITHIN_S) as tcp,
        context.wrap_socket(tcp, server_hostname="x") as tls,
    ):
        if greeting:
            tls.sendall(greeting)
            assert tls.recv(4096).startswith(b"HTTP/1.1 101 ")
        tls.sendall(garbage)
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while tls.recv(4096):
                pass
    assert node.process.poll() is None


# --- leaving in the middle ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_ask_at_once(bootstrap, start_asking, number):
    asking = start_asking("Count: 1, 2, 3,", "--no-chat", "--max-tokens", "1500", "--temperature", "0", *bootstrap)
    assert asking.stdout.read(1)
    asking.send_signal(number)
    _, errors = asking.communicate(timeout=WITHIN_S)
    assert asking.returncode == 128 + number
    assert errors == b""


def test_a_reader_that_leaves_ends_ask_quietly(bootstrap, start_asking):
    asking = start_asking("Count: 1, 2, 3,", "--no-chat", "--max-tokens", "1500", "--temperature", "0", *bootstrap)
    assert asking.stdout.read(1)
    asking.stdout.close()
    assert asking.wait(WITHIN_S) == 128 + signal.SIGPIPE
    assert asking.stderr.read() == b""
