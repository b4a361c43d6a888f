"""Bytes to plain values and back: msgpack and JSON from strangers, bounded before anything is built from them.

Rules:
- Functions that take bytes from the network end in `_untrusted` and let out nothing but `BadMessage`.
- No msgpack extension types, no non-string map keys, no number past 64 bits, and bounded nesting.
"""

import json
from collections.abc import Iterable
from typing import Any, TypeAlias

import msgpack

from llamanet.errors import BadMessage

Plain: TypeAlias = Any
"""What msgpack and JSON can carry: None, bool, int, float, str, bytes (msgpack only), list, dict with str keys."""

DATAGRAM_DEPTH = 4
MAX_ENTRIES = 128
"""Of an array or map in a datagram; twice what any has."""
MESSAGE_DEPTH = 16
"""Deep enough for a JSON schema inside a request."""
MAX_INTEGER_DIGITS = 20
"""What a 64-bit number needs. Python before 3.10.7 reads a number of n digits in n² steps."""

_CONTAINERS = frozenset({list, dict})


def pack_datagram(value: Plain) -> bytes:
    """Plain value to msgpack; floats travel in 32 bits, for no figure in a datagram deserves more."""
    packed: bytes = msgpack.Packer(use_single_float=True).pack(value)  # `packb`, without its layer of Python
    return packed


def unpack_datagram_untrusted(data: bytes) -> Plain:
    """Msgpack to a plain value nested at most `DATAGRAM_DEPTH` deep. Raises `BadMessage`."""
    value, rest = _unpack_first_untrusted(data)
    if rest:
        raise BadMessage("more than one msgpack value")
    return value


def unpack_padded_untrusted(data: bytes) -> Plain:
    """Msgpack, with any number of zero bytes after it, to a plain value as `unpack_datagram_untrusted` gives it."""
    value, rest = _unpack_first_untrusted(data)
    if rest.count(0) != len(rest):
        raise BadMessage("padded with something else than zeros")
    return value


def _unpack_first_untrusted(data: bytes) -> tuple[Plain, bytes]:
    """The first value of a datagram, and the bytes after it.

    The unpacker makes room for as many entries as an array claims to have, before it sees them; nested arrays that all
    claim `MAX_ENTRIES` cost less than a megabyte in a datagram.
    """
    rest = b""
    try:
        value = msgpack.unpackb(
            data, strict_map_key=True, max_ext_len=0, max_array_len=MAX_ENTRIES, max_map_len=MAX_ENTRIES
        )
    except msgpack.ExtraData as error:
        value, rest = error.unpacked, error.extra
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise BadMessage("not valid msgpack") from error
    if type(value) in _CONTAINERS:
        _check_shape(value, DATAGRAM_DEPTH)
    return value, rest


def pack_msgpack(value: Plain) -> bytes:
    """Plain value to msgpack, for websocket messages."""
    packed: bytes = msgpack.packb(value)
    return packed


def unpack_msgpack_untrusted(data: bytes) -> Plain:
    """Msgpack to a plain value nested at most `MESSAGE_DEPTH` deep. Raises `BadMessage`."""
    return _unpack_untrusted(data, _end_untrusted(data), MESSAGE_DEPTH)


def unpack_json_untrusted(text: str) -> Plain:
    """JSON to a plain value nested at most `MESSAGE_DEPTH` deep. Of a name given twice the last counts.

    Raises `BadMessage`.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_int=_parse_integer_untrusted)
    except (ValueError, RecursionError) as error:
        raise BadMessage("not valid JSON") from error
    if type(value) in _CONTAINERS:
        _check_shape(value, MESSAGE_DEPTH)
    return value


def _refuse_constant(name: str) -> None:
    raise BadMessage(f"{name} is not valid JSON")


def _parse_integer_untrusted(digits: str) -> int:
    if len(digits) > MAX_INTEGER_DIGITS:
        raise BadMessage("a number too long", limit=f"{MAX_INTEGER_DIGITS} digits")
    return int(digits)


def _unpack_untrusted(data: bytes, end: int, depth: int) -> Plain:
    if end != len(data):
        raise BadMessage("more than one msgpack value")
    try:
        value = msgpack.unpackb(data, strict_map_key=True, max_ext_len=0)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise BadMessage("not valid msgpack") from error
    if type(value) in _CONTAINERS:
        _check_shape(value, depth)
    return value


def _end_untrusted(data: bytes) -> int:
    """Where the first msgpack value ends.

    Found without building it: the unpacker makes room for as many entries as an array claims to have, and arrays that
    claim a lot, one inside the other, would cost gigabytes. A value that is all there has no more entries than bytes.
    """
    unpacker = msgpack.Unpacker(max_buffer_size=len(data))
    try:
        unpacker.feed(data)
        unpacker.skip()
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise BadMessage("not valid msgpack") from error
    end: int = unpacker.tell()
    return end


def _check_shape(container: Plain, depth: int) -> None:
    """Raise `BadMessage` if containers are nested more than `depth` deep, `container` itself being the first."""
    for entry in container if type(container) is list else _values_of(container):
        if type(entry) in _CONTAINERS:
            if depth == 1:
                raise BadMessage("nested too deeply")
            _check_shape(entry, depth - 1)


def _values_of(mapping: dict[Plain, Plain]) -> Iterable[Plain]:
    for key in mapping:
        if type(key) is not str:
            raise BadMessage("map keys are strings")
    return mapping.values()
