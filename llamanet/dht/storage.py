"""The records that one node keeps for others. Pure; `now` is in seconds since 1970, for lifetimes are absolute.

Rules:
- A slot is (key, publisher). Only a higher sequence number replaces what is in it; a refused one changes nothing there.
- A withdrawal (lifetime 0) keeps its slot until no replay of an older record could still count, and is served like
  any record, so that readers who also hear from a storer that missed it are not told of ghosts.
- Everything is bounded. Of a key with too many publishers a fair sample is kept (`dht/publishers.py`). When the whole
  store is full, records from the source prefix that holds the most bytes leave first, soonest to expire first; so a
  flood from one subnet evicts itself.
- Reads page through a key's publishers in the order of their ids, from a random place or from a cursor.
"""

import enum
import heapq
import os
from random import Random
from typing import TypeAlias

import attrs

from llamanet.dht.publishers import Page, Publishers, Slot
from llamanet.wire.identity import NodeId
from llamanet.wire.record import MAX_LIFETIME_S, MAX_SKEW_S, Record

MAX_BYTES = 64 * 2**20
MAX_PUBLISHERS_PER_KEY = 500
MAX_KEYS = 4096
MAX_KEYS_PER_PUBLISHER = 32

__all__ = ["Kept", "Page", "RecordStore", "Refusal", "Rejected", "is_storable", "kept_until"]


class Refusal(str, enum.Enum):
    """Why a record is not stored: `Refused.reason` as it travels, and the names under which refusals are counted."""

    TOKEN = "token"
    FAR = "far"
    TIME = "time"
    SAMPLED_OUT = "sample"
    """Its publisher is not in the sample that is kept of its key."""
    NEWER = "a newer record is stored"
    ANOTHER = "another record with this sequence number is stored"
    KEYS = "too many keys of this publisher"
    FULL = "the store is full"
    OTHER = "other"
    """Whatever else a peer says; we never say it."""


@attrs.frozen
class Kept:
    """The record is stored, or was already."""


@attrs.frozen
class Rejected:
    """The record is not stored; `newer` is the record that outranks it, encoded."""

    reason: Refusal
    newer: bytes | None = None


def is_storable(record: Record, now: float) -> bool:
    """Whether the record's times let it be stored at `now`: current, or a withdrawal that may still be needed."""
    if record.lifetime:
        return record.is_current(now)
    return record.issued_at <= now + MAX_SKEW_S and now < kept_until(record)


def kept_until(record: Record) -> float:
    """When the record can be forgotten: when it expires, and a withdrawal when all that it withdraws has expired."""
    return record.expires_at if record.lifetime else record.issued_at + MAX_SKEW_S + MAX_LIFETIME_S


_Expiry: TypeAlias = tuple[float, int, bytes, NodeId]
"""When, and of which record: sequence number, key, publisher."""


class RecordStore:
    """The slots of one node. Records given to it have been verified.

    `secret` chooses the samples of keys with too many publishers; None draws one.
    """

    def __init__(
        self,
        *,
        secret: bytes | None = None,
        max_bytes: int = MAX_BYTES,
        max_publishers_per_key: int = MAX_PUBLISHERS_PER_KEY,
        max_keys: int = MAX_KEYS,
        max_keys_per_publisher: int = MAX_KEYS_PER_PUBLISHER,
    ) -> None:
        self._secret = os.urandom(32) if secret is None else secret
        self._max_bytes = max_bytes
        self._max_publishers_per_key = max_publishers_per_key
        self._max_keys = max_keys
        self._max_keys_per_publisher = max_keys_per_publisher
        self._keys: dict[bytes, Publishers] = {}
        self._keys_of: dict[NodeId, set[bytes]] = {}
        self._bytes_of: dict[bytes, int] = {}
        self._heaviest: list[tuple[int, bytes]] = []
        """A heap of (-bytes, source) that names each source with at least what it holds."""
        self._expiries: list[_Expiry] = []
        self._expiries_of: dict[bytes, list[_Expiry]] = {}
        self.bytes = 0
        self.records = 0

    def __len__(self) -> int:
        return self.records

    def admits(self, key: bytes, publisher: NodeId, source: bytes, now: float) -> bool:
        """Whether a record of `publisher` under `key` may be kept: the cheap question before its signature's."""
        publishers = self._keys.get(key)
        return publishers is None or publishers.admits(publisher, source, now)

    def put(
        self, record: Record, encoded: bytes, source: bytes, now: float, *, until: float | None = None
    ) -> Kept | Rejected:
        """Store a verified, storable record that came from the subnet `source`, until it expires or `until`."""
        self.expire(now)
        key, publisher = record.key, record.publisher
        old = self._slot(key, publisher)
        if old is not None:
            if old.record.sequence > record.sequence:
                return Rejected(Refusal.NEWER, newer=old.encoded)
            if old.record.sequence == record.sequence:
                return Kept() if old.record == record else Rejected(Refusal.ANOTHER)
            self._drop(key, publisher)
        rejected = self._make_room(key, publisher, len(encoded), source, now)
        if rejected is not None:
            if old is not None:
                self._add(old)
            return rejected
        kept = kept_until(record)
        slot = Slot(record, encoded, source, kept if until is None else min(kept, until))
        publishers = self._add(slot)
        for leaving in publishers.surplus(now):
            self._drop(key, leaving)
        return Kept() if publishers.get(publisher) is slot else Rejected(Refusal.SAMPLED_OUT)

    def page(self, key: bytes, cursor: int | None, *, room: int, most: int, now: float, rng: Random) -> Page:
        """At most `most` records of `key` that fit `room` bytes, from `cursor` on, or from a random place."""
        self.expire(now)
        publishers = self._keys.get(key)
        return publishers.page(cursor, room=room, most=most, rng=rng) if publishers else Page()

    def publishers_of(self, key: bytes) -> int:
        """About how many publishers `key` has; exact while all of them are kept."""
        publishers = self._keys.get(key)
        return publishers.estimate if publishers else 0

    def records_of(self, key: bytes, now: float) -> list[Record]:
        """All records of `key`, for our own reads."""
        self.expire(now)
        publishers = self._keys.get(key)
        return [slot.record for slot in publishers.slots()] if publishers else []

    def expire(self, now: float) -> None:
        """Drop what has expired."""
        while self._expiries and self._expiries[0][0] <= now:
            _, sequence, key, publisher = heapq.heappop(self._expiries)
            slot = self._slot(key, publisher)
            if slot is not None and slot.record.sequence == sequence:
                self._drop(key, publisher)

    def _slot(self, key: bytes, publisher: NodeId) -> Slot | None:
        publishers = self._keys.get(key)
        return publishers.get(publisher) if publishers else None

    def _add(self, slot: Slot) -> Publishers:
        key, publisher = slot.record.key, slot.record.publisher
        publishers = self._keys.get(key)
        if publishers is None:
            publishers = self._keys[key] = Publishers(key, self._max_publishers_per_key, self._secret)
        publishers.add(slot)
        self._keys_of.setdefault(publisher, set()).add(key)
        self._weigh(slot.source, len(slot.encoded))
        self.records += 1
        self._schedule(slot)
        return publishers

    def _schedule(self, slot: Slot) -> None:
        """Note when the slot's record goes; what replaced records leave behind is cleared now and then."""
        if len(self._expiries) > 2 * self.records + 64:
            self._expiries.clear()
            self._expiries_of.clear()
            for publishers in self._keys.values():
                for other in publishers.slots():
                    self._schedule(other)
            return
        expiry = (slot.kept_until, slot.record.sequence, slot.record.key, slot.record.publisher)
        heapq.heappush(self._expiries, expiry)
        heapq.heappush(self._expiries_of.setdefault(slot.source, []), expiry)

    def _weigh(self, source: bytes, change: int) -> None:
        """Note that `source` holds `change` bytes more."""
        self.bytes += change
        weight = self._bytes_of.get(source, 0) + change
        if not weight:
            del self._bytes_of[source], self._expiries_of[source]
            return
        self._bytes_of[source] = weight
        if change > 0:
            heapq.heappush(self._heaviest, (-weight, source))
            if len(self._heaviest) > 2 * len(self._bytes_of) + 64:
                self._heaviest = [(-weight, source) for source, weight in self._bytes_of.items()]
                heapq.heapify(self._heaviest)

    def _heaviest_source(self) -> bytes | None:
        """The source that holds the most bytes; in the logarithm of their number, for a flood asks at every record."""
        while self._heaviest:
            weight, source = self._heaviest[0]
            held = self._bytes_of.get(source, 0)
            if held == -weight:
                return source
            heapq.heappop(self._heaviest)
            if held:
                heapq.heappush(self._heaviest, (-held, source))
        return None

    def _make_room(self, key: bytes, publisher: NodeId, size: int, source: bytes, now: float) -> Rejected | None:
        if len(self._keys_of.get(publisher, ())) >= self._max_keys_per_publisher:
            return Rejected(Refusal.KEYS)
        if not self.admits(key, publisher, source, now):
            return Rejected(Refusal.SAMPLED_OUT)
        while self.bytes + size > self._max_bytes or (key not in self._keys and len(self._keys) >= self._max_keys):
            if not self._evict_from_heaviest(source):
                return Rejected(Refusal.FULL)
        return None

    def _evict_from_heaviest(self, source: bytes) -> bool:
        """Drop what expires first of the source that holds the most bytes; False if that is `source` itself."""
        heaviest = self._heaviest_source()
        if heaviest is None or heaviest == source:
            return False
        while True:
            _, sequence, key, publisher = heapq.heappop(self._expiries_of[heaviest])
            slot = self._slot(key, publisher)
            if slot is not None and slot.source == heaviest and slot.record.sequence == sequence:
                self._drop(key, publisher)
                return True

    def _drop(self, key: bytes, publisher: NodeId) -> None:
        publishers = self._keys[key]
        slot = publishers.remove(publisher)
        if not publishers:
            del self._keys[key]
        self._keys_of[publisher].discard(key)
        if not self._keys_of[publisher]:
            del self._keys_of[publisher]
        self._weigh(slot.source, -len(slot.encoded))
        self.records -= 1
