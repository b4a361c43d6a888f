"""The control socket, over a real one; what it controls is a scripted node."""

import json
import os
import socket
import stat

import pytest
import trio

from llamanet.errors import ModelFileError, UserError
from llamanet.node.control import Control, control_socket, serve_control
from llamanet.node.host import Host, Model
from llamanet.testing.backend import ScriptedBackend, TrioWorker
from llamanet.wire.identity import Identity


@pytest.fixture
async def control(nursery, tmp_path):
    """The path of the socket of a host with one model."""
    host = Host(Identity.generate(), label="node-a", tls=False, make_worker=TrioWorker)
    path = tmp_path / "control.sock"

    async def load(source, report):
        if source == "broken":
            raise ModelFileError("broken.gguf does not exist; check the path of the model")
        if source == "slow":
            report("Pulling slow", 1, 3)
            await trio.sleep_forever()
        model = Model(name=source, digest=bytes(32), make_backend=ScriptedBackend, source=f"{source}.gguf")
        return await nursery.start(host.serve_model, model)

    await load("alpha", None)
    with control_socket(path) as sock:
        nursery.start_soon(serve_control, sock, Control(host, load, {"port": 8000}))
        yield path, host
        nursery.cancel_scope.cancel()


async def lines(path, request):
    """All that is answered."""
    stream = await trio.open_unix_socket(path)
    async with stream:
        data = request if isinstance(request, bytes) else json.dumps(request).encode()
        await stream.send_all(data + b"\n")
        received = b"".join([chunk async for chunk in stream])
    return [json.loads(line) for line in received.splitlines()]


async def ask(path, do, **fields):
    *_, answer = await lines(path, {"do": do, **fields})
    return answer


async def test_only_the_owner_can_open_it(control):
    path, _ = control
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_a_models_life(control):
    path, host = control
    answer = (await ask(path, "load", model="beta"))["ok"]
    assert (answer["name"], answer["digest"]) == ("beta", "00" * 32)
    status = (await ask(path, "status"))["ok"]
    assert (status["node_id"], status["port"], status["draining"], status["requests"]) == ("node-a", 8000, False, 0)
    assert [(model["name"], model["source"], model["state"], model["slots"]) for model in status["models"]] == [
        ("alpha", "alpha.gguf", "loaded", 4),
        ("beta", "beta.gguf", "loaded", 4),
    ]
    assert (await ask(path, "unload", model="beta")) == {"ok": {"name": "beta"}}
    assert list(host.sources()) == ["alpha"]


async def test_drain_and_resume(control):
    path, host = control
    assert (await ask(path, "drain")) == {"ok": {"requests": 0}}
    assert host.endpoint.draining
    assert (await ask(path, "status"))["ok"]["held_by"] == ["operator"]
    host.endpoint.count_request(+1)
    assert (await ask(path, "drain", wait=False)) == {"ok": {"requests": 1}}
    with trio.move_on_after(0.1) as impatient:
        await ask(path, "drain")
    assert impatient.cancelled_caught  # it waits for the request; hanging up ends only the waiting
    host.endpoint.count_request(-1)
    assert host.endpoint.draining
    assert (await ask(path, "resume")) == {"ok": {"held_by": []}}
    assert not host.endpoint.draining


async def test_what_cannot_be_is_one_line(control):
    path, host = control
    cases = {
        b"hello": "the request is no JSON",
        b"\xff" * 1000: "the request is no JSON",
        b"[1]": "no JSON object",
        b"{}": "do: one of status, load, unload, drain, resume, not None",
        b'{"do": "load"}': "model must be a text, not None",
        b'{"do": "load", "model": "broken"}': "broken.gguf does not exist",
        b'{"do": "load", "model": "alpha"}': "two models are named 'alpha'",
        b'{"do": "unload", "model": "beta"}': "the node has no model 'beta'; it has alpha",
        b'{"do": "unload", "model": "alpha", "timeout": "x"}': "timeout must be a number of seconds, not 'x'",
    }
    for request, says in cases.items():
        [answer] = await lines(path, request)
        assert says in answer["error"]
        assert "\n" not in answer["error"]
        assert answer["status"] == 2
    assert list(host.sources()) == ["alpha"]


async def test_progress_is_told_and_who_hangs_up_gives_up(control):
    path, _ = control
    stream = await trio.open_unix_socket(path)
    async with stream:
        await stream.send_all(b'{"do": "load", "model": "slow"}\n')
        told = json.loads(await stream.receive_some())
    assert told == {"progress": {"what": "Pulling slow", "done": 1, "whole": 3}}
    assert (await ask(path, "status"))["ok"]["requests"] == 0


def test_a_stale_socket_is_replaced_and_one_in_use_is_not(tmp_path):
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with control_socket(path), pytest.raises(UserError, match="another process listens on"), control_socket(path):
        pass
    assert not path.exists()


def test_paths_that_can_hold_no_socket(tmp_path):
    for path, says in (
        (tmp_path / ("x" * 100), "is too long for a socket (103 bytes)"),
        (tmp_path / "file" / "a.sock", "cannot make the socket"),
        (tmp_path / "file", "cannot make the socket"),
    ):
        (tmp_path / "file").write_text("precious")
        with pytest.raises(UserError) as caught, control_socket(path):
            pass
        assert says in str(caught.value)
        assert "--control (CONTROL)" in str(caught.value)
    assert (tmp_path / "file").read_text() == "precious"
    assert os.listdir(tmp_path) == ["file"]
