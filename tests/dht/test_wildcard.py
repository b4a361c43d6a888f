"""Answers of a machine with several addresses come from the address that was asked. All of 127.0.0.0/8 is loopback."""

import socket
import sys

import pytest
import trio
from swarms import identity

from llamanet.dht import wildcard
from llamanet.dht.service import DhtConfig, serve_dht
from llamanet.dht.wildcard import WildcardSocket
from llamanet.wire.rpc import Address

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere 127.0.0.2 is no address of this machine")


@pytest.fixture
def server():
    with WildcardSocket(socket.AF_INET) as sock:
        sock.settimeout(5)
        sock.bind(("0.0.0.0", 0))
        yield sock


@pytest.fixture
def asker():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.bind(("127.0.0.1", 0))
        yield sock


def ask(server, asker, host):
    asker.sendto(b"ask", (host, server.getsockname()[1]))
    datagram, source = server.recvfrom(100)
    assert (datagram, source) == (b"ask", asker.getsockname())
    return source


def test_an_answer_comes_from_the_address_asked(server, asker):
    for host in ("127.0.0.2", "127.0.0.3", "127.0.0.1"):
        source = ask(server, asker, host)
        assert server.sendto(b"answer", source) == len(b"answer")
        assert asker.recvfrom(100) == (b"answer", (host, server.getsockname()[1]))


def test_a_stranger_is_sent_to_as_by_any_socket(server, asker):
    server.sendto(b"first", asker.getsockname())
    assert asker.recvfrom(100) == (b"first", ("127.0.0.1", server.getsockname()[1]))


def test_an_address_that_is_gone_is_no_obstacle(server, asker):
    source = ask(server, asker, "127.0.0.2")
    server._heard_at[source] = wildcard._IPV4.pack(0, socket.inet_aton("192.0.2.1"), bytes(4))
    server.sendto(b"answer", source)
    assert asker.recvfrom(100)[0] == b"answer"
    assert source not in server._heard_at


def test_what_is_remembered_is_bounded(server, asker, monkeypatch):
    monkeypatch.setattr(wildcard, "REMEMBERED", 3)
    for port in range(1, 10):
        server._remember(("127.0.0.1", port), b"answer")
    assert [port for _, port in server._heard_at] == [7, 8, 9]


def test_both_families():
    try:
        sock = WildcardSocket(socket.AF_INET6)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(("::", 0))
    except OSError:
        pytest.skip("no IPv6 here")
    with sock, socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as asker:
        sock.settimeout(5)
        asker.settimeout(5)
        asker.sendto(b"ask", ("::1", sock.getsockname()[1]))
        _, source = sock.recvfrom(100)
        sock.sendto(b"answer", source[:2])
        assert sock._heard_at[source[:2]] == wildcard._IPV6.pack(socket.inet_pton(socket.AF_INET6, "::1"), 0)
        assert asker.recvfrom(100)[0] == b"answer"


async def test_a_node_on_all_addresses_answers_at_each(nursery):
    node = await nursery.start(serve_dht, identity(0), DhtConfig(hosts=("0.0.0.0",)))
    asker = await nursery.start(serve_dht, identity(1), DhtConfig(hosts=("127.0.0.1",), client_mode=True))
    with trio.fail_after(10):
        for host in ("127.0.0.2", "127.0.0.3", "127.0.0.1"):
            contact = await asker.introduce(Address(host, node.port))
            assert contact.address.host == host
            assert (await asker.ping(contact)).pong.observed.host == "127.0.0.1"
    nursery.cancel_scope.cancel()
