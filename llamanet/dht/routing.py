"""The routing table: who answered us, by XOR distance. Pure; `now` is in seconds on the caller's clock.

Rules:
- A contact enters only after it answered us, so that its id and its address are proved. What others tell of stays in
  the lookup that asked.
- Bucket i holds the contacts that share exactly i leading bits with our own id; the last one holds all that share more,
  and is the only one that splits (Kademlia, section 2.4).
- A full bucket prefers its old contacts: a new one waits in the replacement cache, and enters when one fails
  (S/Kademlia; uptime predicts uptime).
- But contacts that are all in one corner of a bucket are of little use: somebody from a part of it (a 16th) where there
  is nobody takes the place of the newest contact that shares its own part. So the oldest of each part stays, lookups
  are nearly as short as with perfect tables, and ids ground next to each other fill no bucket.
- Who is new is on trial: others are told of it only after it has answered again, `TRIAL_S` after its first answer (as
  go-ethereum's discovery tells only of contacts that passed a later liveness check). So a crowd of fresh ids is not
  spread by the honest, and who leaves at once never is. Our own lookups ask it meanwhile. Where there is nobody else to
  tell of, in a small swarm or while most of our table is new, contacts on trial are told as well.
- At most 2 contacts of a subnet a bucket and 10 a table, so that one owner of a subnet cannot surround anybody.
- One address, one contact: a node that came back with a new key takes its old place.
- Who answers from another address than the one we know is looked for at the old one first, and has moved if it is gone
  from there: else whoever passes on what it is sent, both ways, could take the place of any node. The more often it was
  found where it was, the longer it is not looked for: else such a relay could have us ask until enough got lost.
- Contacts that lately failed are not told to others, and leave after `MAX_FAILURES` in a row.
- Whom our own system lets us send nothing to has not failed, for so it is with all when we are cut off. It leaves if
  that lasts while others answer whose addresses are no nearer than its own: the way to its network is lost to us.
"""

import math
from collections import Counter
from collections.abc import Iterator
from random import Random

import attrs

from llamanet.dht.distance import ID_BITS, common_prefix_bits, number_of, random_id_sharing, scope_of, subnet_of
from llamanet.wire.identity import NodeId
from llamanet.wire.rpc import Address, Contact

MAX_FAILURES = 3
"""Unanswered requests in a row after which a contact leaves, with nobody to take its place."""
FAILURES_IF_REPLACED = 2
"""The same, if a replacement waits. One failure may be a lost packet."""
PER_SUBNET_IN_BUCKET = 2
PER_SUBNET_IN_TABLE = 10
MAX_BUCKETS = 64
"""No two honest ids of any swarm that fits on Earth share more bits."""
PART_BITS = 4
"""The first bits after those that a bucket's contacts have in common are their part of it."""
TRIAL_S = 30.0
"""Between two answers of a contact at least, before others are told of it."""
STAYED_S = 10.0
"""Who was found n times where it was, after an answer from elsewhere, is not looked for within n times this."""
UNSENT_S = 10.0
"""For this long a contact that our own system would send nothing to is not checked."""
UNSENDABLE_S = 60.0
"""After so long it leaves."""
DOUBT_S = 60.0
"""A contact not heard from for this long may be gone, so it is checked when another wants its place."""


@attrs.define(eq=False)
class Entry:
    """A contact in the table: when it first and last answered, how often it failed since, and if its trial is over."""

    contact: Contact
    number: int
    since: float
    seen: float
    checked: float
    failures: int = 0
    proven: bool = False
    elsewhere: Contact | None = None
    """Another address from which it has answered since it last did from its own."""
    stayed: int = 0
    """How often it answered from its own after that."""
    unsent: float | None = None
    """When our own system first refused to send to it since it last answered."""


@attrs.define(eq=False)
class Bucket:
    """Up to k contacts, oldest acquaintance first, and up to k that wait for a place, latest answer last."""

    entries: list[Entry] = attrs.Factory(list)
    waiting: list[Entry] = attrs.Factory(list)
    looked_up: float = -math.inf


@attrs.frozen
class Admission:
    """What came of a contact's answer: whether it is new in the table, and there in the bucket of our neighbours;
    and who to check if a place was wanting."""

    added: bool = False
    neighbour: bool = False
    check: Contact | None = None


_KNOWN = Admission()
_ADDED = Admission(added=True)
_NEIGHBOUR = Admission(added=True, neighbour=True)


class RoutingTable:
    """The contacts of one node."""

    def __init__(self, own_id: NodeId, *, k: int) -> None:
        self._own_id = own_id
        self._own = number_of(own_id)
        self._k = k
        self._buckets = [Bucket()]
        self._by_id: dict[NodeId, Entry] = {}
        self._by_address: dict[Address, NodeId] = {}
        self._subnets: dict[bytes, int] = {}
        self._proven = 0
        self._network_size: float | None = None

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, node_id: NodeId) -> bool:
        return node_id in self._by_id

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._by_id.values())

    def holds_address(self, address: Address) -> bool:
        """Whether a contact in the table has this address, and our system sends to it."""
        node_id = self._by_address.get(address)
        return node_id is not None and self._by_id[node_id].unsent is None

    @property
    def bucket_sizes(self) -> tuple[int, ...]:
        """How many contacts each bucket holds, the farthest bucket first."""
        return tuple(len(bucket.entries) for bucket in self._buckets)

    @property
    def network_size(self) -> float:
        """How many other nodes there are: exact while one bucket holds all that we know, an estimate beyond.

        Ids are spread evenly, so the i-th nearest of n nodes is at about i/n of the ring; this is the least-squares fit
        of 1/n to our k nearest contacts.
        """
        if self._network_size is None:
            if len(self._buckets) == 1:
                self._network_size = float(len(self))
            else:
                distances = [contact.number ^ self._own for contact in self.closest(self._own_id, self._k)]
                weighted = sum(rank * distance for rank, distance in enumerate(distances, 1))
                squares = sum(rank * rank for rank in range(1, len(distances) + 1))
                fitted = (squares << ID_BITS) / weighted if weighted else 0.0
                self._network_size = max(fitted, float(len(self)))
        return self._network_size

    @property
    def network_size_error(self) -> float:
        """The standard error of `network_size`, as a share of it; 0 while that is exact.

        The distances of neighbours in order are sums of independent exponential gaps, so the fit's variance is a sum
        over the gaps. For 16 neighbours it makes 0.27.
        """
        if len(self._buckets) == 1:
            return 0.0
        count = min(self._k, len(self))
        squares = sum(rank * rank for rank in range(1, count + 1))
        all_ranks = count * (count + 1) // 2
        variance = sum((all_ranks - gap * (gap - 1) // 2) ** 2 for gap in range(1, count + 1))
        return math.sqrt(variance) / squares

    def nodes_within(self, distance: int) -> float:
        """How many nodes are expected nearer to some key than `distance`."""
        return self.network_size * (distance / (1 << ID_BITS))

    def radius(self, count: int) -> int:
        """The distance from some key within which `count` nodes are expected."""
        return int((1 << ID_BITS) * min(1.0, count / max(self.network_size, 1.0)))

    # --- what peers did -----------------------------------------------------------------------------------------------

    def answered(self, contact: Contact, now: float) -> Admission:
        """`contact` answered us from its address."""
        if contact.node_id == self._own_id:
            return _KNOWN
        entry = self._by_id.get(contact.node_id)
        if entry is not None:
            if entry.contact.address == contact.address:
                entry.stayed += entry.elsewhere is not None
                entry.seen, entry.failures, entry.elsewhere, entry.unsent = now, 0, None, None
                if not entry.proven and now - entry.since >= TRIAL_S:
                    entry.proven = True
                    self._proven += 1
                return _KNOWN
            if _may_have_moved(entry, contact):
                entry.elsewhere = contact
                in_doubt = now - entry.seen >= STAYED_S * entry.stayed
                return Admission(check=entry.contact) if in_doubt else _KNOWN
            if not entry.failures and entry.unsent is None:
                return _KNOWN
            self._remove(entry)  # its new place must pass the same rules
        evicted_id = self._by_address.get(contact.address)
        evicted = self._by_id[evicted_id] if evicted_id is not None else None
        if evicted is not None:
            self._remove(evicted)
        new = Entry(contact, contact.number, now, now, now)
        if entry is not None:
            new.since, new.proven = entry.since, entry.proven
        admission = self._admit(new, now)
        for removed in (entry, evicted):
            if removed is not None:
                self._promote(self._bucket_of(removed.number))
        return admission

    def failed(self, contact: Contact, now: float) -> None:
        """`contact` did not answer a request in time."""
        entry = self._by_id.get(contact.node_id)
        if entry is None:
            bucket = self._bucket_of(contact.number)
            bucket.waiting = [other for other in bucket.waiting if other.contact != contact]
            return
        if entry.contact.address != contact.address:
            return
        entry.failures += 1
        entry.checked = now
        bucket, moved = self._bucket_of(entry.number), entry.elsewhere
        if entry.failures >= (FAILURES_IF_REPLACED if bucket.waiting and moved is None else MAX_FAILURES):
            self._remove(entry)
            if moved is not None and moved.address not in self._by_address and self._subnet_has_room(bucket, moved):
                self._insert(bucket, Entry(moved, entry.number, entry.since, now, now, proven=entry.proven))
            self._promote(bucket)

    def unsent(self, address: Address, now: float) -> None:
        """Our own system refused to send to `address`. If a contact has it, others have their turn first."""
        node_id = self._by_address.get(address)
        if node_id is None:
            return
        entry = self._by_id[node_id]
        entry.checked = now + UNSENT_S
        if entry.unsent is None:
            entry.unsent = now
        elif now - entry.unsent >= UNSENDABLE_S and self._others_answered(entry.contact, entry.unsent):
            self._remove(entry)
            self._promote(self._bucket_of(entry.number))

    def wants(self, contact: Contact) -> bool:
        """Whether it is worth a PING to find out if `contact`, who asked us something, can also be asked."""
        entry = self._by_id.get(contact.node_id)
        if entry is not None:
            lost = entry.failures > 0 or entry.unsent is not None
            return (lost or _may_have_moved(entry, contact)) and contact != entry.elsewhere
        bucket = self._bucket_of(contact.number)
        if contact.node_id == self._own_id or any(other.contact == contact for other in bucket.waiting):
            return False
        return self._subnet_has_room(bucket, contact) and (
            len(bucket.entries) < self._k or bucket is self._buckets[-1] or len(bucket.waiting) < self._k
        )

    # --- asking -------------------------------------------------------------------------------------------------------

    def closest(
        self, target: bytes, count: int, *, good_only: bool = False, proven_only: bool = False
    ) -> list[Contact]:
        """The `count` contacts nearest to `target`, nearest first.

        With `good_only` none that failed lately, with `proven_only` none on trial either.
        """
        number = number_of(target)

        def fit(bucket: Bucket) -> list[tuple[int, Contact]]:
            # With their distances, which all differ, so that sorting calls no function for each.
            return [
                (entry.number ^ number, entry.contact)
                for entry in bucket.entries
                if not good_only or (not entry.failures and (entry.proven or not proven_only))
            ]

        index = min(common_prefix_bits(self._own, number), len(self._buckets) - 1)
        # Bucket `index` is nearest to the target. All buckets nearer to us than it are equally far from the target
        # down to its first differing bit, then come the farther buckets, one by one.
        found = fit(self._buckets[index])
        if len(found) < count:
            for bucket in self._buckets[index + 1 :]:
                found += fit(bucket)
        for bucket in reversed(self._buckets[:index]):
            if len(found) >= count:
                break
            found += fit(bucket)
        found.sort()
        return [contact for _, contact in found[:count]]

    def to_tell(self, target: bytes, count: int) -> list[Contact]:
        """The `count` good contacts nearest to `target` that others are told of, nearest first."""
        if 2 * self._proven >= len(self):
            told = self.closest(target, count, good_only=True, proven_only=True)
            if len(told) == count:
                return told
        return self.closest(target, count, good_only=True)

    def is_proved(self, contact: Contact) -> bool:
        """Whether `contact` has answered us from this very address."""
        entry = self._by_id.get(contact.node_id)
        return entry is not None and entry.contact.address == contact.address

    # --- upkeep -------------------------------------------------------------------------------------------------------

    def to_check(self, now: float, *, retry_after: float, idle_after: float) -> Contact | None:
        """Who should be pinged next: one that failed, or whose trial is to end, else the one silent longest.

        The first two if they were not checked for `retry_after` seconds, the last if it is silent for `idle_after`
        seconds; None if there is no such contact.
        """
        chosen = next((entry for entry in self._urgent(now) if now - entry.checked >= retry_after), None)
        if chosen is None:
            silent = [
                entry
                for entry in self._by_id.values()
                if now - entry.seen >= idle_after and not entry.failures and entry.checked <= now
            ]
            chosen = min(silent, key=lambda entry: entry.seen, default=None)
        if chosen is None:
            return None
        chosen.checked = now
        return chosen.contact

    def has_urgent(self, now: float) -> bool:
        """Whether a contact failed and has not answered since, or is to end its trial."""
        return bool(self._urgent(now))

    def _urgent(self, now: float) -> list[Entry]:
        return [
            entry
            for entry in self._by_id.values()
            if entry.failures or not (entry.proven or now - entry.since < TRIAL_S)
        ]

    def looked_up(self, target: bytes, now: float) -> None:
        """A lookup for `target` ended, so its bucket is fresh."""
        self._bucket_of(number_of(target)).looked_up = now

    def to_fill(self, rng: Random) -> bytes | None:
        """A random id in a bucket that was never looked up and is less than half full, if there is one.

        Our own neighbourhood's bucket is not meant: whoever joins looks itself up before (Kademlia, section 2.3).
        """
        for index, bucket in enumerate(self._buckets[:-1]):
            if bucket.looked_up == -math.inf and 2 * len(bucket.entries) < self._k:
                return random_id_sharing(self._own_id, index, rng)
        return None

    def to_refresh(self, now: float, interval: float, rng: Random) -> bytes | None:
        """A random id in a bucket that was not looked up for `interval` seconds, if there is one."""
        for index, bucket in enumerate(self._buckets):
            if now - bucket.looked_up >= interval:
                bucket.looked_up = now
                return random_id_sharing(self._own_id, index, rng)
        return None

    # --- inside -------------------------------------------------------------------------------------------------------

    def _bucket_of(self, number: int) -> Bucket:
        return self._buckets[min(common_prefix_bits(self._own, number), len(self._buckets) - 1)]

    def _subnet_has_room(self, bucket: Bucket, contact: Contact) -> bool:
        subnet = subnet_of(contact.address.host)
        if subnet is None:
            return True
        in_table = self._subnets.get(subnet, 0)
        if in_table < PER_SUBNET_IN_BUCKET:
            return True
        in_bucket = sum(1 for entry in bucket.entries if subnet_of(entry.contact.address.host) == subnet)
        return in_bucket < PER_SUBNET_IN_BUCKET and in_table < PER_SUBNET_IN_TABLE

    def _admit(self, new: Entry, now: float) -> Admission:
        bucket = self._bucket_of(new.number)
        if not self._subnet_has_room(bucket, new.contact):
            return _KNOWN
        while len(bucket.entries) >= self._k and bucket is self._buckets[-1] and len(self._buckets) < MAX_BUCKETS:
            self._split()
            bucket = self._bucket_of(new.number)
        if len(bucket.entries) < self._k:
            self._insert(bucket, new)
            return _NEIGHBOUR if bucket is self._buckets[-1] else _ADDED
        for place, other in enumerate(bucket.waiting):
            if other.contact == new.contact:
                new.since, new.proven = other.since, now - other.since >= TRIAL_S
            if other.contact.node_id == new.contact.node_id:
                del bucket.waiting[place]
                break
        spare = self._spare(bucket, new)
        if spare is not None:
            self._remove(spare)
            self._insert(bucket, new)
            bucket.waiting.append(spare)
            del bucket.waiting[: -self._k]
            return _ADDED
        bucket.waiting.append(new)
        del bucket.waiting[: -self._k]
        doubtful = max(bucket.entries, key=lambda entry: (entry.failures, now - entry.seen))
        silent = now - max(doubtful.seen, doubtful.checked) >= DOUBT_S
        return Admission(check=doubtful.contact) if silent else _KNOWN

    def _others_answered(self, contact: Contact, since: float) -> bool:
        """Whether somebody answered after `since` whose address is no nearer to us than that of `contact`."""
        scope = scope_of(contact.address.host)
        return any(
            entry.seen > since and (scope_of(entry.contact.address.host) or 0) >= (scope or 0)
            for entry in self._by_id.values()
        )

    def _spare(self, bucket: Bucket, new: Entry) -> Entry | None:
        """Who gives way to `new` in a full bucket: the newest of those that share their part of it with others.

        None unless there is nobody yet in the part of `new`.
        """
        shift = max(0, ID_BITS - 1 - common_prefix_bits(self._own, new.number) - PART_BITS)
        parts = Counter(entry.number >> shift for entry in bucket.entries)
        if new.number >> shift in parts:
            return None
        shared = [entry for entry in bucket.entries if parts[entry.number >> shift] > 1]
        return max(shared, key=lambda entry: entry.since, default=None)

    def _insert(self, bucket: Bucket, entry: Entry) -> None:
        bucket.entries.append(entry)
        bucket.waiting = [other for other in bucket.waiting if other.contact.node_id != entry.contact.node_id]
        self._network_size = None
        self._proven += entry.proven
        self._by_id[entry.contact.node_id] = entry
        self._by_address[entry.contact.address] = entry.contact.node_id
        subnet = subnet_of(entry.contact.address.host)
        if subnet is not None:
            self._subnets[subnet] = self._subnets.get(subnet, 0) + 1

    def _remove(self, entry: Entry) -> None:
        self._bucket_of(entry.number).entries.remove(entry)
        self._network_size = None
        self._proven -= entry.proven
        del self._by_id[entry.contact.node_id]
        del self._by_address[entry.contact.address]
        subnet = subnet_of(entry.contact.address.host)
        if subnet is not None:
            self._subnets[subnet] -= 1
            if not self._subnets[subnet]:
                del self._subnets[subnet]

    def _promote(self, bucket: Bucket) -> None:
        """Give the free place to the waiting contact that answered last; to one on trial only if there is no other."""
        if len(bucket.entries) >= self._k:
            return
        bucket.waiting.sort(key=lambda entry: entry.proven)
        for entry in reversed(bucket.waiting):
            if entry.contact.address not in self._by_address and self._subnet_has_room(bucket, entry.contact):
                self._insert(bucket, entry)
                return

    def _split(self) -> None:
        last = self._buckets[-1]
        depth = len(self._buckets) - 1
        near = Bucket(looked_up=last.looked_up)
        self._buckets.append(near)
        for name in ("entries", "waiting"):
            both: list[Entry] = getattr(last, name)
            setattr(near, name, [entry for entry in both if common_prefix_bits(self._own, entry.number) > depth])
            setattr(last, name, [entry for entry in both if common_prefix_bits(self._own, entry.number) == depth])


def _may_have_moved(entry: Entry, contact: Contact) -> bool:
    """Whether `contact` may be where `entry` is now instead; a node may have an address of each family at once."""
    old, new = entry.contact.address, contact.address
    return old != new and (":" in old.host) == (":" in new.host)
