"""What a node does when nobody asks anything of it: know its neighbours, notice the dead, forget what expired.

Paced, so that an idle node sends a few hundred bytes a second at most, however large the swarm.
"""

import math
from random import Random

import trio

from llamanet.dht.bootstrap import save_contacts
from llamanet.dht.overlay import Overlay
from llamanet.dht.storage import RecordStore

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


async def explore(overlay: Overlay, rng: Random) -> None:
    """Look up our own neighbourhood: on joining, soon after each new neighbour, ever more rarely while none comes."""
    longest = overlay.config.refresh_interval
    pause = longest
    looked_up_at, spacing = -math.inf, EXPLORE_S
    while True:
        with trio.move_on_after(pause * rng.uniform(0.75, 1.25)):
            await overlay.explore.wait()
        if overlay.explore.is_set():
            overlay.explore = trio.Event()
            pause = AGAIN_S
            spacing = EXPLORE_S if len(overlay.table) <= overlay.config.k else CROWDED_S
        else:
            pause = min(2 * pause, longest)
        if overlay.client_mode:
            pause = longest
        await trio.sleep_until(looked_up_at + spacing)
        if overlay.has_contacts:
            looked_up_at = trio.current_time()
            await overlay.find_nodes(overlay.identity.node_id, overlay.config.k)


async def keep_fresh(overlay: Overlay, store: RecordStore, rng: Random) -> None:
    """Ping who was silent longest, refresh buckets, drop expired records, save contacts; for ever."""
    config, table = overlay.config, overlay.table
    saved_at = trio.current_time()
    while True:
        pause = min(RETRY_S, config.liveness_interval) if table.has_failing else config.liveness_interval
        await trio.sleep(pause * rng.uniform(0.75, 1.25))
        now = trio.current_time()
        contact = table.to_check(now, retry_after=RETRY_S / 2, idle_after=IDLE_S)
        if contact is not None:
            overlay.check(contact)
        store.expire(config.wall_clock())
        if now - saved_at >= SAVE_S:
            saved_at = now
            save_good_contacts(overlay)
        target = table.to_refresh(now, config.refresh_interval, rng) if overlay.has_contacts else None
        if target is not None:
            await overlay.find_nodes(target, config.k)


def save_good_contacts(overlay: Overlay) -> None:
    """Save the contacts that have been with us longest, if there is a place for them."""
    good = sorted((entry for entry in overlay.table if not entry.failures), key=lambda entry: entry.since)
    if overlay.config.contacts_path is not None and good:
        save_contacts(overlay.config.contacts_path, tuple(entry.contact for entry in good))
