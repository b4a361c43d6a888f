"""Networks of many thousand DHT nodes in one thread, under a virtual clock: how far, how many, how soon.

The nodes' decisions are the real ones: routing table, lookup, store, handlers, write tokens, timeouts, signed records.
Only the shell differs: one heap of events in place of trio's tasks, and messages that travel as objects, neither packed
nor boxed. Upkeep (liveness, refresh, republication) does not run; what changes is what the caller does.

The time between two nodes is the sum of what each adds, so pairs differ and one pair is steady. Everything is drawn
from one seed: the same calls give the same figures.
"""

import hashlib
import heapq
import math
from collections.abc import Callable
from random import Random
from typing import Any

import attrs

from llamanet.dht.guard import WriteTokens
from llamanet.dht.handlers import Handlers
from llamanet.dht.lookup import Lookup
from llamanet.dht.requests import LATE_S, RoundTrips
from llamanet.dht.routing import RoutingTable
from llamanet.dht.search import RecordVerifier
from llamanet.dht.storage import RecordStore
from llamanet.errors import BadMessage
from llamanet.wire.envelope import MAX_PAYLOAD_BYTES, Network
from llamanet.wire.identity import Identity
from llamanet.wire.record import encode_record, sign_record
from llamanet.wire.rpc import (
    Address,
    Contact,
    FindNode,
    FindValue,
    Nodes,
    Ping,
    Reply,
    Request,
    Store,
    Stored,
    Values,
)

EPOCH = 1_900_000_000.0
"""Seconds since 1970 when a simulation starts."""
SPREAD = 0.5
"""Of the nodes' delays: the standard deviation of their logarithm."""

OnReply = Callable[[Reply | None], None]


@attrs.frozen(kw_only=True)
class Found:
    """What a read came to: seconds to the first value and the hops to whoever had it; None if there was none."""

    first_value_s: float | None
    hops: int | None
    requests: int


@attrs.frozen(kw_only=True)
class Put:
    """What a store came to: how many nodes keep the record, how long it took, and how many requests."""

    stored: int
    elapsed_s: float
    requests: int


class Simulation:
    """A network and its clock.

    Args:
      seed: of everything.
      rtt: the median round-trip time of two nodes, in seconds.
      loss: the share of messages that never arrive.
      k, alpha, replicas: as in `DhtConfig`.
    """

    def __init__(
        self, *, seed: int = 0, rtt: float = 0.08, loss: float = 0.0, k: int = 16, alpha: int = 4, replicas: int = 8
    ) -> None:
        self.rng = Random(seed)
        self.seed = seed
        self.rtt = rtt
        self.loss = loss
        self.k = k
        self.alpha = alpha
        self.replicas = replicas
        self.network = Network()
        self.now = 0.0
        self.nodes: list[SimulatedNode] = []
        self._by_address: dict[Address, SimulatedNode] = {}
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def add(self, *, through: "SimulatedNode | None" = None) -> "SimulatedNode":
        """One more node; it joins through the node `through` by looking itself up, and is in by the time of return."""
        number = len(self.nodes)
        identity = Identity.from_seed(hashlib.sha256(b"%d %d" % (self.seed, number)).digest())
        host = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
        node = SimulatedNode(self, identity, Address(host, 1), self.rng.lognormvariate(math.log(self.rtt / 4), SPREAD))
        self.nodes.append(node)
        self._by_address[node.contact.address] = node
        if through is not None:
            done: list[Any] = []
            node.look_up(node.contact.node_id, (through.contact,), self.k, done.append)
            self.run(until=lambda: bool(done))
        return node

    def grow(self, size: int) -> None:
        """Add nodes until there are `size`, each joining through a random one."""
        while len(self.nodes) < size:
            self.add(through=self.rng.choice(self.nodes) if self.nodes else None)
        self.run()

    def get(self, reader: "SimulatedNode", key: bytes) -> Found:
        """Read until the first value arrives, or nobody is left to ask."""
        found: list[Found] = []
        reader.get(key, found.append)
        self.run(until=lambda: bool(found))
        return found[0]

    def put(self, publisher: "SimulatedNode", key: bytes, value: bytes, *, lifetime: int = 1800) -> Put:
        """Look up the nodes nearest to `key`, and store a record signed by `publisher` there."""
        done: list[Put] = []
        publisher.put(key, value, lifetime, done.append)
        self.run(until=lambda: bool(done))
        return done[0]

    def run(self, *, until: Callable[[], bool] = lambda: False) -> None:
        """Let time pass until `until()`, or until nothing is under way."""
        while self._events and not until():
            self.now, _, callback, arguments = heapq.heappop(self._events)
            callback(*arguments)

    def after(self, seconds: float, callback: Callable[..., None], *arguments: Any) -> None:
        """Call `callback(*arguments)` in `seconds`."""
        self._count += 1
        heapq.heappush(self._events, (self.now + seconds, self._count, callback, arguments))

    def carry(self, sender: "SimulatedNode", target: Address, arrive: "Callable[[SimulatedNode], None]") -> None:
        """Bring a message to the node at `target`, if it is not lost and that node lives when it arrives."""
        receiver = self._by_address.get(target)
        if receiver is not None and self.rng.random() >= self.loss:
            self.after(sender.delay + receiver.delay, lambda: arrive(receiver) if receiver.alive else None)


class SimulatedNode:
    """One node: the real table, store and handlers. `alive` False makes it silent. `delay` is in seconds."""

    def __init__(self, simulation: Simulation, identity: Identity, address: Address, delay: float) -> None:
        self.simulation = simulation
        self.identity = identity
        self.contact = Contact(identity.public_key, address)
        self.delay = delay
        self.alive = True
        self.served = 0
        self.table = RoutingTable(identity.node_id, k=simulation.k)
        self.store = RecordStore()
        self.round_trips = RoundTrips()
        self._checking: set[Contact] = set()
        self._transactions = 0
        self._handlers = Handlers(
            own_id=identity.node_id,
            network=simulation.network,
            table=self.table,
            store=self.store,
            tokens=WriteTokens(identity.seed),
            rng=simulation.rng,
            k=simulation.k,
            version="",
            live_state=None,
        )

    # --- operations ---------------------------------------------------------------------------------------------------

    def look_up(
        self, target: bytes, seeds: tuple[Contact, ...], count: int, done: Callable[[dict[Contact, bytes]], None]
    ) -> Lookup:
        """Find the `count` nodes nearest to `target`, from the table or from `seeds`, with their write tokens."""
        sim = self.simulation
        seeds = seeds or tuple(self.table.closest(target, sim.k, good_only=True))
        lookup = Lookup(target, self.contact.node_id, seeds, count=count, alpha=sim.alpha)
        tokens: dict[Contact, bytes] = {}

        def on_reply(contact: Contact, reply: Reply | None) -> None:
            if isinstance(reply, Nodes):
                tokens[contact] = reply.token

        def on_end() -> None:
            done({contact: tokens[contact] for contact in lookup.closest()})

        def request() -> FindNode:
            return FindNode(transaction=self._transaction(), client=False, target=target)

        self._drive(lookup, request, on_reply, on_end)
        return lookup

    def get(self, key: bytes, done: Callable[[Found], None]) -> None:
        """As `Simulation.get`, without waiting."""
        sim = self.simulation
        start = sim.now
        seeds = self.table.closest(key, sim.k, good_only=True)
        narrow = bool(seeds) and self.table.nodes_within(seeds[0].number ^ int.from_bytes(key, "big")) < sim.replicas
        lookup = Lookup(key, self.contact.node_id, seeds, count=sim.replicas, alpha=sim.alpha, narrow=narrow)
        verifier = RecordVerifier(sim.network)
        hops = dict.fromkeys(seeds, 1)
        ended: list[Found] = []

        def end(first_value_s: float | None, hop: int | None) -> None:
            if not ended:
                ended.append(Found(first_value_s=first_value_s, hops=hop, requests=lookup.asked))
                done(ended[0])

        def on_reply(contact: Contact, reply: Reply | None) -> None:
            if not isinstance(reply, Values):
                return
            for told in reply.contacts:
                hops.setdefault(told, hops[contact] + 1)
            for encoded in reply.records:
                try:
                    verifier.verify_untrusted(encoded, key, EPOCH + sim.now)
                except BadMessage:
                    continue
                end(sim.now - start, hops[contact])

        def request() -> FindValue:
            return FindValue(transaction=self._transaction(), client=False, key=key)

        self._drive(lookup, request, on_reply, lambda: end(None, None), stop=lambda: bool(ended))

    def put(self, key: bytes, value: bytes, lifetime: int, done: Callable[[Put], None]) -> None:
        """As `Simulation.put`, without waiting."""
        sim = self.simulation
        start = sim.now
        record = sign_record(
            self.identity,
            sim.network,
            key=key,
            sequence=int(1000 * (EPOCH + start)),
            issued_at=int(EPOCH + start),
            lifetime=lifetime,
            value=value,
        )

        def store_at(holders: dict[Contact, bytes]) -> None:
            outcomes: list[bool] = []

            def on_stored(reply: Reply | None) -> None:
                outcomes.append(isinstance(reply, Stored))
                if len(outcomes) == len(holders):
                    requests = lookup.asked + len(holders)
                    done(Put(stored=sum(outcomes), elapsed_s=sim.now - start, requests=requests))

            for contact, token in holders.items():
                store = Store(transaction=self._transaction(), client=False, token=token, record=encode_record(record))
                self._ask(contact, store, on_stored)
            if not holders:
                done(Put(stored=0, elapsed_s=sim.now - start, requests=lookup.asked))

        lookup = self.look_up(key, (), sim.replicas, store_at)

    # --- the shell ----------------------------------------------------------------------------------------------------

    def _drive(
        self,
        lookup: Lookup,
        request: Callable[[], Request],
        on_reply: Callable[[Contact, Reply | None], None],
        on_end: Callable[[], None],
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Run a lookup as `dht.search` does: overdue requests free their places, late answers count."""
        ended = False

        def step() -> None:
            nonlocal ended
            while not ended and not stop() and (contact := lookup.next()) is not None:
                if lookup.narrow:
                    self.simulation.after(self.round_trips.expected(contact.public_key), widen)
                self._ask(contact, request(), lambda reply, contact=contact: take(contact, reply))  # type: ignore[misc]
            if not ended and not stop() and lookup.finished:
                ended = True
                on_end()

        def widen() -> None:
            if lookup.narrow:
                lookup.widen()
                step()

        def take(contact: Contact, reply: Reply | None) -> None:
            if ended or stop():
                return
            lookup.widen()
            if isinstance(reply, Nodes | Values):
                lookup.answered(contact, reply.contacts)
            else:
                lookup.overdue(contact)
            on_reply(contact, reply)
            step()

        self.simulation.after(0.0, step)

    def _ask(self, contact: Contact, request: Request, on_reply: OnReply) -> None:
        """Send a request; `on_reply` gets None when it is overdue, and its reply until 5 s after."""
        sim = self.simulation
        sent_at = sim.now
        answered = False

        def on_overdue() -> None:
            if not answered and self.alive:
                self.table.failed(contact, sim.now)
                on_reply(None)

        def on_answer(reply: Reply) -> None:
            nonlocal answered
            if sim.now - sent_at <= LATE_S and not answered:
                answered = True
                self.round_trips.add(contact.public_key, sim.now - sent_at)
                admission = self.table.answered(contact, sim.now)
                if admission.check is not None:
                    self._check(admission.check)
                on_reply(reply)

        def on_arrival(receiver: "SimulatedNode") -> None:
            if receiver.contact.public_key == contact.public_key:
                reply = receiver._answer(request, self.contact)
                sim.carry(receiver, self.contact.address, lambda _: on_answer(reply))

        sim.carry(self, contact.address, on_arrival)
        sim.after(self.round_trips.rto(contact.public_key), on_overdue)

    def _answer(self, request: Request, asker: Contact) -> Reply:
        self.served += 1
        now = self.simulation.now
        reply = self._handlers.answer(request, asker, now=now, wall_now=EPOCH + now, room=MAX_PAYLOAD_BYTES)
        if self.table.wants(asker):
            self._check(asker)
        return reply

    def _check(self, contact: Contact) -> None:
        if contact not in self._checking:
            self._checking.add(contact)
            ping = Ping(transaction=self._transaction(), client=False)
            self._ask(contact, ping, lambda _: self._checking.discard(contact))

    def _transaction(self) -> bytes:
        self._transactions += 1
        return self._transactions.to_bytes(8, "big")
