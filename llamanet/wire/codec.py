"""Bytes to typed messages and back, with every length bounded.

Rules:
- Functions that take bytes from the network end in `_untrusted` and let out nothing but `BadMessage`, whose text is
  short, printable and fit to be sent back.
- A message is an attrs class whose fields are made by `wire_field(decoder)`. A decoder takes one plain value (what
  msgpack or JSON gave) and returns the typed one, or raises `BadMessage`.
- Datagrams are msgpack arrays, short and positional; what follows the known fields is ignored, so that a later
  version may append. Websocket messages are maps, the same in msgpack and in JSON; an unknown name is refused.
- No msgpack extension types, no non-string map keys, no number past 64 bits, and bounded nesting.
"""

import json
from collections.abc import Callable, Iterable, Sequence
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
MAX_ENTRIES = 128
"""Of an array or map in a datagram; twice what any has."""
MESSAGE_DEPTH = 16
"""Deep enough for a JSON schema inside a request."""
MAX_INTEGER_DIGITS = 20
"""What a 64-bit number needs. Python before 3.10.7 reads a number of n digits in n² steps."""

_CONTAINERS = frozenset({list, dict})


# --- plain values -----------------------------------------------------------------------------------------------------


def pack_datagram(value: Plain) -> bytes:
    """Plain value to msgpack; floats travel in 32 bits, for no figure in a datagram deserves more."""
    packed: bytes = msgpack.packb(value, use_single_float=True)
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
    level = [container]
    for _ in range(depth):
        level = [child for outer in level for child in _children(outer) if type(child) in _CONTAINERS]
        if not level:
            return
    raise BadMessage("nested too deeply")


def _children(container: Plain) -> Iterable[Plain]:
    if type(container) is list:
        return container
    for key in container:
        if type(key) is not str:
            raise BadMessage("map keys are strings")
    values: Iterable[Plain] = container.values()
    return values


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
        if type(value) is str and len(value) == 2 * size:
            try:
                data = bytes.fromhex(value)
            except ValueError:
                data = b""
            if len(data) == size:
                return data
        raise BadMessage("wrong type or length", limit=f"{size} bytes in hexadecimal")

    return decode


def up_to_hex_bytes(most: int) -> Decoder[bytes]:
    """Decoder for a byte string of at most `most` bytes written in hexadecimal."""

    def decode(value: Plain) -> bytes:
        if type(value) is str and len(value) <= 2 * most and len(value) % 2 == 0 and value.isalnum() | (value == ""):
            try:
                return bytes.fromhex(value)
            except ValueError:
                pass
        raise BadMessage("wrong type or length", limit=f"at most {most} bytes in hexadecimal")

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
        # NaN compares false with everything, so it fails the range too.
        if type(value) not in (int, float) or not low <= value <= high:
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
        if type(value) is not str or value not in allowed:
            raise BadMessage(f"{_shown(value)} is not allowed", limit=", ".join(allowed))
        return value

    return decode


def optional(decoder: Decoder[T]) -> Decoder[T | None]:
    """Decoder for None, or what `decoder` takes."""

    def decode(value: Plain) -> T | None:
        return None if value is None else decoder(value)

    return decode


def list_of(decoder: Decoder[T], most: int) -> Decoder[tuple[T, ...]]:
    """Decoder for a list of at most `most` entries."""

    def decode(value: Plain) -> tuple[T, ...]:
        _check_list(value, most)
        entries: list[T] = []
        try:
            for entry in value:
                entries.append(decoder(entry))  # noqa: PERF401  # the length tells which entry was wrong
        except BadMessage as error:
            raise _inside(f"[{len(entries)}]", error) from error
        return tuple(entries)

    return decode


def list_of_integers(low: int, high: int, most: int) -> Decoder[tuple[int, ...]]:
    """Decoder for a list of at most `most` whole numbers within [low, high]; quick enough for a million of them."""

    def decode(value: Plain) -> tuple[int, ...]:
        _check_list(value, most)
        if value and (set(map(type, value)) != {int} or not low <= min(value) or not max(value) <= high):
            raise BadMessage("an entry is not allowed", limit=f"whole numbers from {low} to {high}")
        return tuple(value)

    return decode


def pair_of(first: Decoder[T], second: Decoder[E]) -> Decoder[tuple[T, E]]:
    """Decoder for a list of exactly two entries."""

    def decode(value: Plain) -> tuple[T, E]:
        if type(value) is not list or len(value) != 2:
            raise BadMessage("wrong type or length", limit="a list of two")
        return first(value[0]), second(value[1])

    return decode


def _check_list(value: Plain, most: int) -> None:
    if type(value) is not list or len(value) > most:
        raise BadMessage("wrong type or length", limit=f"a list of at most {most}")


def _shown(value: Plain) -> str:
    """A value as an error quotes it: short, printable, and cheap however large the value is."""
    if type(value) in _CONTAINERS:
        return f"a {type(value).__name__}"
    shown = ascii(value[:64] if isinstance(value, str | bytes) else value)
    return shown if len(shown) <= 40 else f"{shown[:37]}..."


# --- messages ---------------------------------------------------------------------------------------------------------


def wire_field(
    decode: Decoder[Any],
    encode: Callable[[Any], Plain] | None = None,
    **options: Any,
) -> Any:
    """An attrs field that travels; `encode` turns its value into a plain one (default: as it is)."""
    return attrs.field(metadata={"decode": decode, "encode": encode}, **options)


@attrs.frozen
class _Plan:
    """A message class worked out once; the fields are in their order."""

    decoders: dict[str, Decoder[Any]]
    encoders: tuple[tuple[str, Callable[[Any], Plain] | None], ...]
    defaults: dict[str, Any]


_plans: dict[type, _Plan] = {}


def _plan(message_class: type) -> _Plan:
    plan = _plans.get(message_class)
    if plan is None:
        fields = [field for field in attrs.fields(message_class) if "decode" in field.metadata]
        plan = _Plan(
            decoders={field.name: field.metadata["decode"] for field in fields},
            encoders=tuple([(field.name, field.metadata["encode"]) for field in fields]),
            defaults={field.name: _default_of(field) for field in fields if field.default is not attrs.NOTHING},
        )
        _plans[message_class] = plan
    return plan


def _default_of(field: "attrs.Attribute[Any]") -> Any:
    # `attrs.Factory` is a class, but typed as a function, so that `isinstance` would not pass mypy.
    factory = getattr(field.default, "factory", None)
    return factory() if factory else field.default


def to_array(message: attrs.AttrsInstance) -> list[Plain]:
    """The message's fields in their order, as plain values."""
    return [
        encode(getattr(message, name)) if encode else getattr(message, name)
        for name, encode in _plan(type(message)).encoders
    ]


def from_array_untrusted(message_class: type[T], values: Plain) -> T:
    """A message from its fields in order; fields with a default may be missing, further entries are ignored."""
    if type(values) is not list:
        raise BadMessage("not an array")
    plan = _plan(message_class)
    arguments = {}
    name = ""
    try:
        for (name, decode), value in zip(plan.decoders.items(), values, strict=False):
            arguments[name] = decode(value)
    except BadMessage as error:
        raise _inside(name, error) from error
    _check_complete(plan, arguments)
    return message_class(**arguments)


def to_map(message: attrs.AttrsInstance) -> dict[str, Plain]:
    """The message's fields by name, as plain values; fields at their default are left out."""
    plan = _plan(type(message))
    plain = {}
    for name, encode in plan.encoders:
        value = getattr(message, name)
        if name in plan.defaults:
            default = plan.defaults[name]
            # The type counts too, for 1 == True.
            if value == default and type(value) is type(default):
                continue
        plain[name] = encode(value) if encode else value
    return plain


def from_map_untrusted(message_class: type[T], values: Plain, *, ignoring: frozenset[str] = frozenset()) -> T:
    """A message from its fields by name.

    An unknown name that is not in `ignoring` is refused, for it would else be an option that does nothing.
    """
    if type(values) is not dict:
        raise BadMessage("not a map")
    plan = _plan(message_class)
    arguments = {}
    for name, value in values.items():
        decode = plan.decoders.get(name)
        if decode is None:
            if name not in ignoring:
                shown = name[:64] if name[:64].isprintable() else _shown(name)
                raise BadMessage("unknown field", shown, limit=", ".join(sorted(plan.decoders)))
            continue
        try:
            arguments[name] = decode(value)
        except BadMessage as error:
            raise _inside(name, error) from error
    _check_complete(plan, arguments)
    return message_class(**arguments)


def _check_complete(plan: _Plan, arguments: dict[str, Any]) -> None:
    if len(arguments) < len(plan.decoders):
        for name in plan.decoders:
            if name not in arguments and name not in plan.defaults:
                raise BadMessage("missing", name)


def _inside(outer: str, error: BadMessage) -> BadMessage:
    """The same error, seen from the message or list that holds the offender."""
    inner = error.field
    path = outer if inner is None else f"{outer}{inner}" if inner.startswith("[") else f"{outer}.{inner}"
    return BadMessage(error.reason, path, error.limit)


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
