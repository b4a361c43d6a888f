"""Where peers see us, and what is said if that is not where we tell others to look."""

import logging

import trio
from swarms import Swarm

from llamanet.dht.address import MAX_VOTERS, AddressVotes
from llamanet.testing.network import MemoryNetwork
from llamanet.wire.rpc import Address


def votes(*pairs):
    counted = AddressVotes()
    for voter, observed in pairs:
        counted.add(voter, observed)
    return counted


def test_a_subnet_has_one_vote_its_latest():
    counted = votes(("9.9.1.1", "8.8.4.1"), ("9.9.2.1", "8.8.4.1"), *((f"7.7.7.{n}", "6.6.6.6") for n in range(1, 50)))
    assert counted.ranked() == ("8.8.4.1", "6.6.6.6")
    counted.add("7.7.7.99", "8.8.4.1")
    assert counted.counted() == {"8.8.4.1": 3}


def test_votes_are_bounded():
    counted = votes(*((f"9.{n}.1.1", "8.8.4.1") for n in range(3 * MAX_VOTERS)))
    assert counted.counted().total() == MAX_VOTERS


def test_the_hosts_of_one_subnet_push_nobody_out():
    counted = votes(*((f"9.{n}.1.1", "8.8.4.1") for n in range(MAX_VOTERS - 1)))
    for n in range(3 * MAX_VOTERS):
        counted.add(f"2001:4860:1::{n:x}", "6.6.6.6")
    assert counted.counted() == {"8.8.4.1": MAX_VOTERS - 1, "6.6.6.6": 1}


def test_an_address_that_most_see_is_not_doubted():
    counted = votes(("9.9.1.1", "8.8.4.1"), ("9.9.2.1", "8.8.4.1"), ("9.9.3.1", "6.6.6.6"))
    assert counted.instead_of({"8.8.4.1"}) is None
    assert counted.instead_of({"8.8.8.8"}) == "8.8.4.1"
    assert counted.instead_of({"8.8.8.8", "8.8.4.1"}) is None
    assert counted.instead_of(()) is None
    assert AddressVotes().instead_of({"8.8.8.8"}) is None


def test_only_votes_that_could_have_named_it_count():
    near = votes(("10.0.0.2", "10.0.0.1"), ("127.0.0.1", "127.0.0.1"), ("fd00::2", "fd00::1"))
    assert near.instead_of({"8.8.8.8"}) is None, "peers on our own site do not see what the world sees"
    assert near.instead_of({"10.0.0.1"}) is None
    assert near.instead_of({"10.0.0.3"}) == "10.0.0.1"
    assert near.instead_of({"127.0.0.1"}) == "10.0.0.1", "nobody else reaches us there"
    assert votes(("9.9.1.1", "8.8.4.1")).instead_of({"2001:4860::1"}) is None


async def test_a_wrong_announced_address_is_said_once(autojump_clock, nursery, caplog):
    swarm = Swarm(nursery, MemoryNetwork(seed=1, delay=(0.005, 0.02)))
    first = await swarm.start(0, address=Address("8.8.4.1", 1))
    node = await swarm.start(1, bootstrap=[first], address=Address("9.9.1.1", 1), announce=("9.9.9.9",))
    right = await swarm.start(2, bootstrap=[first], address=Address("9.9.2.1", 1), announce=("9.9.2.1",))
    await trio.sleep(120)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "announced address 9.9.9.9 is not where peers see this node, which is 9.9.1.1" in warnings[0]
    assert "--announce" in warnings[0]
    assert "\n" not in warnings[0]
    health = node.health()
    assert (health.announced, health.observed_instead) == (("9.9.9.9",), "9.9.1.1")
    assert health.observed == {"9.9.1.1": 2}
    assert right.health().observed_instead is first.health().observed_instead is None


async def test_a_name_that_only_others_can_resolve_is_not_doubted(autojump_clock, nursery, caplog):
    class Resolver(trio.abc.HostnameResolver):
        async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):
            raise OSError(-2, "Name or service not known")

        async def getnameinfo(self, sockaddr, flags):
            raise AssertionError

    trio.socket.set_custom_hostname_resolver(Resolver())
    swarm = Swarm(nursery)
    first = await swarm.start(0)
    node = await swarm.start(1, bootstrap=[first], announce=("inner.example",))
    await trio.sleep(60)
    assert caplog.records == []
    assert node.health().observed_instead is None
