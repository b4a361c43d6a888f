"""How a node's DHT is doing, as data for tables, doctors and metrics."""

import math
from collections.abc import Iterable, Mapping

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
    network_size_error: float
    """The standard error of that, as a share of it."""
    stored_records: int
    stored_bytes: int
    lookups: int
    lookups_answered: int
    """Lookups in which at least one peer answered."""
    requests_sent: int
    requests_served: int
    overdue: int
    """Requests that were not answered in time."""
    unsent: int
    """Requests that a limit of ours, or our own system, kept from being sent."""
    mean_rtt: float | None
    """Smoothed over all peers, in seconds."""
    rtt_percentiles: Mapping[int, float]
    """The 50th, 90th and 99th percentile of the latest round trips, in seconds; empty before the first."""
    announced: tuple[str, ...]
    """The hosts that we tell others to reach us by; none if those are the observed ones."""
    observed: Mapping[str, int]
    """Our hosts as peers see them, with the number of subnets that say so."""
    observed_instead: str | None
    """The host that most peers see us at, if it is none of those announced."""
    drops: Mapping[str, int]
    """Datagrams that were dropped, by reason (`guard.DROP_REASONS`)."""
    refused: Mapping[str, int]
    """Records of ours that peers refused to store, by reason (the values of `storage.Refusal`)."""

    @property
    def summary(self) -> str:
        """One line: how many nodes there are, who answers us, and where peers see us."""
        error = f" ± {self.network_size * self.network_size_error:.0f}" if self.network_size_error else ""
        seen = max(self.observed, key=lambda host: self.observed[host], default=None)
        parts = [
            f"about {self.network_size:.0f}{error} nodes",
            f"{self.contacts} contacts, {self.failing_contacts} of them silent",
            f"{self.overdue} of {self.requests_sent} requests unanswered",
            f"peers see us at {seen}" if seen else "no peer has answered us",
        ]
        if self.observed_instead:
            parts[-1] += f", not at {', '.join(self.announced)}"
        if self.rtt_percentiles:
            parts.insert(3, f"round trips of {1000 * self.rtt_percentiles[50]:.0f} ms (median)")
        return "; ".join(parts)


def percentiles(values: Iterable[float]) -> dict[int, float]:
    """The 50th, 90th and 99th percentile of `values`, by nearest rank; none of nothing."""
    ranked = sorted(values)
    return {share: ranked[math.ceil(share / 100 * len(ranked)) - 1] for share in (50, 90, 99)} if ranked else {}
