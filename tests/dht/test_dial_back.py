"""Dialling back: what it tells, whom it cannot be turned against, what it costs, and what it leaves behind."""

import socket

import pytest
import trio
from swarms import Attacker, Swarm, identity

from llamanet.dht.dial_back import DIAL_S
from llamanet.dht.guard import DIAL_BURST, SOURCE_DIAL_BURST
from llamanet.dht.requests import FIND_PAYLOAD_BYTES
from llamanet.dht.service import DhtConfig, serve_dht
from llamanet.dht.transport import UdpTransport
from llamanet.errors import RpcRefused
from llamanet.wire.rpc import Address, DialBack, FindNode, decode_rpc_untrusted


class Firewall:
    """A transport that lets in only what comes from where something went out to, as most routers do."""

    def __init__(self, inner):
        self.inner = inner
        self.asked = set()

    @property
    def addresses(self):
        return self.inner.addresses

    def send(self, datagram, address):
        self.asked.add(address)
        return self.inner.send(datagram, address)

    async def receive(self, deliver):
        await self.inner.receive(lambda datagram, source: source in self.asked and deliver(datagram, source))

    def close(self):
        self.inner.close()


@pytest.fixture
async def swarm(nursery):
    swarm = Swarm(nursery)
    await swarm.start(0)
    await swarm.start(1, bootstrap=[Address("10.1.0.0", 8001)])
    await trio.sleep(5)
    yield swarm
    nursery.cancel_scope.cancel()


async def test_a_node_that_strangers_reach_answers(autojump_clock, swarm):
    helper, node = swarm.addresses
    dialed = await node.dial_back(node.contacts()[0], udp_port=8001)
    assert dialed.answered_by == node.identity.public_key
    assert dialed.observed == swarm.addresses[node]
    assert set(swarm.network._transports) == set(swarm.addresses.values())
    assert helper.contacts() == (node.contacts()[0].__class__(node.identity.public_key, swarm.addresses[node]),)


async def test_a_firewall_that_lets_answers_in_is_noticed(autojump_clock, swarm, nursery):
    helper, _ = swarm.addresses
    transport = Firewall(swarm.network.transport("10.9.9.9", 8001))
    config = DhtConfig(bootstrap=("10.1.0.0:8001",), seed=2)

    async def run(task_status):
        await serve_dht(identity(2), config, transport=transport, task_status=task_status)

    node = await nursery.start(run)
    await node.wait_joined()
    [contact] = [contact for contact in node.contacts() if contact.public_key == helper.identity.public_key]
    started = trio.current_time()
    assert (await node.dial_back(contact, udp_port=8001)).answered_by is None
    assert trio.current_time() - started == pytest.approx(DIAL_S, abs=0.2)
    assert (await node.ping(contact)).rtt < 1


async def test_it_costs_the_asker_more_than_it_brings_to_its_host(autojump_clock, swarm):
    helper, _ = swarm.addresses
    attacker = Attacker(swarm)
    token = await token_of(swarm, attacker, helper)
    brought, send = [], swarm.network.send

    def counted(datagram, source, target):
        if target.host == attacker.address.host:
            brought.append(len(datagram))
        send(datagram, source, target)

    swarm.network.send = counted
    request = DialBack(transaction=bytes(8), client=True, token=token, udp_port=7, tcp_port=None)
    datagram = attacker.seal(helper, request, pad_to=FIND_PAYLOAD_BYTES)
    attacker.send(swarm, helper, datagram)
    await trio.sleep(5)
    assert len(brought) == 3
    assert sum(brought) < len(datagram)


async def token_of(swarm, attacker, helper):
    request = FindNode(transaction=bytes(8), client=True, target=attacker.identity.node_id)
    attacker.send(swarm, helper, attacker.seal(helper, request, pad_to=FIND_PAYLOAD_BYTES))
    await trio.sleep(1)
    return decode_rpc_untrusted(attacker.envelope.open_untrusted(attacker.received.pop()).payload).token


@pytest.mark.parametrize(("pad_to", "source"), [(0, None), (FIND_PAYLOAD_BYTES, Address("10.3.3.3", 666))])
async def test_nobody_is_dialled_for_a_small_request_or_a_forged_source(autojump_clock, swarm, pad_to, source):
    helper, _ = swarm.addresses
    attacker = Attacker(swarm)
    victim = swarm.network.transport("10.3.3.3", 666)
    arrived = []
    swarm.nursery.start_soon(victim.receive, lambda datagram, source: arrived.append(datagram))
    token = await token_of(swarm, attacker, helper)
    request = DialBack(transaction=bytes(8), client=True, token=token, udp_port=666, tcp_port=None)
    attacker.send(swarm, helper, attacker.seal(helper, request, pad_to=pad_to), source)
    await trio.sleep(5)
    assert attacker.received == []
    assert len(arrived) == (source is not None)  # the refusal, of a third of the request


async def test_few_are_dialled(autojump_clock, swarm):
    helper, node = swarm.addresses
    for _ in range(int(SOURCE_DIAL_BURST)):
        await node.dial_back(node.contacts()[0], udp_port=8001)
    with pytest.raises(RpcRefused, match="busy"):
        await node.dial_back(node.contacts()[0], udp_port=8001)
    other = await swarm.start(2, bootstrap=[helper], client_mode=True)
    await other.wait_joined()
    await other.dial_back(node.contacts()[0], udp_port=8001)
    await trio.sleep(60)
    await node.dial_back(node.contacts()[0], udp_port=8001)


async def test_few_are_dialled_for_all_together(autojump_clock, swarm):
    helper, _ = swarm.addresses
    refused = []

    async def ask(number):
        node = await swarm.start(number, bootstrap=[helper], client_mode=True)
        await node.wait_joined()
        [contact] = [contact for contact in node.contacts() if contact.public_key == helper.identity.public_key]
        try:
            await node.dial_back(contact, udp_port=1)
        except RpcRefused as error:
            refused.append(error.reason)

    async with trio.open_nursery() as asking:
        for number in range(20, 40):
            asking.start_soon(ask, number)
    assert 20 - DIAL_BURST - 3 <= len(refused) <= 20 - DIAL_BURST
    assert set(refused) == {"busy"}


async def test_a_helper_that_stops_leaves_no_socket_behind(autojump_clock, swarm):
    helper, node = swarm.addresses
    async with trio.open_nursery() as asking:
        asking.start_soon(ask_in_vain, node, node.contacts()[0])
        await trio.sleep(DIAL_S / 2)
        assert len(swarm.network._transports) == 3
        swarm.kill(helper)
        await trio.testing.wait_all_tasks_blocked()
        assert set(swarm.network._transports) == {swarm.addresses[node]}
        asking.cancel_scope.cancel()


async def ask_in_vain(node, contact):
    await node.dial_back(contact, udp_port=9)


async def test_over_real_sockets(nursery):
    with trio.fail_after(20), socket.socket() as listening, socket.socket() as closed:
        for sock in listening, closed:
            sock.bind(("127.0.0.1", 0))
        listening.listen()
        helper = await nursery.start(serve_dht, identity(0), DhtConfig(hosts=("127.0.0.1",)))
        config = DhtConfig(hosts=("127.0.0.1",), bootstrap=(f"127.0.0.1:{helper.port}",))
        node = await nursery.start(serve_dht, identity(1), config)
        await node.wait_joined()
        contact = node.contacts()[0]
        dialed = await node.dial_back(contact, udp_port=node.port, tcp_port=listening.getsockname()[1])
        assert (dialed.answered_by, dialed.connected) == (node.identity.public_key, True)
        dialed = await node.dial_back(contact, tcp_port=closed.getsockname()[1])
        assert (dialed.answered_by, dialed.connected) == (None, False)
    nursery.cancel_scope.cancel()


async def test_a_transport_beside_another_has_a_port_of_its_own():
    first = UdpTransport.bind(("127.0.0.1",), 0)
    second = first.beside()
    assert second.addresses[0].host == "127.0.0.1"
    assert second.addresses != first.addresses
    first.close()
    second.close()
