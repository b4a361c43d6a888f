"""What a node does when nobody asks anything of it: know its neighbours, notice the dead, forget what expired.

Paced, so that an idle node sends a few hundred bytes a second at most, however large the swarm.
"""

import logging
import math
from random import Random

import attrs
import trio

from llamanet.dht.bootstrap import resolve, save_contacts
from llamanet.dht.config import DhtConfig
from llamanet.dht.overlay import Overlay
from llamanet.dht.routing import RoutingTable
from llamanet.dht.storage import RecordStore
from llamanet.wire.rpc import Contact

EXPLORE_S = 1.0
"""Between two lookups of our neighbourhood at least."""
CROWDED_S = 10.0
"""The same with more contacts than one bucket holds: newcomers then find us by their own lookups."""
AGAIN_S = 5.0
"""From a lookup that a new neighbour caused to the next one; doubled each time that it brought none."""
RETRY_S = 1.0
"""Until a contact that did not answer is pinged again."""
IDLE_S = 15.0
"""A contact heard from within this time is not pinged."""
SAVE_S = 60.0
ADDRESS_S = 10.0
"""Between two comparisons of the address announced with the one observed."""

logger = logging.getLogger(__name__)


@attrs.define
class Exploration:
    """When to look up our own neighbourhood. Times are in seconds.

    That is on joining, soon after each new neighbour, and ever more rarely while none comes.
    """

    longest: float
    """Between two lookups, however quiet it is."""
    looked_up_at: float = -math.inf
    _pause: float = attrs.field(init=False)
    _spacing: float = EXPLORE_S

    def __attrs_post_init__(self) -> None:
        self._pause = self.longest

    def pause(self, rng: Random) -> float:
        """How long to wait for something that calls for a lookup, before it is time for one anyway."""
        return self._pause * rng.uniform(0.75, 1.25)

    def due_at(self, *, called: bool, crowded: bool, client: bool) -> float:
        """When to look up: something called for it, or else the pause is over.

        `crowded` says that we have more contacts than one bucket holds, `client` that we only ask.
        """
        if called:
            self._pause = AGAIN_S
            self._spacing = CROWDED_S if crowded else EXPLORE_S
        else:
            self._pause = min(2 * self._pause, self.longest)
        if client:
            self._pause = self.longest
        return self.looked_up_at + self._spacing


async def explore(overlay: Overlay, rng: Random) -> None:
    """Look up our own neighbourhood whenever it is time, and then what we know too little of; for ever."""
    exploration = Exploration(overlay.config.refresh_interval)
    while True:
        with trio.move_on_after(exploration.pause(rng)):
            await overlay.explore.wait()
        called = overlay.explore.is_set()
        if called:
            overlay.explore = trio.Event()
        crowded = len(overlay.table) > overlay.config.k
        await trio.sleep_until(exploration.due_at(called=called, crowded=crowded, client=overlay.client_mode))
        if overlay.has_contacts:
            exploration.looked_up_at = trio.current_time()
            await overlay.find_nodes(overlay.identity.node_id, overlay.config.k)
            while not overlay.client_mode and (target := overlay.table.to_fill(rng)) is not None:
                await overlay.find_nodes(target, overlay.config.k // 2)


def pause_before_chores(table: RoutingTable, config: DhtConfig, now: float, rng: Random) -> float:
    """How long to wait for the next `chores`, in seconds."""
    pause = min(RETRY_S, config.liveness_interval) if table.has_urgent(now) else config.liveness_interval
    return pause * rng.uniform(0.75, 1.25)


def chores(table: RoutingTable, config: DhtConfig, now: float, rng: Random) -> tuple[Contact | None, bytes | None]:
    """Whom to ping now, and what to look up to refresh a bucket."""
    contact = table.to_check(now, retry_after=RETRY_S / 2, idle_after=IDLE_S)
    target = table.to_refresh(now, config.refresh_interval, rng) if len(table) else None
    return contact, target


async def keep_fresh(overlay: Overlay, store: RecordStore, rng: Random) -> None:
    """Ping who was silent longest, refresh buckets, drop expired records, save contacts; for ever."""
    config, table = overlay.config, overlay.table
    saved_at = -math.inf  # so that who is killed in its first minute comes back all the same
    while True:
        await trio.sleep(pause_before_chores(table, config, trio.current_time(), rng))
        now = trio.current_time()
        contact, target = chores(table, config, now, rng)
        if contact is not None:
            overlay.check(contact)
        store.expire(config.wall_clock())
        if overlay.has_contacts and now - saved_at >= SAVE_S:
            saved_at = now
            save_good_contacts(overlay)
        if target is not None:
            await overlay.find_nodes(target, config.k)


async def watch_address(overlay: Overlay) -> None:
    """Say it, once for each address, if peers see us elsewhere than where we tell others to reach us; for ever."""
    announce = overlay.config.announce
    told: set[str] = set()
    while True:
        await trio.sleep(ADDRESS_S)
        announced: set[str] = set()
        for host in announce:
            try:
                announced |= {address.host for address in await resolve(host, 1)}
            except (OSError, UnicodeError):  # perhaps only the peers can resolve it
                continue
        seen = overlay.observed_instead = overlay.votes.instead_of(announced)
        if seen is not None and seen not in told:
            told.add(seen)
            logger.warning(
                "announced address %s is not where peers see this node, which is %s: if others cannot reach it, "
                "announce the latter (--announce, ANNOUNCE), or forward both ports",
                ", ".join(announce),
                seen,
            )


def save_good_contacts(overlay: Overlay) -> None:
    """Save the contacts that have been with us longest, if there is a place for them."""
    good = sorted((entry for entry in overlay.table if not entry.failures), key=lambda entry: entry.since)
    if overlay.config.contacts_path is not None and good:
        save_contacts(overlay.config.contacts_path, tuple(entry.contact for entry in good))
