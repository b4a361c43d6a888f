"""The DHT's messages: five requests and their replies, each a msgpack array that starts with its type.

    Ping -> Pong      FindNode -> Nodes      FindValue -> Values      Store -> Stored      DialBack -> DialedBack
    any -> Refused

Every request carries 8 random bytes (`transaction`) that its reply repeats, and says whether its sender is a client
(one that asks, and is never put into routing tables). Every reply tells the asker the address it was seen from.
"""

import functools
import operator
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import Any, NamedTuple, TypeAlias

import attrs

from llamanet.errors import BadMessage
from llamanet.wire.codec import (
    Decoder,
    array_of,
    boolean,
    encoded_list,
    exactly_bytes,
    from_array_untrusted,
    integer,
    list_of,
    optional,
    text,
    to_array,
    up_to_bytes,
    wire_field,
)
from llamanet.wire.identity import ID_BYTES, KEY_BYTES, NodeId, PublicKey, node_id_of
from llamanet.wire.plain import Plain, pack_datagram, unpack_padded_untrusted
from llamanet.wire.record import MAX_RECORD_BYTES
from llamanet.wire.state import MAX_MODEL_NAME, ModelState

TRANSACTION_BYTES = 8
TOKEN_BYTES = 8
MAX_CONTACTS = 16
MAX_RECORDS = 8
MAX_CURSOR = 2**32 - 1
MAX_CLOCK = 2**40
SHARED_CONTACTS = 8192
"""Contacts that are made once: replies tell of the same ones over and over."""

_transaction = exactly_bytes(TRANSACTION_BYTES)
_publishers = integer(0, 2**31)


class Address(NamedTuple):
    """An IP address (textual, no host name) and a port. A tuple, for every datagram makes, compares and hashes some."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


_MAPPED_IPV4 = bytes(10) + b"\xff\xff"
"""The first 12 bytes of an IPv4 address as IPv6 sockets show it (RFC 4291, section 2.5.5.2)."""


@functools.lru_cache(maxsize=SHARED_CONTACTS)
def pack_host(host: str) -> bytes:
    """4 or 16 bytes in network order: of an address that has both forms always the 4.

    A zone ("%eth0") means nothing to others, and is left out.
    """
    if ":" not in host:
        return inet_pton(AF_INET, host)
    packed = inet_pton(AF_INET6, host.partition("%")[0])
    return packed[12:] if packed.startswith(_MAPPED_IPV4) else packed


def unpack_host_untrusted(value: Plain) -> str:
    """The textual form of 4 or 16 bytes. Raises `BadMessage`."""
    if type(value) is bytes:
        if len(value) == 4:
            return inet_ntop(AF_INET, value)
        if len(value) == 16:
            if value.startswith(_MAPPED_IPV4):
                raise BadMessage("an IPv4 address in the form of IPv6", limit="its 4 bytes")
            return inet_ntop(AF_INET6, value)
    raise BadMessage("wrong type or length", limit="4 or 16 bytes")


def encode_address(address: Address) -> Plain:
    """[packed host, port]."""
    return [pack_host(address.host), address.port]


_port = integer(1, 65_535)


def decode_address_untrusted(value: Plain) -> Address:
    """An address from [packed host, port]. Raises `BadMessage`."""
    if type(value) is not list or len(value) != 2:
        raise BadMessage("not an address")
    host, port = value
    # Told apart from what equals them, for the cache holds only what was checked: True == 1.
    if type(host) is bytes and type(port) is int:
        return _told_address_untrusted(host, port)
    return Address(unpack_host_untrusted(host), _port(port))


@functools.lru_cache(maxsize=SHARED_CONTACTS)
def _told_address_untrusted(host: bytes, port: int) -> Address:
    return Address(unpack_host_untrusted(host), _port(port))


@attrs.frozen
class Contact:
    """A peer that can be asked: its public key and its UDP address."""

    public_key: PublicKey = attrs.field(repr=bytes.hex)
    address: Address

    @functools.cached_property
    def node_id(self) -> NodeId:
        """The id that belongs to the public key."""
        return node_id_of(self.public_key)

    @functools.cached_property
    def number(self) -> int:
        """The id as a number; the XOR of two such numbers is a distance."""
        return int.from_bytes(self.node_id, "big")

    @functools.cached_property
    def plain(self) -> Plain:
        """[public key, packed host, port], as replies tell of the contact."""
        return [self.public_key, pack_host(self.address.host), self.address.port]

    def __str__(self) -> str:
        return f"{self.node_id[:4].hex()}@{self.address}"


@functools.lru_cache(maxsize=SHARED_CONTACTS)
def contact_at(public_key: PublicKey, host: str, port: int) -> Contact:
    """The contact with this key at this address: one object for all who speak of it, so its id is computed once."""
    return Contact(public_key, Address(host, port))


_public_key: Decoder[PublicKey] = exactly_bytes(KEY_BYTES)  # type: ignore[assignment]  # 16 to a datagram


def decode_contact_untrusted(value: Plain) -> Contact:
    """A contact from [public key, packed host, port]. Raises `BadMessage`."""
    if type(value) is not list or len(value) != 3:
        raise BadMessage("not a contact")
    public_key, host, port = value
    # Told apart from what equals them, for the cache holds only what was checked: True == 1.
    if type(public_key) is not bytes or type(host) is not bytes or type(port) is not int:
        raise BadMessage("not a contact")
    return _told_contact_untrusted(public_key, host, port)


@functools.lru_cache(maxsize=SHARED_CONTACTS)
def _told_contact_untrusted(public_key: bytes, host: bytes, port: int) -> Contact:
    return contact_at(_public_key(public_key), unpack_host_untrusted(host), _port(port))


@attrs.frozen(kw_only=True)
class Ping:
    """Are you there, and how busy is `model` (None: tell of as many models as fit)?"""

    transaction: bytes = wire_field(_transaction, repr=bytes.hex)
    client: bool = wire_field(boolean)
    model: str | None = wire_field(optional(text(MAX_MODEL_NAME)), default=None)


@attrs.frozen(kw_only=True)
class FindNode:
    """Ask for the contacts nearest to `target`; answered by `Nodes`."""

    transaction: bytes = wire_field(_transaction, repr=bytes.hex)
    client: bool = wire_field(boolean)
    target: bytes = wire_field(exactly_bytes(ID_BYTES), repr=bytes.hex)


@attrs.frozen(kw_only=True)
class FindValue:
    """Ask for records under `key`; answered by `Values`.

    `cursor` None samples from a random place; otherwise it is the `next_cursor` of an earlier answer.
    """

    transaction: bytes = wire_field(_transaction, repr=bytes.hex)
    client: bool = wire_field(boolean)
    key: bytes = wire_field(exactly_bytes(ID_BYTES), repr=bytes.hex)
    cursor: int | None = wire_field(optional(integer(0, MAX_CURSOR)), default=None)


@attrs.frozen(kw_only=True)
class Store:
    """Keep `record` (encoded). `token` comes from this receiver's own answer about the record's key.

    `cache`: the sender has read the record elsewhere, and the receiver, which did not have it, may keep it for a while.
    """

    transaction: bytes = wire_field(_transaction, repr=bytes.hex)
    client: bool = wire_field(boolean)
    token: bytes = wire_field(exactly_bytes(TOKEN_BYTES), repr=bytes.hex)
    record: bytes = wire_field(up_to_bytes(MAX_RECORD_BYTES), repr=False)
    cache: bool = wire_field(boolean, default=False)


@attrs.frozen(kw_only=True)
class DialBack:
    """Find out whether my host is reached by who was not spoken to before: greet its `udp_port` from another port than
    yours, and connect to its `tcp_port` (None: leave that out). Answered by `DialedBack`.

    `token` comes from this receiver's own answer about the sender's id: the sender receives where it sends from.
    """

    transaction: bytes = wire_field(_transaction, repr=bytes.hex)
    client: bool = wire_field(boolean)
    token: bytes = wire_field(exactly_bytes(TOKEN_BYTES), repr=bytes.hex)
    udp_port: int | None = wire_field(optional(_port))
    tcp_port: int | None = wire_field(optional(_port))


@attrs.frozen(kw_only=True)
class Pong:
    """Alive; with the live state of the model asked for, or of as many as fit."""

    transaction: bytes = wire_field(_transaction, repr=bytes.hex)
    observed: Address = wire_field(decode_address_untrusted, encode_address)
    draining: bool = wire_field(boolean, default=False)
    version: str = wire_field(text(32), default="")
    models: tuple[ModelState, ...] = wire_field(list_of(array_of(ModelState), 64), encoded_list(to_array), default=())
    clock: int = wire_field(integer(0, MAX_CLOCK), default=0)
    """The answerer's wall clock, in whole seconds since 1970; 0: it does not tell."""


@attrs.frozen(kw_only=True)
class Nodes:
    """The contacts that the answerer knows nearest to the target, nearest first, and the token to store there."""

    transaction: bytes = wire_field(_transaction, repr=bytes.hex)
    observed: Address = wire_field(decode_address_untrusted, encode_address)
    token: bytes = wire_field(exactly_bytes(TOKEN_BYTES), repr=bytes.hex)
    contacts: tuple[Contact, ...] = wire_field(
        list_of(decode_contact_untrusted, MAX_CONTACTS), encoded_list(operator.attrgetter("plain"))
    )


@attrs.frozen(kw_only=True)
class Values:
    """Records under the key (encoded), how many the answerer has, where to go on, and nearer contacts.

    `publishers` estimates how many the key has in all: more than `total` where the answerer keeps a sample.
    """

    transaction: bytes = wire_field(_transaction, repr=bytes.hex)
    observed: Address = wire_field(decode_address_untrusted, encode_address)
    token: bytes = wire_field(exactly_bytes(TOKEN_BYTES), repr=bytes.hex)
    records: tuple[bytes, ...] = wire_field(list_of(up_to_bytes(MAX_RECORD_BYTES), MAX_RECORDS), list)
    total: int = wire_field(integer(0, 2**31))
    next_cursor: int | None = wire_field(optional(integer(0, MAX_CURSOR)))
    contacts: tuple[Contact, ...] = wire_field(
        list_of(decode_contact_untrusted, MAX_CONTACTS), encoded_list(operator.attrgetter("plain"))
    )
    publishers: int = wire_field(_publishers, default=0)


@attrs.frozen(kw_only=True)
class Stored:
    """The record is kept. `publishers` is as in `Values`."""

    transaction: bytes = wire_field(_transaction, repr=bytes.hex)
    observed: Address = wire_field(decode_address_untrusted, encode_address)
    publishers: int = wire_field(_publishers, default=0)


@attrs.frozen(kw_only=True)
class Refused:
    """The request was understood and will not be done. `newer`: the encoded record that outranks the one sent.

    `publishers` is as in `Values`.
    """

    transaction: bytes = wire_field(_transaction, repr=bytes.hex)
    observed: Address = wire_field(decode_address_untrusted, encode_address)
    reason: str = wire_field(text(64))
    newer: bytes | None = wire_field(optional(up_to_bytes(MAX_RECORD_BYTES)), default=None)
    publishers: int = wire_field(_publishers, default=0)


@attrs.frozen(kw_only=True)
class DialedBack:
    """What came of dialling the asker's host: the public key of the node that answered the greeting, if any did, and
    whether a TCP connection could be made."""

    transaction: bytes = wire_field(_transaction, repr=bytes.hex)
    observed: Address = wire_field(decode_address_untrusted, encode_address)
    answered_by: bytes | None = wire_field(optional(exactly_bytes(KEY_BYTES)), repr=lambda key: key and key.hex())
    connected: bool = wire_field(boolean)


Request: TypeAlias = Ping | FindNode | FindValue | Store | DialBack
REQUESTS = (Ping, FindNode, FindValue, Store, DialBack)
Reply: TypeAlias = Pong | Nodes | Values | Stored | Refused | DialedBack

_classes: dict[int, type[Any]] = {
    1: Ping,
    2: FindNode,
    3: FindValue,
    4: Store,
    6: DialBack,
    129: Pong,
    130: Nodes,
    131: Values,
    132: Stored,
    133: Refused,
    134: DialedBack,
}
"""Replies have the high bit; a reply's type is its request's plus 128, but for `Refused`."""
_types = {cls: number for number, cls in _classes.items()}


def encode_rpc(message: Request | Reply, *, pad_to: int = 0) -> bytes:
    """The payload of a datagram.

    Zeros follow it up to `pad_to` bytes, for a reply may have at most 3 times the bytes of its request.
    """
    return pack_datagram([_types[type(message)], *to_array(message)]).ljust(pad_to, b"\0")


def decode_rpc_untrusted(payload: bytes) -> Request | Reply:
    """A message from a datagram's payload. Raises `BadMessage`."""
    plain = unpack_padded_untrusted(payload)
    if type(plain) is not list or not plain or type(plain[0]) is not int or plain[0] not in _classes:
        raise BadMessage("unknown message")
    message: Request | Reply = from_array_untrusted(_classes[plain[0]], plain[1:])
    return message
