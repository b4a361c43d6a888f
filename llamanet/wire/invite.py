"""An invitation: one line of text that holds all that a machine needs to join a swarm.

    "llamanet1_", then base64url without padding of: a msgpack array, and 4 bytes of checksum
    [swarm's name, swarm key or nil, [[public key, host, port], ...]]

The checksum, the first bytes of the SHA-256 of what stands before it, finds a line that was cut or mistyped. With the
public keys, whoever joins boxes its first datagram already, and knows whom it talks to. With a private swarm's key in
it, the line is as secret as that key.
"""

import base64
import binascii
import hashlib

import attrs

from llamanet.errors import BadMessage
from llamanet.wire.codec import (
    array_of,
    encoded_list,
    exactly_bytes,
    from_array_untrusted,
    integer,
    list_of,
    optional,
    text,
    to_array,
    wire_field,
)
from llamanet.wire.envelope import MAX_NETWORK_NAME_BYTES, SWARM_KEY_BYTES, Network
from llamanet.wire.identity import KEY_BYTES, PublicKey
from llamanet.wire.plain import pack_datagram, unpack_datagram_untrusted

PREFIX = "llamanet1_"
MAX_INVITED_PEERS = 8
MAX_INVITE_CHARS = 4_000
CHECKSUM_BYTES = 4


@attrs.frozen
class InvitedPeer:
    """A node to join through: who it is, and the host (an address or a name) and UDP port that it answers on."""

    public_key: PublicKey = wire_field(exactly_bytes(KEY_BYTES), repr=bytes.hex)
    host: str = wire_field(text(253, least=1))
    port: int = wire_field(integer(1, 65_535))


@attrs.frozen(kw_only=True)
class Invite:
    """What the line says. Raises `ValueError` for a swarm's name that is too long."""

    swarm_name: str = wire_field(text(MAX_NETWORK_NAME_BYTES), default=Network().name)
    swarm_key: bytes | None = wire_field(optional(exactly_bytes(SWARM_KEY_BYTES)), default=None, repr=False)
    peers: tuple[InvitedPeer, ...] = wire_field(
        list_of(array_of(InvitedPeer), MAX_INVITED_PEERS), encoded_list(to_array), default=()
    )

    @property
    def network(self) -> Network:
        """The swarm that the line invites to."""
        return Network(self.swarm_name, self.swarm_key)


def encode_invite(invite: Invite) -> str:
    """The line: letters, digits, `-` and `_` only, so that no shell and no chat program spoils it."""
    packed = pack_datagram(to_array(invite))
    return PREFIX + base64.urlsafe_b64encode(packed + _checksum(packed)).rstrip(b"=").decode()


def decode_invite_untrusted(line: str) -> Invite:
    """What `line` says. Raises `BadMessage`, in words for the person who pasted it."""
    line = "".join(line.split())  # a terminal or a mail may have broken it
    if not line.startswith(PREFIX) or len(line) > MAX_INVITE_CHARS:
        raise BadMessage(f"not an invitation; one begins with {PREFIX}")
    encoded = line[len(PREFIX) :]
    try:
        data = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadMessage("the invitation holds characters that none has") from error
    packed, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    if checksum != _checksum(packed):
        raise BadMessage("the invitation is damaged or incomplete")
    invite = from_array_untrusted(Invite, unpack_datagram_untrusted(packed))
    if not invite.peers:
        raise BadMessage("the invitation names no node to join through")
    if len(invite.swarm_name.encode()) > MAX_NETWORK_NAME_BYTES:
        raise BadMessage("the swarm's name is too long", limit=f"{MAX_NETWORK_NAME_BYTES} bytes")
    return invite


def _checksum(packed: bytes) -> bytes:
    return hashlib.sha256(packed).digest()[:CHECKSUM_BYTES]
