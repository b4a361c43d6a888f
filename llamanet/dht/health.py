"""How a node's DHT is doing, as data for tables, doctors and metrics."""

from collections.abc import Mapping

import attrs


@attrs.frozen(kw_only=True)
class Health:
    """A snapshot. Counts are since the start."""

    joined: bool
    client_mode: bool
    contacts: int
    failing_contacts: int
    bucket_sizes: tuple[int, ...]
    """Contacts in each bucket, the farthest bucket first."""
    network_size: float
    """How many nodes there are, estimated from the distances of our neighbours; exact while we know them all."""
    stored_records: int
    stored_bytes: int
    lookups: int
    lookups_answered: int
    """Lookups in which at least one peer answered."""
    requests_sent: int
    requests_served: int
    overdue: int
    """Requests that were not answered in time."""
    mean_rtt: float | None
    """Smoothed over all peers, in seconds."""
    drops: Mapping[str, int]
    """Datagrams that were dropped, by reason (`guard.DROP_REASONS`)."""
