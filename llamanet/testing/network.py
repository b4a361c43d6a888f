"""A network in memory: seeded, and as bad as you like. Give its transports to `serve_dht`.

Delay, loss and duplication are drawn for each datagram from one seeded generator, so under trio's autojump clock a test
that fails fails again. Partitions, deaths and pauses change at any time, and also stop what is still on its way.
"""

import heapq
import math
from collections.abc import Collection
from random import Random

import trio

from llamanet.dht.transport import Deliver
from llamanet.errors import UserError
from llamanet.wire.envelope import MAX_DATAGRAM_BYTES
from llamanet.wire.rpc import Address

QUEUE = 4096
"""Datagrams on their way to one address; as with a socket's buffer, more are lost."""


class MemoryNetwork:
    """Addresses that reach each other.

    Args:
      seed: of all randomness.
      loss: the share of datagrams that never arrive, 0 to 1.
      delay: the least and the most seconds that one takes.
      duplicate: the share of datagrams that arrive twice.
    """

    def __init__(
        self, *, seed: int = 0, loss: float = 0.0, delay: tuple[float, float] = (0.0, 0.0), duplicate: float = 0.0
    ) -> None:
        self.loss = loss
        self.delay = delay
        self.duplicate = duplicate
        self.sent = 0
        self.sent_bytes = 0
        self._rng = Random(seed)
        self._transports: dict[Address, MemoryTransport] = {}
        self._cut: list[tuple[frozenset[Address], frozenset[Address]]] = []
        self._silent: set[Address] = set()

    def transport(self, host: str, port: int = 0) -> "MemoryTransport":
        """A transport bound to `host` and `port` (0: any free one). Raises `UserError` if the port is taken."""
        if not port:
            port = next(port for port in range(10_000, 65_536) if Address(host, port) not in self._transports)
        address = Address(host, port)
        if address in self._transports:
            raise UserError(f"cannot listen on UDP {address}: the port is taken")
        self._transports[address] = transport = MemoryTransport(self, address)
        self._silent.discard(address)
        return transport

    def partition(self, group_a: Collection[Address], group_b: Collection[Address]) -> None:
        """No datagram passes between the two groups until `heal`."""
        self._cut.append((frozenset(group_a), frozenset(group_b)))

    def heal(self) -> None:
        """End all partitions."""
        self._cut.clear()

    def kill(self, address: Address) -> None:
        """Nothing enters or leaves `address` any more, as after `kill -9`; a new transport may take it."""
        transport = self._transports.pop(address, None)
        if transport is not None:
            transport.dead = True

    def pause(self, address: Address) -> None:
        """Nothing enters or leaves `address` until `resume`."""
        self._silent.add(address)

    def resume(self, address: Address) -> None:
        """End the pause of `address`."""
        self._silent.discard(address)

    def send(self, datagram: bytes, source: Address, target: Address) -> None:
        """Carry a datagram; `source` may be forged."""
        self.sent += 1
        self.sent_bytes += len(datagram)
        if self._rng.random() < self.loss:
            return
        for _ in range(2 if self._rng.random() < self.duplicate else 1):
            transport = self._transports.get(target)
            if transport is not None:
                transport.arrive(trio.current_time() + self._rng.uniform(*self.delay), datagram, source)

    def passes(self, source: Address, target: Address) -> bool:
        """Whether a datagram gets from `source` to `target` as things are now."""
        if source in self._silent or target in self._silent:
            return False
        return not any((source in a and target in b) or (source in b and target in a) for a, b in self._cut)


class MemoryTransport:
    """One address of a `MemoryNetwork`."""

    def __init__(self, network: MemoryNetwork, address: Address) -> None:
        self._network = network
        self._address = address
        self._arrivals: list[tuple[float, int, bytes, Address]] = []
        self._count = 0
        self._sooner = trio.Event()
        self.dead = False

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The one local address."""
        return (self._address,)

    def send(self, datagram: bytes, address: Address) -> bool:
        """Send without waiting; False if the address is of another family."""
        if (":" in address.host) != (":" in self._address.host) or len(datagram) > MAX_DATAGRAM_BYTES:
            return False
        if not self.dead:
            self._network.send(datagram, self._address, address)
        return True

    def arrive(self, at: float, datagram: bytes, source: Address) -> None:
        """Put a datagram on its way, to arrive at the time `at` on trio's clock."""
        if len(self._arrivals) >= QUEUE:
            return
        self._count += 1
        heapq.heappush(self._arrivals, (at, self._count, datagram, source))
        if self._arrivals[0][1] == self._count:
            self._sooner.set()

    async def receive(self, deliver: Deliver) -> None:
        """Call `deliver(datagram, source)` for whatever arrives, until cancelled."""
        while True:
            self._sooner = trio.Event()
            with trio.move_on_at(self._arrivals[0][0] if self._arrivals else math.inf):
                await self._sooner.wait()
            now = trio.current_time()
            while self._arrivals and self._arrivals[0][0] <= now:
                _, _, datagram, source = heapq.heappop(self._arrivals)
                if not self.dead and self._network.passes(source, self._address):
                    deliver(datagram, source)

    def beside(self) -> "MemoryTransport":
        """Another port of the same host."""
        return self._network.transport(self._address.host)

    def close(self) -> None:
        """Leave the network."""
        self._network.kill(self._address) if not self.dead else None
