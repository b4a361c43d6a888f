"""Which swarm is meant: settings as users give them, alone and together."""

from functools import partial

import pytest
import trio

from llamanet.dht.membership import as_membership
from llamanet.dht.service import DhtConfig, serve_dht
from llamanet.errors import UserError
from llamanet.testing.network import MemoryNetwork
from llamanet.wire.envelope import Network
from llamanet.wire.identity import Identity
from llamanet.wire.invite import Invite, InvitedPeer, encode_invite

ALICE = Identity.from_seed(bytes(32))
KEY = bytes(range(32))
LINE = encode_invite(
    Invite(swarm_name="home", swarm_key=KEY, peers=(InvitedPeer(ALICE.public_key, "2001:db8::7", 8001),))
)


def test_nothing_said_is_the_public_swarm():
    assert as_membership().network == Network()


def test_an_invitation_says_all():
    membership = as_membership(join=LINE)
    assert membership.network == Network("home", KEY)
    assert membership.peers == (f"{ALICE.public_key.hex()}@[2001:db8::7]:8001",)


def test_peers_may_be_added_to_an_invitation():
    membership = as_membership("192.0.2.1:8001, 192.0.2.2:8001", join=LINE, swarm_name="home", swarm_key=KEY)
    assert membership.peers[:2] == ("192.0.2.1:8001", "192.0.2.2:8001")
    assert len(membership.peers) == 3


@pytest.mark.parametrize("said", [{"swarm_name": "work"}, {"swarm_key": bytes(32)}])
def test_an_invitation_to_another_swarm_than_was_said_is_refused(said):
    with pytest.raises(UserError, match="another swarm"):
        as_membership(join=LINE, **said)


@pytest.mark.parametrize("peer", ["zz@127.0.0.1:1", "00@127.0.0.1:1", "@127.0.0.1:1", f"{ALICE.public_key.hex()}@x"])
def test_a_peer_whose_key_or_address_is_none_is_refused(peer):
    with pytest.raises(UserError):
        as_membership(peer)


@pytest.mark.parametrize("right", [True, False])
async def test_a_peer_is_joined_only_under_the_key_that_was_told(nursery, autojump_clock, right):
    network = MemoryNetwork(seed=7)

    async def start(identity, host, *bootstrap):
        config = DhtConfig(bootstrap=bootstrap, seed=2)
        service = partial(serve_dht, identity, config, transport=network.transport(host, 8001))
        return await nursery.start(service)

    await start(ALICE, "10.0.0.1")
    told = ALICE if right else Identity.from_seed(bytes([1]) * 32)
    bob = await start(Identity.from_seed(bytes([2]) * 32), "10.0.0.2", f"{told.public_key.hex()}@10.0.0.1:8001")
    with trio.move_on_after(30):
        await bob.wait_joined()
    assert bob.joined is right
    nursery.cancel_scope.cancel()
