"""Networks of many thousand DHT nodes in one thread, under a virtual clock: how far, how many, how soon, how surely.

The nodes' decisions are the real ones (`SimulatedNode`): routing table, lookup, store, handlers, guard, write tokens,
timeouts, upkeep, signed records. Only the shell differs: one heap of events in place of trio's tasks, and messages that
travel as objects; with `boxed` they are packed, sealed, opened and unpacked on the way, and their bytes counted.

Rules:
- Everything is drawn from one seed: the same calls give the same figures, event by event.
- The time between two nodes is the sum of what each adds, so pairs differ and one pair is steady.
- Every honest node has a public address in a subnet of its own.

    sim = Simulation(seed=1, loss=0.01, upkeep=True)
    sim.grow(300)
    Churn(sim, median_session=3600)
    sim.put(sim.nodes[0], key, b"value")
    sim.run_for(600)
    print(sim.get(sim.nodes[-1], key))
"""

import bisect
import hashlib
import heapq
import itertools
import math
from collections.abc import Callable, Sized
from random import Random
from typing import Any

from llamanet.dht.config import DhtConfig
from llamanet.dht.distance import ID_BITS, number_of, random_id_sharing
from llamanet.testing.simulated_node import Found, Put, SimulatedNode
from llamanet.wire.identity import Identity, NodeId
from llamanet.wire.rpc import Address

EPOCH = 1_900_000_000.0
"""Seconds since 1970 when a simulation begins."""
SPREAD = 0.5
"""Of the nodes' delays: the standard deviation of their logarithm."""
_FIRST_SUBNET = 20 << 16
"""20.0.0.0/24; all public from there on for 11 million subnets."""

__all__ = ["AskerLeft", "Found", "Put", "SimulatedNode", "Simulation"]


class AskerLeft(Exception):
    """Who read or stored left the network in the middle of it, as nodes under churn do."""


class Simulation:
    """A network and its clock.

    Args:
      seed: of everything.
      rtt: the median round-trip time of two nodes, in seconds.
      loss: the share of messages that never arrive.
      k, alpha, replicas: as in `DhtConfig`.
      upkeep: whether nodes ping their contacts and refresh their buckets by themselves. There is always something under
        way then, so let time pass by `run_for`.
      boxed: whether messages travel as real datagrams, at a price of some 50 µs each.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        rtt: float = 0.08,
        loss: float = 0.0,
        k: int = 16,
        alpha: int = 4,
        replicas: int = 8,
        upkeep: bool = False,
        boxed: bool = False,
    ) -> None:
        self.rng = Random(seed)
        self.seed = seed
        self.rtt = rtt
        self.loss = loss
        self.config = DhtConfig(k=k, alpha=alpha, replicas=replicas)
        """Of every node."""
        self.upkeep = upkeep
        self.boxed = boxed
        self.now = 0.0
        """Seconds since the simulation began."""
        self.nodes: list[SimulatedNode] = []
        """All that have not left, in the order of their coming."""
        self.events = 0
        """How many have happened."""
        self._numbers = itertools.count()
        self._by_address: dict[Address, SimulatedNode] = {}
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()

    @property
    def wall_now(self) -> float:
        """Seconds since 1970."""
        return EPOCH + self.now

    # --- who is there -------------------------------------------------------------------------------------------------

    def start(
        self,
        *,
        identity: Identity | None = None,
        host: str | None = None,
        reachable: bool = True,
    ) -> SimulatedNode:
        """A node that knows nobody yet; see `SimulatedNode.join`.

        An unreachable one is behind a NAT: it hears only from those whom it sent something lately.
        """
        number = next(self._numbers)
        identity = identity or Identity.from_seed(hashlib.sha256(b"%d %d" % (self.seed, number)).digest())
        subnet = _FIRST_SUBNET + number
        host = host or f"{subnet >> 16}.{subnet >> 8 & 255}.{subnet & 255}.1"
        # A port of its own, for attackers put many nodes on one host.
        address = Address(host, 1024 + number % 60_000)
        delay = self.rng.lognormvariate(math.log(self.rtt / 4), SPREAD)
        node = SimulatedNode(self, identity, address, delay, reachable=reachable)
        self.nodes.append(node)
        self._by_address[address] = node
        return node

    def add(self, *, through: SimulatedNode | None = None, reachable: bool = True) -> SimulatedNode:
        """One more node; it joins through the node `through`, and is in by the time of return."""
        node = self.start(reachable=reachable)
        if through is None:
            node.begin()
        else:
            node.join(through)
            self.run(until=lambda: node.joined)
        return node

    def grow(self, size: int, *, unreachable: float = 0.0) -> None:
        """Add nodes until there are `size`, each joining through a random one; a share of them is unreachable."""
        while len(self.nodes) < size:
            open_nodes = self.nodes if unreachable == 0 else [node for node in self.nodes if node.reachable]
            through = self.rng.choice(open_nodes) if open_nodes else None
            self.add(through=through, reachable=not (unreachable and through and self.rng.random() < unreachable))
        if not self.upkeep:
            self.run()

    def settle(self) -> None:
        """Fill all tables, as long acquaintance does: into each bucket that has room come random nodes.

        A table's own rules decide. For networks without upkeep, in which a node's joining fills but part of its table.
        """
        k, nodes = self.config.k, sorted(self.nodes, key=lambda node: node.contact.number)
        numbers = [node.contact.number for node in nodes]
        for node in self.nodes:
            for shared, size in enumerate(node.table.bucket_sizes[:-1]):
                free = ID_BITS - shared - 1
                first = number_of(random_id_sharing(node.contact.node_id, shared, self.rng)) >> free << free
                start, end = bisect.bisect_left(numbers, first), bisect.bisect_left(numbers, first + (1 << free))
                room = k - size
                for index in self.rng.sample(range(start, end), min(k, end - start)) if room else ():
                    if room and nodes[index].contact.node_id not in node.table:
                        node.table.answered(nodes[index].contact, self.now)
                        room -= 1

    def leave(self, node: SimulatedNode) -> None:
        """`node` goes without a word, and is forgotten here, if it has not gone before."""
        if self.at(node.contact.address) is not node:
            return
        node.alive = False
        self.nodes.remove(node)
        del self._by_address[node.contact.address]

    def at(self, address: Address) -> SimulatedNode | None:
        """Who is at `address`."""
        return self._by_address.get(address)

    def random_peer(self, node: SimulatedNode) -> SimulatedNode:
        """Some other node that can be joined through."""
        while True:
            peer = self.rng.choice(self.nodes)
            if peer is not node and peer.joined and peer.alive and peer.reachable:
                return peer

    # --- what they do -------------------------------------------------------------------------------------------------

    def get(self, reader: SimulatedNode, key: bytes, *, publisher: NodeId | None = None, paths: int = 1) -> Found:
        """Read until the first value arrives (of `publisher`, if given), or nobody is left to ask, by so many paths.

        Raises `AskerLeft`.
        """
        found: list[Found] = []
        reader.get(key, found.append, publisher=publisher, paths=paths)
        self._run_until(found, reader)
        return found[0]

    def put(
        self,
        publisher: SimulatedNode,
        key: bytes,
        value: bytes,
        *,
        lifetime: int = 1800,
        paths: int = 1,
    ) -> Put:
        """Look up the nodes nearest to `key`, and store a record signed by `publisher` there. Raises `AskerLeft`."""
        done: list[Put] = []
        publisher.put(key, value, lifetime, done.append, paths=paths)
        self._run_until(done, publisher)
        return done[0]

    def _run_until(self, done: Sized, asker: SimulatedNode) -> None:
        self.run(until=lambda: len(done) > 0 or not asker.alive)
        if not done:
            raise AskerLeft("the node that asked left before it had its answer")

    # --- time ---------------------------------------------------------------------------------------------------------

    def run(self, *, until: Callable[[], bool] = lambda: False) -> None:
        """Let time pass until `until()`, or until nothing is under way."""
        queue = self._queue
        while queue and not until():
            self.now, _, callback, arguments = heapq.heappop(queue)
            self.events += 1
            callback(*arguments)

    def run_for(self, seconds: float) -> None:
        """Let so much time pass."""
        queue, end = self._queue, self.now + seconds
        while queue and queue[0][0] <= end:
            self.now, _, callback, arguments = heapq.heappop(queue)
            self.events += 1
            callback(*arguments)
        self.now = end

    def after(self, seconds: float, callback: Callable[..., None], *arguments: Any) -> None:
        """Call `callback(*arguments)` in `seconds`."""
        heapq.heappush(self._queue, (self.now + seconds, next(self._order), callback, arguments))

    def lost(self) -> bool:
        """Whether the message that is now sent never arrives."""
        return self.loss > 0 and self.rng.random() < self.loss
