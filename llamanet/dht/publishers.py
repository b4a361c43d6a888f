"""The publishers of one key at one holder: all of them while they fit, and else a fair sample. Pure.

Rules:
- A publisher's rank is a hash under the holder's own secret, so nobody can choose it, and no two holders' samples are
  alike. At level L the publishers whose rank begins with L zero bits are kept, one in 2**L. The level rises when there
  are more than fit and falls when a quarter is left, at most once in the time in which everybody publishes again; so
  what is kept times 2**L estimates how many there are, and whoever published last has no advantage (Wegman's adaptive
  sampling: Flajolet, "On adaptive sampling", 1990).
- A subnet that fills more than a quarter of a full key has its level raised before all others', and is estimated at
  `MAX_ESTIMATED_OF_A_SUBNET` publishers at most: one owner of many keys neither displaces others nor makes a key look
  much larger than it is.
- Withdrawals take room, but do not count as publishers.
"""

import bisect
import hashlib
from collections import Counter
from random import Random

import attrs

from llamanet.wire.identity import NodeId
from llamanet.wire.record import Record

MAX_ESTIMATED_OF_A_SUBNET = 1024
"""Four times the addresses that a /24 has."""
SETTLE_S = 150.0
"""Between two falls of the level: what was refused before is published again within this time."""
_RANK_BITS = 64


@attrs.frozen
class Slot:
    """One stored record: as it travels, whose subnet sent it, and when it goes."""

    record: Record
    encoded: bytes
    source: bytes
    kept_until: float


@attrs.frozen
class Page:
    """Some encoded records of a key, how many are kept, the cursor of the next page if there is more, and an estimate
    of how many publishers the key has."""

    records: tuple[bytes, ...] = ()
    total: int = 0
    next_cursor: int | None = None
    publishers: int = 0


class Publishers:
    """The slots of one key, at most `most` after `surplus` was dropped. `secret` makes the sample this holder's own."""

    def __init__(self, key: bytes, most: int, secret: bytes) -> None:
        self._key = key
        self._most = most
        self._secret = secret
        self._slots: dict[NodeId, Slot] = {}
        self._order: list[NodeId] = []
        self._of_source: Counter[bytes] = Counter()
        self._live_of_source: Counter[bytes] = Counter()
        self._level = 0
        self._falls_at = 0.0
        self._levels: dict[bytes, int] = {}
        """Of sources that hold more than their share, above the common level."""
        self._estimate: int | None = None

    def __len__(self) -> int:
        return len(self._slots)

    def slots(self) -> list[Slot]:
        """All that is kept."""
        return list(self._slots.values())

    def get(self, publisher: NodeId) -> Slot | None:
        """What is kept of `publisher`."""
        return self._slots.get(publisher)

    def admits(self, publisher: NodeId, source: bytes, now: float) -> bool:
        """Whether a record of `publisher` is part of the sample, or all fit."""
        if now >= self._falls_at and (self._level or self._levels):
            self._falls_at = now + SETTLE_S
            self._fall()
        return publisher in self._slots or self._passes(publisher, source)

    @property
    def estimate(self) -> int:
        """How many publishers the key has; exact while all are kept."""
        if self._estimate is None:
            self._estimate = sum(
                min(live << self._level_of(source), max(live, MAX_ESTIMATED_OF_A_SUBNET))
                for source, live in self._live_of_source.items()
            )
        return self._estimate

    def add(self, slot: Slot) -> None:
        """Keep `slot`, whose publisher has none."""
        publisher = slot.record.publisher
        self._slots[publisher] = slot
        bisect.insort(self._order, publisher)
        self._count(slot, 1)

    def remove(self, publisher: NodeId) -> Slot:
        """Forget what is kept of `publisher`."""
        slot = self._slots.pop(publisher)
        del self._order[bisect.bisect_left(self._order, publisher)]
        self._count(slot, -1)
        return slot

    def surplus(self, now: float) -> list[NodeId]:
        """The publishers that have to leave, for there are more than fit."""
        if len(self._slots) <= self._most:
            return []
        staying = dict(self._slots)
        while len(staying) > self._most:
            source, count = Counter(slot.source for slot in staying.values()).most_common(1)[0]
            if count > self._most // 4:
                self._levels[source] = self._level_of(source) + 1
            else:
                self._level += 1
            staying = {publisher: slot for publisher, slot in staying.items() if self._passes(publisher, slot.source)}
        self._falls_at = now + SETTLE_S
        self._estimate = None
        return [publisher for publisher in self._slots if publisher not in staying]

    def page(self, cursor: int | None, *, room: int, most: int, rng: Random) -> Page:
        """At most `most` records that fit `room` bytes, from `cursor` on, or from a random place; at least one kept."""
        total = len(self._order)
        start = rng.randrange(total)
        if cursor is not None:
            start = bisect.bisect_left(self._order, cursor.to_bytes(4, "big")) % total
        records: list[bytes] = []
        for step in range(min(most, total)):
            encoded = self._slots[self._order[(start + step) % total]].encoded
            room -= len(encoded) + 3
            if room < 0:
                break
            records.append(encoded)
        after = self._order[(start + len(records)) % total]
        next_cursor = None if len(records) == total else int.from_bytes(after[:4], "big")
        return Page(tuple(records), total, next_cursor, self.estimate)

    def _count(self, slot: Slot, change: int) -> None:
        for counter, counts in ((self._of_source, True), (self._live_of_source, slot.record.lifetime > 0)):
            if counts:
                counter[slot.source] += change
                if not counter[slot.source]:
                    del counter[slot.source]
        self._estimate = None

    def _fall(self) -> None:
        """Lower the levels under which too little is kept."""
        if len(self._slots) < self._most // 4:
            self._level = max(0, self._level - 1)
        lowered = {
            source: level - (self._of_source[source] < self._most // 16) for source, level in self._levels.items()
        }
        self._levels = {source: level for source, level in lowered.items() if level > self._level}
        self._estimate = None

    def _level_of(self, source: bytes) -> int:
        return max(self._level, self._levels.get(source, 0))

    def _passes(self, publisher: NodeId, source: bytes) -> bool:
        level = self._level_of(source)
        if not level:
            return True
        rank = hashlib.blake2b(self._key + publisher, key=self._secret, digest_size=_RANK_BITS // 8).digest()
        return int.from_bytes(rank, "big") >> (_RANK_BITS - level) == 0
