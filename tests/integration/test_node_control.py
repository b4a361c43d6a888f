"""A node that is told what to do while it runs, by the command that a user would take."""

import json
import shutil
import socket
import threading
import time

import pytest

from llamanet.client import Client
from llamanet.errors import LlamaNetError
from llamanet.testing.processes import NodeProcess

COUNTING = ("--no-chat", "--temperature", "0", "--max-tokens", "8")


@pytest.fixture
def control(run, new_swarm, tmp_path):
    """A node with a control socket beside another one, and `control(...)` that speaks to it."""
    [other] = new_swarm(1)
    path = tmp_path / "control.sock"
    [node] = new_swarm(1, "--control", str(path), "--bootstrap-nodes", other.dht_address, "--idle-unload", "100")

    def perform(*arguments, status=0):
        result = run("control", *arguments, "--control", path)
        assert result.returncode == status, result.stderr
        return result

    perform.node, perform.other = node, other
    return perform


def test_nobody_is_disturbed_while_models_come_and_go(control, run, model, tmp_path):
    second = tmp_path / "second.gguf"
    shutil.copy(model, second)
    peer = ("--bootstrap-nodes", control.node.dht_address)
    errors, answers, over = [], [], threading.Event()

    def ask():
        with Client(control.node.dht_address) as client:
            while not over.is_set():
                try:
                    answers.append(
                        client.generate("Count: 1, 2, 3,", model=model.stem, max_tokens=8, temperature=0).text
                    )
                except LlamaNetError as error:
                    errors.append(error)

    asking = [threading.Thread(target=ask) for _ in range(2)]
    for thread in asking:
        thread.start()
    try:
        assert control("load", second).stdout.startswith("second is served, after ")
        assert run("ask", "Count: 1, 2, 3,", *COUNTING, "--model", "second", *peer).stdout == " 4, 5, 6\n"
        assert control("drain").stdout == "the node is drained; 0 requests run\n"
        status = json.loads(control("status", "--json").stdout)
        assert (status["draining"], status["held_by"], status["requests"]) == (True, ["operator"], 0)
        assert [found["state"] for found in status["models"]] == ["loaded", "loaded"]
        during = len(answers)
        assert control("resume").stdout == "the node takes requests again\n"
        assert control("unload", "second").stdout == "second is unloaded\n"
        assert control("unload", model.stem).stdout == f"{model.stem} is unloaded\n"
        assert control("load", model).stdout.startswith(f"{model.stem} is served")
    finally:
        over.set()
        for thread in asking:
            thread.join()
    assert errors == []
    assert set(answers) == {" 4, 5, 6"}
    assert 0 < during < len(answers)


def test_what_cannot_be_done_is_one_line(control, tmp_path):
    for arguments, says in (
        (("unload", "nothing"), "the node has no model 'nothing'; it has SmolLM2"),
        (("load", "nothing"), "nothing is neither a file nor a pulled model"),
        (("load", tmp_path / "no.gguf"), "no.gguf does not exist"),
    ):
        result = control(*arguments, status=2)
        assert (result.stdout, result.stderr.count("\n")) == ("", 1)
        assert says in result.stderr


def test_no_node_is_there(run, tmp_path):
    result = run("control", "status", "--data-dir", tmp_path, "--dht-port", "8123")
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert f"no node answers on {tmp_path / 'node-8123.sock'}" in result.stderr


def test_a_node_is_ready_once_it_has_loaded_its_models(control, run, tmp_path):
    assert control("status", "--ready").stdout.splitlines()[0].startswith("node-1: serving, ")
    path = tmp_path / "starting.sock"
    place = ("--host", "127.0.0.1", "--port", "0", "--dht-port", "0", "--data-dir", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as silent_hub:
        hub = {"HF_ENDPOINT": f"http://127.0.0.1:{silent_hub.getsockname()[1]}", "HF_HOME": str(tmp_path)}
        with NodeProcess("--model", "hf:owner/repo", *place, "--control", str(path), variables=hub) as node:
            deadline = time.monotonic() + 30
            while (seen := run("control", "status", "--ready", "--control", path)).returncode == 2:
                assert time.monotonic() < deadline, node.log_tail()
            assert (seen.returncode, seen.stderr) == (1, "")
            assert ": starting, 0 requests" in seen.stdout
            assert run("control", "status", "--control", path).returncode == 0
