"""How to run a DHT node, and the constants of the overlay in one place."""

import time
from collections.abc import Callable
from pathlib import Path

import attrs

from llamanet.wire.envelope import Network


@attrs.frozen(kw_only=True)
class DhtConfig:
    """The settings of one node. Intervals are in seconds."""

    hosts: tuple[str, ...] = ("0.0.0.0",)
    """IP addresses to bind, IPv4 and IPv6, all on one port."""
    port: int = 0
    """UDP; 0 takes any free one."""
    bootstrap: tuple[str, ...] = ()
    """Peers to join through, as host:port. With none we start a swarm."""
    network: Network = attrs.Factory(Network)
    announce: tuple[str, ...] = ()
    """Hosts, by name or address, that we tell others to reach us by; with none they are told what peers observe."""
    client_mode: bool = False
    """Only ask: answer nobody, and be in nobody's table (as read-only nodes in BitTorrent, BEP 43)."""
    contacts_path: Path | None = None
    """Where good contacts are kept, so that the next run joins without its bootstrap peers."""
    wall_clock: Callable[[], float] = time.time
    """Seconds since 1970, which lifetimes of records refer to."""
    k: int = 16
    """Contacts in a bucket and in a reply (a datagram holds 16 with their keys)."""
    alpha: int = 4
    """Requests of one lookup under way while it gets nearer."""
    replicas: int = 8
    """Nodes that keep each record."""
    refresh_interval: float = 15 * 60.0
    """A bucket in which nothing was looked up for this long is looked up."""
    liveness_interval: float = 5.0
    """Between two pings of the contact that was silent longest."""
    seed: int | None = None
    """Of jitter and samples; None draws one."""
