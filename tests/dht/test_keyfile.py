import os
import stat
import subprocess
import sys

import pytest

from llamanet.dht.keyfile import hold_identity, load_or_create_identity, load_swarm_key
from llamanet.errors import UserError


def test_a_new_key_is_made_private_and_found_again(tmp_path):
    path = tmp_path / "data" / "key"
    made = load_or_create_identity(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == made.seed.hex() + "\n"
    assert os.listdir(path.parent) == ["key"]
    assert load_or_create_identity(path).public_key == made.public_key


@pytest.mark.parametrize("content", [b"", b"zz" * 32, b"00" * 31, b"00" * 33, b"\xff" * 64, b"00" * 400])
def test_a_spoilt_key_file_is_said_and_left_alone(tmp_path, content):
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(UserError, match="does not hold a key") as caught:
        load_or_create_identity(path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == content


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o606])
def test_a_key_file_open_to_others_is_refused(tmp_path, mode):
    path = tmp_path / "key"
    load_or_create_identity(path)
    path.chmod(mode)
    with pytest.raises(UserError, match=f"chmod 600 {path}"):
        load_or_create_identity(path)


def test_a_swarm_key_file_open_to_others_is_refused(tmp_path):
    path = tmp_path / "key"
    path.write_text("ab" * 32 + "\n")
    path.chmod(0o640)
    with pytest.raises(UserError, match=f"mode 0640.*chmod 600 {path}"):
        load_swarm_key(path)
    path.chmod(0o600)
    assert load_swarm_key(path) == b"\xab" * 32


def test_a_key_file_that_cannot_be_read_or_made_is_said(tmp_path):
    with pytest.raises(UserError, match="cannot read the key file"):
        load_or_create_identity(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot (read|write) the key file"):
        load_or_create_identity(tmp_path / "file" / "key")


def test_a_key_that_another_process_made_meanwhile_is_kept(tmp_path, monkeypatch):
    path = tmp_path / "key"
    link = os.link

    def link_late(source, target):
        monkeypatch.setattr(os, "link", link)
        link_late.other = load_or_create_identity(path)
        link(source, target)

    monkeypatch.setattr(os, "link", link_late)
    ours = load_or_create_identity(path)
    assert ours.public_key == link_late.other.public_key == load_or_create_identity(path).public_key
    assert os.listdir(tmp_path) == ["key"]


HOLD = """
import sys
from pathlib import Path
from llamanet.dht.keyfile import hold_identity
with hold_identity(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("ends", ["in order", "killed"])
def test_one_process_at_a_time_has_an_identity(tmp_path, ends):
    path = tmp_path / "key"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=f"another node runs with the key file {path}") as caught,
            hold_identity(path),
        ):
            pass
        assert "\n" not in str(caught.value)
        other.stdin.close() if ends == "in order" else other.kill()
        other.wait()
    with hold_identity(path) as ours:
        assert ours.public_key == load_or_create_identity(path).public_key
        with pytest.raises(UserError, match="another node"), hold_identity(path):
            pass
    with hold_identity(path):
        pass
