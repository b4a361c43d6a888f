"""The swarm as the page shows it: what is known of each node, who came and left, how much was computed.

Pure: `Picture.look` takes what was found and the time. Rules:
- A node has left when `GONE_AFTER` looks in a row miss it; one datagram that is lost is not a departure. In a swarm of
  which a look finds only a sample, the rest is not gone, and `SAMPLE_GONE_AFTER` is the measure.
- Everything is bounded: nodes by what looks find, moves by number, points by time.
- Times are seconds on the caller's clock.
"""

from collections import deque
from collections.abc import Sequence
from typing import Literal

import attrs

from llamanet.swarm import ModelView, NodeView

GONE_AFTER = 2
SAMPLE = 400
"""Nodes found at once from which on there may be more than one look finds."""
SAMPLE_GONE_AFTER = 30
HISTORY_S = 300.0
"""How far back the points go."""
MAX_MOVES = 200


@attrs.frozen
class Sighting:
    """A node, when this gateway first saw it, and how many looks have missed it since it was last seen."""

    view: NodeView
    since: float
    missed: int = 0


@attrs.frozen
class Move:
    """A node that came or left. Moves are numbered from 1."""

    number: int
    kind: Literal["joined", "left"]
    id: str
    label: str


@attrs.frozen
class Point:
    """The whole swarm at one time."""

    at: float
    tokens_per_second: float
    """Estimated: what each node tells of one stream, times the streams that run there."""
    running: int
    waiting: int


@attrs.define
class Picture:
    """All that a reader may be told; `nodes` by id."""

    nodes: dict[str, Sighting] = attrs.field(factory=dict)
    models: Sequence[ModelView] = ()
    moves: deque[Move] = attrs.field(factory=lambda: deque(maxlen=MAX_MOVES))
    points: deque[Point] = attrs.field(factory=deque)
    number: int = 0
    """Of the last move."""

    def look(self, found: Sequence[NodeView], now: float) -> None:
        """Take what a look at all nodes found."""
        patience = GONE_AFTER if len(found) < SAMPLE else SAMPLE_GONE_AFTER
        missing = dict(self.nodes)
        for view in found:
            known = missing.pop(view.id, None)
            if known is None and self.points:
                self._move("joined", view)
            self.nodes[view.id] = Sighting(view, known.since if known else now)
        for id, sighting in missing.items():
            if sighting.missed + 1 < patience:
                self.nodes[id] = attrs.evolve(sighting, missed=sighting.missed + 1)
            else:
                del self.nodes[id]
                self._move("left", sighting.view)
        views = [sighting.view for sighting in self.nodes.values()]
        rate = sum(view.tokens_per_second * min(view.running, view.slots) for view in views)
        running, waiting = sum(view.running for view in views), sum(view.waiting for view in views)
        self.points.append(Point(now, rate, running, waiting))
        while self.points[0].at < now - HISTORY_S:
            self.points.popleft()

    def _move(self, kind: Literal["joined", "left"], view: NodeView) -> None:
        self.number += 1
        self.moves.append(Move(self.number, kind, view.id, view.node_id))
