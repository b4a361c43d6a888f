"""Lookups on the wire: the pure `Lookup` fed with outcomes, for nodes and for records. Holds no nursery and no scope.

A reader takes the records of all holders that a lookup passes, newest for each publisher, and pages on through holders
that have more. It trusts nothing: each record is checked for its key, its signature and its times. A holder that tells
one which no honest peer keeps is not asked for more, so lies cost a reader one signature for each answer at most.

Of those who end a read with all that one node told, every other one leaves copies with the nearest node asked that had
nothing (Kademlia, section 2.3): those who come the same way are answered there, and the load of a key that many read
spreads, while a key that few read costs little more than its reads. Other reads hear several holders, so that no single
one hides a publisher from them; a reader for whom one's word will do says so.
"""

from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable
from random import Random

import attrs

from llamanet.dht.distance import distance, subnet_of, usable
from llamanet.dht.handlers import CACHED_PUBLISHERS
from llamanet.dht.lookup import Lookup
from llamanet.dht.requests import Outcome, Outcomes, Requests, new_transaction
from llamanet.dht.shards import Crowd
from llamanet.dht.storage import is_storable
from llamanet.errors import BadMessage
from llamanet.wire.envelope import Network
from llamanet.wire.identity import NodeId
from llamanet.wire.record import Record, decode_record_untrusted, is_signed
from llamanet.wire.rpc import Contact, FindValue, Nodes, Request, Store, Values

MAX_PAGES = 512
"""Pages that a reader asks of one holder; as many as it may have publishers of a key."""
MAX_UNANSWERED_OF_A_SUBNET = 16
"""Contacts of one public subnet that may leave a lookup's path without an answer, as many as it has under way at most.
If more were asked, whoever tells of invented contacts could point a lookup at whom it likes."""
VERIFIED_RECORDS = 256
COPYING_SHARE = 0.5
"""Of the reads that might leave copies. Each copy costs a request, and its receiver a signature."""


class Search:
    """One lookup under way. `request` makes the request for each contact asked."""

    def __init__(self, lookup: Lookup, requests: Requests, request: Callable[[], Request]) -> None:
        self.lookup = lookup
        self.outcomes = Outcomes()
        self._requests = requests
        self._request = request
        self._silent: dict[bytes, set[Contact]] = {}
        """By subnet: whom it asked that has not answered."""

    async def step(self) -> list[Outcome]:
        """Ask whom the lookup names, wait, and return what arrived, if anything did; only with something to wait for.

        The caller passes each outcome to `note`, unless it needs no more. A narrow lookup is widened when an answer
        takes longer than that peer's answers do.
        """
        while (contact := self.lookup.next()) is not None:
            subnet = subnet_of(contact.address.host)
            if subnet is not None:
                silent = self._silent.setdefault(subnet, set())
                if len(silent) >= MAX_UNANSWERED_OF_A_SUBNET * self.lookup.paths:
                    self.lookup.overdue(contact)
                    self.outcomes.wake()  # there may be nothing else to wait for
                    continue
                silent.add(contact)
            on_slow = self._widen if self.lookup.narrow else None
            self._requests.ask(contact, self._request(), self.outcomes.put, on_slow=on_slow)
        return await self.outcomes.take()

    def note(self, outcome: Outcome) -> None:
        """Let the lookup know what became of a request."""
        if outcome.contact is None:
            return
        if isinstance(outcome.reply, (Nodes, Values)):
            host = outcome.contact.address.host
            subnet = subnet_of(host)
            if subnet is not None:
                self._silent[subnet].discard(outcome.contact)
            self.lookup.answered(outcome.contact, usable(outcome.reply.contacts, host))
        else:
            self.lookup.overdue(outcome.contact)

    def _widen(self) -> None:
        self.lookup.widen()
        self.outcomes.wake()


class OutOfTime(BadMessage):
    """A record that has expired or is not due yet. Honest peers tell such a one too, when clocks differ."""


class RecordVerifier:
    """Checks records from the network; remembers the last few, for all replicas of a record are the same bytes."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._verified: dict[bytes, Record] = {}

    def verify_untrusted(self, encoded: bytes, key: bytes, wall_now: float) -> Record:
        """The record under `key`, signed and within its times (or a withdrawal).

        Raises `BadMessage`, which is `OutOfTime` if only the times are wrong.
        """
        known = self._verified.get(encoded)
        record = known or decode_record_untrusted(encoded)
        if record.key != key:
            raise BadMessage("a record under another key")
        if not is_storable(record, wall_now):
            raise OutOfTime("a record out of its time")
        if known is None:
            if not is_signed(record, self._network):
                raise BadMessage("the record's signature is not its publisher's")
            self._verified[encoded] = record
            if len(self._verified) > VERIFIED_RECORDS:
                del self._verified[next(iter(self._verified))]
        return record


@attrs.define
class _Newest:
    """The newest record of each publisher, and how many of them are no withdrawals."""

    sequences: dict[NodeId, int] = attrs.Factory(dict)
    live: set[NodeId] = attrs.Factory(set)

    def take(self, record: Record) -> bool:
        """Whether `record` is news."""
        publisher = record.publisher
        if record.sequence <= self.sequences.get(publisher, -1):
            return False
        self.sequences[publisher] = record.sequence
        (self.live.add if record.lifetime else self.live.discard)(publisher)
        return True


async def read(
    key: bytes,
    *,
    limit: int,
    own: Iterable[Record],
    lookup: Lookup,
    requests: Requests,
    verifier: RecordVerifier,
    client: bool,
    wall_clock: Callable[[], float],
    rng: Random,
    counts: Counter[str],
    on_bad_record: Callable[[], None],
    crowd: Crowd | None = None,
    copies: bool = False,
) -> AsyncGenerator[Record, None]:
    """Records under `key` as they come, newest for each publisher; withdrawals too, for they undo earlier ones.

    Ends when `limit` publishers were found, or the lookup is over and all holders have told what they have; and, with a
    `crowd`, to which what holders say of the number of publishers is added, when it is sure that the key is split. A
    lookup by several paths is always brought to its end, so that no path cuts the others short, and `limit` then bounds
    what each holder is asked for. With `copies` it also ends when the first node that has any records has told all of
    them, be they a holder's or copies that a reader left there.
    """
    thorough = lookup.paths > 1
    newest = _Newest()
    for record in own:
        if newest.take(record):
            yield record
            if len(newest.live) >= limit and not thorough:
                return
    if copies and newest.live and not thorough:
        return

    def request(cursor: int | None = None) -> FindValue:
        return FindValue(transaction=new_transaction(), client=client, key=key, cursor=cursor)

    search = Search(lookup, requests, request)
    counts["lookups"] += 1
    taken: dict[Contact, int] = {}
    pages: dict[Contact, int] = {}
    paging: set[Contact] = set()
    without: list[tuple[int, Contact, bytes]] = []
    """Who was asked and had nothing: distance from the key, contact, write token."""
    told: dict[NodeId, bytes] = {}
    """By publisher: its newest record, encoded."""

    def leave_copies(total: int) -> None:
        if without and total <= min(len(told), CACHED_PUBLISHERS) and rng.random() < COPYING_SHARE:
            _, nearest, token = min(without, key=lambda entry: entry[0])
            for copy in told.values():
                store = Store(transaction=new_transaction(), client=client, token=token, record=copy, cache=True)
                requests.ask(nearest, store, lambda outcome: None)

    while not lookup.finished or paging:
        for outcome in await search.step():
            holder, values = outcome.contact, outcome.reply
            if holder is None:
                continue
            paging.discard(holder)
            if not isinstance(values, Values):
                search.note(outcome)
                continue
            counts["lookups_answered"] += not pages
            if crowd is not None and values.total and holder not in pages:
                crowd.told.append(max(values.total, values.publishers))
            if not values.records:
                without.append((distance(holder.node_id, key), holder, values.token))
            lied = False
            for encoded in values.records:
                try:
                    record = verifier.verify_untrusted(encoded, key, wall_clock())
                except OutOfTime:
                    on_bad_record()
                    continue
                except BadMessage:
                    on_bad_record()
                    lied = True
                    break
                if newest.take(record):
                    told[record.publisher] = encoded
                    found_all = len(newest.live) >= limit and not thorough
                    if found_all:
                        leave_copies(values.total)
                    yield record
                    if found_all:
                        return
            if crowd is not None and crowd.is_surely_split:
                return
            taken[holder] = taken.get(holder, 0) + len(values.records)
            pages[holder] = pages.get(holder, 0) + 1
            told_all = lied or not values.records or values.next_cursor is None or taken[holder] >= values.total
            enough = thorough and taken[holder] >= limit
            has_more = not (told_all or enough) and pages[holder] < MAX_PAGES
            if copies and newest.live and not thorough and not lied:
                if not has_more:
                    leave_copies(values.total)
                    return
            else:
                search.note(outcome)
            if has_more:
                paging.add(holder)
                requests.ask(holder, request(values.next_cursor), search.outcomes.put)
