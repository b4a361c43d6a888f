"""Keys made on the command line are those that nodes and gateways take, and nobody else may read their files."""

import hashlib
import json
import stat

import pytest

from llamanet.dht.keyfile import load_or_create_identity, load_swarm_key


def test_an_identity_is_made_once_and_shown(run, tmp_path):
    first = run("keys", "identity", "--data-dir", tmp_path, "--dht-port", 9001)
    assert first.returncode == 0
    assert first.stdout == run("keys", "identity", "--data-dir", tmp_path, "--dht-port", 9001).stdout
    identity = load_or_create_identity(tmp_path / "node-9001.key")
    assert identity.node_id.hex() in first.stdout
    assert identity.public_key.hex() in first.stdout
    assert identity.seed.hex() not in first.stdout
    told = json.loads(run("keys", "identity", "--data-dir", tmp_path, "--dht-port", 9001, "--json").stdout)
    assert (told["id"], told["public_key"]) == (identity.node_id.hex(), identity.public_key.hex())


def test_a_swarm_key_is_made_for_its_owner_alone_and_never_replaced(run, tmp_path):
    file = tmp_path / "swarm.key"
    assert run("keys", "swarm", file).stdout == f"{file}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    key = load_swarm_key(file)
    again = run("keys", "swarm", file)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert load_swarm_key(file) == key


def test_an_api_key_is_shown_once_and_its_hash_is_kept(run, tmp_path):
    file = tmp_path / "api-keys"
    key = run("keys", "api", "alice", "--file", file, "--rpm", 60, "--concurrent", 4).stdout.strip()
    run("keys", "api", "bob", "--file", file)
    lines = file.read_text().splitlines()
    assert lines[0] == f"alice sha256:{hashlib.sha256(key.encode()).hexdigest()} rpm=60 concurrent=4"
    assert [line.split()[0] for line in lines] == ["alice", "bob"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert run("keys", "api", "bob", "--file", file).returncode == 2
    assert len(file.read_text().splitlines()) == 2


def test_an_api_key_for_programs(run):
    told = json.loads(run("keys", "api", "alice", "--rpm", 60, "--json").stdout)
    assert told["line"] == f"alice sha256:{hashlib.sha256(told['key'].encode()).hexdigest()} rpm=60"


def test_a_label_that_a_file_could_not_hold_is_refused(run):
    result = run("keys", "api", "a b")
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)


def test_each_shell_has_a_completion(run):
    for shell in ("bash", "zsh", "fish"):
        assert "_LLAMANET_COMPLETE" in run("completion", shell).stdout
    completed = run(_LLAMANET_COMPLETE="bash_complete", COMP_WORDS="llamanet no", COMP_CWORD="1")
    assert completed.stdout.split() == ["plain,node", "plain,nodes"]


@pytest.mark.parametrize("words", ["llamanet node --model ./m", "llamanet control load ./m"])
def test_the_shell_completes_a_models_path(run, words):
    last = str(len(words.split()) - 1)
    completed = run(_LLAMANET_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=last)
    assert completed.stdout.split() == ["file,./m"]
