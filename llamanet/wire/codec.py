"""Plain values to typed messages and back, with every length bounded.

Rules:
- Functions that take what came from the network end in `_untrusted` and let out nothing but `BadMessage`, whose text
  is short, printable and fit to be sent back.
- A message is an attrs class whose fields are made by `wire_field(decoder)`. A decoder takes one plain value (what
  msgpack or JSON gave, `wire/plain.py`) and returns the typed one, or raises `BadMessage`.
- Datagrams are msgpack arrays, short and positional; what follows the known fields is ignored, so that a later
  version may append. Websocket messages are maps, the same in msgpack and in JSON; an unknown name is refused.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import attrs

from llamanet.errors import BadMessage
from llamanet.wire.plain import Plain

T = TypeVar("T")
E = TypeVar("E")
Decoder: TypeAlias = Callable[[Plain], T]

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
    if type(value) in (list, dict):
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
    in_order: tuple[tuple[str, Decoder[Any]], ...]
    """The decoders again: an array's fields are many to a datagram, and a tuple is quicker to go through."""
    encoders: tuple[tuple[str, Callable[[Any], Plain] | None], ...]
    defaults: dict[str, Any]


_plans: dict[type, _Plan] = {}


def _plan(message_class: type) -> _Plan:
    plan = _plans.get(message_class)
    if plan is None:
        fields = [field for field in attrs.fields(message_class) if "decode" in field.metadata]
        decoders = {field.name: field.metadata["decode"] for field in fields}
        plan = _Plan(
            decoders=decoders,
            in_order=tuple(decoders.items()),
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
    plan = _plans.get(type(message)) or _plan(type(message))
    return [encode(getattr(message, name)) if encode else getattr(message, name) for name, encode in plan.encoders]


def from_array_untrusted(message_class: type[T], values: Plain) -> T:
    """A message from its fields in order; fields with a default may be missing, further entries are ignored."""
    if type(values) is not list:
        raise BadMessage("not an array")
    plan = _plans.get(message_class) or _plan(message_class)
    arguments = {}
    name = ""
    try:
        for (name, decode), value in zip(plan.in_order, values):  # noqa: B905  # by keyword it takes twice the time
            arguments[name] = decode(value)
    except BadMessage as error:
        raise _inside(name, error) from error
    if len(arguments) < len(plan.decoders):
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
