"""Records: one encoding, one signature, one swarm, and times that count."""

import attrs
import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamanet.errors import BadMessage
from llamanet.wire.codec import to_array
from llamanet.wire.envelope import Network
from llamanet.wire.identity import Identity
from llamanet.wire.record import MAX_RECORD_BYTES, decode_record_untrusted, encode_record, is_signed, sign_record

ALICE, BOB = Identity.from_seed(b"a" * 32), Identity.from_seed(b"b" * 32)
NETWORK = Network()


def make(**changes):
    fields = {"key": bytes(32), "sequence": 7, "issued_at": 1_000_000, "lifetime": 300, "value": b"value"}
    return sign_record(ALICE, NETWORK, **(fields | changes))


@given(
    key=st.binary(min_size=32, max_size=32),
    sequence=st.integers(0, 2**63 - 1),
    issued_at=st.integers(0, 2**40),
    lifetime=st.integers(0, 1800),
    value=st.binary(max_size=236),
)
def test_a_record_comes_back_as_it_was_signed(**fields):
    record = make(**fields)
    encoded = encode_record(record)
    assert len(encoded) <= MAX_RECORD_BYTES
    assert decode_record_untrusted(encoded) == record
    assert is_signed(record, NETWORK)
    assert record.publisher == ALICE.node_id


def test_every_field_is_signed():
    record = make()
    changes = {
        "key": b"k" * 32,
        "public_key": BOB.public_key,
        "sequence": 8,
        "issued_at": 1,
        "lifetime": 299,
        "value": b"",
        "signature": bytes(64),
    }
    assert changes.keys() == {field.name for field in attrs.fields(type(record))}
    for name, value in changes.items():
        assert not is_signed(attrs.evolve(record, **{name: value}), NETWORK), name


def test_no_byte_of_a_record_can_be_changed():
    encoded = encode_record(make())
    for index in range(len(encoded)):
        broken = bytearray(encoded)
        broken[index] ^= 1
        try:
            record = decode_record_untrusted(bytes(broken))
        except BadMessage:
            continue
        assert not is_signed(record, NETWORK), index


@pytest.mark.parametrize("other", [Network("other"), Network(swarm_key=b"k" * 32), Network("other", b"k" * 32)])
def test_a_signature_is_worth_nothing_in_another_swarm(other):
    assert not is_signed(make(), other)
    assert other.signature_domain != NETWORK.signature_domain


def test_a_signature_for_another_use_is_no_record():
    record = make()
    fields = [record.key, record.public_key, record.sequence, record.issued_at, record.lifetime, record.value]
    signature = ALICE.sign(msgpack.packb(["llamanet-other-v1", NETWORK.signature_domain, *fields]))
    assert not is_signed(attrs.evolve(record, signature=signature), NETWORK)


def test_a_record_has_one_encoding():
    plain = to_array(make())
    assert decode_record_untrusted(msgpack.packb(plain))
    shortest = msgpack.packb(plain)
    longer = shortest[:69] + b"\xcc" + shortest[69:]  # the sequence number in two bytes instead of one
    assert msgpack.unpackb(longer) == plain
    for data in (
        longer,
        msgpack.packb([*plain, "more"]),
        b"\xdc\x00\x07" + msgpack.packb(plain)[1:],
        msgpack.packb(plain) + b"\0",
    ):
        with pytest.raises(BadMessage):
            decode_record_untrusted(data)


def test_times():
    record = make(issued_at=1_000_000, lifetime=300)
    assert record.expires_at == 1_000_300
    assert record.is_current(1_000_000)
    assert record.is_current(1_000_299.9)
    assert not record.is_current(1_000_300)
    assert record.is_current(1_000_000 - 60)
    assert not record.is_current(1_000_000 - 60.1)


def test_a_withdrawal_never_counts():
    withdrawal = make(lifetime=0)
    for now in (999_950, 999_999.9, 1_000_000, 1_000_001):
        assert not withdrawal.is_current(now)


@pytest.mark.parametrize(
    ("index", "inside", "outside"),
    [
        (0, [b"x" * 32], [bytes(31), bytes(33), "x" * 32, None]),
        (1, [b"x" * 32], [bytes(31), bytes(33), None]),
        (2, [0, 2**63 - 1], [-1, 2**63, 1.0, True, None]),
        (3, [0, 2**40], [-1, 2**40 + 1, 1.0, None]),
        (4, [0, 1800], [-1, 1801, None]),
        (5, [b"", bytes(236)], [bytes(401), "", None]),
        (6, [b"x" * 64], [bytes(63), bytes(65), None]),
    ],
)
def test_bounds(index, inside, outside):
    plain = to_array(make())
    for value in inside:
        plain[index] = value
        assert decode_record_untrusted(msgpack.packb(plain))
    for value in outside:
        plain[index] = value
        with pytest.raises(BadMessage):
            decode_record_untrusted(msgpack.packb(plain))


def test_a_record_over_400_bytes_is_not_signed_and_not_read():
    most = MAX_RECORD_BYTES - len(encode_record(make(value=bytes(200)))) + 200
    assert len(encode_record(make(value=bytes(most)))) == MAX_RECORD_BYTES
    with pytest.raises(ValueError, match="401 bytes is over 400"):
        make(value=bytes(most + 1))
    with pytest.raises(BadMessage, match="400 bytes"):
        decode_record_untrusted(bytes(401))
