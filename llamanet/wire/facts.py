"""What nodes publish: the values inside records, and the names of the keys that they stand under.

- `model:{name}` holds `ServiceFacts`, one record a node: slow facts only, for load in a key that all nodes of a model
  share would cost each of its holders a signed store per node per heartbeat.
- `node:{label}` and `node:{id}` hold one node's latest `NodeFacts`, with its load, every heartbeat.
- `all_nodes` holds `NodeFacts` too, as a bounded sample.

Everything fits a record (400 bytes): a node with many models lists the first ones and tells how many there are; its
PONG and its Status tell all.
"""

import hashlib

import attrs

from llamanet.errors import BadMessage
from llamanet.wire.codec import (
    boolean,
    exactly_bytes,
    from_array_untrusted,
    integer,
    list_of,
    number,
    text,
    to_array,
    wire_field,
)
from llamanet.wire.identity import NodeId
from llamanet.wire.plain import pack_datagram, unpack_datagram_untrusted
from llamanet.wire.state import MAX_MODEL_NAME

MAX_LABEL = 32
MAX_HOSTS = 3
MAX_LISTED_MODELS = 16
MAX_VALUE_BYTES = 236
"""What a record of 400 bytes leaves for its value."""


def key_of(name: str) -> bytes:
    """The 32-byte key of a name: its SHA-256, once."""
    return hashlib.sha256(name.encode()).digest()


_MODEL = "model:"


def model_key_name(model: str) -> str:
    """The name of the key under which the nodes that serve `model` are found."""
    return f"{_MODEL}{model}"


def is_model_key_name(name: str) -> bool:
    """Whether `name` is that of a model's key, which is split into shards (`dht/shards.py`) when it has many nodes."""
    return name.startswith(_MODEL)


def node_key_name(label_or_id: str | NodeId) -> str:
    """The name of one node's own key, by its label or by its id (which is written in hexadecimal)."""
    return f"node:{label_or_id if isinstance(label_or_id, str) else label_or_id.hex()}"


ALL_NODES = "all_nodes"

_hosts = list_of(text(253, least=1), MAX_HOSTS)
_port = integer(1, 65_535)


@attrs.frozen(kw_only=True)
class ServiceFacts:
    """What a node says under `model:{name}`. Hosts are IP addresses or host names, best first."""

    hosts: tuple[str, ...] = wire_field(_hosts, list)
    port: int = wire_field(_port)
    """Inference, TCP."""
    dht_port: int = wire_field(_port)
    """UDP."""
    tls: bool = wire_field(boolean)
    label: str = wire_field(text(MAX_LABEL, least=1))
    digest: bytes = wire_field(exactly_bytes(32), repr=bytes.hex)
    """SHA-256 of the model file."""
    n_ctx: int = wire_field(integer(0, 2**40))
    """Tokens a slot."""
    slots: int = wire_field(integer(0, 65_535))
    version: str = wire_field(text(32))
    capabilities: tuple[str, ...] = wire_field(list_of(text(16, least=1), 8), list, default=())


@attrs.frozen(kw_only=True)
class NodeFacts:
    """What a node says of itself under `node:{...}` and `all_nodes`; totals are over all its models."""

    hosts: tuple[str, ...] = wire_field(_hosts, list)
    port: int = wire_field(_port)
    dht_port: int = wire_field(_port)
    tls: bool = wire_field(boolean)
    label: str = wire_field(text(MAX_LABEL, least=1))
    models: tuple[str, ...] = wire_field(list_of(text(MAX_MODEL_NAME), MAX_LISTED_MODELS), list)
    """As many names as fit."""
    model_count: int = wire_field(integer(0, 65_535))
    version: str = wire_field(text(32))
    running: int = wire_field(integer(0, 2**31), default=0)
    waiting: int = wire_field(integer(0, 2**31), default=0)
    slots: int = wire_field(integer(0, 2**31), default=0)
    tokens_per_second: float = wire_field(number(0, 1e9), default=0.0)
    draining: bool = wire_field(boolean, default=False)


def announced_hosts(announce: str | None) -> tuple[str, ...]:
    """The hosts of a setting such as "192.0.2.7" or "192.0.2.7, 2001:db8::7"; none of None."""
    return tuple(filter(None, map(str.strip, (announce or "").split(","))))


def encode_facts(facts: ServiceFacts | NodeFacts) -> bytes:
    """A record's value. What does not fit is left out from the end: model names, then further hosts.

    Raises `BadMessage` if even one host does not fit.
    """
    facts = attrs.evolve(facts, hosts=facts.hosts[:MAX_HOSTS])
    if isinstance(facts, NodeFacts):
        facts = attrs.evolve(facts, models=facts.models[:MAX_LISTED_MODELS])
    while True:
        value = pack_datagram(to_array(facts))
        if len(value) <= MAX_VALUE_BYTES:
            return value
        if isinstance(facts, NodeFacts) and facts.models:
            facts = attrs.evolve(facts, models=facts.models[:-1])
        elif len(facts.hosts) > 1:
            facts = attrs.evolve(facts, hosts=facts.hosts[:-1])
        else:
            raise BadMessage("the host's name is too long for a record", "hosts", limit=f"{MAX_VALUE_BYTES} bytes")


def decode_service_facts_untrusted(value: bytes) -> ServiceFacts:
    """The value of a record under `model:{name}`. Raises `BadMessage`."""
    return from_array_untrusted(ServiceFacts, unpack_datagram_untrusted(value))


def decode_node_facts_untrusted(value: bytes) -> NodeFacts:
    """The value of a record under `node:{...}` or `all_nodes`. Raises `BadMessage`."""
    return from_array_untrusted(NodeFacts, unpack_datagram_untrusted(value))
