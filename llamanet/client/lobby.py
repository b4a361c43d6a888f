"""Where the requests of one client wait for one another: while all nodes are busy, and while the client has many.

Rules:
- One request at a time asks the busy nodes again, so that a place that becomes free is not rushed at. It keeps its turn
  until a node has taken it, or it gives up; then it is the next one's.
- Turns go round among the callers, not the requests: one batch of a thousand does not keep a single question waiting.
- Who comes while others wait for the same thing waits behind them; what is the same is told by `room`.
- How many requests are under way is counted by model, so that no more of them go to the nodes than these have room for:
  in a node's queue there are no turns.
"""

from collections import Counter, deque
from collections.abc import Hashable

import attrs
import trio


@attrs.define
class _Room:
    """A waiting room; whose turn comes next is first."""

    waiting: dict[Hashable, deque[trio.Event]] = attrs.field(factory=dict)


class Lobby:
    """The waiting requests of one client."""

    def __init__(self) -> None:
        self._rooms: dict[Hashable, _Room] = {}
        self._under_way: Counter[str | None] = Counter()
        self._one_less = trio.Event()

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn, or have it."""
        return sum(1 + sum(map(len, room.waiting.values())) for room in self._rooms.values())

    # --- turns --------------------------------------------------------------------------------------------------------

    def crowded(self, room: Hashable) -> bool:
        """Whether a request is waiting in `room`, or has its turn."""
        return room in self._rooms

    async def enter(self, room: Hashable, caller: Hashable) -> None:
        """Return when it is this request's turn; `leave` must follow. Cancelling it gives the place up."""
        there = self._rooms.get(room)
        if there is None:
            self._rooms[room] = _Room()
            await self._first_turn(room)
            return
        turn = trio.Event()
        there.waiting.setdefault(caller, deque()).append(turn)
        try:
            await turn.wait()
        except trio.Cancelled:
            if turn.is_set():
                self.leave(room)
            else:
                there.waiting[caller].remove(turn)
                if not there.waiting[caller]:
                    del there.waiting[caller]
            raise

    async def _first_turn(self, room: Hashable) -> None:
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            self.leave(room)
            raise

    def leave(self, room: Hashable) -> None:
        """The turn is over."""
        waiting = self._rooms[room].waiting
        if not waiting:
            del self._rooms[room]
            return
        caller = next(iter(waiting))
        turns = waiting.pop(caller)
        turn = turns.popleft()
        if turns:
            waiting[caller] = turns
        turn.set()

    # --- how many there are -------------------------------------------------------------------------------------------

    def under_way(self, model: str | None) -> int:
        """Requests for `model` that went to the nodes and are not over; with None, for any."""
        return self._under_way.total() if model is None else self._under_way[model] + self._under_way[None]

    def went(self, model: str | None) -> None:
        """A request for `model` goes to the nodes; `came_back` must follow."""
        self._under_way[model] += 1

    def came_back(self, model: str | None) -> None:
        """It is over, or waits again."""
        self._under_way[model] -= 1
        if not self._under_way[model]:
            del self._under_way[model]
        self._one_less.set()

    async def wait_for_less(self) -> None:
        """Return when a request has come back."""
        if self._one_less.is_set():
            self._one_less = trio.Event()
        await self._one_less.wait()
