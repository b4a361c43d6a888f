"""The records that one node keeps for others. Pure; `now` is in seconds since 1970, for lifetimes are absolute.

Rules:
- A slot is (key, publisher). Only a higher sequence number replaces what is in it.
- A withdrawal (lifetime 0) keeps its slot until no replay of an older record could still count, and is served like
  any record, so that readers who also hear from a storer that missed it are not told of ghosts.
- Everything is bounded. When a bound is reached, records from the source prefix that holds the most bytes leave first,
  soonest to expire first; so a flood from one subnet evicts itself.
- Reads page through a key's publishers in the order of their ids, from a random place or from a cursor.
"""

import bisect
import heapq
from random import Random
from typing import TypeAlias

import attrs

from llamanet.wire.identity import NodeId
from llamanet.wire.record import MAX_LIFETIME_S, MAX_SKEW_S, Record

MAX_BYTES = 64 * 2**20
MAX_PUBLISHERS_PER_KEY = 500
MAX_KEYS = 4096
MAX_KEYS_PER_PUBLISHER = 32


@attrs.frozen
class Slot:
    """One stored record: as it travels, whose subnet sent it, and when it goes."""

    record: Record
    encoded: bytes
    source: bytes
    kept_until: float


@attrs.frozen
class Page:
    """Some encoded records of a key, how many it has in all, and the cursor of the next page if there is more."""

    records: tuple[bytes, ...] = ()
    total: int = 0
    next_cursor: int | None = None


@attrs.frozen
class Kept:
    """The record is stored, or was already."""


@attrs.frozen
class Rejected:
    """The record is not stored; `newer` is the record that outranks it, encoded."""

    reason: str
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


def _cursor_of(publisher: NodeId) -> int:
    return int.from_bytes(publisher[:4], "big")


class RecordStore:
    """The slots of one node. Records given to it have been verified."""

    def __init__(
        self,
        *,
        max_bytes: int = MAX_BYTES,
        max_publishers_per_key: int = MAX_PUBLISHERS_PER_KEY,
        max_keys: int = MAX_KEYS,
        max_keys_per_publisher: int = MAX_KEYS_PER_PUBLISHER,
    ) -> None:
        self._max_bytes = max_bytes
        self._max_publishers_per_key = max_publishers_per_key
        self._max_keys = max_keys
        self._max_keys_per_publisher = max_keys_per_publisher
        self._keys: dict[bytes, dict[NodeId, Slot]] = {}
        self._sorted: dict[bytes, list[NodeId]] = {}
        self._keys_of: dict[NodeId, set[bytes]] = {}
        self._bytes_of: dict[bytes, int] = {}
        self._expiries: list[_Expiry] = []
        self._expiries_of: dict[bytes, list[_Expiry]] = {}
        self.bytes = 0
        self.records = 0

    def __len__(self) -> int:
        return self.records

    def put(self, record: Record, encoded: bytes, source: bytes, now: float) -> Kept | Rejected:
        """Store a verified, storable record that came from the subnet `source`."""
        self.expire(now)
        publisher = record.publisher
        slots = self._keys.get(record.key, {})
        old = slots.get(publisher)
        if old is not None:
            if old.record.sequence > record.sequence:
                return Rejected("a newer record is stored", newer=old.encoded)
            if old.record.sequence == record.sequence:
                return (
                    Kept() if old.record == record else Rejected("another record with this sequence number is stored")
                )
            self._drop(record.key, publisher)
        rejected = self._make_room(record.key, publisher, len(encoded), source)
        if rejected is not None:
            return rejected
        slot = Slot(record, encoded, source, kept_until(record))
        self._keys.setdefault(record.key, {})[publisher] = slot
        bisect.insort(self._sorted.setdefault(record.key, []), publisher)
        self._keys_of.setdefault(publisher, set()).add(record.key)
        self._bytes_of[source] = self._bytes_of.get(source, 0) + len(encoded)
        self.bytes += len(encoded)
        self.records += 1
        self._schedule(slot)
        return Kept()

    def page(self, key: bytes, cursor: int | None, *, room: int, most: int, now: float, rng: Random) -> Page:
        """At most `most` records of `key` that fit `room` bytes, from `cursor` on, or from a random place."""
        self.expire(now)
        slots = self._keys.get(key)
        if not slots:
            return Page()
        publishers = self._sorted[key]
        total = len(publishers)
        if cursor is None:
            start = rng.randrange(total)
        else:
            start = bisect.bisect_left(publishers, cursor.to_bytes(4, "big")) % total
        records: list[bytes] = []
        for step in range(min(most, total)):
            encoded = slots[publishers[(start + step) % total]].encoded
            room -= len(encoded) + 3
            if room < 0:
                break
            records.append(encoded)
        after = publishers[(start + len(records)) % total]
        return Page(tuple(records), total, None if len(records) == total else _cursor_of(after))

    def records_of(self, key: bytes, now: float) -> list[Record]:
        """All records of `key`, for our own reads."""
        self.expire(now)
        return [slot.record for slot in self._keys.get(key, {}).values()]

    def expire(self, now: float) -> None:
        """Drop what has expired."""
        while self._expiries and self._expiries[0][0] <= now:
            _, sequence, key, publisher = heapq.heappop(self._expiries)
            slot = self._keys.get(key, {}).get(publisher)
            if slot is not None and slot.record.sequence == sequence:
                self._drop(key, publisher)

    def _schedule(self, slot: Slot) -> None:
        """Note when the slot's record goes; what replaced records leave behind is cleared now and then."""
        if len(self._expiries) > 2 * self.records + 64:
            self._expiries.clear()
            self._expiries_of.clear()
            for slots in self._keys.values():
                for other in slots.values():
                    self._schedule(other)
            return
        expiry = (slot.kept_until, slot.record.sequence, slot.record.key, slot.record.publisher)
        heapq.heappush(self._expiries, expiry)
        heapq.heappush(self._expiries_of.setdefault(slot.source, []), expiry)

    def _make_room(self, key: bytes, publisher: NodeId, size: int, source: bytes) -> Rejected | None:
        if len(self._keys_of.get(publisher, ())) >= self._max_keys_per_publisher:
            return Rejected("too many keys of this publisher")
        slots = self._keys.get(key)
        if slots and len(slots) >= self._max_publishers_per_key and not self._evict_from_key(slots, key, source):
            return Rejected("too many publishers of this key")
        while self.bytes + size > self._max_bytes or (key not in self._keys and len(self._keys) >= self._max_keys):
            if not self._evict_from_heaviest(source):
                return Rejected("the store is full")
        return None

    def _evict_from_heaviest(self, source: bytes) -> bool:
        """Drop what expires first of the source that holds the most bytes; False if that is `source` itself."""
        heaviest = max(self._bytes_of, key=lambda prefix: self._bytes_of[prefix], default=source)
        if heaviest == source:
            return False
        while True:
            _, sequence, key, publisher = heapq.heappop(self._expiries_of[heaviest])
            slot = self._keys.get(key, {}).get(publisher)
            if slot is not None and slot.source == heaviest and slot.record.sequence == sequence:
                self._drop(key, publisher)
                return True

    def _evict_from_key(self, slots: dict[NodeId, Slot], key: bytes, source: bytes) -> bool:
        """Make room in one key: the source with the most publishers there loses its first to expire."""
        counts: dict[bytes, int] = {}
        for slot in slots.values():
            counts[slot.source] = counts.get(slot.source, 0) + 1
        heaviest = max(counts, key=lambda prefix: counts[prefix])
        if counts[heaviest] <= counts.get(source, 0) + 1:
            return False
        mine = [(slot.kept_until, publisher) for publisher, slot in slots.items() if slot.source == heaviest]
        self._drop(key, min(mine)[1])
        return True

    def _drop(self, key: bytes, publisher: NodeId) -> None:
        slot = self._keys[key].pop(publisher)
        publishers = self._sorted[key]
        del publishers[bisect.bisect_left(publishers, publisher)]
        if not publishers:
            del self._keys[key], self._sorted[key]
        self._keys_of[publisher].discard(key)
        if not self._keys_of[publisher]:
            del self._keys_of[publisher]
        self._bytes_of[slot.source] -= len(slot.encoded)
        if not self._bytes_of[slot.source]:
            del self._bytes_of[slot.source], self._expiries_of[slot.source]
        self.bytes -= len(slot.encoded)
        self.records -= 1
