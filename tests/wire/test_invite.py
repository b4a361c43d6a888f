"""Invitations: what is written is read, and what was cut, mistyped or made up is told in words."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamanet.errors import BadMessage
from llamanet.wire.identity import Identity
from llamanet.wire.invite import MAX_INVITED_PEERS, PREFIX, Invite, InvitedPeer, decode_invite_untrusted, encode_invite

PEER = InvitedPeer(Identity.from_seed(bytes(32)).public_key, "192.0.2.7", 8001)
INVITE = Invite(swarm_name="home", swarm_key=bytes(range(32)), peers=(PEER,))

peers = st.builds(
    InvitedPeer, st.binary(min_size=32, max_size=32), st.text(min_size=1, max_size=60), st.integers(1, 65535)
)
invites = st.builds(
    Invite,
    swarm_name=st.text(max_size=60),
    swarm_key=st.none() | st.binary(min_size=32, max_size=32),
    peers=st.lists(peers, min_size=1, max_size=MAX_INVITED_PEERS).map(tuple),
)


@given(invites)
def test_what_is_written_is_read(invite):
    line = encode_invite(invite)
    assert decode_invite_untrusted(line) == invite
    assert re.fullmatch(r"llamanet1_[A-Za-z0-9_-]+", line)


def test_a_line_that_was_broken_by_a_terminal_is_read():
    line = encode_invite(INVITE)
    assert decode_invite_untrusted(f"  {line[:40]}\n {line[40:]}\n") == INVITE


@given(st.data())
def test_a_line_that_was_mistyped_is_refused(data):
    line = encode_invite(INVITE)
    place = data.draw(st.integers(len(PREFIX), len(line) - 2))
    other = data.draw(st.sampled_from("ABCxyz019-_").filter(lambda character: character != line[place]))
    with pytest.raises(BadMessage, match="damaged"):
        decode_invite_untrusted(line[:place] + other + line[place + 1 :])


@given(st.integers(len(PREFIX), len(encode_invite(INVITE)) - 2))
def test_a_line_that_was_cut_is_refused(end):
    with pytest.raises(BadMessage, match=r"damaged|characters"):
        decode_invite_untrusted(encode_invite(INVITE)[:end])


@given(st.text() | st.text().map(PREFIX.__add__))
def test_nothing_but_bad_message_comes_of_any_text(text):
    with pytest.raises(BadMessage):
        decode_invite_untrusted(text)


def test_an_invitation_to_nobody_is_refused():
    with pytest.raises(BadMessage, match="no node"):
        decode_invite_untrusted(encode_invite(Invite()))


def test_the_key_is_in_no_repr():
    assert INVITE.swarm_key.hex() not in repr(INVITE)
    assert repr(INVITE.swarm_key) not in repr(INVITE)
