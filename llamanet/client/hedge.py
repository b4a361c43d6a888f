"""How many requests may be asked of a second node because the first is slow to begin: a token bucket. Pure.

Rule: of n requests at most `SHARE` n are hedged, whatever happens, so that hedging cannot make an overload worse
(Dean and Barroso, "The Tail at Scale", CACM 2013: 5 % extra requests take most of the tail).
"""

import attrs

SHARE = 0.05
MOST_SAVED = 8.0
"""Hedges that a quiet time may save up for a bad one."""


@attrs.define
class HedgeBudget:
    """The hedges of one client."""

    requests: int = 0
    """All so far."""
    hedges: int = 0
    """Those of them that a second node was asked for."""
    _saved: float = 0.0

    def earn(self) -> None:
        """Count a request."""
        self.requests += 1
        self._saved = min(MOST_SAVED, self._saved + SHARE)

    def spend(self) -> bool:
        """Whether one more request may be hedged; if so, it is counted."""
        # Twenty times 0.05 is a little less than 1.
        if self._saved < 1 - 1e-9:
            return False
        self._saved -= 1
        self.hedges += 1
        return True
