"""What a node answers. Pure: a request, who asks, and the time make a reply.

Rules:
- A reply fits `room`, the bytes that its payload may have: a datagram, or three times what an address that has not
  proved itself sent. Records come before contacts, and contacts are told only to askers who can use their addresses.
- What readers leave with us of keys that are far from us is kept apart from what we hold: it is told only where we hold
  nothing, for a time that falls off with our distance from the key, and never counts as a replica.
"""

import math
from collections.abc import Callable
from random import Random

import attrs

from llamanet.dht.distance import distance, source_prefix, usable
from llamanet.dht.guard import Dials, WriteTokens
from llamanet.dht.routing import RoutingTable
from llamanet.dht.storage import Kept, RecordStore, Refusal, is_storable
from llamanet.errors import BadMessage
from llamanet.wire.codec import to_array
from llamanet.wire.envelope import Network
from llamanet.wire.identity import NodeId
from llamanet.wire.plain import pack_datagram
from llamanet.wire.record import decode_record_untrusted, is_signed
from llamanet.wire.rpc import (
    MAX_CONTACTS,
    MAX_RECORDS,
    Address,
    Contact,
    DialBack,
    FindNode,
    FindValue,
    Nodes,
    Ping,
    Pong,
    Refused,
    Reply,
    Request,
    Store,
    Stored,
    Values,
)
from llamanet.wire.state import ModelState

LiveState = Callable[[str | None], tuple[bool, tuple[ModelState, ...]]]
"""Asked by PING: of which model (None: as many as fit) -> (draining, states)."""

RESERVED_CONTACTS = 4
"""Contacts that a reply keeps room for when there are more records than fit."""
CONTACTS_BESIDE_RECORDS = 8
"""The most beside records: all replicas. Whoever holds records is among the nearest, and knows the others."""
_REPLY_BYTES = 72
"""Type, transaction, observed address, token, totals, cursors and lengths of a `Nodes` or `Values`, and a margin."""
_PONG_BYTES = 53
"""Of a `Pong`, without its version and its models."""
BUSY = "busy"
"""Of a DIAL_BACK: too many were asked for."""
CACHE_S = 60.0
"""How long a cached record is kept next to its key; shorter by a factor of e for each k nodes that are nearer."""
CACHED_PUBLISHERS = 16
"""Of one key: a key with more is told by its holders alone, for a cache would tell of the same few again and again."""
CACHE_BYTES = 2**20
CACHE_KEYS = 1024


def _contact_bytes(contact: Contact) -> int:
    return 56 if ":" in contact.address.host else 44


@attrs.define(eq=False, kw_only=True)
class Handlers:
    """One node's answers, from its table and its store."""

    own_id: NodeId
    network: Network
    table: RoutingTable
    store: RecordStore
    tokens: WriteTokens
    rng: Random
    k: int
    version: str
    live_state: LiveState | None
    dials: Dials = attrs.field(init=False, factory=Dials)
    cache: RecordStore = attrs.field(
        init=False,
        factory=lambda: RecordStore(
            max_bytes=CACHE_BYTES, max_keys=CACHE_KEYS, max_publishers_per_key=CACHED_PUBLISHERS
        ),
    )

    def answer(self, request: Request, asker: Contact, *, now: float, wall_now: float, room: int) -> Reply | None:
        """The reply to `request`; None if `asker` is to be dialled back first. Raises `BadMessage` for no record.

        `now` is the caller's clock, `wall_now` seconds since 1970, `room` the most bytes the reply's payload may have.
        """
        if isinstance(request, Ping):
            return self._pong(request, asker.address, wall_now, room)
        if isinstance(request, FindNode):
            token = self.tokens.make(asker.address, request.target, now)
            contacts = self._contacts(request.target, asker, room - _REPLY_BYTES)
            return Nodes(transaction=request.transaction, observed=asker.address, token=token, contacts=contacts)
        if isinstance(request, FindValue):
            return self._values(request, asker, now, wall_now, room)
        if isinstance(request, DialBack):
            return self._refusal_to_dial(request, asker, now)
        return self._stored(request, asker, now, wall_now)

    def _refusal_to_dial(self, request: DialBack, asker: Contact, now: float) -> Refused | None:
        if not self.tokens.check(request.token, asker.address, asker.node_id, now):
            reason = Refusal.TOKEN.value
        elif not self.dials.admit(asker.address.host, now):
            reason = BUSY
        else:
            return None
        return Refused(transaction=request.transaction, observed=asker.address, reason=reason)

    def has_token(self, request: Store, asker: Contact, now: float) -> bool:
        """Whether `asker` receives at its address, so that the record is worth a look. Raises `BadMessage` for none."""
        key = decode_record_untrusted(request.record).key
        return self.tokens.check(request.token, asker.address, key, now)

    def _pong(self, request: Ping, observed: Address, wall_now: float, room: int) -> Pong:
        draining, states = self.live_state(request.model) if self.live_state else (False, ())
        room -= _PONG_BYTES + len(self.version)
        fitting: list[ModelState] = []
        for state in states:
            room -= len(pack_datagram(to_array(state)))
            if room < 0:
                break
            fitting.append(state)
        return Pong(
            transaction=request.transaction,
            observed=observed,
            draining=draining,
            version=self.version,
            models=tuple(fitting),
            clock=int(wall_now),
        )

    def _contacts(self, target: bytes, asker: Contact, room: int) -> tuple[Contact, ...]:
        told: list[Contact] = []
        nearest = self.table.to_tell(target, min(self.k, MAX_CONTACTS))
        for contact in usable(nearest, asker.address.host):
            if contact.public_key == asker.public_key:
                continue
            room -= _contact_bytes(contact)
            if room < 0:
                break
            told.append(contact)
        return tuple(told)

    def _values(self, request: FindValue, asker: Contact, now: float, wall_now: float, room: int) -> Values:
        room -= _REPLY_BYTES
        paging = request.cursor is not None
        contacts = () if paging else self._contacts(request.key, asker, room)
        reserved = sum(map(_contact_bytes, contacts[:RESERVED_CONTACTS]))
        room_for_records = room - reserved
        page = self.store.page(
            request.key, request.cursor, room=room_for_records, most=MAX_RECORDS, now=wall_now, rng=self.rng
        )
        if not page.total:
            page = self.cache.page(
                request.key, request.cursor, room=room_for_records, most=MAX_RECORDS, now=wall_now, rng=self.rng
            )
        room -= sum(len(record) + 3 for record in page.records)
        fitting: list[Contact] = []
        for contact in contacts[:CONTACTS_BESIDE_RECORDS] if page.records else contacts:
            room -= _contact_bytes(contact)
            if room < 0:
                break
            fitting.append(contact)
        return Values(
            transaction=request.transaction,
            observed=asker.address,
            token=self.tokens.make(asker.address, request.key, now),
            records=page.records,
            total=page.total,
            next_cursor=page.next_cursor,
            contacts=tuple(fitting),
            publishers=page.publishers,
        )

    def _stored(self, request: Store, asker: Contact, now: float, wall_now: float) -> Stored | Refused:
        record = decode_record_untrusted(request.record)
        key, source = record.key, source_prefix(asker.address)

        def refused(reason: Refusal, newer: bytes | None = None) -> Refused:
            return Refused(
                transaction=request.transaction,
                observed=asker.address,
                reason=reason.value,
                newer=newer,
                publishers=self.store.publishers_of(key),
            )

        if not self.tokens.check(request.token, asker.address, key, now):
            return refused(Refusal.TOKEN)
        if not request.cache and self._is_far(key):
            return refused(Refusal.FAR)
        if not is_storable(record, wall_now):
            return refused(Refusal.TIME)
        store = self.cache if request.cache else self.store
        if not store.admits(key, record.publisher, source, wall_now):
            return refused(Refusal.SAMPLED_OUT)
        if not is_signed(record, self.network):
            raise BadMessage("the record's signature is not its publisher's")
        until = wall_now + self._cache_lifetime(key) if request.cache else None
        outcome = store.put(record, request.record, source, wall_now, until=until)
        if isinstance(outcome, Kept):
            publishers = self.store.publishers_of(key)
            return Stored(transaction=request.transaction, observed=asker.address, publishers=publishers)
        return refused(outcome.reason, outcome.newer)

    def _cache_lifetime(self, key: bytes) -> float:
        """Seconds that a cached record of `key` is kept: exponentially less with the number of nodes nearer to the key.

        Source: Maymounkov & Mazières 2002, section 2.3.
        """
        return CACHE_S * math.exp(-self.table.nodes_within(distance(self.own_id, key)) / self.k)

    def _is_far(self, key: bytes) -> bool:
        """Whether we tell of k contacts that are all nearer to the key than we are."""
        nearest = self.table.to_tell(key, self.k)
        return len(nearest) == self.k and distance(nearest[-1].node_id, key) < distance(self.own_id, key)
