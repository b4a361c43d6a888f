"""How many PINGs a client sends for its requests: at most `PROBES` each, on average, whatever happens. Pure.

Rules:
- Each request earns `PROBES`. The choice of its node spends them; what moves, hedges, wishes that few nodes meet and
  silent nodes need beyond that is owed, and later requests probe less, and choose among what the pool holds.
- Nobody chooses blindly: a choice may always probe one node.
- At most `MOST_OWED` are owed, so that a bad time does not last, and nothing is saved up.
"""

import attrs

PROBES = 3
"""Of a request (Prequal's r_probe)."""
MOST_OWED = 30


@attrs.define
class ProbeBudget:
    """The probes of one client."""

    sent: int = 0
    """All so far."""
    _left: int = 0

    def earn(self) -> None:
        """Count a request."""
        self._left = min(PROBES, self._left + PROBES)

    def affordable(self, *, again: bool) -> int:
        """How many nodes a choice should probe; `again`: it is not the request's first, and the matter is urgent."""
        return PROBES if again else max(1, min(PROBES, self._left))

    def spend(self, count: int) -> None:
        """So many are sent."""
        self.sent += count
        self._left = max(-MOST_OWED, self._left - count)
