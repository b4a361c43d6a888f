"""A second implementation, made from `docs/protocol.md` alone, reads the test vectors; it imports no LlamaNet."""

import hashlib
import json
import struct
from pathlib import Path

import msgpack
import nacl.bindings as sodium
import nacl.signing
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

VECTORS = Path(__file__).parents[1] / "vectors"


def load(name: str):
    return json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))


NETWORKS = {case["network"]: (case["name"], case["swarm_key"] or "") for case in load("envelope")}


# --- Identity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", load("identity"), ids=lambda case: case["short_name"])
def test_identity(case):
    key = nacl.signing.SigningKey(bytes.fromhex(case["seed"]))
    public = bytes(key.verify_key)
    assert public.hex() == case["public_key"]
    assert hashlib.sha256(public).hexdigest() == case["node_id"]
    assert "node-" + case["node_id"][:8] == case["short_name"]
    # RFC 8032: the secret scalar is the clamped first half of SHA-512 of the seed; X25519 clamps by itself.
    scalar = bytearray(hashlib.sha512(bytes(key)).digest()[:32])
    scalar[0] &= 248
    scalar[31] = scalar[31] & 127 | 64
    assert scalar.hex() == case["exchange_key"]
    key.verify_key.verify(bytes.fromhex(case["message"]), bytes.fromhex(case["signature"]))
    certificate = x509.load_der_x509_certificate(bytes.fromhex(case["certificate"]))
    assert certificate.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw) == public
    certificate.public_key().verify(certificate.signature, certificate.tbs_certificate_bytes)


# --- Datagrams --------------------------------------------------------------------------------------------------------


def derive(network: tuple[str, str], material: bytes, purpose: str, size: int = 32) -> bytes:
    name = network[0].encode()
    return hashlib.blake2b(
        struct.pack(">H", len(name)) + name + material,
        digest_size=size,
        key=bytes.fromhex(network[1]),
        person=purpose.encode().ljust(16, b"\0"),
    ).digest()


def box_key(network: tuple[str, str], own_seed: bytes, peer: bytes, sender: bytes, receiver: bytes) -> bytes:
    scalar = hashlib.sha512(own_seed).digest()[:32]
    point = sodium.crypto_scalarmult(scalar, sodium.crypto_sign_ed25519_pk_to_curve25519(peer))
    shared = _hsalsa20(point)
    return derive(network, shared + sender + receiver, "llamanet-box")


def _hsalsa20(key: bytes) -> bytes:
    """HSalsa20 of 16 zero bytes, the last step of NaCl's crypto_box_beforenm."""
    constants = struct.unpack("<4I", b"expand 32-byte k")
    k = struct.unpack("<8I", key)
    x = [constants[0], *k[:4], constants[1], 0, 0, 0, 0, constants[2], *k[4:], constants[3]]
    quarters = [
        (0, 4, 8, 12), (5, 9, 13, 1), (10, 14, 2, 6), (15, 3, 7, 11), (0, 1, 2, 3), (5, 6, 7, 4), (10, 11, 8, 9),
        (15, 12, 13, 14),
    ]  # fmt: skip
    for _ in range(10):
        for a, b, c, d in quarters:
            for to, left, right, turn in ((b, a, d, 7), (c, b, a, 9), (d, c, b, 13), (a, d, c, 18)):
                total = (x[left] + x[right]) & 0xFFFFFFFF
                x[to] ^= (total << turn | total >> (32 - turn)) & 0xFFFFFFFF
    return struct.pack("<8I", *(x[i] for i in (0, 5, 10, 15, 6, 7, 8, 9)))


@pytest.mark.parametrize("case", load("envelope"), ids=lambda case: case["network"])
@pytest.mark.parametrize("kind", [0, 1])
def test_datagrams(case, kind):
    network = NETWORKS[case["network"]]
    assert derive(network, b"", "llamanet-tag", 4).hex() == case["tag"]
    assert derive(network, b"", "llamanet-sign").hex() == case["signature_domain"]
    datagram = bytes.fromhex(case["boxed" if kind else "introduction"])
    assert datagram[0:2] == b"LN"
    assert datagram[2] == 1
    assert datagram[3:7].hex() == case["tag"]
    assert datagram[7] == kind
    sender = datagram[8:40]
    assert sender == bytes(nacl.signing.SigningKey(bytes.fromhex(case["sender_seed"])).verify_key)
    seed = bytes.fromhex(case["receiver_seed"])
    receiver = bytes(nacl.signing.SigningKey(seed).verify_key)
    key = box_key(network, seed, sender, sender, receiver) if kind else derive(network, sender, "llamanet-intro")
    assert sodium.crypto_secretbox_open(datagram[64:], datagram[40:64], key).hex() == case["payload"]


# --- RPCs -------------------------------------------------------------------------------------------------------------

NAMES = {
    1: ["Ping", "transaction", "client", "model"],
    2: ["FindNode", "transaction", "client", "target"],
    3: ["FindValue", "transaction", "client", "key", "cursor"],
    4: ["Store", "transaction", "client", "token", "record", "cache"],
    6: ["DialBack", "transaction", "client", "token", "udp_port", "tcp_port"],
    129: ["Pong", "transaction", "observed", "draining", "version", "models", "clock"],
    130: ["Nodes", "transaction", "observed", "token", "contacts"],
    131: ["Values", "transaction", "observed", "token", "records", "total", "next_cursor", "contacts", "publishers"],
    132: ["Stored", "transaction", "observed", "publishers"],
    133: ["Refused", "transaction", "observed", "reason", "newer", "publishers"],
    134: ["DialedBack", "transaction", "observed", "answered_by", "connected"],
}
STATE = ["name", "running", "waiting", "slots", "tokens_per_second", "prefill_tokens_per_second", "ttft_s", "n_ctx"]


def address(value: list) -> dict:
    packed, port = value
    if len(packed) == 4:
        return {"host": ".".join(map(str, packed)), "port": port}
    groups = [f"{int.from_bytes(packed[i : i + 2], 'big'):x}" for i in range(0, 16, 2)]
    return {"host": ":".join(groups).replace(":0:0:0:0:0:", "::"), "port": port}


def shown(name: str, value):
    if name == "observed":
        return address(value)
    if name == "contacts":
        return [{"public_key": key.hex(), "address": address(rest)} for key, *rest in value]
    if name == "models" and value and isinstance(value[0], list):
        return [dict(zip(STATE, state, strict=True)) for state in value]
    if name == "records":
        return [record.hex() for record in value]
    return value.hex() if isinstance(value, bytes) else value


@pytest.mark.parametrize("case", load("rpc"), ids=lambda case: case["type"])
def test_rpcs(case):
    payload = bytes.fromhex(case["payload"])
    unpacker = msgpack.Unpacker()
    unpacker.feed(payload)
    number, *values = unpacker.unpack()
    end = unpacker.tell()
    assert payload[end:] == bytes(len(payload) - end)
    assert len(payload) == max(end, case["padded_to"])
    name, *fields = NAMES[number]
    assert name == case["type"]
    assert {field: shown(field, value) for field, value in zip(fields, values, strict=True)} == case["fields"]


# --- Records and facts ------------------------------------------------------------------------------------------------

RECORD = ["key", "public_key", "sequence", "issued_at", "lifetime", "value", "signature"]


@pytest.mark.parametrize("case", load("record"), ids=lambda case: case["network"])
def test_records(case):
    values = msgpack.unpackb(bytes.fromhex(case["encoded"]))
    assert {name: shown(name, value) for name, value in zip(RECORD, values, strict=True)} == case["fields"]
    assert msgpack.packb(values).hex() == case["encoded"]
    *fields, signature = values
    domain = derive(NETWORKS[case["network"]], b"", "llamanet-sign")
    signed = msgpack.packb(["llamanet-record-v1", domain, *fields])
    assert signed.hex() == case["signed_bytes"]
    nacl.signing.VerifyKey(values[1]).verify(signed, signature)
    assert hashlib.sha256(values[1]).hexdigest() == case["publisher"]
    assert values[3] + values[4] == case["expires_at"]


FACTS = {
    "ServiceFacts": "hosts port dht_port tls label digest n_ctx slots version capabilities",
    "NodeFacts": "hosts port dht_port tls label models model_count version"
    " running waiting slots tokens_per_second draining",
}


def test_facts():
    facts = load("facts")
    for case in facts["keys"]:
        assert hashlib.sha256(case["name"].encode()).hexdigest() == case["key"]
    for case in facts["values"]:
        values = msgpack.unpackb(bytes.fromhex(case["value"]))
        fields = FACTS[case["type"]].split()
        assert {name: shown(name, value) for name, value in zip(fields, values, strict=True)} == case["fields"]


# --- Messages ---------------------------------------------------------------------------------------------------------

SAMPLING = {
    "temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "typical_p": 1.0, "repeat_penalty": 1.0,
    "presence_penalty": 0.0, "frequency_penalty": 0.0, "penalty_last_n": 64, "seed": None, "max_tokens": None,
    "stop": [], "min_tokens": 0, "ignore_eos": False, "logit_bias": [], "dry_multiplier": 0.0, "dry_base": 1.75,
    "dry_allowed_length": 2, "dry_penalty_last_n": None, "dry_sequence_breakers": ["\n", ":", '"', "*"],
    "logprobs": None, "grammar": None, "json_schema": None,
}  # fmt: skip
DEFAULTS = {
    "generate": {
        "model": None, "prompt": None, "messages": [], "resume": [], "resume_text": None, "digest": None,
        "sampling": {}, "tools": [], "tool_choice": "auto", "tool_name": None, "parallel_tool_calls": None,
        "continue_final_message": False, "live_state": False,
    },
    "embed": {"model": None, "digest": None},
    "accepted": {"cached_tokens": 0, "tool_format": None, "state": None},
    "tokens": {"logprobs": []},
    "finished": {"timings": {}, "state": None},
    "failed": {"id": None, "field": None, "limit": None, "retry_after": None},
}  # fmt: skip
TURN = {"tool_calls": [], "tool_call_id": None}
TOOL = {"description": "", "parameters": None}


@pytest.mark.parametrize("case", load("inference"), ids=lambda case: json.loads(case["json"])["type"])
def test_messages(case):
    message = json.loads(case["json"])
    assert msgpack.unpackb(bytes.fromhex(case["msgpack"])) == message
    kind = message.pop("type")
    if case["from"] == "node" or kind in ("generate", "embed"):
        message = DEFAULTS.get(kind, {}) | message
    if kind == "generate":
        message["sampling"] = SAMPLING | message["sampling"]
        message["messages"] = [TURN | turn for turn in message["messages"]]
        message["tools"] = [TOOL | tool for tool in message["tools"]]
    if kind == "finished":
        message["usage"] = {"cached_tokens": 0} | message["usage"]
        message["timings"] = {"queue_s": 0.0, "prefill_s": 0.0, "decode_s": 0.0} | message["timings"]
    assert message == case["fields"]


@pytest.mark.parametrize("case", load("draws"))
def test_draws(case):
    mask = 2**64 - 1
    z = (case["seed"] + (case["position"] + 1) * 0x9E3779B97F4A7C15) & mask
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
    assert (z ^ z >> 31) >> 33 == case["position_seed"]
