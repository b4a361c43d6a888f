"""Datagrams in and out: the seam between the DHT and the world. Here over UDP; in memory in `llamanet.testing`.

Rules:
- Sending never waits: a datagram that the system does not take at once is lost, as on any network, and `send` says so.
- Nothing that the network or the system reports for a single datagram ends the receiving.
- Each socket speaks one family, so that no address ever appears in two forms.
- A socket on all local addresses answers from the one that was asked (`dht.wildcard`).
"""

import errno
import functools
import logging
import socket
from collections.abc import Callable
from typing import Protocol, TypeAlias

import trio

from llamanet.dht.distance import REMEMBERED_HOSTS, scope_of
from llamanet.dht.wildcard import WildcardSocket
from llamanet.errors import UserError
from llamanet.wire.envelope import MAX_DATAGRAM_BYTES
from llamanet.wire.rpc import Address

Deliver: TypeAlias = Callable[[bytes, Address], None]

BATCH = 64
"""Datagrams taken from a socket before other tasks get their turn."""
SOCKET_BUFFER_BYTES = 2**20
RETRY_S = 0.05
"""A pause after an error of the socket itself, so that a lasting one cannot spin."""

logger = logging.getLogger(__name__)


class Transport(Protocol):
    """Carries datagrams of up to `MAX_DATAGRAM_BYTES` between addresses; may lose, double and reorder them."""

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The local addresses, with their real ports."""

    def send(self, datagram: bytes, address: Address) -> bool:
        """Send without waiting; False if it is known at once that nothing was sent."""

    async def receive(self, deliver: Deliver) -> None:
        """Call `deliver(datagram, source)` for whatever arrives, until cancelled."""

    def beside(self) -> "Transport":
        """Another one on the same local addresses, and a free port. Raises `UserError` if there is none."""

    def close(self) -> None:
        """Release the local addresses."""


class UdpTransport:
    """One UDP socket for each host, all on one port."""

    def __init__(self, sockets: dict[socket.AddressFamily, socket.socket], others: list[socket.socket]) -> None:
        self._by_family = sockets
        self._sockets = [*sockets.values(), *others]

    @classmethod
    def bind(cls, hosts: tuple[str, ...], port: int) -> "UdpTransport":
        """Sockets on `hosts` (IP addresses). With port 0 the first takes any free port, and the others the same one.

        Raises `UserError` in one line if an address cannot be had.
        """
        sockets: list[socket.socket] = []
        try:
            for host in hosts:
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                anywhere = host in ("0.0.0.0", "::")
                sock = WildcardSocket(family) if anywhere else socket.socket(family, socket.SOCK_DGRAM)
                sockets.append(sock)
                sock.setblocking(False)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
                sock.bind((host, port))
                port = sock.getsockname()[1]
        except (OSError, OverflowError) as error:
            for sock in sockets:
                sock.close()
            taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
            reason = "the port is taken" if taken else getattr(error, "strerror", None) or str(error)
            raise UserError(f"cannot listen on UDP {Address(host, port)}: {reason}") from error
        by_family: dict[socket.AddressFamily, socket.socket] = {}
        for sock in sockets:
            by_family.setdefault(sock.family, sock)
        return cls(by_family, [sock for sock in sockets if by_family[sock.family] is not sock])

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The local addresses, with their real ports."""
        return tuple(Address(*sock.getsockname()[:2]) for sock in self._sockets)

    def send(self, datagram: bytes, address: Address) -> bool:
        """Send without waiting; False if the system refused, or there is no socket of the address's family."""
        sock = self._by_family.get(socket.AF_INET6 if ":" in address.host else socket.AF_INET)
        if sock is None:
            return False
        try:
            sock.sendto(datagram, address)
        except OSError:  # full buffer, no route, a firewall, an ICMP error of an earlier datagram: lost, all the same
            return False
        return True

    async def receive(self, deliver: Deliver) -> None:
        """Call `deliver(datagram, source)` for whatever arrives, until cancelled."""
        async with trio.open_nursery() as nursery:
            for sock in self._sockets:
                nursery.start_soon(_receive, sock, deliver)

    def beside(self) -> "UdpTransport":
        """Sockets on the same hosts, and a free port. Raises `UserError`."""
        return UdpTransport.bind(tuple(address.host for address in self.addresses), 0)

    def close(self) -> None:
        """Close the sockets."""
        for sock in self._sockets:
            trio.lowlevel.notify_closing(sock)
            sock.close()


async def _receive(sock: socket.socket, deliver: Deliver) -> None:
    while True:
        await trio.lowlevel.wait_readable(sock)
        for _ in range(BATCH):
            try:
                datagram, source = sock.recvfrom(MAX_DATAGRAM_BYTES + 1)
            except BlockingIOError:
                break
            except OSError as error:
                logger.debug("receiving on UDP: %s", error)
                await trio.sleep(RETRY_S)
                break
            address = _peer_address(source[0], source[1])
            if address is not None:
                deliver(datagram, address)


@functools.lru_cache(maxsize=REMEMBERED_HOSTS)
def _peer_address(host: str, port: int) -> Address | None:
    """The address that the system tells of a datagram, if a peer can be there."""
    return Address(host, port) if port and "%" not in host and scope_of(host) is not None else None
