"""Our place in the overlay: whom we know, who knows us, and every datagram in and out.

The order of checks is from cheap to dear: header, rate, box, form, transaction, meaning. What fails one is counted and
dropped, never answered, and never logged one by one. A contact's rate is its own, and charged after its box was opened,
so that nobody uses it up by forging the contact's address. Strangers' keys, dear to compute, have a rate of their own.

Events: `wait_contacts_changed` wakes when a contact enters the table, `wait_lost` when the last one left.
"""

import math
import os
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from random import Random

import trio

from llamanet._version import __version__
from llamanet.dht.address import AddressVotes
from llamanet.dht.config import DhtConfig
from llamanet.dht.distance import number_of
from llamanet.dht.guard import DIAL_BURST, Drops, Guard, WriteTokens
from llamanet.dht.handlers import Handlers, LiveState
from llamanet.dht.lookup import Lookup
from llamanet.dht.requests import FIND_PAYLOAD_BYTES, Outcome, Outcomes, Requests, new_transaction
from llamanet.dht.routing import RoutingTable
from llamanet.dht.search import Search
from llamanet.dht.storage import RecordStore
from llamanet.dht.transport import Transport
from llamanet.errors import BadMessage
from llamanet.wire.envelope import HEADER_BYTES, MAC_BYTES, MAX_DATAGRAM_BYTES, Envelope
from llamanet.wire.identity import Identity, NodeId, PublicKey
from llamanet.wire.rpc import (
    REQUESTS,
    Address,
    Contact,
    DialBack,
    FindNode,
    Nodes,
    Ping,
    Reply,
    Request,
    Store,
    contact_at,
    decode_rpc_untrusted,
    encode_rpc,
)

AMPLIFICATION = 3
"""An address that has not proved itself gets at most this many times the bytes that it sent (as in RFC 9000, 8.1)."""
CHECK_BYTES = 96
"""Of those, for the PING that finds out whether an asker can be asked."""
MAX_CHECKS = 64
"""Such PINGs under way; and as many of our own upkeep, which a flood of strangers must not stop."""
RECENT_ROUND_TRIPS = 512
"""Of which percentiles are told."""
MAX_LOST = 64
"""Contacts remembered after they left the table, the last ones: whom we ask when we find ourselves alone."""


def lookup_in(
    table: RoutingTable,
    own_id: NodeId,
    config: DhtConfig,
    target: bytes,
    count: int,
    *,
    paths: int = 1,
    seeds: Sequence[Contact] = (),
) -> Lookup:
    """A lookup from `seeds`, or the nearest contacts in `table`, by as many `paths` that share no contact.

    It asks one at a time if the k contacts that the first one tells of should include one of the `count` nearest.
    """
    k = config.k
    seeds = seeds or table.closest(target, k, good_only=True) or table.closest(target, k)
    around = table.nodes_within(seeds[0].number ^ number_of(target)) if seeds else math.inf
    return Lookup(
        target,
        own_id,
        seeds,
        count=count,
        alpha=config.alpha,
        narrow=paths == 1 and around < k * count / 2,
        near=table.radius(count),
        paths=paths,
    )


class Overlay:
    """One node's table and requests, and its answers to others."""

    def __init__(
        self,
        identity: Identity,
        config: DhtConfig,
        transport: Transport,
        store: RecordStore,
        live_state: LiveState | None,
        rng: Random,
    ) -> None:
        self.identity = identity
        self.config = config
        self.rng = rng
        self.transport = transport
        self.table = RoutingTable(identity.node_id, k=config.k)
        self._envelope = Envelope(identity, config.network)
        self.requests = Requests(self._envelope, self._send_request, self._note)
        self.drops = Drops()
        self.counts: Counter[str] = Counter()
        self.own_names: set[str] = set()
        """Bootstrap peers that turned out to be ourselves."""
        self.explore = trio.Event()
        """Set when our neighbourhood should be looked up: we joined, or have a neighbour that may know of more."""
        self._client_mode = config.client_mode
        self._handlers = Handlers(
            own_id=identity.node_id,
            network=config.network,
            table=self.table,
            store=store,
            tokens=WriteTokens(os.urandom(32)),
            rng=rng,
            k=config.k,
            version=__version__,
            live_state=live_state,
        )
        self._guard = Guard(trio.current_time())
        self.votes = AddressVotes()
        self.observed_instead: str | None = None
        """Where most peers see us, if that is none of the addresses that were announced."""
        self.recent_round_trips: deque[float] = deque(maxlen=RECENT_ROUND_TRIPS)
        """In seconds."""
        self.lost: deque[Contact] = deque(maxlen=MAX_LOST)
        """Contacts that left the table in silence, the latest last."""
        self._to_dial, self.to_dial = trio.open_memory_channel[tuple[DialBack, Contact]](int(DIAL_BURST))
        """Who is to be dialled back, for `dial_back.serve_dials`."""
        self._checking: set[Contact] = set()
        self._checking_askers: set[Contact] = set()
        self._own_addresses: set[Address] = set()
        self._changed = trio.Event()
        self._lost = trio.Event()

    def _send_request(self, datagram: bytes, address: Address) -> bool:
        self._guard.expect(address.host)
        sent = self.transport.send(datagram, address)
        if not sent:
            self.table.unsent(address, trio.current_time())
        return sent

    # --- where we stand -----------------------------------------------------------------------------------------------

    @property
    def client_mode(self) -> bool:
        """Whether we only ask."""
        return self._client_mode

    @client_mode.setter
    def client_mode(self, value: bool) -> None:
        self._client_mode = value
        self.explore.set()

    @property
    def has_contacts(self) -> bool:
        """Whether some peer is in our table."""
        return len(self.table) > 0

    @property
    def joined(self) -> bool:
        """Whether some peer is in our table; a node with no bootstrap peer but itself is its own swarm."""
        return self.has_contacts or self.own_names.issuperset(self.config.bootstrap)

    async def wait_contacts_changed(self) -> None:
        """Return when a contact enters the table, or when we turn out to be our only bootstrap peer."""
        await self._changed.wait()

    async def wait_lost(self) -> None:
        """Return once the table is empty."""
        while self.has_contacts:
            await self._lost.wait()

    def knows(self, address: Address) -> bool:
        """Whether a contact in the table has this address."""
        return self.table.holds_address(address)

    def is_own(self, address: Address) -> bool:
        """Whether an introduction to this address came back to us."""
        return address in self._own_addresses

    def note_own_name(self, peer: str) -> None:
        """A bootstrap peer turned out to be ourselves."""
        self.own_names.add(peer)
        self._note_change()

    # --- asking -------------------------------------------------------------------------------------------------------

    def ping_request(self, model: str | None = None) -> Ping:
        """A PING of ours."""
        return Ping(transaction=new_transaction(), client=self._client_mode, model=model)

    async def greet(self, addresses: Iterable[Address], *, timeout: float | None = None) -> bool:
        """Introduce ourselves at several addresses at once; who answers, even late, enters the table.

        Whether somebody answered within `timeout` seconds (default: the usual time for a reply).
        """
        outcomes = Outcomes()
        waiting = 0
        for address in addresses:
            self.requests.introduce(address, self.ping_request(), outcomes.put, timeout=timeout)
            waiting += 1
        return await _any_answer(outcomes, waiting)

    async def check_all(self, contacts: Iterable[Contact], *, timeout: float | None = None) -> bool:
        """PING contacts from elsewhere; who answers enters the table. Otherwise as `greet`."""
        outcomes = Outcomes()
        waiting = 0
        for contact in contacts:
            self.requests.ask(contact, self.ping_request(), outcomes.put, timeout=timeout)
            waiting += 1
        return await _any_answer(outcomes, waiting)

    def check(self, contact: Contact) -> None:
        """PING `contact` without waiting; its answer, or its silence, goes into the table."""
        self._check(contact, self._checking)

    def _check(self, contact: Contact, under_way: set[Contact]) -> None:
        if contact in under_way or len(under_way) >= MAX_CHECKS:
            return
        under_way.add(contact)
        self.requests.ask(contact, self.ping_request(), lambda outcome: under_way.discard(contact))

    def lookup(self, target: bytes, count: int, *, paths: int = 1) -> Lookup:
        """A lookup from the nearest contacts that we know; see `lookup_in`."""
        return lookup_in(self.table, self.identity.node_id, self.config, target, count, paths=paths)

    async def find_nodes(self, target: bytes, count: int, *, paths: int = 1) -> dict[Contact, bytes]:
        """The `count` nearest contacts that answer, nearest first, and the write token of each for `target`.

        With several `paths` up to `count` from each.
        """
        lookup = self.lookup(target, count, paths=paths)
        tokens: dict[Contact, bytes] = {}

        def request() -> FindNode:
            return FindNode(transaction=new_transaction(), client=self._client_mode, target=target)

        search = Search(lookup, self.requests, request)
        while not lookup.finished:
            for outcome in await search.step():
                search.note(outcome)
                if outcome.contact is not None and isinstance(outcome.reply, Nodes):
                    tokens[outcome.contact] = outcome.reply.token
        self.table.looked_up(target, trio.current_time())
        self.counts["lookups"] += 1
        self.counts["lookups_answered"] += bool(tokens)
        return {contact: tokens[contact] for contact in lookup.closest()}

    # --- answering ----------------------------------------------------------------------------------------------------

    def deliver(self, datagram: bytes, source: Address) -> None:
        """One datagram arrived."""
        try:
            sender = self._envelope.check_header_untrusted(datagram)
        except BadMessage:
            own = self.requests.own_introduction(datagram)
            if own is None:
                self.drops.count("header")
            else:
                self._own_addresses.add(own)
            return
        now = trio.current_time()
        asker = contact_at(sender, source.host, source.port)
        sender = asker.public_key  # one object for all that is kept under it, and not one from each datagram
        known = self.table.is_proved(asker)
        if not known and not (self._guard.admit(source.host, now) and self._may_open(sender, source, now)):
            self.drops.count("rate")
            return
        introduction = self._envelope.is_introduction(datagram)
        try:
            payload = self._envelope.open_checked_untrusted(datagram, sender, introduction=introduction)
        except BadMessage:
            self.drops.count("box")
            return
        # Whoever introduces itself only claims its key, so it does not speak for an address that we know.
        proved = known and not introduction
        if (proved and not self._guard.admit(source.host, now, known=True)) or (
            introduction and not self._guard.admit_introduction(source.host, now)
        ):
            self.drops.count("rate")
            return
        try:
            message = decode_rpc_untrusted(payload)
            if isinstance(message, REQUESTS):
                if introduction and not isinstance(message, Ping):
                    raise BadMessage("only a PING introduces")
                if isinstance(message, DialBack) and len(payload) < FIND_PAYLOAD_BYTES:
                    raise BadMessage("costs its sender less than what it asks for")
                allowance = MAX_DATAGRAM_BYTES if proved else min(AMPLIFICATION * len(datagram), MAX_DATAGRAM_BYTES)
                self._answer(message, asker, allowance, now, known=proved)
            elif introduction or not self.requests.answered(message, sender, source, now):
                self.drops.count("unasked")
        except BadMessage:
            self.drops.count("message")

    def _may_open(self, sender: PublicKey, source: Address, now: float) -> bool:
        """Whether to spend what the box of a sender who is not in our table costs; whom we greet is heard anyway."""
        if self._envelope.has_keys_of(sender) or self._guard.admit_key(source.host, now):
            return True
        return self.requests.introduced_at(source)

    def _answer(self, request: Request, asker: Contact, allowance: int, now: float, *, known: bool) -> None:
        """Answer with at most `allowance` bytes, the PING that checks the asker included."""
        if self._client_mode:
            self.drops.count("client")
            return
        wall_now = self.config.wall_clock()
        host = asker.address.host
        # Whoever forges its address has no token, and must not use up the signatures of those who have one.
        verifies = isinstance(request, Store) and self._handlers.has_token(request, asker, now)
        if not self._guard.allow_answer(host, allowance, now, verifies=verifies, known=known):
            self.drops.count("quota")
            return
        check = not request.client and self.table.wants(asker)
        unused = allowance
        try:
            room = allowance - CHECK_BYTES * check - HEADER_BYTES - MAC_BYTES
            reply = self._handlers.answer(request, asker, now=now, wall_now=wall_now, room=room)
            if reply is not None:
                unused -= self.reply(asker, reply) + CHECK_BYTES * check
            elif isinstance(request, DialBack):
                self._dial(request, asker)
        finally:
            self._guard.return_unused(host, unused)
        if check:
            self._check(asker, self._checking_askers)

    def _dial(self, request: DialBack, asker: Contact) -> None:
        try:
            self._to_dial.send_nowait((request, asker))
        except trio.WouldBlock:
            self.drops.count("quota")

    def reply(self, asker: Contact, reply: Reply) -> int:
        """Send a reply; how many bytes it took."""
        datagram = self._envelope.seal(asker.public_key, encode_rpc(reply))
        if not self.transport.send(datagram, asker.address):
            self.drops.count("unsent")
        self.counts["served"] += 1
        return len(datagram)

    def _note(self, outcome: Outcome, now: float) -> None:
        """Every outcome of every request passes here."""
        if not outcome.tried:
            self.counts["unsent"] += 1
            return
        if outcome.reply is None:
            self.counts["overdue"] += 1
        if outcome.contact is None:
            return
        if outcome.reply is None:
            known = self.table.is_proved(outcome.contact)
            self.table.failed(outcome.contact, now)
            if known and not self.table.is_proved(outcome.contact):
                self.lost.append(outcome.contact)
            if known and not self.has_contacts:
                self._lost.set()
                self._lost = trio.Event()
            return
        self.votes.add(outcome.contact.address.host, outcome.reply.observed.host)
        self.recent_round_trips.append(outcome.rtt)
        admission = self.table.answered(outcome.contact, now)
        if admission.added:
            if len(self.table) == 1 or (admission.neighbour and not self._client_mode):
                self.explore.set()
            self._note_change()
        if admission.check is not None:
            self.check(admission.check)

    def _note_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


async def _any_answer(outcomes: Outcomes, waiting: int) -> bool:
    """Whether one of `waiting` requests is answered before all are overdue."""
    answers: list[Outcome] = []
    while waiting > 0 and not answers:
        arrived = await outcomes.take()
        answers = [outcome for outcome in arrived if outcome.reply is not None]
        waiting -= len(arrived)
    return bool(answers)
