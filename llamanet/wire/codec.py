"""Bytes to typed messages and back, with every length bounded.

Rules:
- Functions that take bytes from the network end in `_untrusted` and let out nothing but `BadMessage`.
- A message is an attrs class whose fields are made by `wire_field(decoder)`. A decoder takes one plain value (what
  msgpack or JSON gave) and returns the typed one, or raises `BadMessage`.
- Datagrams are msgpack arrays, short and positional; what follows the known fields is ignored, so that a later
  version may append. Websocket messages are maps, the same in msgpack and in JSON; an unknown name is refused.
- No msgpack extension types, no non-string map keys, and bounded nesting.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import attrs
import msgpack

from llamanet.errors import BadMessage

T = TypeVar("T")
E = TypeVar("E")
Plain: TypeAlias = Any
"""What msgpack and JSON can carry: None, bool, int, float, str, bytes (msgpack only), list, dict with str keys."""
Decoder: TypeAlias = Callable[[Plain], T]

DATAGRAM_DEPTH = 4
MESSAGE_DEPTH = 16
"""Deep enough for a JSON schema inside a request."""


# --- plain values -----------------------------------------------------------------------------------------------------


def pack_datagram(value: Plain) -> bytes:
    """Plain value to msgpack; floats travel in 32 bits, for no figure in a datagram deserves more."""
    packed: bytes = msgpack.packb(value, use_single_float=True)
    return packed


def unpack_datagram_untrusted(data: bytes) -> Plain:
    """Msgpack to a plain value nested at most `DATAGRAM_DEPTH` deep. Raises `BadMessage`."""
    return _unpack_untrusted(data, DATAGRAM_DEPTH)


def pack_msgpack(value: Plain) -> bytes:
    """Plain value to msgpack, for websocket messages."""
    packed: bytes = msgpack.packb(value)
    return packed


def unpack_msgpack_untrusted(data: bytes) -> Plain:
    """Msgpack to a plain value nested at most `MESSAGE_DEPTH` deep. Raises `BadMessage`."""
    return _unpack_untrusted(data, MESSAGE_DEPTH)


def unpack_json_untrusted(text: str) -> Plain:
    """JSON to a plain value nested at most `MESSAGE_DEPTH` deep. Raises `BadMessage`."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BadMessage("not valid JSON") from error
    _check_depth(value, MESSAGE_DEPTH)
    return value


def _refuse_constant(name: str) -> None:
    raise BadMessage(f"{name} is not valid JSON")


def _unpack_untrusted(data: bytes, depth: int) -> Plain:
    try:
        # The C unpacker bounds every length by the size of the data itself and nesting by its own stack.
        value = msgpack.unpackb(data, strict_map_key=True, ext_hook=_refuse_extension, timestamp=0)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise BadMessage("not valid msgpack") from error
    _check_depth(value, depth)
    return value


def _refuse_extension(code: int, data: bytes) -> None:
    raise BadMessage("msgpack extension types are not used")


def _check_depth(value: Plain, depth: int) -> None:
    if isinstance(value, list):
        children: Sequence[Plain] = value
    elif isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise BadMessage("map keys are strings")
        children = list(value.values())
    elif isinstance(value, msgpack.Timestamp):
        raise BadMessage("msgpack extension types are not used")
    else:
        return
    if depth == 0:
        raise BadMessage("nested too deeply")
    for child in children:
        if isinstance(child, list | dict | msgpack.Timestamp):
            _check_depth(child, depth - 1)


# --- decoders ---------------------------------------------------------------------------------------------------------


def exactly_bytes(size: int) -> Decoder[bytes]:
    """Decoder for a byte string of one size."""

    def decode(value: Plain) -> bytes:
        if type(value) is not bytes or len(value) != size:
            raise BadMessage("wrong type or length", limit=f"{size} bytes")
        return value

    return decode


def up_to_bytes(most: int) -> Decoder[bytes]:
    """Decoder for a byte string of at most `most` bytes."""

    def decode(value: Plain) -> bytes:
        if type(value) is not bytes or len(value) > most:
            raise BadMessage("wrong type or length", limit=f"at most {most} bytes")
        return value

    return decode


def hex_bytes(size: int) -> Decoder[bytes]:
    """Decoder for a byte string of one size written in hexadecimal, as websocket messages carry digests."""

    def decode(value: Plain) -> bytes:
        try:
            data = bytes.fromhex(value)
        except (TypeError, ValueError):
            data = b""
        if len(data) != size:
            raise BadMessage("wrong type or length", limit=f"{size} bytes in hexadecimal")
        return data

    return decode


def integer(low: int, high: int) -> Decoder[int]:
    """Decoder for a whole number within [low, high]."""

    def decode(value: Plain) -> int:
        if type(value) is not int or not low <= value <= high:
            raise BadMessage(f"{_shown(value)} is not allowed", limit=f"a whole number from {low} to {high}")
        return value

    return decode


def number(low: float, high: float) -> Decoder[float]:
    """Decoder for a finite number within [low, high]."""

    def decode(value: Plain) -> float:
        if type(value) not in (int, float) or not math.isfinite(value) or not low <= value <= high:
            raise BadMessage(f"{_shown(value)} is not allowed", limit=f"a number from {low:g} to {high:g}")
        return float(value)

    return decode


def boolean(value: Plain) -> bool:
    """Decoder for true or false."""
    if type(value) is not bool:
        raise BadMessage(f"{_shown(value)} is not allowed", limit="true or false")
    return value


def text(most: int, *, least: int = 0) -> Decoder[str]:
    """Decoder for valid text of `least` to `most` characters."""

    def decode(value: Plain) -> str:
        if type(value) is not str or not least <= len(value) <= most:
            raise BadMessage("wrong type or length", limit=f"text of {least} to {most} characters")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise BadMessage("text with lone surrogates") from error
        return value

    return decode


def one_of(*allowed: str) -> Decoder[str]:
    """Decoder for one of a few words."""

    def decode(value: Plain) -> str:
        if value not in allowed or type(value) is not str:
            raise BadMessage(f"{_shown(value)} is not allowed", limit=", ".join(allowed))
        return value

    return decode


def optional(decoder: Decoder[T]) -> Decoder[T | None]:
    """Decoder for None, or what `decoder` takes."""
    return lambda value: None if value is None else decoder(value)


def list_of(decoder: Decoder[T], most: int) -> Decoder[tuple[T, ...]]:
    """Decoder for a list of at most `most` entries."""

    def decode(value: Plain) -> tuple[T, ...]:
        if type(value) is not list or len(value) > most:
            raise BadMessage("wrong type or length", limit=f"a list of at most {most}")
        return tuple([decoder(entry) for entry in value])

    return decode


def plain_json(value: Plain) -> Plain:
    """Decoder for any JSON value, already bounded in size and depth by the message that holds it."""
    return value


def _shown(value: Plain) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:37]}..."


# --- messages ---------------------------------------------------------------------------------------------------------


def wire_field(
    decode: Decoder[Any],
    encode: Callable[[Any], Plain] | None = None,
    **options: Any,
) -> Any:
    """An attrs field that travels; `encode` turns its value into a plain one (default: as it is)."""
    return attrs.field(metadata={"decode": decode, "encode": encode}, **options)


_FieldPlan: TypeAlias = tuple[str, Decoder[Any], Callable[[Any], Plain] | None, bool]
_plans: dict[type, tuple[_FieldPlan, ...]] = {}


def _plan(message_class: type) -> tuple[_FieldPlan, ...]:
    """(name, decoder, encoder, required) of each field, worked out once for each class."""
    plan = _plans.get(message_class)
    if plan is None:
        plan = tuple(
            (field.name, field.metadata["decode"], field.metadata["encode"], field.default is attrs.NOTHING)
            for field in attrs.fields(message_class)
            if "decode" in field.metadata
        )
        _plans[message_class] = plan
    return plan


def to_array(message: attrs.AttrsInstance) -> list[Plain]:
    """The message's fields in their order, as plain values."""
    return [
        encode(getattr(message, name)) if encode else getattr(message, name)
        for name, _, encode, _ in _plan(type(message))
    ]


def from_array_untrusted(message_class: type[T], values: Plain) -> T:
    """A message from its fields in order; fields with a default may be missing, further entries are ignored."""
    if type(values) is not list:
        raise BadMessage("not an array")
    arguments = {}
    plan = _plan(message_class)
    for (name, decode, _, _), value in zip(plan, values, strict=False):
        try:
            arguments[name] = decode(value)
        except BadMessage as error:
            raise BadMessage(error.reason, _path(name, error.field), error.limit) from error
    for name, _, _, required in plan[len(values) :]:
        if required:
            raise BadMessage("missing", name)
    return message_class(**arguments)


def to_map(message: attrs.AttrsInstance) -> dict[str, Plain]:
    """The message's fields by name, as plain values; fields at their default are left out."""
    plain = {}
    for field in attrs.fields(type(message)):
        if "decode" not in field.metadata:
            continue
        value = getattr(message, field.name)
        if value == field.default and type(value) is type(field.default):
            continue
        encode = field.metadata["encode"]
        plain[field.name] = encode(value) if encode else value
    return plain


def from_map_untrusted(message_class: type[T], values: Plain, *, ignoring: frozenset[str] = frozenset()) -> T:
    """A message from its fields by name. An unknown name is refused, for it would else be an option that does nothing."""
    if type(values) is not dict:
        raise BadMessage("not a map")
    arguments = {}
    plan = _plan(message_class)
    known = {name for name, _, _, _ in plan}
    for name in values:
        if name not in known and name not in ignoring:
            raise BadMessage("unknown field", str(name)[:64], limit=", ".join(sorted(known)))
    for name, decode, _, required in plan:
        if name in values:
            try:
                arguments[name] = decode(values[name])
            except BadMessage as error:
                raise BadMessage(error.reason, _path(name, error.field), error.limit) from error
        elif required:
            raise BadMessage("missing", name)
    return message_class(**arguments)


def _path(outer: str, inner: str | None) -> str:
    return f"{outer}.{inner}" if inner else outer


def array_of(message_class: type[T]) -> Decoder[T]:
    """Decoder for a message inside a datagram."""
    return lambda value: from_array_untrusted(message_class, value)


def map_of(message_class: type[T]) -> Decoder[T]:
    """Decoder for a message inside a websocket message."""
    return lambda value: from_map_untrusted(message_class, value)


def encoded_list(encode: Callable[[E], Plain]) -> Callable[[Sequence[E]], list[Plain]]:
    """Encoder for a sequence, entry by entry."""
    return lambda entries: [encode(entry) for entry in entries]


def encoded_optional(encode: Callable[[E], Plain]) -> Callable[[E | None], Plain]:
    """Encoder for None, or what `encode` takes."""
    return lambda value: None if value is None else encode(value)


Messages: TypeAlias = Mapping[str, type[Any]]
