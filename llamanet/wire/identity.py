"""Who a node is: an Ed25519 key. Its id is the SHA-256 of its public key, so nobody can choose an id.

Two nodes may bear one label; the key tells them apart.
"""

import hashlib
from typing import NewType

import attrs
import nacl.bindings
import nacl.exceptions
import nacl.signing

NodeId = NewType("NodeId", bytes)
"""32 bytes: SHA-256 of the node's public key. Ids and keys share one XOR space."""
PublicKey = NewType("PublicKey", bytes)
"""32 bytes: an Ed25519 public key."""

ID_BYTES = 32
KEY_BYTES = 32
SEED_BYTES = 32
SIGNATURE_BYTES = 64


def node_id_of(public_key: PublicKey) -> NodeId:
    """The id that belongs to a public key."""
    return NodeId(hashlib.sha256(public_key).digest())


def short_name(node_id: NodeId) -> str:
    """The default label of a node: short enough to say, and made from its id."""
    return f"node-{node_id[:4].hex()}"


def verify(public_key: PublicKey, message: bytes, signature: bytes) -> bool:
    """Whether `signature` (64 bytes) is `public_key`'s signature of `message`."""
    try:
        nacl.bindings.crypto_sign_open(signature + message, public_key)
    except (nacl.exceptions.CryptoError, ValueError):
        return False
    return True


@attrs.frozen(eq=False)
class Identity:
    """A private key, and what follows from it. Never prints its secret."""

    _signing_key: nacl.signing.SigningKey = attrs.field(repr=False)
    public_key: PublicKey = attrs.field(init=False, repr=bytes.hex)
    node_id: NodeId = attrs.field(init=False, repr=bytes.hex)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "public_key", PublicKey(bytes(self._signing_key.verify_key)))
        object.__setattr__(self, "node_id", node_id_of(self.public_key))

    @classmethod
    def generate(cls) -> "Identity":
        """A fresh identity."""
        return cls(nacl.signing.SigningKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> "Identity":
        """The identity with this 32-byte secret, as a key file holds it."""
        return cls(nacl.signing.SigningKey(seed))

    @property
    def seed(self) -> bytes:
        """The 32-byte secret."""
        return bytes(self._signing_key)

    def sign(self, message: bytes) -> bytes:
        """A 64-byte Ed25519 signature."""
        return self._signing_key.sign(message).signature

    def exchange_key(self) -> bytes:
        """The X25519 private key that belongs to this identity (RFC 7748, by libsodium's conversion)."""
        secret: bytes = nacl.bindings.crypto_sign_ed25519_sk_to_curve25519(self.seed + self.public_key)
        return secret
