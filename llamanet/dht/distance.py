"""The XOR metric, and which addresses may be told to whom. Pure.

Ids and keys are 32 bytes; their distance is the XOR of the two as a big-endian number (Maymounkov & Mazières 2002).
"""

import enum
import functools
import ipaddress
from collections.abc import Iterable
from random import Random

from llamanet.wire.identity import ID_BYTES, NodeId
from llamanet.wire.rpc import Address, Contact

ID_BITS = 8 * ID_BYTES
REMEMBERED_HOSTS = 2**15
"""What is asked about hosts again and again, once for each contact that each reply tells of; some 5 MB when full."""


def number_of(id_or_key: bytes) -> int:
    """32 bytes as a number; the XOR of two such numbers is the distance of their owners."""
    return int.from_bytes(id_or_key, "big")


def distance(a: bytes, b: bytes) -> int:
    """The XOR distance of two ids or keys."""
    return number_of(a) ^ number_of(b)


def common_prefix_bits(a: int, b: int) -> int:
    """How many leading bits two numbers of 256 bits share; 256 if they are equal."""
    return ID_BITS - (a ^ b).bit_length()


def random_id_sharing(own: NodeId, bits: int, rng: Random) -> bytes:
    """A random id that shares exactly `bits` (0-255) leading bits with `own`."""
    free = ID_BITS - bits - 1
    number = ((number_of(own) >> free) ^ 1) << free | rng.getrandbits(free)
    return number.to_bytes(ID_BYTES, "big")


class Scope(enum.IntEnum):
    """How far an address means the same: within a machine, a site, or everywhere."""

    LOOPBACK = 0
    PRIVATE = 1
    PUBLIC = 2


@functools.lru_cache(maxsize=REMEMBERED_HOSTS)
def scope_of(host: str) -> Scope | None:
    """The scope of a textual IP address; None where no peer can be (multicast, unspecified, reserved, link-local)."""
    address = ipaddress.ip_address(host)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return None
    if address.is_loopback:
        return Scope.LOOPBACK
    if address.is_multicast or address.is_unspecified or address.is_link_local or address.is_reserved:
        return None
    return Scope.PRIVATE if address.is_private else Scope.PUBLIC


def usable(contacts: Iterable[Contact], peer: str) -> list[Contact]:
    """Those of `contacts` whose addresses mean the same to the two ends of a conversation with the address `peer`.

    A public peer's word must not send us to our own loopback or site, nor ours send a far peer to its own.
    """
    least = scope_of(peer)
    if least is None:
        return []
    return [contact for contact in contacts if (scope := scope_of(contact.address.host)) is not None and scope >= least]


@functools.lru_cache(maxsize=REMEMBERED_HOSTS)
def subnet_of(host: str) -> bytes | None:
    """What one owner cheaply has many addresses of: the /24 (IPv6: /48) of a public address.

    None on loopback and in private ranges, where no outsider can be, and where a whole swarm may share one subnet.
    """
    if scope_of(host) is not Scope.PUBLIC:
        return None
    packed = ipaddress.ip_address(host).packed
    return packed[:3] if len(packed) == 4 else packed[:6]


def source_prefix(address: Address) -> bytes:
    """Whose an address is for accounting: as `subnet_of`, and the single address where that is None."""
    return subnet_of(address.host) or ipaddress.ip_address(address.host).packed
