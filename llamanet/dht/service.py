"""The DHT as a service: one UDP port, one routing table, one store, and the tasks that keep them.

`serve_dht` owns everything and runs until cancelled; `Dht` is the face that it hands out. Decisions are in the pure
modules; here are the clock, the sockets and the tasks.
"""

import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from random import Random

import attrs
import trio

from llamanet._version import __version__
from llamanet.dht import bootstrap
from llamanet.dht.distance import distance
from llamanet.dht.guard import Drops, WriteTokens
from llamanet.dht.handlers import Handlers, LiveState
from llamanet.dht.health import Health
from llamanet.dht.lookup import Lookup
from llamanet.dht.requests import Outcome, Outcomes, Requests, new_transaction
from llamanet.dht.routing import RoutingTable
from llamanet.dht.search import RecordVerifier, Search, read
from llamanet.dht.storage import RecordStore
from llamanet.dht.transport import Transport, UdpTransport
from llamanet.errors import BadMessage, RpcTimeout
from llamanet.wire.envelope import HEADER_BYTES, MAC_BYTES, MAX_PAYLOAD_BYTES, Envelope, Network
from llamanet.wire.identity import Identity, PublicKey
from llamanet.wire.record import Record, encode_record, sign_record
from llamanet.wire.rpc import (
    Address,
    Contact,
    FindNode,
    FindValue,
    Nodes,
    Ping,
    Pong,
    Refused,
    Store,
    Stored,
    decode_rpc_untrusted,
    encode_rpc,
)

__all__ = ["Dht", "DhtConfig", "Health", "LiveState", "Pinged", "Published", "serve_dht"]

AMPLIFICATION = 3
"""A reply to an address that has not proved itself is at most this many times as long as what it answers (RFC 9000, 8.1)."""
CHECK_BYTES = 96
"""The PING that finds out whether an asker can be asked; it counts towards the amplification."""
MAX_CHECKS = 64
MAX_VOTERS = 64
RETRY_S = 1.0
IDLE_S = 15.0
SAVE_S = 60.0

logger = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class DhtConfig:
    """How to run a DHT node.

    `hosts` are the IP addresses to bind, all on `port` (0: any free one); `bootstrap` the "host:port" of peers to join
    through; `contacts_path` a file where good contacts are kept for the next run. Intervals are in seconds.
    """

    hosts: tuple[str, ...] = ("0.0.0.0",)
    port: int = 0
    bootstrap: tuple[str, ...] = ()
    network: Network = attrs.Factory(Network)
    client_mode: bool = False
    contacts_path: Path | None = None
    wall_clock: Callable[[], float] = time.time
    k: int = 16
    alpha: int = 4
    replicas: int = 8
    refresh_interval: float = 15 * 60.0
    liveness_interval: float = 5.0
    seed: int | None = None
    """Of jitter and samples; None draws one."""


@attrs.frozen
class Pinged:
    """A peer's answer to a PING, and the round-trip time in seconds."""

    rtt: float
    pong: Pong


@attrs.frozen
class Published:
    """The record that was published, how many nodes keep it (ourselves included), and how many were asked to."""

    record: Record
    stored: int
    asked: int


class Dht:
    """One node of the DHT, or one client of it; made by `serve_dht`."""

    def __init__(
        self, identity: Identity, config: DhtConfig, transport: Transport, live_state: LiveState | None
    ) -> None:
        self.identity = identity
        self.network = config.network
        self.config = config
        self._transport = transport
        self._rng = Random(config.seed)
        self._envelope = Envelope(identity, config.network)
        self._table = RoutingTable(identity.node_id, k=config.k)
        self._store = RecordStore()
        self._verifier = RecordVerifier(config.network)
        self._requests = Requests(self._envelope, transport.send, self._note_outcome)
        self._handlers = Handlers(
            own_id=identity.node_id,
            network=config.network,
            table=self._table,
            store=self._store,
            tokens=WriteTokens(os.urandom(32)),
            rng=self._rng,
            k=config.k,
            version=__version__,
            live_state=live_state,
        )
        self._client_mode = config.client_mode
        self._drops = Drops()
        self._counts: Counter[str] = Counter()
        self._votes: dict[PublicKey, str] = {}
        self._checking: set[Contact] = set()
        self._own_addresses: set[Address] = set()
        self._sequence = 0
        self._peers_changed = trio.Event()
        self._lost = trio.Event()
        self._explore = trio.Event()

    # --- state --------------------------------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """The UDP port that is really bound."""
        return self._transport.addresses[0].port

    @property
    def client_mode(self) -> bool:
        """Whether we only ask. May be set at any time: a client that starts to serve becomes a full member."""
        return self._client_mode

    @client_mode.setter
    def client_mode(self, value: bool) -> None:
        self._client_mode = value
        self._explore.set()

    @property
    def joined(self) -> bool:
        """Whether some peer is in our table; a node with no bootstrap peer but itself is its own swarm."""
        return self.has_contacts or all(self._is_own_name(peer) for peer in self.config.bootstrap)

    @property
    def has_contacts(self) -> bool:
        """Whether some peer is in our table."""
        return len(self._table) > 0

    async def wait_joined(self) -> None:
        """Return once we are joined: as soon as the first peer has answered."""
        while not self.joined:
            await self._peers_changed.wait()
        await trio.lowlevel.checkpoint()

    async def wait_peers_changed(self) -> None:
        """Return when a new contact enters the table; so also on the first join, and on each join after being alone."""
        await self._peers_changed.wait()

    async def wait_lost(self) -> None:
        """Return once the table is empty."""
        while self.has_contacts:
            await self._lost.wait()

    def knows(self, address: Address) -> bool:
        """Whether a contact in our table has this address."""
        return any(entry.contact.address == address for entry in self._table)

    def is_own(self, address: Address) -> bool:
        """Whether an introduction to this address came back to us."""
        return address in self._own_addresses

    def _is_own_name(self, peer: str) -> bool:
        return any(str(address) == peer for address in self._own_addresses)

    def contacts(self) -> tuple[Contact, ...]:
        """All contacts in the table."""
        return tuple(entry.contact for entry in self._table)

    def observed_hosts(self) -> tuple[str, ...]:
        """Our addresses as peers see them, the one that most peers tell first."""
        return tuple(host for host, _ in Counter(self._votes.values()).most_common())

    def health(self) -> Health:
        """How we are doing."""
        return Health(
            joined=self.joined,
            client_mode=self._client_mode,
            contacts=len(self._table),
            failing_contacts=sum(1 for entry in self._table if entry.failures),
            bucket_sizes=self._table.bucket_sizes,
            stored_records=self._store.records,
            stored_bytes=self._store.bytes,
            lookups=self._counts["lookups"],
            lookups_answered=self._counts["lookups_answered"],
            requests_sent=self._requests.sent,
            requests_served=self._counts["served"],
            overdue=self._counts["overdue"],
            mean_rtt=self._requests.round_trips.mean,
            drops=dict(self._drops.counts),
        )

    # --- asking -------------------------------------------------------------------------------------------------------

    async def ping(self, contact: Contact, *, model: str | None = None, timeout: float = 2.0) -> Pinged:
        """Round-trip time and live state of `contact`: of `model`, or of as many models as fit.

        Raises `RpcTimeout` if nothing arrives within `timeout` seconds.
        """
        outcomes = Outcomes()
        self._requests.ask(contact, self._ping_request(model), outcomes.put, timeout=timeout)
        outcome = (await outcomes.take())[0]
        if not isinstance(outcome.reply, Pong):
            raise RpcTimeout(str(contact), timeout)
        return Pinged(outcome.rtt, outcome.reply)

    async def introduce(self, address: Address, *, timeout: float = 2.0) -> Contact:
        """Whoever answers at `address`, whose key is not known yet.

        Raises `RpcTimeout` if nothing arrives within `timeout` seconds.
        """
        outcomes = Outcomes()
        self._requests.introduce(address, self._ping_request(), outcomes.put, timeout=timeout)
        contact = (await outcomes.take())[0].contact
        if contact is None:
            raise RpcTimeout(str(address), timeout)
        return contact

    async def greet(self, addresses: Iterable[Address]) -> bool:
        """Introduce ourselves at several addresses at once; whether anybody answers."""
        outcomes = Outcomes()
        waiting = 0
        for address in addresses:
            self._requests.introduce(address, self._ping_request(), outcomes.put)
            waiting += 1
        while waiting:
            for outcome in await outcomes.take():
                if outcome.contact is not None:
                    return True
                waiting -= 1
        return False

    async def check_all(self, contacts: Iterable[Contact]) -> None:
        """PING contacts that we know from elsewhere; who answers enters the table. Returns when one has, or none does."""
        outcomes = Outcomes()
        waiting = 0
        for contact in contacts:
            self._requests.ask(contact, self._ping_request(), outcomes.put)
            waiting += 1
        while waiting:
            for outcome in await outcomes.take():
                if outcome.reply is not None:
                    return
                waiting -= 1

    async def find_nodes(self, target: bytes) -> list[Contact]:
        """The k nodes nearest to `target` that answered, nearest first, without ourselves."""
        tokens = await self._search_nodes(target, self.config.k)
        return list(tokens)

    def find(self, key: bytes, *, limit: int = 64) -> AbstractAsyncContextManager[AsyncGenerator[Record, None]]:
        """Verified current records under `key` as they come: `async with dht.find(key) as records: async for ...`.

        Ends after `limit` publishers, or when all holders have told what they have. A publisher comes again if a newer
        record of it turns up.
        """
        return contextlib.aclosing(self._current(key, limit))

    async def get(self, key: bytes, *, limit: int = 64) -> list[Record]:
        """The newest current record of up to `limit` publishers under `key`."""
        newest: dict[PublicKey, Record] = {}
        async with contextlib.aclosing(self._read(key, limit)) as records:
            async for record in records:
                newest[record.public_key] = record
        return [record for record in newest.values() if record.lifetime]

    async def _current(self, key: bytes, limit: int) -> AsyncGenerator[Record, None]:
        async with contextlib.aclosing(self._read(key, limit)) as records:
            async for record in records:
                if record.lifetime:
                    yield record

    def _read(self, key: bytes, limit: int) -> AsyncGenerator[Record, None]:
        self._counts["lookups"] += 1
        self._table.looked_up(key, trio.current_time())
        return read(
            key,
            limit=limit,
            own=self._store.records_of(key, self.config.wall_clock()),
            lookup=self._lookup(key, self.config.replicas),
            requests=self._requests,
            verifier=self._verifier,
            client=self._client_mode,
            wall_clock=self.config.wall_clock,
            on_bad_record=lambda: self._drops.count("message"),
        )

    def _lookup(self, target: bytes, count: int) -> Lookup:
        seeds = self._table.closest(target, self.config.k, good_only=True) or self._table.closest(target, self.config.k)
        return Lookup(target, self.identity.node_id, seeds, count=count, alpha=self.config.alpha)

    async def _search_nodes(self, target: bytes, count: int) -> dict[Contact, bytes]:
        """The `count` nearest contacts that answer, nearest first, and the write token of each for `target`."""
        lookup = self._lookup(target, count)
        tokens: dict[Contact, bytes] = {}

        def request() -> FindNode:
            return FindNode(transaction=new_transaction(), client=self._client_mode, target=target)

        search = Search(lookup, self._requests, request)
        while not lookup.finished:
            for outcome in await search.step():
                if outcome.contact is not None and isinstance(outcome.reply, Nodes):
                    tokens[outcome.contact] = outcome.reply.token
        self._table.looked_up(target, trio.current_time())
        self._counts["lookups"] += 1
        self._counts["lookups_answered"] += bool(tokens)
        return {contact: tokens[contact] for contact in lookup.closest()}

    def _ping_request(self, model: str | None = None) -> Ping:
        return Ping(transaction=new_transaction(), client=self._client_mode, model=model)

    # --- publishing ---------------------------------------------------------------------------------------------------

    async def publish(self, key: bytes, value: bytes, *, lifetime: int) -> Published:
        """Store `value` under `key` in our name at the nearest nodes, ourselves included if we are one of them.

        `lifetime` is in seconds, at most 30 minutes. Raises `ValueError` if the record would be over 400 bytes.
        Does not wait for nodes that are slower than their own timeouts; those count as not stored.
        """
        published = self._sign(key, value, lifetime)
        tokens = await self._search_nodes(key, self.config.replicas)
        own_distance = distance(self.identity.node_id, key)
        nearer = sum(1 for contact in tokens if distance(contact.node_id, key) < own_distance)
        keeps = not self._client_mode and nearer < self.config.replicas
        targets = dict(list(tokens.items())[: self.config.replicas - keeps])
        if keeps:
            self._store.put(published, encode_record(published), b"", self.config.wall_clock())
        stored, newest = await self._store_at(published, targets)
        if newest >= published.sequence:  # we published before, by a clock that was ahead
            self._sequence = newest
            published = self._sign(key, value, lifetime)
            if keeps:
                self._store.put(published, encode_record(published), b"", self.config.wall_clock())
            stored, _ = await self._store_at(published, targets)
        return Published(published, stored + keeps, len(targets) + keeps)

    async def withdraw(self, key: bytes) -> None:
        """Publish that we have nothing under `key` any more."""
        await self.publish(key, b"", lifetime=0)

    def _sign(self, key: bytes, value: bytes, lifetime: int) -> Record:
        wall_now = self.config.wall_clock()
        self._sequence = max(self._sequence + 1, int(wall_now * 1000))
        return sign_record(
            self.identity,
            self.network,
            key=key,
            sequence=self._sequence,
            issued_at=int(wall_now),
            lifetime=lifetime,
            value=value,
        )

    async def _store_at(self, record: Record, targets: dict[Contact, bytes]) -> tuple[int, int]:
        """How many of `targets` store the record, and the highest sequence number that one of them has instead."""
        encoded = encode_record(record)
        outcomes = Outcomes()
        for contact, token in targets.items():
            request = Store(transaction=new_transaction(), client=self._client_mode, token=token, record=encoded)
            self._requests.ask(contact, request, outcomes.put)
        waiting, stored, newest = set(targets), 0, -1
        while waiting:
            for outcome in await outcomes.take():
                if outcome.contact is not None:
                    waiting.discard(outcome.contact)
                if isinstance(outcome.reply, Stored):
                    stored += 1
                elif isinstance(outcome.reply, Refused):
                    self._counts[f"refused {outcome.reply.reason}"[:40]] += 1
                    newest = max(newest, self._own_sequence_untrusted(outcome.reply.newer, record.key))
        return stored, newest

    def _own_sequence_untrusted(self, encoded: bytes | None, key: bytes) -> int:
        if encoded is None:
            return -1
        try:
            record = self._verifier.verify_untrusted(encoded, key, self.config.wall_clock())
        except BadMessage:
            return -1
        return record.sequence if record.public_key == self.identity.public_key else -1

    # --- answering ----------------------------------------------------------------------------------------------------

    def deliver(self, datagram: bytes, source: Address) -> None:
        """One datagram arrived. Checks go from cheap to dear; what fails is counted, and never answered."""
        try:
            self._envelope.check_header_untrusted(datagram)
        except BadMessage:
            own = self._requests.own_introduction(datagram)
            if own is None:
                self._drops.count("header")
            else:
                self._own_addresses.add(own)
                self._note_change()
            return
        try:
            opened = self._envelope.open_untrusted(datagram)
        except BadMessage:
            self._drops.count("box")
            return
        try:
            message = decode_rpc_untrusted(opened.payload)
            if isinstance(message, Ping | FindNode | FindValue | Store):
                if opened.introduction and not isinstance(message, Ping):
                    raise BadMessage("only a PING introduces")
                self._answer(message, Contact(opened.sender, source), len(datagram))
            elif opened.introduction or not self._requests.answered(message, opened.sender, source):
                self._drops.count("unasked")
        except BadMessage:
            self._drops.count("message")

    def _answer(self, request: Ping | FindNode | FindValue | Store, asker: Contact, size: int) -> None:
        if self._client_mode:
            self._drops.count("client")
            return
        check = not request.client and self._table.wants(asker) and asker not in self._checking
        check = check and len(self._checking) < MAX_CHECKS
        room = MAX_PAYLOAD_BYTES
        if not self._table.is_proved(asker):
            room = min(room, AMPLIFICATION * size - CHECK_BYTES * check - HEADER_BYTES - MAC_BYTES)
        now, wall_now = trio.current_time(), self.config.wall_clock()
        reply = self._handlers.answer(request, asker, now=now, wall_now=wall_now, room=room)
        datagram = self._envelope.seal(asker.public_key, encode_rpc(reply))
        if not self._transport.send(datagram, asker.address):
            self._drops.count("unsent")
        self._counts["served"] += 1
        if check:
            self._check(asker)

    def _check(self, contact: Contact) -> None:
        """PING `contact`; the answer, or the silence, goes into the table."""
        self._checking.add(contact)
        self._requests.ask(contact, self._ping_request(), lambda outcome: self._checking.discard(contact))

    def _note_outcome(self, outcome: Outcome) -> None:
        now = trio.current_time()
        if outcome.contact is None:
            return
        if outcome.reply is None:
            self._counts["overdue"] += 1
            self._table.failed(outcome.contact, now)
            if not self.has_contacts:
                self._lost.set()
                self._lost = trio.Event()
            return
        self._votes.pop(outcome.contact.public_key, None)
        self._votes[outcome.contact.public_key] = outcome.reply.observed.host
        if len(self._votes) > MAX_VOTERS:
            del self._votes[next(iter(self._votes))]
        was_alone = not self.has_contacts
        admission = self._table.answered(outcome.contact, now)
        if admission.added:
            self._note_change()
            if was_alone:
                self._explore.set()
        if admission.check is not None and admission.check not in self._checking and len(self._checking) < MAX_CHECKS:
            self._check(admission.check)

    def _note_change(self) -> None:
        self._peers_changed.set()
        self._peers_changed = trio.Event()

    # --- upkeep -------------------------------------------------------------------------------------------------------

    async def explore(self) -> None:
        """Look up our own neighbourhood: on joining, soon again while others join too, and ever more rarely."""
        pause = RETRY_S
        while True:
            with trio.move_on_after(pause * self._rng.uniform(0.75, 1.25)):
                await self._explore.wait()
            if self._explore.is_set():
                self._explore = trio.Event()
                pause = RETRY_S / 2
            if self.has_contacts:
                await self.find_nodes(self.identity.node_id)
            pause = min(2 * pause, self.config.refresh_interval)

    async def keep_fresh(self) -> None:
        """Ping who was silent longest, look up what was not looked up, drop what expired, save contacts; for ever."""
        saved_at = trio.current_time()
        while True:
            pause = RETRY_S if self._table.has_failing else self.config.liveness_interval
            await trio.sleep(pause * self._rng.uniform(0.75, 1.25))
            now = trio.current_time()
            contact = self._table.to_check(now, retry_after=RETRY_S / 2, idle_after=IDLE_S)
            if contact is not None:
                self._check(contact)
            self._store.expire(self.config.wall_clock())
            if now - saved_at >= SAVE_S:
                saved_at = now
                self.save_contacts()
            target = self._table.to_refresh(now, self.config.refresh_interval, self._rng)
            if target is not None and self.has_contacts:
                await self.find_nodes(target)

    def save_contacts(self) -> None:
        """Save the contacts that have answered for longest, if there is a place for them."""
        if self.config.contacts_path is None:
            return
        good = sorted((entry for entry in self._table if not entry.failures), key=lambda entry: entry.since)
        if good:
            bootstrap.save_contacts(self.config.contacts_path, tuple(entry.contact for entry in good))


async def serve_dht(
    identity: Identity,
    config: DhtConfig,
    *,
    live_state: LiveState | None = None,
    transport: Transport | None = None,
    task_status: trio.TaskStatus[Dht] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a DHT node until cancelled; `task_status.started` gives its `Dht`, before it has joined.

    Args:
      identity: who we are.
      config: how to run.
      live_state: what PING is answered with.
      transport: what to send and receive by; default: UDP on `config.hosts` and `config.port`.

    Raises `UserError` in one line for a port that is taken, and for a bootstrap peer that is not host:port.
    """
    for peer in config.bootstrap:
        bootstrap.parse_host_port(peer)
    if transport is None:
        transport = UdpTransport.bind(config.hosts, config.port)
    dht = Dht(identity, config, transport, live_state)
    saved = bootstrap.load_contacts(config.contacts_path) if config.contacts_path else ()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.receive, dht.deliver)
            nursery.start_soon(dht._requests.watch)
            nursery.start_soon(dht.explore)
            nursery.start_soon(dht.keep_fresh)
            for peer in config.bootstrap:
                nursery.start_soon(bootstrap.keep_in_touch, dht, peer, dht._rng)
            if saved:
                nursery.start_soon(bootstrap.return_to, dht, saved, dht._rng)
            task_status.started(dht)
    finally:
        transport.close()
        dht.save_contacts()
