"""How a client is doing, as data for metrics."""

import attrs

from llamanet.dht.health import Health


@attrs.frozen(kw_only=True)
class Statistics:
    """A snapshot. Counts are since the start."""

    requests: int
    """Generations that were asked for."""
    hedges: int
    """Those of them that a second node was asked for too, because the first was slow to begin."""
    waiting: int
    """Requests that wait in this client because all nodes are busy."""
    in_flight: int
    """Requests that a node has, and that are not over."""
    dht: Health
