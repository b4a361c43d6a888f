"""The published test vectors say what this code does."""

import json
import runpy
from pathlib import Path

import pytest

from llamanet.wire import facts, inference, rpc
from llamanet.wire.envelope import Envelope, Network
from llamanet.wire.identity import Identity
from llamanet.wire.record import decode_record_untrusted, is_signed

VECTORS = Path(__file__).parents[1] / "vectors"
make = runpy.run_path(str(VECTORS / "make.py"))


def load(name: str):
    return json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))


def test_the_files_are_what_the_code_makes():
    made = make["make"]()
    assert sorted(made) == sorted(path.name for path in VECTORS.glob("*.json"))
    for name, content in made.items():
        assert (VECTORS / name).read_text(encoding="utf-8") == content, f"{name}: run {VECTORS / 'make.py'}"


@pytest.mark.parametrize("case", load("envelope"), ids=lambda case: case["network"])
def test_datagrams(case):
    network = Network(case["name"], case["swarm_key"] and bytes.fromhex(case["swarm_key"]))
    alice, bob = (Identity.from_seed(bytes.fromhex(case[f"{role}_seed"])) for role in ("sender", "receiver"))
    for kind in ("boxed", "introduction"):
        opened = Envelope(bob, network).open_untrusted(bytes.fromhex(case[kind]))
        assert (opened.sender, opened.introduction) == (alice.public_key, kind == "introduction")
        assert opened.payload.hex() == case["payload"]


@pytest.mark.parametrize("case", load("rpc"), ids=lambda case: case["type"])
def test_rpcs(case):
    message = rpc.decode_rpc_untrusted(bytes.fromhex(case["payload"]))
    assert (type(message).__name__, make["plain"](message)) == (case["type"], case["fields"])


@pytest.mark.parametrize("case", load("record"), ids=lambda case: case["network"])
def test_records(case):
    record = decode_record_untrusted(bytes.fromhex(case["encoded"]))
    assert make["plain"](record) == case["fields"]
    for label, network in make["NETWORKS"].items():
        assert is_signed(record, network) == (label == case["network"])


@pytest.mark.parametrize("case", load("facts")["values"], ids=lambda case: case["type"])
def test_facts(case):
    service = case["type"] == "ServiceFacts"
    decode = facts.decode_service_facts_untrusted if service else facts.decode_node_facts_untrusted
    assert make["plain"](decode(bytes.fromhex(case["value"]))) == case["fields"]


@pytest.mark.parametrize("case", load("inference"), ids=lambda case: json.loads(case["json"])["type"])
def test_messages(case):
    client = case["from"] == "client"
    decode = inference.decode_client_message_untrusted if client else inference.decode_node_message_untrusted
    assert (
        make["plain"](decode(bytes.fromhex(case["msgpack"]))) == make["plain"](decode(case["json"])) == case["fields"]
    )
