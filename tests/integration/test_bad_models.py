"""A model file that cannot be served: one line with the file and what is wrong, status 2, before any port opens."""

import os
import socket

import pytest

GGUF_MAGIC = b"GGUF"


@pytest.fixture
def serve(run, tmp_path):
    """Run a node that should fail at once, on ports that would be taken too: the model's mistake must come first."""
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        udp.bind(("127.0.0.1", 0))

        def serve_model(path, **variables):
            ports = (
                "--port",
                tcp.getsockname()[1],
                "--dht-port",
                udp.getsockname()[1],
                "--data-dir",
                tmp_path / "data",
            )
            return run("node", "--model-path", path, "--host", "127.0.0.1", *ports, **variables)

        yield serve_model


def assert_one_line(result, *says):
    assert result.returncode == 2
    assert result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in result.stderr
    assert all(str(word) in errors[0] for word in says)


def test_missing(serve, tmp_path):
    assert_one_line(serve(tmp_path / "no.gguf"), tmp_path / "no.gguf")


def test_directory(serve, tmp_path):
    assert_one_line(serve(tmp_path), tmp_path)


def test_empty(serve, tmp_path):
    path = tmp_path / "empty.gguf"
    path.touch()
    assert_one_line(serve(path), path)


def test_not_gguf(serve, tmp_path):
    path = tmp_path / "text.gguf"
    path.write_text("This is no model.\n" * 100)
    assert_one_line(serve(path), path, "GGUF")


def test_only_the_magic(serve, tmp_path):
    path = tmp_path / "magic.gguf"
    path.write_bytes(GGUF_MAGIC)
    assert_one_line(serve(path), path)


def test_garbage_after_the_magic(serve, tmp_path):
    path = tmp_path / "garbage.gguf"
    path.write_bytes(GGUF_MAGIC + b"\xff" * 10_000)
    assert_one_line(serve(path), path)


def test_truncated(serve, model, tmp_path):
    path = tmp_path / "truncated.gguf"
    with model.open("rb") as whole:
        path.write_bytes(whole.read(5_000_000))
    assert_one_line(serve(path), path)


def test_unreadable(serve, tmp_path):
    # Root may read what has no permissions, so the file is one that even root cannot open.
    path = tmp_path / "loop.gguf"
    os.symlink(path, path)
    assert_one_line(serve(path), path)


def test_one_bad_model_among_good_ones(run, model, tmp_path):
    missing = tmp_path / "no.gguf"
    result = run("node", "--port", 0, "--dht-port", 0, MODEL_PATH=f"{model},{missing}", DATA_DIR=str(tmp_path / "data"))
    assert_one_line(result, missing)
