"""Signed records: what the DHT stores. Storers and readers both verify them; nobody but the publisher can make one.

A record is the value that one publisher holds under one key. Of two, the one with the higher sequence number counts.
Its lifetime is absolute, so that no storer and no replay can prolong it; lifetime 0 withdraws what was published.
"""

import attrs
import msgpack

from llamanet.errors import BadMessage
from llamanet.wire.codec import exactly_bytes, from_array_untrusted, integer, to_array, up_to_bytes, wire_field
from llamanet.wire.envelope import Network
from llamanet.wire.identity import (
    ID_BYTES,
    KEY_BYTES,
    SIGNATURE_BYTES,
    Identity,
    NodeId,
    PublicKey,
    node_id_of,
    verify,
)
from llamanet.wire.plain import pack_datagram, unpack_datagram_untrusted

MAX_RECORD_BYTES = 400
"""Two records and a few contacts fit a datagram."""
MAX_LIFETIME_S = 30 * 60
MAX_SKEW_S = 60
"""How far a publisher's clock may be ahead of ours."""


@attrs.frozen(kw_only=True)
class Record:
    """One publisher's signed value under one key. Times are in whole seconds since 1970."""

    key: bytes = wire_field(exactly_bytes(ID_BYTES), repr=bytes.hex)
    public_key: PublicKey = wire_field(exactly_bytes(KEY_BYTES), repr=bytes.hex)
    sequence: int = wire_field(integer(0, 2**63 - 1))
    issued_at: int = wire_field(integer(0, 2**40))
    lifetime: int = wire_field(integer(0, MAX_LIFETIME_S))
    value: bytes = wire_field(up_to_bytes(MAX_RECORD_BYTES), repr=False)
    signature: bytes = wire_field(exactly_bytes(SIGNATURE_BYTES), repr=False)

    @property
    def publisher(self) -> NodeId:
        """The id of the node that signed the record."""
        return node_id_of(self.public_key)

    @property
    def expires_at(self) -> int:
        """When the record ceases to count, in seconds since 1970."""
        return self.issued_at + self.lifetime

    def is_current(self, now: float) -> bool:
        """Whether the record counts at `now` (seconds since 1970): no withdrawal, not from the future, not expired."""
        return self.lifetime > 0 and self.issued_at <= now + MAX_SKEW_S and now < self.expires_at


def sign_record(
    identity: Identity,
    network: Network,
    *,
    key: bytes,
    sequence: int,
    issued_at: int,
    lifetime: int,
    value: bytes,
) -> Record:
    """A record under `identity`'s name. Raises `ValueError` if it would be over `MAX_RECORD_BYTES`."""
    signed = _signed_bytes(network, key, identity.public_key, sequence, issued_at, lifetime, value)
    record = Record(
        key=key,
        public_key=identity.public_key,
        sequence=sequence,
        issued_at=issued_at,
        lifetime=lifetime,
        value=value,
        signature=identity.sign(signed),
    )
    size = len(encode_record(record))
    if size > MAX_RECORD_BYTES:
        raise ValueError(f"a record of {size} bytes is over {MAX_RECORD_BYTES}")
    return record


def is_signed(record: Record, network: Network) -> bool:
    """Whether the record's signature is its publisher's, for this swarm."""
    signed = _signed_bytes(
        network,
        record.key,
        record.public_key,
        record.sequence,
        record.issued_at,
        record.lifetime,
        record.value,
    )
    return verify(record.public_key, signed, record.signature)


def encode_record(record: Record) -> bytes:
    """The record as it travels: a msgpack array of its fields, at most `MAX_RECORD_BYTES`."""
    return pack_datagram(to_array(record))


def decode_record_untrusted(data: bytes) -> Record:
    """A record from its bytes, its form checked but its signature and times not yet. Raises `BadMessage`.

    Only the bytes that `encode_record` makes are accepted: whatever else a record could be written as, or with, its
    signature would not cover, and storers would take one record for two.
    """
    if len(data) > MAX_RECORD_BYTES:
        raise BadMessage(f"a record of {len(data)} bytes", limit=f"{MAX_RECORD_BYTES} bytes")
    record = from_array_untrusted(Record, unpack_datagram_untrusted(data))
    if encode_record(record) != data:
        raise BadMessage("not the shortest encoding of the record's fields")
    return record


def _signed_bytes(
    network: Network,
    key: bytes,
    public_key: PublicKey,
    sequence: int,
    issued_at: int,
    lifetime: int,
    value: bytes,
) -> bytes:
    """What a publisher signs: tied to this use and this swarm, so that no signature can be carried elsewhere."""
    packed: bytes = msgpack.packb(
        ["llamanet-record-v1", network.signature_domain, key, public_key, sequence, issued_at, lifetime, value]
    )
    return packed
