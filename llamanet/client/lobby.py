"""Where the requests of one client wait while all nodes are busy.

Rules:
- One request at a time asks the busy nodes again, so that a place that becomes free is not rushed at. It keeps its turn
  until a node has taken it, or it gives up; then it is the next one's.
- Turns go round among the callers, not the requests: one batch of a thousand does not keep a single question waiting.
- Who comes while others wait for the same model waits behind them.
"""

from collections import deque
from collections.abc import Hashable

import attrs
import trio


@attrs.define
class _Room:
    """The waiting room of one model; whose turn comes next is first."""

    waiting: dict[Hashable, deque[trio.Event]] = attrs.field(factory=dict)


class Lobby:
    """The waiting requests of one client."""

    def __init__(self) -> None:
        self._rooms: dict[str | None, _Room] = {}

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn, or have it."""
        return sum(1 + sum(map(len, room.waiting.values())) for room in self._rooms.values())

    def crowded(self, model: str | None) -> bool:
        """Whether a request for `model` is waiting, or has its turn."""
        return model in self._rooms

    async def enter(self, model: str | None, caller: Hashable) -> None:
        """Return when it is this request's turn; `leave` must follow. Cancelling it gives the place up."""
        room = self._rooms.get(model)
        if room is None:
            self._rooms[model] = _Room()
            await self._first_turn(model)
            return
        turn = trio.Event()
        room.waiting.setdefault(caller, deque()).append(turn)
        try:
            await turn.wait()
        except trio.Cancelled:
            if turn.is_set():
                self.leave(model)
            else:
                room.waiting[caller].remove(turn)
                if not room.waiting[caller]:
                    del room.waiting[caller]
            raise

    async def _first_turn(self, model: str | None) -> None:
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            self.leave(model)
            raise

    def leave(self, model: str | None) -> None:
        """The turn is over."""
        waiting = self._rooms[model].waiting
        if not waiting:
            del self._rooms[model]
            return
        caller = next(iter(waiting))
        turns = waiting.pop(caller)
        turn = turns.popleft()
        if turns:
            waiting[caller] = turns
        turn.set()
