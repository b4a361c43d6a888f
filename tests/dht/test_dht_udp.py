"""The same service over real sockets on loopback."""

import os
import socket

import pytest
import trio
from swarms import identity, key

from llamanet.dht.service import DhtConfig, serve_dht
from llamanet.dht.transport import UdpTransport
from llamanet.errors import UserError
from llamanet.wire.envelope import Envelope, Network
from llamanet.wire.rpc import Address, Ping, encode_rpc


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


LOOPBACKS = [("127.0.0.1",)]
if has_ipv6():
    LOOPBACKS += [("::1",), ("127.0.0.1", "::1"), ("0.0.0.0", "::")]


@pytest.mark.parametrize("hosts", LOOPBACKS)
async def test_nodes_find_each_other_and_each_others_records(nursery, hosts):
    with trio.fail_after(10):
        first = await nursery.start(serve_dht, identity(0), DhtConfig(hosts=hosts))
        peer = f"localhost:{first.port}" if len(hosts) > 1 else str(Address(hosts[0], first.port))
        others = [
            await nursery.start(serve_dht, identity(number), DhtConfig(hosts=hosts, bootstrap=(peer,)))
            for number in (1, 2)
        ]
        for node in others:
            await node.wait_joined()
        published = await others[0].publish(key("x"), b"v", lifetime=60)
        assert published.stored >= 2
        client = await nursery.start(
            serve_dht, identity(9), DhtConfig(hosts=hosts, bootstrap=(peer,), client_mode=True)
        )
        await client.wait_joined()
        assert await client.get(key("x")) == [published.record]
        assert client.observed_hosts()[0] in ("127.0.0.1", "::1")
        assert (await client.ping(client.contacts()[0])).rtt < 1
    nursery.cancel_scope.cancel()


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
async def test_nodes_of_either_family_meet_through_one_of_both(nursery):
    with trio.fail_after(10):
        both = await nursery.start(serve_dht, identity(0), DhtConfig(hosts=("127.0.0.1", "::1")))
        peers = (f"127.0.0.1:{both.port}", f"[::1]:{both.port}")
        old = await nursery.start(serve_dht, identity(1), DhtConfig(hosts=("127.0.0.1",), bootstrap=peers))
        new = await nursery.start(serve_dht, identity(2), DhtConfig(hosts=("::1",), bootstrap=peers))
        await old.wait_joined()
        await new.wait_joined()
        while len(both.contacts()) < 2:
            await both.wait_peers_changed()
        await old.publish(key("x"), b"v", lifetime=60)
        assert [record.value for record in await new.get(key("x"))] == [b"v"]
    nursery.cancel_scope.cancel()


async def test_a_taken_port_and_a_bad_host_are_said_in_one_line(nursery):
    first = await nursery.start(serve_dht, identity(0), DhtConfig(hosts=("127.0.0.1",)))
    for config, reason in (
        (DhtConfig(hosts=("127.0.0.1",), port=first.port), f"127.0.0.1:{first.port}: the port is taken"),
        (DhtConfig(hosts=("192.0.2.1",)), "192.0.2.1:0: "),
        (DhtConfig(hosts=("no.such.host.invalid",)), "no.such.host.invalid:0: "),
        (DhtConfig(hosts=("127.0.0.1",), port=70_000), "127.0.0.1:70000: "),
    ):
        with pytest.raises(UserError) as caught:
            await serve_dht(identity(1), config)
        assert str(caught.value).startswith(f"cannot listen on UDP {reason}")
        assert "\n" not in str(caught.value)
    nursery.cancel_scope.cancel()


async def test_every_kind_of_bad_datagram_leaves_it_running(nursery):
    node = await nursery.start(serve_dht, identity(0), DhtConfig(hosts=("127.0.0.1",)))
    envelope = Envelope(identity(7), Network())
    ping = envelope.seal_introduction(encode_rpc(Ping(transaction=bytes(8), client=True)))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, trio.fail_after(10):
        sock.bind(("127.0.0.1", 0))
        sock.connect(("127.0.0.1", node.port))
        sock.setblocking(False)
        for datagram in (b"", b"x", os.urandom(1200), bytes(9000), bytes(65_000), ping[:-1], ping + b"x"):
            sock.send(datagram)
        sock.send(ping)
        await trio.lowlevel.wait_readable(sock)
        assert len(sock.recv(2000)) <= 3 * len(ping)
        # Gone before the answer: the system may report it to the answerer as an error of its socket.
        sock.send(ping)
    for _ in range(20):
        await trio.lowlevel.checkpoint()
    again = await nursery.start(
        serve_dht, identity(1), DhtConfig(hosts=("127.0.0.1",), bootstrap=(f"127.0.0.1:{node.port}",))
    )
    with trio.fail_after(5):
        await again.wait_joined()
    assert sum(node.health().drops.values()) == 7
    nursery.cancel_scope.cancel()


async def test_what_the_system_will_not_send_is_told_and_hurts_nobody():
    transport = UdpTransport.bind(("127.0.0.1",), 0)
    try:
        assert transport.send(b"x", Address("127.0.0.1", 9))
        assert transport.send(b"x", Address("127.0.0.1", 9))
        assert not transport.send(bytes(70_000), Address("127.0.0.1", 9))
        assert not transport.send(b"x", Address("255.255.255.255", 9))
        assert not transport.send(b"x", Address("::1", 9))
        assert not transport.send(b"x", Address("8.8.8.8", 9)), "loopback reaches nobody outside"
    finally:
        transport.close()


async def test_errors_of_a_socket_do_not_end_the_receiving(nursery):
    transport = UdpTransport.bind(("127.0.0.1",), 0)
    real = transport._sockets[0]

    class Flaky:
        errors = [ConnectionRefusedError(), OSError(101, "Network is unreachable")]  # noqa: RUF012

        def recvfrom(self, size):
            if self.errors:
                raise self.errors.pop()
            return real.recvfrom(size)

        def fileno(self):
            return real.fileno()

    address = transport.addresses[0]
    transport._sockets[0] = Flaky()
    got = []
    arrived = trio.Event()

    def deliver(datagram, source):
        got.append(datagram)
        arrived.set()

    nursery.start_soon(transport.receive, deliver)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"after all", (address.host, address.port))
    with trio.fail_after(5):
        await arrived.wait()
    assert got == [b"after all"]
    nursery.cancel_scope.cancel()
    real.close()


async def test_cancellation_closes_the_sockets():
    def open_sockets():
        return sum(1 for fd in os.listdir("/proc/self/fd") if _is_socket(fd))

    before = open_sockets()
    tasks = trio.lowlevel.current_statistics().tasks_living
    async with trio.open_nursery() as nursery:
        node = await nursery.start(serve_dht, identity(0), DhtConfig(hosts=("127.0.0.1", "127.0.0.2")))
        assert open_sockets() == before + 2
        for work in (node.find_nodes, node.get, node.withdraw):
            nursery.start_soon(work, key("x"))
        nursery.cancel_scope.cancel()
    assert open_sockets() == before
    assert trio.lowlevel.current_statistics().tasks_living == tasks


def _is_socket(fd):
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
    except OSError:
        return False


async def test_a_restart_on_real_sockets_rejoins_while_its_bootstrap_peer_is_dead(nursery, tmp_path):
    async def start(number, scope, **options):
        async def run(*, task_status):
            with scope:
                await serve_dht(identity(number), DhtConfig(hosts=("127.0.0.1",), **options), task_status=task_status)

        return await nursery.start(run)

    with trio.fail_after(20):
        dying, stopping = trio.CancelScope(), trio.CancelScope()
        first = await start(0, dying)
        peer = f"127.0.0.1:{first.port}"
        survivor = await start(1, trio.CancelScope(), bootstrap=(peer,))
        node = await start(2, stopping, bootstrap=(peer,), contacts_path=tmp_path / "contacts")
        while len(node.contacts()) < 2:
            await node.wait_peers_changed()
        stopping.cancel()
        dying.cancel()
        while not (tmp_path / "contacts").exists():
            await trio.lowlevel.checkpoint()
        again = await start(2, trio.CancelScope(), bootstrap=(peer,), contacts_path=tmp_path / "contacts")
        await again.wait_joined()
        assert [peer.public_key for peer in again.contacts()] == [survivor.identity.public_key]
    nursery.cancel_scope.cancel()
