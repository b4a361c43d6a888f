"""Identities: the id that follows from the key, and signatures."""

import hashlib

import pytest

from llamanet.wire.identity import Identity, PublicKey, node_id_of, short_name, verify

ALICE, BOB = Identity.from_seed(b"a" * 32), Identity.from_seed(b"b" * 32)


def test_the_id_is_the_hash_of_the_public_key():
    assert ALICE.node_id == hashlib.sha256(ALICE.public_key).digest() == node_id_of(ALICE.public_key)
    assert short_name(ALICE.node_id) == f"node-{ALICE.node_id.hex()[:8]}"


def test_an_identity_comes_back_from_its_seed_and_never_prints_it():
    again = Identity.from_seed(ALICE.seed)
    assert (again.public_key, again.node_id, again.exchange_key()) == (
        ALICE.public_key,
        ALICE.node_id,
        ALICE.exchange_key(),
    )
    assert ALICE.seed.hex() not in repr(ALICE)
    assert repr(ALICE.seed) not in repr(ALICE)
    assert Identity.generate().public_key != Identity.generate().public_key
    with pytest.raises(ValueError):
        Identity.from_seed(bytes(31))


def test_a_signature_is_good_for_its_key_and_message_only():
    signature = ALICE.sign(b"message")
    assert verify(ALICE.public_key, b"message", signature)
    assert not verify(BOB.public_key, b"message", signature)
    assert not verify(ALICE.public_key, b"massage", signature)
    for index in range(64):
        broken = bytearray(signature)
        broken[index] ^= 1
        assert not verify(ALICE.public_key, b"message", bytes(broken))


@pytest.mark.parametrize(
    "key", [bytes(32), b"\1" + bytes(31), b"\xff" * 32, bytes(31), b"", bytes(31) + b"\x80"], ids=bytes.hex
)
@pytest.mark.parametrize("signature", [bytes(64), b"\1" + bytes(63), bytes(63), b"", b"\xff" * 64], ids=len)
def test_degenerate_keys_and_signatures_verify_nothing(key, signature):
    assert not verify(PublicKey(key), b"", signature)
    assert not verify(PublicKey(key), b"message", signature)
