"""Datagrams boxed for their receiver: authenticated, private, and without a handshake.

    magic 2 | version 1 | network tag 4 | kind 1 | sender's public key 32 | nonce 24 | sealed payload (16 more than it)

The payload is sealed with XSalsa20-Poly1305. Kind BOXED uses a key that only sender and receiver can compute (X25519
of their two identities); kind INTRODUCTION uses a key that the whole network knows, for a first PING to an address
whose public key is not known yet. A private swarm's key is mixed into the tag and every key, so outsiders can neither
read nor be heard.

Each direction has its own key, made from both public keys in their order. With one key for both directions, what A
sent to B could be sent back to A under B's name, and whoever did so would speak for B.
"""

import functools
import hashlib
import os

import attrs
import nacl.bindings
import nacl.exceptions

from llamanet.errors import BadMessage
from llamanet.wire.identity import KEY_BYTES, Identity, PublicKey

MAGIC = b"LN"
VERSION = 1
INTRODUCTION = 0
BOXED = 1
MAX_NETWORK_NAME_BYTES = 255
SWARM_KEY_BYTES = 32
BOX_KEY_BYTES = 32
TAG_BYTES = 4
NONCE_BYTES = 24
MAC_BYTES = 16
HEADER_BYTES = len(MAGIC) + 1 + TAG_BYTES + 1 + KEY_BYTES + NONCE_BYTES
MAX_DATAGRAM_BYTES = 1200
"""Passes every path that carries IPv6 (1,280 bytes, RFC 8200) without fragments."""
MAX_PAYLOAD_BYTES = MAX_DATAGRAM_BYTES - HEADER_BYTES - MAC_BYTES
PEER_KEYS = 4096
"""How many peers' keys are remembered, those used longest ago forgotten first; computing them takes some 40 µs."""


def _check_name(network: "Network", attribute: "attrs.Attribute[str]", name: str) -> None:
    if len(name.encode()) > MAX_NETWORK_NAME_BYTES:
        raise ValueError(f"a network's name of {len(name.encode())} bytes is over {MAX_NETWORK_NAME_BYTES}")


def _check_swarm_key(network: "Network", attribute: "attrs.Attribute[bytes | None]", key: bytes | None) -> None:
    # An empty key would quietly be the public swarm.
    if key is not None and len(key) != SWARM_KEY_BYTES:
        raise ValueError(f"a swarm key has {SWARM_KEY_BYTES} bytes, not {len(key)}")


@attrs.frozen
class Network:
    """Which swarm: a public name, and for a private swarm its 32-byte secret. Raises `ValueError` for a wrong size."""

    name: str = attrs.field(default="llamanet", validator=_check_name)
    swarm_key: bytes | None = attrs.field(default=None, repr=False, validator=_check_swarm_key)

    def derive(self, material: bytes, purpose: bytes, size: int = 32) -> bytes:
        """`size` bytes that depend on the swarm (BLAKE2b keyed by the swarm key, personalised by `purpose`)."""
        name = self.name.encode()
        return hashlib.blake2b(
            len(name).to_bytes(2, "big") + name + material,
            digest_size=size,
            key=self.swarm_key or b"",
            person=purpose.ljust(16, b"\0"),
        ).digest()

    @functools.cached_property
    def tag(self) -> bytes:
        """4 bytes that tell one swarm's datagrams from another's."""
        return self.derive(b"", b"llamanet-tag", TAG_BYTES)

    @functools.cached_property
    def signature_domain(self) -> bytes:
        """32 bytes that every signature of this swarm covers, so that it is worth nothing in another."""
        return self.derive(b"", b"llamanet-sign")


@attrs.frozen
class Opened:
    """A datagram that passed its box. For an introduction the sender's key is claimed, not proved."""

    sender: PublicKey = attrs.field(repr=bytes.hex)
    introduction: bool
    payload: bytes


@functools.lru_cache(maxsize=PEER_KEYS)
def _exchange_key_of(peer: PublicKey) -> bytes:
    """The X25519 key of an Ed25519 key; nodes that share a process (an embedded swarm, a test) share the work."""
    exchange: bytes = nacl.bindings.crypto_sign_ed25519_pk_to_curve25519(peer)
    return exchange


class Envelope:
    """Seals and opens one node's datagrams."""

    def __init__(self, identity: Identity, network: Network) -> None:
        self._public_key = identity.public_key
        self._secret = identity.exchange_key()
        self._network = network
        self._prefix = MAGIC + bytes([VERSION]) + network.tag
        self._headers = [self._prefix + bytes([kind]) + self._public_key for kind in (INTRODUCTION, BOXED)]
        self._keys_of: dict[PublicKey, bytes] = {}

    def _keys(self, peer: PublicKey) -> bytes:
        """The two box keys that we share with `peer`, the one that we seal with first, in one string: in two, and in a
        cache of `functools`, they would take twice the memory, and an idle node has little else.

        Raises `BadMessage`.
        """
        keys = self._keys_of.get(peer)
        if keys is None or len(self._keys_of) > PEER_KEYS // 2:  # their order matters only if one must go soon
            keys = self._keys_of.pop(peer, None) or self._compute_keys(peer)
            self._keys_of[peer] = keys
            if len(self._keys_of) > PEER_KEYS:
                del self._keys_of[next(iter(self._keys_of))]  # used longest ago
        return keys

    def has_keys_of(self, peer: PublicKey) -> bool:
        """Whether a box of `peer` costs no key exchange, which is as much as 20 boxes."""
        return peer in self._keys_of

    def _compute_keys(self, peer: PublicKey) -> bytes:
        try:
            shared = nacl.bindings.crypto_box_beforenm(_exchange_key_of(peer), self._secret)
        except (nacl.exceptions.CryptoError, ValueError) as error:
            raise BadMessage("not a usable public key") from error
        sealing = self._network.derive(shared + self._public_key + peer, b"llamanet-box")
        opening = self._network.derive(shared + peer + self._public_key, b"llamanet-box")
        return sealing + opening

    def _introduction_key(self, sender: PublicKey) -> bytes:
        return self._network.derive(sender, b"llamanet-intro")

    def seal(self, receiver: PublicKey, payload: bytes) -> bytes:
        """A datagram that only `receiver` can open. Raises `BadMessage` if `receiver` is no usable key."""
        return self._seal(BOXED, self._keys(receiver)[:BOX_KEY_BYTES], payload)

    def seal_introduction(self, payload: bytes) -> bytes:
        """A datagram for an address whose key is not known; every member of the swarm could open it."""
        return self._seal(INTRODUCTION, self._introduction_key(self._public_key), payload)

    def _seal(self, kind: int, key: bytes, payload: bytes) -> bytes:
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise ValueError(f"a payload of {len(payload)} bytes is over {MAX_PAYLOAD_BYTES}")
        nonce = os.urandom(NONCE_BYTES)
        sealed: bytes = nacl.bindings.crypto_secretbox(payload, nonce, key)
        return b"".join((self._headers[kind], nonce, sealed))

    def check_header_untrusted(self, datagram: bytes) -> PublicKey:
        """The cheap checks (size, magic, version, tag, kind), before anything is spent on a datagram.

        Returns the public key that the sender claims. Raises `BadMessage`.
        """
        if not HEADER_BYTES + MAC_BYTES <= len(datagram) <= MAX_DATAGRAM_BYTES:
            raise BadMessage("wrong size")
        if not datagram.startswith(self._prefix):
            raise BadMessage("another protocol, version or swarm")
        if datagram[len(self._prefix)] not in (INTRODUCTION, BOXED):
            raise BadMessage("unknown kind of datagram")
        start = len(self._prefix) + 1
        sender = PublicKey(datagram[start : start + KEY_BYTES])
        if sender == self._public_key:
            raise BadMessage("sent by ourselves")
        return sender

    def is_introduction(self, datagram: bytes) -> bool:
        """Of a datagram whose header `check_header_untrusted` has passed."""
        return datagram[len(self._prefix)] == INTRODUCTION

    def open_untrusted(self, datagram: bytes) -> Opened:
        """Check and decrypt a datagram; its sender's key can be sealed to. Raises `BadMessage`."""
        sender = self.check_header_untrusted(datagram)
        introduction = self.is_introduction(datagram)
        payload = self.open_checked_untrusted(datagram, sender, introduction=introduction)
        return Opened(sender, introduction, payload)

    def open_checked_untrusted(self, datagram: bytes, sender: PublicKey, *, introduction: bool) -> bytes:
        """The payload of a datagram whose header `check_header_untrusted` has passed, with the sender that it gave."""
        # An introduction is answered in a box, so its sender's key must be usable as well.
        opening = self._keys(sender)[BOX_KEY_BYTES:]
        key = self._introduction_key(sender) if introduction else opening
        nonce = datagram[HEADER_BYTES - NONCE_BYTES : HEADER_BYTES]
        try:
            payload: bytes = nacl.bindings.crypto_secretbox_open(datagram[HEADER_BYTES:], nonce, key)
        except nacl.exceptions.CryptoError as error:
            raise BadMessage("the box does not open") from error
        return payload
