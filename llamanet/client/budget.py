"""What a request may take, which its caller decides, and the place in the client's queue that this buys.

Rules:
- Before its first token a request waits at most `wait` seconds in this client, for its turn or for a busy node
  (`client/lobby.py`). Then it asks those who did not say when to come back, or is told the soonest time if all did.
- Of one client's requests for a model, no more go to the nodes at a time than the known ones have slots, and
  `QUEUED_A_NODE` for each node, so that slots do not stand empty; the others wait here, where callers take turns.
- A begun stream goes to the next node without waiting for others.
"""

import math
from collections.abc import Hashable, Iterable, Mapping

import attrs
import trio

from llamanet.client.attempt import Access
from llamanet.client.reply import BUSY, Hop
from llamanet.client.selection import Wishes
from llamanet.errors import NoNodeServes, SwarmBusy
from llamanet.wire.identity import PublicKey

WAIT_S = 10.0
"""How long a request waits while all nodes are busy, unless it says otherwise."""
BUSY_PAUSE_S = 2.0
"""After it a busy node is asked again that does not say when; and the longest that a begun stream waits for."""
JITTER = (1.0, 1.25)
"""Times a pause, so that clients do not return together."""
QUEUED_A_NODE = 1
MAX_FAILURES = 2
"""A node that failed one request so often is not asked for it again, unless the request says how many tries it has.
Once may be a connection that had gone stale."""


@attrs.frozen(kw_only=True)
class Budget:
    """What a request may take."""

    wait: float = WAIT_S
    """Seconds of waiting for a place, before the first token."""
    tries: int | None = None
    """How many times a node may fail it; None: each node `MAX_FAILURES` times."""
    timeout: float = math.inf
    """Seconds until its end."""
    caller: Hashable = None
    """Requests of one caller share its turns; None: this one has its own."""

    @property
    def max_failures(self) -> int:
        """How often each node may fail the request."""
        return MAX_FAILURES if self.tries is None else self.tries

    def is_spent(self, failures: int) -> bool:
        """Whether a request that failed so often may not be tried again."""
        return self.tries is not None and failures >= self.tries


def out_of_tries(
    model: str | None, failures: Mapping[PublicKey, int], hops: Iterable[Hop], budget: Budget
) -> NoNodeServes:
    """The error of a request that failed as often as it may."""
    reasons = (f"{hop.node_id}: {hop.reason}" for hop in hops if hop.reason != BUSY)
    served = () if model is None else (model,)
    return NoNodeServes(model, len(failures), served, (*reasons, f"tries={budget.tries} was given"))


class Place:
    """One request's place in its client's queue. `leave` must follow when the request is over, however it ends."""

    def __init__(self, access: Access, wishes: Wishes, budget: Budget) -> None:
        self._access = access
        self._room = wishes
        self._caller = budget.caller or self
        self._wait_until = trio.current_time() + budget.wait
        self._has_turn = False
        self._under_way = False

    async def go(self) -> None:
        """Wait until the request may go to the nodes, or for as long as it may wait."""
        if self._under_way:
            return
        model, lobby = self._room.model, self._access.lobby
        with trio.move_on_at(self._wait_until):
            room = await self._access.directory.room(model, QUEUED_A_NODE)
            # With no node known there is nobody to spare, and the request is to be told so at once.
            if not self._has_turn and (lobby.crowded(self._room) or 0 < room <= lobby.under_way(model)):
                await self._take_turn()
            while 0 < room <= lobby.under_way(model):
                await lobby.wait_for_less()
        self._under_way = True
        lobby.went(model)

    async def wait(self, error: SwarmBusy) -> None:
        """All nodes are busy: return when it is time to look again. Raises `error` if there is no time for that."""
        self._come_back()
        pause = error.retry_after * self._access.rng.uniform(*JITTER)
        if trio.current_time() + pause > self._wait_until:
            raise error
        if not self._has_turn:
            behind = self._access.lobby.crowded(self._room)
            with trio.move_on_at(self._wait_until):
                await self._take_turn()
            if behind:
                return  # Who was before has just found a place, or gone.
        await trio.sleep(pause)

    def taken(self) -> None:
        """A node has taken the request, or it is not waiting: the turn is the next one's."""
        if self._has_turn:
            self._has_turn = False
            self._access.lobby.leave(self._room)

    def leave(self) -> None:
        """The request is over. May be called again."""
        self.taken()
        self._come_back()

    async def _take_turn(self) -> None:
        await self._access.lobby.enter(self._room, self._caller)
        self._has_turn = True

    def _come_back(self) -> None:
        if self._under_way:
            self._under_way = False
            self._access.lobby.came_back(self._room.model)
