"""One node of a simulation: the real table, store, handlers, guard, lookups and upkeep in a shell of plain events.

The shell does what `dht.overlay`, `dht.search`, `dht.service` and `dht.upkeep` do with tasks and sockets, in the same
order: who asks is admitted by the guard, answered, and checked if the table wants it; who answers enters the table; an
overdue request frees its place in the lookup, and its late answer still counts.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import attrs

from llamanet.dht.distance import distance
from llamanet.dht.guard import Drops, Guard, WriteTokens
from llamanet.dht.handlers import Handlers
from llamanet.dht.lookup import Lookup
from llamanet.dht.overlay import CHECK_BYTES, MAX_CHECKS, lookup_in
from llamanet.dht.publishing import OWN_SOURCE
from llamanet.dht.requests import RoundTrips
from llamanet.dht.routing import RoutingTable
from llamanet.dht.search import RecordVerifier
from llamanet.dht.shards import Crowd
from llamanet.dht.storage import Kept, RecordStore
from llamanet.errors import BadMessage
from llamanet.testing.mail import NAT_S, Mail, OnReply
from llamanet.testing.simulated_search import SimulatedSearch
from llamanet.testing.simulated_upkeep import Upkeep
from llamanet.wire.envelope import MAX_DATAGRAM_BYTES, MAX_PAYLOAD_BYTES, Envelope
from llamanet.wire.identity import Identity, NodeId, PublicKey
from llamanet.wire.record import Record, encode_record, sign_record
from llamanet.wire.rpc import (
    TRANSACTION_BYTES,
    Address,
    Contact,
    FindNode,
    FindValue,
    Nodes,
    Ping,
    Refused,
    Reply,
    Request,
    Store,
    Stored,
    Values,
)

if TYPE_CHECKING:
    from llamanet.testing.simulator import Simulation

REJOIN_S = 2.0
"""Until a node that found nobody tries through another peer (as `bootstrap.ALONE_RETRY_S`)."""
TRANSACTION = bytes(TRANSACTION_BYTES)
"""Of every request: here a reply is handed to whoever asked."""

Behaviour: TypeAlias = "Callable[[SimulatedNode, Request, Contact], Reply | None]"
"""What an adversary does with a request from a contact; None is silence."""


@attrs.frozen(kw_only=True)
class Found:
    """What a read came to: seconds to the first value and the hops to whoever had it; None if there was none.

    Hops are counted from the reader: 0 is itself, 1 a contact that it knew, 2 one that those told of, and so on.
    """

    first_value_s: float | None
    hops: int | None
    requests: int


@attrs.frozen(kw_only=True)
class Put:
    """What a store came to: how many nodes keep the record, how long it took, and how many requests.

    `publishers` is about how many the key has, by the word of those nodes.
    """

    stored: int
    elapsed_s: float
    requests: int
    publishers: int


class SimulatedNode:
    """One node. `alive` False makes it silent; `delay` is what it adds to each message, in seconds."""

    def __init__(
        self, simulation: "Simulation", identity: Identity, address: Address, delay: float, *, reachable: bool
    ) -> None:
        config = simulation.config
        self.simulation = simulation
        self.identity = identity
        self.contact = Contact(identity.public_key, address)
        self.delay = delay
        self.reachable = reachable
        self.alive = True
        self.joined = False
        """Whether it is a member: the first, or one whom somebody answered when it looked itself up."""
        self.behaviour: Behaviour | None = None
        self.asked = 0
        self.served = 0
        self.sent_bytes = 0
        """Of all datagrams, without UDP's and IP's headers; counted only where messages are boxed."""
        self.received_bytes = 0
        self.table = RoutingTable(identity.node_id, k=config.k)
        self.store = RecordStore(secret=identity.seed)
        self.round_trips = RoundTrips()
        self.drops = Drops()
        if simulation.boxed:
            self.envelope = Envelope(identity, config.network)
        self._guard = Guard(simulation.now)
        self._sent_to: dict[Address, float] = {}
        self._checking: set[Contact] = set()
        self._checking_askers: set[Contact] = set()
        self._upkeep = Upkeep(self) if simulation.upkeep else None
        self._handlers = Handlers(
            own_id=identity.node_id,
            network=config.network,
            table=self.table,
            store=self.store,
            tokens=WriteTokens(identity.seed),
            rng=simulation.rng,
            k=config.k,
            version="",
            live_state=None,
        )

    # --- operations ---------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Be a member: the first one, or one that has looked itself up."""
        self.joined = True
        if self._upkeep:
            self._upkeep.start()

    def join(self, through: "SimulatedNode") -> None:
        """Look ourselves up, starting at `through`; if nobody answers, again through somebody else."""

        def on_end(found: dict[Contact, bytes]) -> None:
            sim = self.simulation
            if found:
                self.begin()
            elif self.alive:
                sim.after(REJOIN_S, lambda: self.join(sim.random_peer(self)))

        self.find_nodes(self.contact.node_id, self.simulation.config.k, on_end, seeds=[through.contact])

    def get(
        self, key: bytes, done: Callable[[Found], None], *, publisher: NodeId | None = None, paths: int = 1
    ) -> None:
        """As `Simulation.get`, without waiting."""
        sim = self.simulation
        start = sim.now
        if any(publisher in (None, record.publisher) for record in self.store.records_of(key, sim.wall_now)):
            done(Found(first_value_s=0.0, hops=0, requests=0))
            return
        lookup = self._lookup(key, sim.config.replicas, paths=paths)
        verifier = RecordVerifier(sim.config.network)
        hops = dict.fromkeys(self.table.closest(key, len(self.table)), 1)
        request = FindValue(transaction=TRANSACTION, client=False, key=key)
        self.table.looked_up(key, start)

        def on_reply(contact: Contact, reply: Reply | None) -> None:
            if not isinstance(reply, Values):
                return
            for told in reply.contacts:
                hops.setdefault(told, hops[contact] + 1)
            for encoded in reply.records:
                try:
                    record = verifier.verify_untrusted(encoded, key, sim.wall_now)
                except BadMessage:
                    continue
                if record.lifetime and publisher in (None, record.publisher):
                    search.ended = True
                    done(Found(first_value_s=sim.now - start, hops=hops[contact], requests=lookup.asked))
                    return

        def on_end() -> None:
            done(Found(first_value_s=None, hops=None, requests=lookup.asked))

        search = SimulatedSearch(self, lookup, request, on_reply, on_end)
        search.step()

    def read(self, key: bytes, limit: int, done: Callable[[list[Record]], None], *, crowd: Crowd | None = None) -> None:
        """The records of up to `limit` publishers of `key`, from holders' first pages and the next ones, as `Dht.get`.

        Without what this node holds itself.
        """
        sim = self.simulation
        lookup = self._lookup(key, sim.config.replicas)
        verifier = RecordVerifier(sim.config.network)
        found: dict[NodeId, Record] = {}
        taken: dict[Contact, int] = {}
        paging: set[Contact] = set()
        ended = False

        def end() -> None:
            nonlocal ended
            if not ended:
                ended = search.ended = True
                done(list(found.values())[:limit])

        def request(cursor: int | None = None) -> FindValue:
            return FindValue(transaction=TRANSACTION, client=False, key=key, cursor=cursor)

        def on_reply(contact: Contact, reply: Reply | None) -> None:
            paging.discard(contact)
            if not ended and isinstance(reply, Values):
                take(contact, reply)
            if lookup.finished and not paging:
                end()

        def take(contact: Contact, values: Values) -> None:
            if crowd is not None and values.total and contact not in taken:
                crowd.told.append(values.publishers)
            for encoded in values.records:
                try:
                    record = verifier.verify_untrusted(encoded, key, sim.wall_now)
                except BadMessage:
                    continue
                if record.lifetime:
                    found[record.publisher] = record
            if len(found) >= limit or (crowd is not None and crowd.is_surely_split):
                end()
                return
            taken[contact] = taken.get(contact, 0) + len(values.records)
            if values.records and values.next_cursor is not None and taken[contact] < values.total:
                paging.add(contact)
                self.ask(contact, request(values.next_cursor), on_reply)

        def on_end() -> None:
            if not paging:
                end()

        search = SimulatedSearch(self, lookup, request(), on_reply, on_end)
        search.step()

    def put(self, key: bytes, value: bytes, lifetime: int, done: Callable[[Put], None], *, paths: int = 1) -> None:
        """As `Simulation.put`, without waiting."""
        sim = self.simulation
        start, replicas = sim.now, sim.config.replicas

        def store_at(tokens: dict[Contact, bytes]) -> None:
            record = sign_record(
                self.identity,
                sim.config.network,
                key=key,
                sequence=int(1000 * sim.wall_now),
                issued_at=int(sim.wall_now),
                lifetime=lifetime,
                value=value,
            )
            encoded = encode_record(record)
            own_distance = distance(self.contact.node_id, key)
            keeps = sum(1 for contact in tokens if distance(contact.node_id, key) < own_distance) < replicas
            outcome = self.store.put(record, encoded, OWN_SOURCE, sim.wall_now) if keeps else None
            stored = int(isinstance(outcome, Kept))
            targets = list(tokens.items()) if paths > 1 else list(tokens.items())[: replicas - keeps]
            waiting = {contact for contact, _ in targets}

            crowd = Crowd()

            def on_stored(contact: Contact, reply: Reply | None) -> None:
                nonlocal stored
                stored += isinstance(reply, Stored)
                if isinstance(reply, Stored | Refused) and reply.publishers:
                    crowd.told.append(reply.publishers)
                if contact in waiting:
                    waiting.discard(contact)
                    if not waiting:
                        finish()

            def finish() -> None:
                requests = lookup.asked + len(targets)
                publishers = crowd.publishers
                done(Put(stored=stored, elapsed_s=sim.now - start, requests=requests, publishers=publishers))

            for contact, token in targets:
                request = Store(transaction=TRANSACTION, client=False, token=token, record=encoded)
                self.ask(contact, request, on_stored)
            if not targets:
                finish()

        lookup = self.find_nodes(key, replicas, store_at, paths=paths)

    def keep_published(self, key: bytes, value: bytes, *, lifetime: int, interval: float) -> None:
        """Store a record now and every `interval` seconds, within 10 %, while we live (as `node.announcer` does)."""
        if self.alive:
            sim = self.simulation
            self.put(key, value, lifetime, lambda put: None)
            pause = interval * sim.rng.uniform(0.9, 1.1)
            sim.after(pause, lambda: self.keep_published(key, value, lifetime=lifetime, interval=interval))

    # --- lookups ------------------------------------------------------------------------------------------------------

    def _lookup(self, target: bytes, count: int, *, paths: int = 1, seeds: Sequence[Contact] = ()) -> Lookup:
        config, own_id = self.simulation.config, self.contact.node_id
        return lookup_in(self.table, own_id, config, target, count, paths=paths, seeds=seeds)

    def find_nodes(
        self,
        target: bytes,
        count: int,
        done: Callable[[dict[Contact, bytes]], None],
        *,
        seeds: list[Contact] | None = None,
        paths: int = 1,
    ) -> Lookup:
        """Find the `count` nodes nearest to `target`, from our contacts or from `seeds`, with their write tokens."""
        lookup = self._lookup(target, count, paths=paths, seeds=seeds or ())
        tokens: dict[Contact, bytes] = {}
        request = FindNode(transaction=TRANSACTION, client=False, target=target)

        def on_reply(contact: Contact, reply: Reply | None) -> None:
            if isinstance(reply, Nodes):
                tokens[contact] = reply.token

        def on_end() -> None:
            self.table.looked_up(target, self.simulation.now)
            done({contact: tokens[contact] for contact in lookup.closest()})

        SimulatedSearch(self, lookup, request, on_reply, on_end).step()
        return lookup

    # --- messages -----------------------------------------------------------------------------------------------------

    def ask(self, contact: Contact, request: Request, on_reply: OnReply) -> None:
        """Send a request; see `Mail`."""
        self.asked += 1
        self._guard.expect(contact.address.host)
        Mail(self, contact, request, on_reply).send()

    def check(self, contact: Contact) -> None:
        """PING `contact`; its answer, or its silence, goes into the table."""
        self._check(contact, self._checking)

    def _check(self, contact: Contact, under_way: set[Contact]) -> None:
        if contact not in under_way and len(under_way) < MAX_CHECKS:
            under_way.add(contact)
            request = Ping(transaction=TRANSACTION, client=False)
            self.ask(contact, request, lambda asked, _: under_way.discard(asked))

    def receive(self, request: Request, asker: Contact, receiver: PublicKey) -> Reply | None:
        """What becomes of a request that arrived, boxed for the key `receiver`; None if it is dropped."""
        host, now = asker.address.host, self.simulation.now
        known = self.table.is_proved(asker)
        if not self._guard.admit(host, now):
            self.drops.count("rate")
            return None
        if receiver != self.contact.public_key:
            self.drops.count("box")
            return None
        verifies = isinstance(request, Store) and self._handlers.has_token(request, asker, now)
        if not self._guard.allow_answer(host, MAX_DATAGRAM_BYTES, now, verifies=verifies, known=known):
            self.drops.count("quota")
            return None
        self.served += 1
        if self.behaviour is not None:
            return self.behaviour(self, request, asker)
        check = self.table.wants(asker)
        room = MAX_PAYLOAD_BYTES - CHECK_BYTES * check
        reply = self._handlers.answer(request, asker, now=now, wall_now=self.simulation.wall_now, room=room)
        if check:
            self._check(asker, self._checking_askers)
        return reply

    def note_sent(self, address: Address) -> None:
        """Something goes to `address`: our NAT lets in what comes from there."""
        if not self.reachable:
            self._sent_to[address] = self.simulation.now

    def lets_in(self, address: Address) -> bool:
        """Whether what comes from `address` reaches us."""
        return self.reachable or self.simulation.now - self._sent_to.get(address, -NAT_S) < NAT_S

    def note_answer(self, contact: Contact, rtt: float) -> None:
        """`contact` answered after `rtt` seconds."""
        self.round_trips.add(contact.public_key, rtt)
        admission = self.table.answered(contact, self.simulation.now)
        if admission.neighbour and self._upkeep:
            self._upkeep.explore()
        if admission.check is not None:
            self.check(admission.check)

    def note_overdue(self, contact: Contact) -> None:
        """`contact` did not answer in time."""
        self.table.failed(contact, self.simulation.now)
