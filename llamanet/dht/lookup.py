"""One lookup: ask ever nearer contacts until the nearest ones have all answered. Pure, and without any clock.

The shell asks `next()` until it says None, sends, and reports `answered` or `overdue` for each; so the same code runs
over UDP, in memory, and for values as for nodes.

Rules:
- It ends with the `count` nearest contacts that answer, not with the first ones seen: it is finished when no contact
  that may still answer is nearer than the count-th that did.
- Loose parallelism: alpha requests in flight while it gets nearer, `count` once it does not (Kademlia, section 2.3).
  A request that is overdue frees its place and holds nothing up; its late answer still counts.
- A lookup that starts at a probable holder may ask that one alone first (`narrow`), until the shell says `widen`.
- Whom it asks is bounded by `MAX_ASKED`, however many contacts liars tell of.
"""

import bisect
import enum
from collections.abc import Iterable

import attrs

from llamanet.dht.distance import number_of
from llamanet.wire.identity import NodeId
from llamanet.wire.rpc import Contact

MAX_ASKED = 160
"""Ten times what a lookup among a million honest nodes needs."""
MAX_PLACES = 3
"""How many addresses are tried for one id."""


class _State(enum.Enum):
    NEW = enum.auto()
    ASKED = enum.auto()
    OVERDUE = enum.auto()
    ANSWERED = enum.auto()


@attrs.define(eq=False)
class _Candidate:
    """An id, and the addresses told for it: a lie about one address must not hide the honest one."""

    distance: int
    places: list[Contact]
    place: int = 0
    state: _State = _State.NEW

    @property
    def contact(self) -> Contact:
        return self.places[self.place]

    def try_next_place(self) -> None:
        if self.place + 1 < len(self.places):
            self.place += 1
            self.state = _State.NEW


class Lookup:
    """The state of one lookup for `target`."""

    def __init__(
        self,
        target: bytes,
        own_id: NodeId,
        seeds: Iterable[Contact],
        *,
        count: int,
        alpha: int,
        narrow: bool = False,
    ) -> None:
        self._number = number_of(target)
        self._own_id = own_id
        self._count = count
        self._alpha = alpha
        self._by_id: dict[NodeId, _Candidate] = {}
        self._order: list[_Candidate] = []
        self._distances: list[int] = []
        self._in_flight = 0
        self._nearest_answer: int | None = None
        self._without_progress = 0
        self.asked = 0
        self.narrow = narrow
        """Whether one contact is asked at a time."""
        self._add(seeds)

    @property
    def finished(self) -> bool:
        """Whether nobody is left to ask, or to wait for."""
        if self.asked >= MAX_ASKED:
            return self._in_flight == 0
        return all(candidate.state is _State.ANSWERED for candidate in self._leading())

    def next(self) -> Contact | None:
        """The next contact to ask now; None if all that may be asked at once are under way, or there is none."""
        if self.narrow:
            most = 1
        else:
            stalled = self._without_progress >= self._alpha
            most = max(self._count, self._alpha) if stalled else self._alpha
        if self._in_flight >= most or self.asked >= MAX_ASKED:
            return None
        for candidate in self._leading():
            if candidate.state is _State.NEW:
                candidate.state = _State.ASKED
                self._in_flight += 1
                self.asked += 1
                return candidate.contact
        return None

    def widen(self) -> None:
        """The first contact brought nothing, or not soon enough: ask as many as alpha allows."""
        self.narrow = False

    def answered(self, contact: Contact, contacts: Iterable[Contact]) -> None:
        """`contact` answered, and told of `contacts`. Late answers, after `overdue`, count as well."""
        candidate = self._by_id[contact.node_id]
        if candidate.state is _State.ASKED:
            self._in_flight -= 1
        candidate.state = _State.ANSWERED
        candidate.place = candidate.places.index(contact)
        nearest = candidate.distance if self._nearest_answer is None else min(self._nearest_answer, candidate.distance)
        progress = self._nearest_answer is None or nearest < self._nearest_answer
        self._nearest_answer = nearest
        self._without_progress = 0 if progress else self._without_progress + 1
        self._add(contacts)

    def overdue(self, contact: Contact) -> None:
        """`contact` did not answer in time, or cannot be reached."""
        candidate = self._by_id[contact.node_id]
        if candidate.state is not _State.ASKED or candidate.contact != contact:
            return
        self._in_flight -= 1
        candidate.state = _State.OVERDUE
        self._without_progress += 1
        candidate.try_next_place()

    def closest(self) -> list[Contact]:
        """The nearest contacts that answered so far, at most `count`, nearest first."""
        answered = [candidate.contact for candidate in self._order if candidate.state is _State.ANSWERED]
        return answered[: self._count]

    def _leading(self) -> list[_Candidate]:
        """The `count` nearest candidates that answered or still may in time."""
        leading = []
        for candidate in self._order:
            if candidate.state is not _State.OVERDUE:
                leading.append(candidate)
                if len(leading) == self._count:
                    break
        return leading

    def _add(self, contacts: Iterable[Contact]) -> None:
        for contact in contacts:
            if contact.node_id == self._own_id:
                continue
            candidate = self._by_id.get(contact.node_id)
            if candidate is None:
                candidate = _Candidate(contact.number ^ self._number, [contact])
                self._by_id[contact.node_id] = candidate
                place = bisect.bisect(self._distances, candidate.distance)
                self._distances.insert(place, candidate.distance)
                self._order.insert(place, candidate)
            elif contact not in candidate.places and len(candidate.places) < MAX_PLACES:
                candidate.places.append(contact)
                if candidate.state is _State.OVERDUE:
                    candidate.try_next_place()
