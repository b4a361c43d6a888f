"""Publishing: our signed records at the nodes nearest to their keys, ourselves included if we are one of them.

Rules:
- Our sequence numbers only grow: milliseconds of the wall clock, and past whatever a holder says that we published.
- Who stored a record last is remembered, for as long as its write token is good: to renew there costs no lookup.
- It waits for no node longer than that node's own timeout.
"""

import attrs
import trio

from llamanet.dht.distance import distance
from llamanet.dht.guard import TOKEN_ROTATION_S
from llamanet.dht.overlay import Overlay
from llamanet.dht.requests import Outcomes, new_transaction
from llamanet.dht.search import RecordVerifier
from llamanet.dht.shards import Crowd
from llamanet.dht.storage import Kept, RecordStore, Refusal
from llamanet.errors import BadMessage
from llamanet.wire.record import Record, encode_record, sign_record
from llamanet.wire.rpc import Contact, Refused, Store, Stored

TOKEN_REUSE_S = TOKEN_ROTATION_S - 30.0
"""A write token is good for a rotation at least."""
OWN_SOURCE = b""
"""The source prefix of what we store with ourselves."""
REMEMBERED_KEYS = 256
"""Of what we publish, whose holders we remember."""


@attrs.frozen
class Published:
    """The record that was published, how many nodes keep it (ourselves included), and how many were asked to.

    `publishers` is about how many publishers its key has, `elsewhere` how many other nodes keep the record, and
    `refusals` why some would not (values of `storage.Refusal`).
    """

    record: Record
    stored: int
    asked: int
    publishers: int
    elsewhere: int
    refusals: frozenset[str]


@attrs.frozen
class _Holders:
    """Who stored our last record under a key, nearest first, with their write tokens; and when they were looked up."""

    tokens: dict[Contact, bytes]
    keeps: bool
    """Whether we are one of them."""
    found_at: float


class Publisher:
    """Publishes in the name of one node."""

    def __init__(self, overlay: Overlay, store: RecordStore, verifier: RecordVerifier) -> None:
        self.refused = dict.fromkeys((refusal.value for refusal in Refusal), 0)
        """Records of ours that peers would not store, by reason."""
        self._overlay = overlay
        self._config = overlay.config
        self._identity = overlay.identity
        self._store = store
        self._verifier = verifier
        self._sequence = 0
        self._holders: dict[bytes, _Holders] = {}

    async def publish(self, key: bytes, value: bytes, *, lifetime: int, disjoint_paths: int = 1) -> Published:
        """As `Dht.publish`."""
        published = self._sign(key, value, lifetime)
        tokens = await self._overlay.find_nodes(key, self._config.replicas, paths=disjoint_paths)
        own_distance = distance(self._identity.node_id, key)
        nearer = sum(1 for contact in tokens if distance(contact.node_id, key) < own_distance)
        keeps = not self._overlay.client_mode and nearer < self._config.replicas
        targets = tokens if disjoint_paths > 1 else dict(list(tokens.items())[: self._config.replicas - keeps])
        crowd = Crowd()
        holders, newest, refusals = await self._store_at(published, targets, crowd)
        if newest >= published.sequence:  # we published before, by a clock that was ahead
            self._sequence = newest
            published = self._sign(key, value, lifetime)
            holders, _, refusals = await self._store_at(published, targets, crowd)
        kept = keeps and self._keep(published, crowd)
        self._holders.pop(key, None)
        self._holders[key] = _Holders({contact: tokens[contact] for contact in holders}, kept, trio.current_time())
        if len(self._holders) > REMEMBERED_KEYS:
            del self._holders[next(iter(self._holders))]
        asked, elsewhere = len(targets) + keeps, len(holders)
        return Published(published, elsewhere + kept, asked, crowd.publishers, elsewhere, refusals)

    async def renew(self, key: bytes, value: bytes, *, lifetime: int, most: int) -> Published:
        """As `Dht.renew`."""
        holders = self._holders.get(key)
        if holders is None or not holders.tokens or trio.current_time() - holders.found_at > TOKEN_REUSE_S:
            return await self.publish(key, value, lifetime=lifetime)
        published = self._sign(key, value, lifetime)
        targets = dict(list(holders.tokens.items())[:most])
        crowd = Crowd()
        stored_at, _, refusals = await self._store_at(published, targets, crowd)
        if len(stored_at) < len(targets):
            return await self.publish(key, value, lifetime=lifetime)
        kept = holders.keeps and self._keep(published, crowd)
        asked, elsewhere = len(targets) + holders.keeps, len(stored_at)
        return Published(published, elsewhere + kept, asked, crowd.publishers, elsewhere, refusals)

    def _keep(self, record: Record, crowd: Crowd) -> bool:
        """Keep a record of ours ourselves."""
        outcome = self._store.put(record, encode_record(record), OWN_SOURCE, self._config.wall_clock())
        crowd.told.append(self._store.publishers_of(record.key))
        return isinstance(outcome, Kept)

    def _sign(self, key: bytes, value: bytes, lifetime: int) -> Record:
        wall_now = self._config.wall_clock()
        self._sequence = max(self._sequence + 1, int(wall_now * 1000))
        return sign_record(
            self._identity,
            self._config.network,
            key=key,
            sequence=self._sequence,
            issued_at=int(wall_now),
            lifetime=lifetime,
            value=value,
        )

    async def _store_at(
        self, record: Record, targets: dict[Contact, bytes], crowd: Crowd
    ) -> tuple[list[Contact], int, frozenset[str]]:
        """Which of `targets` store the record, the highest sequence that one has instead, and the refusals."""
        encoded = encode_record(record)
        outcomes = Outcomes()
        for contact, token in targets.items():
            request = Store(
                transaction=new_transaction(), client=self._overlay.client_mode, token=token, record=encoded
            )
            self._overlay.requests.ask(contact, request, outcomes.put)
        waiting, newest = set(targets), -1
        stored: set[Contact] = set()
        refusals: set[str] = set()
        while waiting:
            for outcome in await outcomes.take():
                if outcome.contact is not None:
                    waiting.discard(outcome.contact)
                if isinstance(outcome.reply, Stored | Refused) and outcome.reply.publishers:
                    crowd.told.append(outcome.reply.publishers)
                if isinstance(outcome.reply, Stored) and outcome.contact is not None:
                    stored.add(outcome.contact)
                elif isinstance(outcome.reply, Refused):
                    reason = outcome.reply.reason if outcome.reply.reason in self.refused else Refusal.OTHER.value
                    self.refused[reason] += 1
                    refusals.add(reason)
                    newest = max(newest, self._own_sequence_untrusted(outcome.reply.newer, record.key))
        return [contact for contact in targets if contact in stored], newest, frozenset(refusals)

    def _own_sequence_untrusted(self, encoded: bytes | None, key: bytes) -> int:
        if encoded is None:
            return -1
        try:
            record = self._verifier.verify_untrusted(encoded, key, self._config.wall_clock())
        except BadMessage:
            return -1
        return record.sequence if record.public_key == self._identity.public_key else -1
