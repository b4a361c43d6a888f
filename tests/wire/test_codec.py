"""The codec: what msgpack and JSON may carry, what each decoder takes, and what its refusals say."""

import json
import math
import time
import tracemalloc

import attrs
import msgpack
import pytest

from llamanet.errors import BadMessage
from llamanet.wire import codec, plain
from llamanet.wire.codec import wire_field


def refusal(decode, value) -> BadMessage:
    with pytest.raises(BadMessage) as caught:
        decode(value)
    str(caught.value).encode()
    return caught.value


@pytest.mark.parametrize(
    ("decode", "inside", "outside"),
    [
        (codec.exactly_bytes(4), [bytes(4)], [bytes(3), bytes(5), "abcd", None, bytearray(4)]),
        (codec.up_to_bytes(4), [b"", bytes(4)], [bytes(5), "", None]),
        (codec.hex_bytes(2), ["00ff", "00FF"], ["00f", "00ff0", "00 ff", " 0ff ", "zzzz", "٠٠٠٠", b"00ff", 4, None]),
        (codec.integer(-1, 5), [-1, 0, 5], [-2, 6, True, 1.0, "1", None, 2**64, []]),
        (codec.number(0, 1.5), [0, 1, 1.5, 0.0, -0.0], [-1e-9, 1.6, math.nan, math.inf, 2**64, True, "1", None, {}]),
        (codec.boolean, [True, False], [0, 1, None, "true"]),
        (codec.text(3, least=1), ["a", "abc", "é🦙x", "\x00"], ["", "abcd", b"a", None, "\ud800"]),
        (codec.one_of("a", "b"), ["a", "b"], ["c", "", None, ["a"], {}, b"a"]),
        (codec.optional(codec.boolean), [None, True], [0, "x"]),
        (codec.list_of(codec.boolean, 2), [[], [True, False]], [[True] * 3, (True,), [0], None, {}]),
        (
            codec.list_of_integers(0, 9, 3),
            [[], [0, 9, 5]],
            [[0] * 4, [10], [-1], [True], [1.0], [None], ["1"], (1,), {}],
        ),
    ],
)
def test_a_decoder_takes_what_is_inside_its_bounds_only(decode, inside, outside):
    for value in inside:
        decoded = decode(value)
        assert decoded == (tuple(value) if isinstance(value, list) else decoded)
    for value in outside:
        assert refusal(decode, value).reason


def test_a_refusal_says_what_would_have_been_accepted():
    assert refusal(codec.integer(1, 5), 6).limit == "a whole number from 1 to 5"
    assert str(refusal(codec.number(0, 10), -1.5)) == "-1.5 is not allowed (accepted: a number from 0 to 10)"
    assert refusal(codec.one_of("stop", "length"), "x").limit == "stop, length"


def test_a_refusal_quotes_little_of_a_large_value():
    for value in ("x" * 10**6, [0] * 10**6, {"a": 1}, b"\xff" * 10**6, "\ud800" * 100, 10**19):
        assert len(str(refusal(codec.integer(0, 1), value))) < 100


@attrs.frozen(kw_only=True)
class Inner:
    flag: bool = wire_field(codec.boolean)


@attrs.frozen(kw_only=True)
class Outer:
    count: int = wire_field(codec.integer(0, 9))
    inners: tuple[Inner, ...] = wire_field(
        codec.list_of(codec.map_of(Inner), 3), codec.encoded_list(codec.to_map), default=()
    )
    local: int = 5
    size: int = wire_field(codec.integer(0, 9), default=1)
    best: Inner = wire_field(codec.map_of(Inner), codec.to_map, factory=lambda: Inner(flag=True))


def test_an_error_names_the_path_to_the_field():
    good = {"flag": True}
    error = refusal(lambda v: codec.from_map_untrusted(Outer, v), {"count": 1, "inners": [good, good, {"flag": 3}]})
    assert (error.field, error.limit) == ("inners[2].flag", "true or false")
    error = refusal(lambda v: codec.from_map_untrusted(Outer, v), {"count": 1, "best": {}})
    assert (error.field, error.reason) == ("best.flag", "missing")
    error = refusal(lambda v: codec.from_array_untrusted(Outer, v), [10])
    assert error.field == "count"


def test_maps_leave_defaults_out_and_refuse_unknown_names():
    assert codec.to_map(Outer(count=2)) == {"count": 2}
    assert codec.to_map(Outer(count=2, size=True)) == {"count": 2, "size": True}, "1 == True, but they are not the same"
    assert codec.from_map_untrusted(Outer, {"count": 2}) == Outer(count=2)
    error = refusal(lambda v: codec.from_map_untrusted(Outer, v), {"count": 2, "sise": 3})
    assert (error.reason, error.field, error.limit) == ("unknown field", "sise", "best, count, inners, size")
    assert refusal(lambda v: codec.from_map_untrusted(Outer, v), {"count": 2, "local": 3}).field == "local"
    assert codec.from_map_untrusted(Outer, {"count": 2, "x": 1}, ignoring=frozenset({"x"})) == Outer(count=2)
    assert refusal(lambda v: codec.from_map_untrusted(Outer, v), {}).field == "count"
    assert refusal(lambda v: codec.from_map_untrusted(Outer, v), [1]).reason == "not a map"


@pytest.mark.parametrize("name", ["\ud800", "\n" * 500, "é" * 500, "", "\u202e"])
def test_an_unknown_name_is_quoted_short_and_printable(name):
    field = refusal(lambda v: codec.from_map_untrusted(Outer, v), {"count": 1, name: 1}).field
    assert len(field) <= 64
    assert field.isprintable()


def test_arrays_may_end_before_fields_with_defaults_and_go_on_after_the_last():
    plain = codec.to_array(Outer(count=2))
    assert plain == [2, [], 1, {"flag": True}]
    for length in range(1, 5):
        assert codec.from_array_untrusted(Outer, plain[:length]) == Outer(count=2)
    assert codec.from_array_untrusted(Outer, [*plain, "from", ["the future"]]) == Outer(count=2)
    assert refusal(lambda v: codec.from_array_untrusted(Outer, v), []).field == "count"
    assert refusal(lambda v: codec.from_array_untrusted(Outer, v), {}).reason == "not an array"


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth - 1):
        value = [value]
    return value


def test_nesting_is_bounded():
    assert plain.unpack_datagram_untrusted(msgpack.packb(nested(4))) == nested(4)
    refusal(plain.unpack_datagram_untrusted, msgpack.packb(nested(5)))
    assert plain.unpack_msgpack_untrusted(msgpack.packb(nested(16))) == nested(16)
    refusal(plain.unpack_msgpack_untrusted, msgpack.packb(nested(17)))
    assert plain.unpack_json_untrusted(json.dumps(nested(16))) == nested(16)
    for depth in (17, 900, 100_000):
        refusal(plain.unpack_json_untrusted, "[" * depth + "]" * depth)
        refusal(plain.unpack_msgpack_untrusted, b"\x91" * (depth - 1) + b"\x90")
        refusal(plain.unpack_msgpack_untrusted, b"\x81\xa0" * (depth - 1) + b"\x80")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x01\x02",
        b"\x92\x01",
        b"\xd4\x05a",
        b"\xd6\xff\x00\x00\x00\x01",
        b"\xd7\xff\xff\xff\xff\xff\x00\x00\x00\x00",
        b"\xc7\x0c\xff" + bytes(12),
        b"\x91\xd6\xff\x00\x00\x00\x01",
        b"\x81\x01\x02",
        b"\x81\xc4\x01a\x02",
        b"\x81\x90\x02",
        b"\x81\xc0\x02",
        b"\xa2\xc3\x28",
        b"\xa3\xed\xa0\x80",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xffx",
        b"\xdb\xff\xff\xff\xffx",
    ],
    ids=bytes.hex,
)
def test_msgpack_that_is_refused(data):
    refusal(plain.unpack_msgpack_untrusted, data)
    refusal(plain.unpack_datagram_untrusted, data)
    refusal(plain.unpack_padded_untrusted, data)


@pytest.mark.parametrize(
    "data",
    [
        "",
        "{",
        "NaN",
        "[Infinity]",
        "-Infinity",
        "9" * 21,
        "[" + "1" * 10_000 + "]",
        "1 2",
        "\ufeff{}",
        "'a'",
        '"\x00"',
        "{1:2}",
    ],
)
def test_json_that_is_refused(data):
    refusal(plain.unpack_json_untrusted, data)


def test_of_a_name_given_twice_the_last_counts_in_both_encodings():
    assert plain.unpack_json_untrusted('{"a":1,"a":2}') == {"a": 2}
    assert plain.unpack_msgpack_untrusted(b"\x82\xa1a\x01\xa1a\x02") == {"a": 2}


@pytest.mark.parametrize("size", [1_120, 2**16, 4 * 2**20])
def test_arrays_that_claim_much_cost_little(size):
    """Each claims as many entries as the message has bytes; the unpacker would make room for all of them."""
    claim = b"\xdd" + (size - 1).to_bytes(4, "big")
    data = (claim * min(1_000, size // 5)).ljust(size, b"\xc0")
    start = time.process_time()
    refusal(plain.unpack_msgpack_untrusted, data)
    assert time.process_time() - start < 0.05


@pytest.mark.parametrize("claim", [b"\xdc\xff\xff", b"\xdc\x00\x80", b"\xdd\x00\xff\xff\xff", b"\x81\xa1a\xde\xff\xff"])
def test_a_datagram_of_arrays_that_claim_much_takes_little_room(claim):
    tracemalloc.start()
    try:
        refusal(plain.unpack_datagram_untrusted, claim * (1120 // len(claim)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20


def test_zeros_pad_and_nothing_else_does():
    packed = plain.pack_datagram([1, "a"])
    assert plain.unpack_padded_untrusted(packed) == [1, "a"]
    assert plain.unpack_padded_untrusted(packed + bytes(900)) == [1, "a"]
    refusal(plain.unpack_padded_untrusted, packed + b"\0\1")
    refusal(plain.unpack_datagram_untrusted, packed + b"\0")
