"""Datagrams: only the receiver opens them, every byte of them counts, and swarms do not hear each other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamanet.errors import BadMessage
from llamanet.wire import envelope
from llamanet.wire.envelope import HEADER_BYTES, MAX_DATAGRAM_BYTES, MAX_PAYLOAD_BYTES, Envelope, Network
from llamanet.wire.identity import Identity, PublicKey

ALICE, BOB, EVE = (Identity.from_seed(letter * 32) for letter in (b"a", b"b", b"e"))
PUBLIC = Network()
SECRET, OTHER_SECRET = Network(swarm_key=b"k" * 32), Network(swarm_key=b"l" * 32)
SENDER = slice(8, 40)
LOW_ORDER = [
    bytes(32),
    b"\1" + bytes(31),
    bytes(31) + b"\x80",
    b"\xec" + b"\xff" * 30 + b"\x7f",
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
    bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
]
"""Ed25519 points whose order divides 8 (Chalkias et al. 2020, "Taming the many EdDSAs", table 1)."""


def opens(receiver: Envelope, datagram: bytes) -> bool:
    try:
        receiver.open_untrusted(datagram)
    except BadMessage:
        return False
    return True


@given(payload=st.binary(max_size=MAX_PAYLOAD_BYTES), swarm_key=st.none() | st.binary(min_size=32, max_size=32))
def test_the_receiver_alone_opens_a_datagram(payload, swarm_key):
    network = Network(swarm_key=swarm_key)
    alice, bob, eve = (Envelope(identity, network) for identity in (ALICE, BOB, EVE))
    datagram = alice.seal(BOB.public_key, payload)
    assert len(datagram) == HEADER_BYTES + 16 + len(payload) <= MAX_DATAGRAM_BYTES
    opened = bob.open_untrusted(datagram)
    assert (opened.sender, opened.introduction, opened.payload) == (ALICE.public_key, False, payload)
    assert not opens(eve, datagram)
    assert not opens(alice, datagram)


def test_every_member_opens_an_introduction():
    datagram = Envelope(ALICE, PUBLIC).seal_introduction(b"hello")
    for identity in (BOB, EVE):
        opened = Envelope(identity, PUBLIC).open_untrusted(datagram)
        assert (opened.sender, opened.introduction, opened.payload) == (ALICE.public_key, True, b"hello")


@pytest.mark.parametrize("introduction", [False, True])
def test_every_byte_of_a_datagram_counts(introduction):
    alice, bob = Envelope(ALICE, PUBLIC), Envelope(BOB, PUBLIC)
    datagram = alice.seal_introduction(b"hello") if introduction else alice.seal(BOB.public_key, b"hello")
    assert opens(bob, datagram)
    for index in range(len(datagram)):
        for flip in (1, 0x80):
            broken = bytearray(datagram)
            broken[index] ^= flip
            assert not opens(bob, bytes(broken)), index
    for size in range(len(datagram)):
        assert not opens(bob, datagram[:size])
    assert not opens(bob, datagram + b"\0")


def test_what_was_sent_to_a_peer_cannot_come_back_under_its_name():
    """The secret that two identities share is the same in both directions; the keys of the boxes are not."""
    alice = Envelope(ALICE, PUBLIC)
    reflected = bytearray(alice.seal(BOB.public_key, b"pong"))
    reflected[SENDER] = BOB.public_key
    assert not opens(alice, bytes(reflected))
    claimed = bytearray(alice.seal_introduction(b"ping"))
    claimed[SENDER] = EVE.public_key
    assert not opens(Envelope(BOB, PUBLIC), bytes(claimed))


@pytest.mark.parametrize("theirs", [SECRET, OTHER_SECRET, Network("other"), Network("other", b"k" * 32)])
def test_swarms_do_not_hear_each_other_even_with_the_tag_forged(theirs):
    assert theirs.tag != PUBLIC.tag
    outsider, member = Envelope(ALICE, PUBLIC), Envelope(BOB, theirs)
    for datagram in (outsider.seal(BOB.public_key, b"x"), outsider.seal_introduction(b"x")):
        with pytest.raises(BadMessage, match="swarm"):
            member.check_header_untrusted(datagram)
        forged = datagram[:3] + theirs.tag + datagram[7:]
        assert member.check_header_untrusted(forged) == ALICE.public_key
        with pytest.raises(BadMessage, match="does not open"):
            member.open_untrusted(forged)


def test_a_name_cannot_be_read_as_another_name_with_material():
    assert Network("ab").derive(b"c", b"p") != Network("a").derive(b"bc", b"p")
    assert Network("a").derive(b"", b"p") != Network("a").derive(b"", b"q")


@pytest.mark.parametrize("key", [b"", b"k" * 31, b"k" * 33, b"k" * 64])
def test_a_swarm_key_has_32_bytes(key):
    with pytest.raises(ValueError, match="32 bytes"):
        Network(swarm_key=key)


def test_a_swarm_key_is_never_printed_and_names_are_bounded():
    assert "kkkk" not in repr(SECRET)
    assert Network(swarm_key=b"k" * 32) == SECRET
    assert SECRET != PUBLIC
    assert Network("é" * 127).tag
    with pytest.raises(ValueError, match="255"):
        Network("é" * 128)


@pytest.mark.parametrize("key", [*LOW_ORDER, b"\xff" * 32, b"\2" + bytes(31)], ids=bytes.hex)
def test_unusable_public_keys_are_refused_where_they_come_in(key):
    bob = Envelope(BOB, PUBLIC)
    with pytest.raises(BadMessage, match="public key"):
        bob.seal(PublicKey(key), b"")
    for kind in (envelope.BOXED, envelope.INTRODUCTION):
        datagram = b"LN\1" + PUBLIC.tag + bytes([kind]) + key + bytes(24 + 16)
        assert bob.check_header_untrusted(datagram) == key
        with pytest.raises(BadMessage, match="public key"):
            bob.open_untrusted(datagram)


def test_sizes_are_bounded_on_both_sides():
    alice, bob = Envelope(ALICE, PUBLIC), Envelope(BOB, PUBLIC)
    largest = alice.seal(BOB.public_key, bytes(MAX_PAYLOAD_BYTES))
    assert len(largest) == MAX_DATAGRAM_BYTES == 1_200
    assert bob.open_untrusted(largest).payload == bytes(MAX_PAYLOAD_BYTES)
    with pytest.raises(ValueError, match="1121"):
        alice.seal(BOB.public_key, bytes(MAX_PAYLOAD_BYTES + 1))
    with pytest.raises(BadMessage, match="size"):
        bob.check_header_untrusted(largest + b"\0")
    with pytest.raises(BadMessage, match="size"):
        bob.check_header_untrusted(largest[: HEADER_BYTES + 15])
    assert bob.check_header_untrusted(largest[: HEADER_BYTES + 16]) == ALICE.public_key


def test_our_own_datagrams_are_dropped_at_the_header():
    alice = Envelope(ALICE, PUBLIC)
    with pytest.raises(BadMessage, match="ourselves"):
        alice.check_header_untrusted(alice.seal_introduction(b""))


def test_keys_of_peers_are_remembered_by_their_last_use(monkeypatch):
    monkeypatch.setattr("llamanet.wire.envelope.PEER_KEYS", 3)
    box = Envelope(ALICE, Network())
    peers = [Identity.from_seed(bytes([number]) * 32).public_key for number in range(5)]
    for peer in (*peers[:3], peers[0], peers[3]):
        box.seal(peer, b"x")
    assert [box.has_keys_of(peer) for peer in peers] == [True, False, True, True, False]
