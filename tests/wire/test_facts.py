"""Published facts: what fits a record, what is left out, and the names of keys."""

import hashlib

import attrs
import msgpack
import pytest
import wire_strategies as strategies
from hypothesis import given

from llamanet.errors import BadMessage
from llamanet.wire import facts
from llamanet.wire.codec import to_array
from llamanet.wire.envelope import Network
from llamanet.wire.facts import (
    MAX_VALUE_BYTES,
    decode_node_facts_untrusted,
    decode_service_facts_untrusted,
    encode_facts,
)
from llamanet.wire.identity import Identity
from llamanet.wire.record import encode_record, sign_record

ALICE = Identity.from_seed(b"a" * 32)
SERVICE = facts.ServiceFacts(
    hosts=("192.0.2.7",),
    port=8000,
    dht_port=8001,
    tls=True,
    label="alice",
    digest=bytes(32),
    n_ctx=2048,
    slots=4,
    version="1",
)
NODE = facts.NodeFacts(
    hosts=("192.0.2.7",), port=8000, dht_port=8001, tls=True, label="alice", models=("m",), model_count=1, version="1"
)


def test_keys():
    assert facts.key_of("model:m") == hashlib.sha256(b"model:m").digest()
    assert facts.model_key_name("é") == "model:é"
    assert facts.node_key_name("alice") == "node:alice"
    assert facts.node_key_name(ALICE.node_id) == f"node:{ALICE.node_id.hex()}"
    assert facts.ALL_NODES == "all_nodes"


@given(strategies.service_facts)
def test_service_facts_come_back(service):
    assert decode_service_facts_untrusted(encode_facts(service)) == service


@given(strategies.node_facts)
def test_node_facts_come_back_with_as_many_models_and_hosts_as_fit(node):
    value = encode_facts(node)
    assert len(value) <= MAX_VALUE_BYTES
    decoded = decode_node_facts_untrusted(value)
    assert attrs.evolve(decoded, models=(), hosts=()) == attrs.evolve(node, models=(), hosts=())
    assert decoded.models == node.models[: len(decoded.models)]
    assert decoded.hosts == node.hosts[: len(decoded.hosts)]
    if node.hosts:
        assert decoded.hosts


def test_models_leave_before_hosts_and_the_first_host_stays():
    hosts = ("a" * 60, "b" * 60, "c" * 60, "d")
    decoded = decode_node_facts_untrusted(encode_facts(attrs.evolve(NODE, hosts=hosts, models=("m" * 20,) * 20)))
    assert decoded.hosts == hosts[:3]
    assert len(decoded.models) < 2
    many = decode_node_facts_untrusted(encode_facts(attrs.evolve(NODE, models=("m",) * 20, model_count=20)))
    assert (len(many.models), many.model_count) == (16, 20)
    with pytest.raises(BadMessage, match="record"):
        encode_facts(attrs.evolve(NODE, hosts=("h" * 253,)))


def test_the_largest_value_fits_the_largest_record():
    record = sign_record(
        ALICE,
        Network(),
        key=bytes(32),
        sequence=2**63 - 1,
        issued_at=2**40,
        lifetime=1800,
        value=bytes(MAX_VALUE_BYTES),
    )
    assert len(encode_record(record)) <= 400


HOSTS = ([[], ["a"], ["x" * 253, "b", "c"]], [None, ["a"] * 4, [""], ["x" * 254], [b"a"]])
PORT = ([1, 65_535], [0, 65_536, None, 1.0])
LABEL = (["x", "é" * 32], ["", "x" * 33, None])
VERSION = (["", "x" * 32], ["x" * 33, None])
TOTAL = ([0, 2**31], [-1, 2**31 + 1, None])
BOUNDS = [
    (SERVICE, "hosts", *HOSTS),
    (SERVICE, "port", *PORT),
    (SERVICE, "dht_port", *PORT),
    (SERVICE, "tls", [True, False], [1, None]),
    (SERVICE, "label", *LABEL),
    (SERVICE, "digest", [b"x" * 32], [bytes(31), bytes(33), "0" * 64, None]),
    (SERVICE, "n_ctx", [0, 2**40], [-1, 2**40 + 1]),
    (SERVICE, "slots", [0, 65_535], [-1, 65_536]),
    (SERVICE, "version", *VERSION),
    (SERVICE, "capabilities", [[], ["x" * 16] * 8], [["x"] * 9, [""], ["x" * 17], None]),
    (NODE, "hosts", *HOSTS),
    (NODE, "port", *PORT),
    (NODE, "dht_port", *PORT),
    (NODE, "tls", [True, False], [1, None]),
    (NODE, "label", *LABEL),
    (NODE, "models", [[], ["é" * 96] * 16], [["m"] * 17, ["x" * 97], None]),
    (NODE, "model_count", [0, 65_535], [-1, 65_536]),
    (NODE, "version", *VERSION),
    (NODE, "running", *TOTAL),
    (NODE, "waiting", *TOTAL),
    (NODE, "slots", *TOTAL),
    (NODE, "tokens_per_second", [0, 1e9], [-0.1, 1.1e9, float("nan"), None]),
    (NODE, "draining", [True, False], [1, None]),
]


@pytest.mark.parametrize(("good", "field", "inside", "outside"), BOUNDS)
def test_bounds(good, field, inside, outside):
    decode = decode_service_facts_untrusted if good is SERVICE else decode_node_facts_untrusted
    index = [attribute.name for attribute in attrs.fields(type(good))].index(field)
    plain = to_array(good)
    for value in inside:
        plain[index] = value
        assert decode(msgpack.packb(plain))
    for value in outside:
        plain[index] = value
        with pytest.raises(BadMessage) as caught:
            decode(msgpack.packb(plain))
        assert caught.value.field.startswith(field)


def test_load_may_be_missing_and_more_may_follow():
    assert decode_node_facts_untrusted(msgpack.packb(to_array(NODE)[:8])) == NODE
    assert decode_node_facts_untrusted(msgpack.packb([*to_array(NODE), "more"])) == NODE
    with pytest.raises(BadMessage, match="version: missing"):
        decode_node_facts_untrusted(msgpack.packb(to_array(NODE)[:7]))
