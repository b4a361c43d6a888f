"""One lookup: ask ever nearer contacts until the nearest ones have all answered. Pure, and without any clock.

The shell asks `next()` until it says None, sends, and reports `answered` or `overdue` for each; so the same code runs
over UDP, in memory, and for values as for nodes.

Rules:
- It ends with the `count` nearest contacts that answer, not with the first ones seen: it is finished when no contact
  that may still answer is nearer than the count-th that did.
- Loose parallelism: alpha requests in flight while it gets nearer, `count` once it does not (Kademlia, section 2.3).
  A request that is overdue frees its place and holds nothing up; its late answer still counts.
- A lookup that starts close to its target may ask one contact at a time (`narrow`): each knows whom to ask next, and
  whoever is asked beside it is asked in vain. It widens once an answer came from near the target, or told of nobody
  nearer, or did not come; and when the shell says `widen`, because an answer takes long.
- It may take several paths that share no contact, each from its own share of the seeds, so that a liar on one does not
  mislead the others (S/Kademlia, Baumgart & Mies 2007, section 4.3). A path hears only from contacts that it asked
  itself. That another path's contact answers counts for all that heard of it, so among honest nodes paths agree, and d
  of them cost little more than one. The result is what all found, together.
- Of each id one address counts from each teller, so that no liar's word shuts out another's.
- Whom a path asks is bounded by `MAX_ASKED`, however many contacts liars tell of.
"""

import bisect
import enum
import itertools
import operator
from collections.abc import Iterable, Iterator

import attrs

from llamanet.dht.distance import ID_BITS, number_of
from llamanet.wire.identity import NodeId
from llamanet.wire.rpc import Contact

MAX_ASKED = 160
"""Ten times what a lookup among a million honest nodes needs."""


class _State(enum.Enum):
    NEW = enum.auto()
    ASKED = enum.auto()
    OVERDUE = enum.auto()
    ANSWERED = enum.auto()


@attrs.define(eq=False)
class _Candidate:
    """An id, and the addresses told for it: a lie about one address must not hide the honest one."""

    distance: int
    places: tuple[Contact, ...]
    tellers: frozenset[NodeId | None]
    """Who told of it; None if we knew it."""
    place: int = 0
    state: _State = _State.NEW

    @property
    def contact(self) -> Contact:
        return self.places[self.place]

    def add_place(self, contact: Contact, teller: NodeId | None) -> None:
        self.tellers |= {teller}
        self.places += (contact,)
        if self.state is _State.OVERDUE:
            self.try_next_place()

    def try_next_place(self) -> None:
        if self.place + 1 < len(self.places):
            self.place += 1
            self.state = _State.NEW


_OURS: frozenset[NodeId | None] = frozenset({None})
_distance_of = operator.attrgetter("distance")


class _Path:
    """The candidates that one path heard of, nearest first, and what it has under way."""

    def __init__(self, count: int, alpha: int) -> None:
        self._count = count
        self._alpha = alpha
        self._order: list[_Candidate] = []
        self._distances: list[int] = []
        self._nearest_answer: int | None = None
        self._without_progress = 0
        self.in_flight = 0
        self.asked = 0

    @property
    def finished(self) -> bool:
        if self.asked >= MAX_ASKED:
            return self.in_flight == 0
        return all(candidate.state is _State.ANSWERED for candidate in self._leading())

    @property
    def nearest(self) -> _Candidate:
        """Of all that it heard of."""
        return self._order[0]

    def next(self, *, most: int | None) -> _Candidate | None:
        """Whom to ask now, with `most` requests under way (None: as many as usual)."""
        if most is None:
            stalled = self._without_progress >= self._alpha
            most = max(self._count, self._alpha) if stalled else self._alpha
        if self.in_flight >= most or self.asked >= MAX_ASKED:
            return None
        for candidate in self._leading():
            if candidate.state is _State.NEW:
                self.in_flight += 1
                self.asked += 1
                return candidate
        return None

    def hear(self, candidate: _Candidate) -> None:
        """Take in a candidate, unless the path heard of it before."""
        place = bisect.bisect_left(self._distances, candidate.distance)
        if place < len(self._distances) and self._distances[place] == candidate.distance:
            return
        self._distances.insert(place, candidate.distance)
        self._order.insert(place, candidate)

    def start(self, candidates: list[_Candidate]) -> None:
        """Take in the first candidates: all different, nearest first."""
        self._order = candidates
        self._distances = [candidate.distance for candidate in candidates]

    def note_answer(self, candidate: _Candidate) -> None:
        """Whether it got nearer by this answer decides how many are asked at once."""
        if self._nearest_answer is None or candidate.distance < self._nearest_answer:
            self._nearest_answer = candidate.distance
            self._without_progress = 0
        else:
            self._without_progress += 1

    def note_silence(self) -> None:
        self._without_progress += 1

    def closest(self) -> list[_Candidate]:
        """The nearest that answered, at most `count`."""
        return [candidate for candidate in self._order if candidate.state is _State.ANSWERED][: self._count]

    def _leading(self) -> Iterator[_Candidate]:
        """The `count` nearest candidates that answered or still may in time."""
        return itertools.islice((it for it in self._order if it.state is not _State.OVERDUE), self._count)


class Lookup:
    """The state of one lookup for `target`.

    Args:
      target: 32 bytes, an id or a key.
      own_id: ours, which is never asked.
      seeds: whom to ask first, each id once; dealt out among the paths.
      count: how many contacts to find.
      alpha: requests under way at once, on each path.
      narrow: whether to ask one contact at a time at first; only with one path.
      near: the distance from the target at which a narrow lookup widens; by default with the first answer.
      paths: how many paths share no contact; as many as there are seeds, if those are fewer.
    """

    def __init__(
        self,
        target: bytes,
        own_id: NodeId,
        seeds: Iterable[Contact],
        *,
        count: int,
        alpha: int,
        narrow: bool = False,
        near: int = 1 << ID_BITS,
        paths: int = 1,
    ) -> None:
        self._number = number_of(target)
        self._own_id = own_id
        self._by_id: dict[NodeId, _Candidate] = {}
        self._asked_by: dict[Contact, _Path] = {}
        self.narrow = narrow
        """Whether one contact is asked at a time."""
        self._near = near
        for seed in seeds:
            if seed.node_id != own_id:
                self._by_id[seed.node_id] = _Candidate(seed.number ^ self._number, (seed,), _OURS)
        candidates = sorted(self._by_id.values(), key=_distance_of)
        self._paths = [_Path(count, alpha) for _ in range(max(1, min(paths, len(candidates))))]
        for number, path in enumerate(self._paths):
            path.start(candidates[number :: len(self._paths)])

    @property
    def paths(self) -> int:
        """How many paths it takes."""
        return len(self._paths)

    @property
    def asked(self) -> int:
        """How many contacts were asked."""
        return len(self._asked_by)

    @property
    def finished(self) -> bool:
        """Whether nobody is left to ask, or to wait for."""
        return all(path.finished for path in self._paths)

    def next(self) -> Contact | None:
        """The next contact to ask now; None if all that may be asked at once are under way, or there is none."""
        for path in self._paths:
            candidate = path.next(most=1 if self.narrow else None)
            if candidate is not None:
                candidate.state = _State.ASKED
                self._asked_by[candidate.contact] = path
                return candidate.contact
        return None

    def widen(self) -> None:
        """Ask as many at a time as alpha allows."""
        self.narrow = False

    def answered(self, contact: Contact, contacts: Iterable[Contact]) -> None:
        """`contact` answered, and told of `contacts`. Late answers, after `overdue`, count as well."""
        candidate = self._by_id[contact.node_id]
        if candidate.state is _State.ASKED:
            self._asked_by[candidate.contact].in_flight -= 1
        candidate.state = _State.ANSWERED
        candidate.place = candidate.places.index(contact)
        path = self._asked_by[contact]
        path.note_answer(candidate)
        self._tell(path, contacts, contact.node_id)
        if candidate.distance < self._near or path.nearest is candidate:
            self.widen()

    def overdue(self, contact: Contact) -> None:
        """`contact` did not answer in time, or cannot be reached."""
        candidate = self._by_id[contact.node_id]
        if candidate.state is not _State.ASKED or candidate.contact != contact:
            return
        path = self._asked_by[contact]
        path.in_flight -= 1
        path.note_silence()
        self.widen()
        candidate.state = _State.OVERDUE
        candidate.try_next_place()

    def closest(self) -> list[Contact]:
        """The nearest contacts that answered so far, nearest first: at most `count` of each path."""
        found = {candidate.distance: candidate.contact for path in self._paths for candidate in path.closest()}
        return [found[distance] for distance in sorted(found)]

    def _tell(self, path: _Path, contacts: Iterable[Contact], teller: NodeId) -> None:
        """`path` hears of `contacts` from `teller`."""
        told_by = frozenset({teller})
        for contact in contacts:
            if contact.node_id == self._own_id:
                continue
            candidate = self._by_id.get(contact.node_id)
            if candidate is None:
                candidate = self._by_id[contact.node_id] = _Candidate(
                    contact.number ^ self._number, (contact,), told_by
                )
                path.hear(candidate)
            else:
                path.hear(candidate)
                if contact not in candidate.places and teller not in candidate.tellers:
                    candidate.add_place(contact, teller)
