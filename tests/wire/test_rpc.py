"""The DHT's messages: round trips, bounds, addresses, padding, and that they fit datagrams."""

import msgpack
import pytest
import wire_strategies as strategies
from hypothesis import given
from hypothesis import strategies as st

from llamanet.errors import BadMessage
from llamanet.wire import rpc
from llamanet.wire.envelope import MAX_PAYLOAD_BYTES
from llamanet.wire.identity import Identity, node_id_of
from llamanet.wire.rpc import Address, Contact, decode_rpc_untrusted, encode_rpc

ALICE = Identity.from_seed(b"a" * 32)
T = bytes(range(8))
V4, V6 = [bytes([192, 0, 2, 7]), 8001], [bytes.fromhex("20010db8") + bytes(11) + b"\7", 8001]
MAPPED = bytes(10) + b"\xff\xff\xc0\0\2\7"
STATE = ["m", 1, 2, 4, 3.5, 99.0, 0.25, 2048]
CONTACT = [bytes(32), *V4]
GOOD = {
    "Ping": [1, T, True, "m"],
    "FindNode": [2, T, False, bytes(32)],
    "FindValue": [3, T, False, bytes(32), 7],
    "Store": [4, T, False, T, bytes(50), True],
    "DialBack": [6, T, False, T, 8001, None],
    "Pong": [129, T, V4, True, "1.0", [STATE], 1_900_000_000],
    "Nodes": [130, T, V6, T, [CONTACT]],
    "Values": [131, T, V4, T, [b"record"], 9, None, [CONTACT], 9],
    "Stored": [132, T, V4, 9],
    "Refused": [133, T, V4, "far", b"record", 9],
    "DialedBack": [134, T, V4, bytes(32), True],
}


@given(strategies.rpcs, st.integers(0, MAX_PAYLOAD_BYTES))
def test_every_message_comes_back_as_it_was_with_any_padding(message, pad_to):
    plain = encode_rpc(message)
    padded = encode_rpc(message, pad_to=pad_to)
    assert len(padded) == max(len(plain), pad_to)
    assert decode_rpc_untrusted(plain) == decode_rpc_untrusted(padded) == message


def test_padding_is_exact_to_the_byte():
    message = rpc.Ping(transaction=T, client=True)
    size = len(encode_rpc(message))
    assert [len(encode_rpc(message, pad_to=n)) for n in range(MAX_PAYLOAD_BYTES + 1)] == [
        max(size, n) for n in range(MAX_PAYLOAD_BYTES + 1)
    ]


@pytest.mark.parametrize("name", GOOD)
def test_unknown_entries_at_the_end_are_ignored(name):
    plain = GOOD[name]
    message = decode_rpc_untrusted(msgpack.packb(plain))
    assert type(message).__name__ == name
    assert decode_rpc_untrusted(msgpack.packb([*plain, ["new"], {"a": None}]) + bytes(9)) == message


OPTIONAL = {"Ping": 1, "FindValue": 1, "Store": 1, "Pong": 4, "Values": 1, "Stored": 1, "Refused": 2}


@pytest.mark.parametrize("name", GOOD)
def test_only_entries_with_a_default_may_be_missing(name):
    plain = GOOD[name]
    least = len(plain) - OPTIONAL.get(name, 0)
    for length in range(len(plain)):
        data = msgpack.packb(plain[:length])
        if length >= least:
            assert type(decode_rpc_untrusted(data)).__name__ == name
        else:
            with pytest.raises(BadMessage, match="missing" if length else "unknown message"):
                decode_rpc_untrusted(data)


COMMON = [(1, "transaction", [], [bytes(7), bytes(9), "x" * 8, None])]
REQUEST = [*COMMON, (2, "client", [True, False], [0, 1, None])]
BAD_ADDRESSES = [
    None, [], [V4[0]], [*V4, 1], [b"abc", 1], [bytes(5), 1], ["192.0.2.7", 1], [V4[0], 0], [V4[0], 65_536],
    [V4[0], "1"],
    [V4[0], True], [MAPPED, 1],
]  # fmt: skip
REPLY = [*COMMON, (2, "observed", [V4, V6, [V4[0], 1], [V4[0], 65_535]], BAD_ADDRESSES)]
TOKEN = (3, "token", [bytes(8)], [bytes(7), bytes(9), None])
BAD_CONTACTS = [
    None,
    [None],
    [[bytes(31), *V4]],
    [[bytes(32)]],
    [[*CONTACT, 1]],
    [[bytes(32), MAPPED, 1]],
    [CONTACT] * 17,
]
KEY = [bytes(31), bytes(33), "x" * 32, None]
CURSOR = ([None, 0, 2**32 - 1], [-1, 2**32, 1.0, "1", True])
PUBLISHERS = ([0, 2**31], [-1, 2**31 + 1, None, 1.0, True])
BOUNDS = {
    "Ping": [*REQUEST, (3, "model", [None, "", "é" * 96], ["x" * 97, b"m", 1])],
    "FindNode": [*REQUEST, (3, "target", [], KEY)],
    "FindValue": [*REQUEST, (3, "key", [], KEY), (4, "cursor", *CURSOR)],
    "Store": [
        *REQUEST,
        TOKEN,
        (4, "record", [b"", bytes(400)], [bytes(401), "", None]),
        (5, "cache", [True, False], [0, 1, None]),
    ],
    "Pong": [
        *REPLY,
        (3, "draining", [True, False], [1, None]),
        (4, "version", ["", "x" * 32], ["x" * 33, None]),
        (5, "models", [[], [STATE] * 16], [None, [None], [[]], [STATE] * 65]),
        (6, "clock", [0, 2**40], [-1, 2**40 + 1, None, 1.0, True]),
    ],
    "DialBack": [
        *REQUEST,
        TOKEN,
        (4, "udp_port", [None, 1, 65_535], [0, 65_536, "1", True]),
        (5, "tcp_port", [None, 1, 65_535], [0, 65_536, "1", True]),
    ],
    "DialedBack": [
        *REPLY,
        (3, "answered_by", [None, bytes(32)], [bytes(31), bytes(33), ""]),
        (4, "connected", [True, False], [0, 1, None]),
    ],
    "Nodes": [*REPLY, TOKEN, (4, "contacts", [[], [CONTACT] * 16], BAD_CONTACTS)],
    "Values": [
        *REPLY,
        TOKEN,
        (4, "records", [[], [b""] * 8, [bytes(400)]], [None, [b""] * 9, [bytes(401)], [""]]),
        (5, "total", [0, 2**31], [-1, 2**31 + 1, None, 1.0]),
        (6, "next_cursor", *CURSOR),
        (7, "contacts", [[], [CONTACT] * 16], BAD_CONTACTS),
        (8, "publishers", *PUBLISHERS),
    ],
    "Stored": [*REPLY, (3, "publishers", *PUBLISHERS)],
    "Refused": [
        *REPLY,
        (3, "reason", ["", "é" * 64], ["x" * 65, None]),
        (4, "newer", [None, bytes(400)], [bytes(401), ""]),
        (5, "publishers", *PUBLISHERS),
    ],
}


@pytest.mark.parametrize(
    ("name", "index", "field", "inside", "outside"), [(name, *bounds) for name in BOUNDS for bounds in BOUNDS[name]]
)
def test_bounds(name, index, field, inside, outside):
    plain = list(GOOD[name])
    for value in inside:
        plain[index] = value
        assert decode_rpc_untrusted(msgpack.packb(plain))
    for value in outside:
        plain[index] = value
        with pytest.raises(BadMessage) as caught:
            decode_rpc_untrusted(msgpack.packb(plain))
        assert caught.value.field.startswith(field), value


@pytest.mark.parametrize(
    ("index", "inside", "outside"),
    [
        (0, ["", "é" * 96], ["x" * 97, None]),
        *[(index, [0, 65_535], [-1, 65_536, 1.0, True]) for index in (1, 2, 3)],
        *[(index, [0, 0.0, 1e9], [-0.1, 1.1e9, float("nan"), float("inf"), None, True, "1"]) for index in (4, 5, 6)],
        (7, [0, 2**40], [-1, 2**40 + 1, 1.0]),
    ],
)
def test_bounds_of_a_models_state(index, inside, outside):
    def pong(value) -> bytes:
        return msgpack.packb([129, T, V4, False, "", [STATE, [*STATE[:index], value, *STATE[index + 1 :]]]])

    for value in inside:
        assert decode_rpc_untrusted(pong(value))
    for value in outside:
        with pytest.raises(BadMessage) as caught:
            decode_rpc_untrusted(pong(value))
        assert caught.value.field.startswith("models[1].")


@pytest.mark.parametrize(
    "plain", [None, [], {}, 1, [0], [5], [128], [135], [True], ["1"], [1.0], [None], [[1]], {"type": 1}]
)
def test_unknown_messages_are_refused(plain):
    with pytest.raises(BadMessage, match="unknown message"):
        decode_rpc_untrusted(msgpack.packb(plain))


def test_an_address_has_one_form():
    assert rpc.pack_host("::ffff:192.0.2.7") == rpc.pack_host("192.0.2.7") == V4[0]
    assert rpc.pack_host("fe80::1%eth0") == rpc.pack_host("fe80::1")
    assert rpc.unpack_host_untrusted(V6[0]) == "2001:db8::7"
    assert rpc.unpack_host_untrusted(bytes(15) + b"\1") == "::1"
    assert rpc.unpack_host_untrusted(bytes(16)) == "::"
    assert str(Address("::1", 5)) == "[::1]:5"
    assert str(Address("127.0.0.1", 5)) == "127.0.0.1:5"
    for host in ("localhost", "", "1.2.3", "1.2.3.4.5", "::g"):
        with pytest.raises(OSError):
            rpc.pack_host(host)


def test_a_contact_knows_its_id():
    contact = Contact(ALICE.public_key, Address("127.0.0.1", 5))
    assert contact.node_id == node_id_of(ALICE.public_key)
    assert contact == Contact(ALICE.public_key, Address("127.0.0.1", 5))
    assert len({contact, Contact(ALICE.public_key, Address("127.0.0.1", 5))}) == 1
    assert str(contact) == f"{ALICE.node_id.hex()[:8]}@127.0.0.1:5"


def test_sixteen_contacts_and_the_largest_record_fit_datagrams():
    far = tuple(Contact(ALICE.public_key, Address("2001:db8:1:2:3:4:5:6", 65_535)) for _ in range(16))
    nodes = rpc.Nodes(transaction=T, observed=far[0].address, token=T, contacts=far)
    assert len(encode_rpc(nodes)) <= MAX_PAYLOAD_BYTES
    store = rpc.Store(transaction=T, client=False, token=T, record=bytes(400))
    assert len(encode_rpc(store)) <= MAX_PAYLOAD_BYTES
    ping = rpc.Ping(transaction=T, client=False, model="🦙" * 96)
    assert len(encode_rpc(ping)) <= 400, "a padded first PING keeps its size"
