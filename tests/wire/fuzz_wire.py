"""Feeds each decoder with inputs that are nearly right: `python tests/wire/fuzz_wire.py [INPUTS [SEED]]`.

What must hold for each input: either `BadMessage`, with a text that is short and can be sent back, or a message that
survives encoding and decoding.
"""

import json
import sys
import time
from collections.abc import Callable
from random import Random
from typing import Any

import attrs
import msgpack

from llamanet.errors import BadMessage
from llamanet.wire import facts, inference, rpc
from llamanet.wire.envelope import Envelope, Network
from llamanet.wire.identity import Identity
from llamanet.wire.record import decode_record_untrusted, encode_record, sign_record
from llamanet.wire.state import ModelState

ALICE, BOB = Identity.from_seed(b"a" * 32), Identity.from_seed(b"b" * 32)
NETWORK = Network("fuzz")
ENVELOPE = Envelope(BOB, NETWORK)
BITS = [
    b"\xc0", b"\xc1", b"\xc2", b"\xc3", b"\x00", b"\xff", b"\x80", b"\x90", b"\xa0", b"\xc4\x20", b"\xd9\xff",
    b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xde\x00\x01", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff",
    b"\xd4\x05a", b"\xd6\xff\x00\x00\x00\x01", b"\xc7\x0c\xff" + b"\xff" * 12, b"\xca\x7f\xc0\x00\x00",
    b"\xcb\x7f\xf0\x00\x00\x00\x00\x00\x00", b"\xcf" + b"\xff" * 8, b"\xd3\x80" + b"\x00" * 7, b"\xa2\xc3\x28",
    b"\xa3\xed\xa0\x80", b"\x91" * 40, b"\xdd\x00\x00\x04\x00" * 40, b"\x81\x01\x02", b"\x81\xc4\x01a\x01",
]  # fmt: skip
MARKS = [
    "NaN", "-Infinity", "1e999", "-1", "1" * 30, "9" * 5000, '"\\ud800"', '"\\u0000"', "null", "true", "[]", "{}",
    "[" * 40, "[" * 2000, '{"":', '"id":1,', '"\\ud800":1,', "\x00", "\ud800", "\ufeff", '"', "\\", ",", ":", "]", "}",
    "0.5", "-0",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 255, 65_536, 2**31, 2**32, 2**53, 2**63, -(2**63), 2**64 - 1, 0.0, -0.0, -1.5, 1e300,
    float("nan"), float("inf"), "", "x", "x" * 300, "\x00", "é" * 97, b"", b"x", bytes(8), bytes(32), bytes(401), [],
    [None], [[]], [[[[[]]]]], {}, {"": 1}, {"type": "cancel", "id": 1}, [1, 2], [bytes(4), 1],
    [bytes(10) + b"\xff\xff\x7f\0\0\1", 1],
]  # fmt: skip


@attrs.frozen
class Target:
    """A decoder, its encoder (None: not its inverse), and inputs that it takes."""

    name: str
    decode: Callable[[Any], Any]
    encode: Callable[[Any], Any] | None
    seeds: list[Any]


def _examples() -> tuple[list[Any], list[Any], list[Any]]:
    address, other = rpc.Address("192.0.2.7", 8001), rpc.Address("2001:db8::7", 65_535)
    contacts = (rpc.Contact(ALICE.public_key, address), rpc.Contact(BOB.public_key, other))
    state = ModelState(
        name="m",
        running=1,
        waiting=2,
        slots=4,
        tokens_per_second=3.5,
        prefill_tokens_per_second=99.0,
        ttft_s=0.25,
        n_ctx=2048,
    )
    t = bytes(range(8))
    rpcs = [
        rpc.Ping(transaction=t, client=True, model="m"),
        rpc.FindNode(transaction=t, client=False, target=bytes(32)),
        rpc.FindValue(transaction=t, client=False, key=bytes(32), cursor=7),
        rpc.Store(transaction=t, client=False, token=t, record=bytes(50), cache=True),
        rpc.Pong(transaction=t, observed=other, draining=True, version="1", models=(state, state)),
        rpc.Nodes(transaction=t, observed=address, token=t, contacts=contacts),
        rpc.Values(
            transaction=t, observed=address, token=t, records=(b"a", b"b"), total=9, next_cursor=None, contacts=contacts
        ),
        rpc.Stored(transaction=t, observed=address, publishers=10_000),
        rpc.Refused(transaction=t, observed=address, reason="far", newer=bytes(3)),
    ]
    client = [
        inference.Generate(id=1, prompt="Hi", model="m", resume=(1, 2), digest=bytes(32)),
        inference.Generate(
            id=2,
            messages=(inference.ChatMessage(role="user", content="Hé"),),
            sampling=inference.Sampling(temperature=0.5, seed=7, max_tokens=3, stop=("x",)),
        ),
        inference.Generate(id=5, prompt="Hi", live_state=True),
        inference.Cancel(id=3),
        inference.Status(id=4),
    ]
    model = inference.ModelStatus(
        name="m", digest=bytes(32), n_ctx=2048, slots=4, running=1, waiting=2, tokens_per_second=3.5, ttft_s=0.25
    )
    node = [
        inference.Accepted(id=1, node_id="n", prompt_tokens=5, state=state),
        inference.Tokens(id=1, text=" é", token_ids=(5, 70_000)),
        inference.Finished(id=1, reason="stop", usage=inference.Usage(prompt_tokens=1, completion_tokens=2)),
        inference.Failed(id=1, code="busy", message="full", field="f", limit="l", retry_after=0.5),
        inference.StatusReply(id=1, node_id="n", version="1", draining=False, models=(model,)),
    ]
    return rpcs, client, node


def targets() -> list[Target]:
    """Every decoder that takes bytes from the network."""
    rpcs, client, node = _examples()
    alice = Envelope(ALICE, NETWORK)
    service = facts.ServiceFacts(
        hosts=("192.0.2.7", "a.example"), port=1, dht_port=2, tls=True, label="l", digest=bytes(32), n_ctx=1, slots=2,
        version="1", capabilities=("embed",),
    )  # fmt: skip
    status = facts.NodeFacts(
        hosts=("192.0.2.7",), port=1, dht_port=2, tls=True, label="l", models=("m", "n"), model_count=2, version="1",
        running=1, waiting=2, slots=3, tokens_per_second=1.5, draining=True,
    )  # fmt: skip
    record = sign_record(ALICE, NETWORK, key=bytes(32), sequence=1, issued_at=2**31, lifetime=300, value=b"value")
    return [
        Target("datagram", ENVELOPE.open_untrusted, None,
               [alice.seal(BOB.public_key, b"x"), alice.seal_introduction(b"x")]),
        Target("rpc", rpc.decode_rpc_untrusted, rpc.encode_rpc, [rpc.encode_rpc(m) for m in rpcs]),
        Target("record", decode_record_untrusted, encode_record, [encode_record(record)]),
        Target("service facts", facts.decode_service_facts_untrusted, _encode_facts, [facts.encode_facts(service)]),
        Target("node facts", facts.decode_node_facts_untrusted, _encode_facts, [facts.encode_facts(status)]),
        Target("client msgpack", inference.decode_client_message_untrusted, inference.encode_message,
               [inference.encode_message(m) for m in client]),
        Target("client json", inference.decode_client_message_untrusted, _encode_json,
               [_encode_json(m) for m in client]),
        Target("node msgpack", inference.decode_node_message_untrusted, inference.encode_message,
               [inference.encode_message(m) for m in node]),
        Target("node json", inference.decode_node_message_untrusted, _encode_json, [_encode_json(m) for m in node]),
        Target("request id", inference.request_id_of_untrusted, None, [inference.encode_message(m) for m in client]),
    ]  # fmt: skip


def _encode_json(message: Any) -> Any:
    return inference.encode_message(message, as_json=True)


def _encode_facts(message: Any) -> bytes:
    # Without the cut to a record's size, which what was decoded need not respect.
    return rpc.pack_datagram(rpc.to_array(message))


def mutate(rng: Random, seed: Any, other: Any) -> Any:
    """One of `seed`'s neighbours; bytes from bytes, text from text."""
    bits = rng.getrandbits(64)
    kind, bits = bits & 7, bits >> 3
    at, to = (bits & 0xFFFF) % (len(seed) + 1), (bits >> 16 & 0xFFFF) % (len(seed) + 1)
    piece: Any = BITS[(bits >> 32) % len(BITS)] if isinstance(seed, bytes) else MARKS[(bits >> 32) % len(MARKS)]
    if kind == 0:
        return seed[:at]
    if kind == 1:
        return seed[:at] + piece + seed[at:]
    if kind == 2:
        return seed[:at] + piece + seed[at + len(piece) :]
    if kind == 3:
        return seed[:at] + other[to:]
    if kind == 4:
        return seed[: min(at, to)] + seed[max(at, to) :]
    if kind == 5:
        return rng.randbytes(at) if isinstance(seed, bytes) else rng.randbytes(at).decode("latin-1")
    if kind == 6:
        mid: Any = bytes((bits >> 32 & 0xFF,)) if isinstance(seed, bytes) else chr(bits >> 32 & 0x7F)
        return seed[:at] + mid + seed[at + 1 :]
    return _mutate_structure(rng, seed)


def _mutate_structure(rng: Random, seed: Any) -> Any:
    try:
        plain = msgpack.unpackb(seed) if isinstance(seed, bytes) else json.loads(seed)
    except (ValueError, RecursionError):
        plain = None
    if not isinstance(plain, list | dict):
        return seed[1:]
    place: Any = plain
    while True:
        keys = range(len(place)) if isinstance(place, list) else list(place)
        if not keys:
            break
        key = keys[int(rng.random() * len(keys))]
        inner = place[key]
        if not isinstance(inner, list | dict) or rng.random() < 0.5:
            value = VALUES[int(rng.random() * len(VALUES))]
            if isinstance(seed, str) and isinstance(value, bytes | list):
                value = value.hex() if isinstance(value, bytes) else [1, "x", None]
            place[key] = value
            break
        place = inner
    try:
        return msgpack.packb(plain) if isinstance(seed, bytes) else json.dumps(plain)
    except (ValueError, OverflowError):  # an earlier mutation left what cannot be written again
        return seed[1:]


def check(target: Target, data: Any) -> bool:
    """Whether `data` was taken. Raises `AssertionError`, or what escaped the decoder, if a rule is broken."""
    try:
        message = target.decode(data)
    except BadMessage as error:
        text = str(error)
        text.encode()
        assert len(text) < 600, text
        return False
    if target.encode is not None:
        encoded = target.encode(message)
        # The bytes are compared, for a 64-bit float in a datagram is shortened when it is written.
        assert target.encode(target.decode(encoded)) == encoded
    return True


def fuzz(target: Target, inputs: int, seed: int) -> int:
    """Feed `inputs` mutants to one decoder; how many of them it took."""
    rng = Random(f"{seed} {target.name}")
    seeds = target.seeds
    for data in seeds:
        assert check(target, data), target.name
    taken = 0
    for number in range(inputs):
        start = seeds[number % len(seeds)]
        data = mutate(rng, start, seeds[int(rng.random() * len(seeds))])
        if number & 3 == 3 and data:
            data = mutate(rng, data, start)
        try:
            taken += check(target, data)
        except Exception:
            print(f"{target.name}: input {number} of seed {seed}: {data!r}", file=sys.stderr)
            raise
    return taken


def main() -> None:
    inputs = int(sys.argv[1]) if len(sys.argv) > 1 else 10**7
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    for target in targets():
        start = time.perf_counter()
        taken = fuzz(target, inputs, seed)
        print(f"{target.name:>15}: {inputs} inputs, {taken} taken, {time.perf_counter() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main()
