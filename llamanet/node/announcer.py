"""Telling the swarm what a node serves, and taking it back when the node leaves.

Rules:
- Keys that many nodes share (`model:{name}` and its shards, `all_nodes`) get slow facts, every two minutes: load has no
  place there. What has a new key is told again soon, and then ever more rarely, for a model may have far more nodes a
  moment after we joined, and readers then look for us in shards that we did not know of.
- A node's own keys (`node:{label}`, `node:{id}`) get its load: at the next heartbeat if it changed, else at every
  second one, before the last record expires. Some holders are told, without looking them up: a reader asks them all.
- Of a model that many nodes serve we are in the root and in two shards (`dht/shards.py`); when the depth changes, what
  we left in other shards expires by itself, so that readers who still look there find us.
- What changes is told at once: a model, our address, or peers that should keep a small swarm's records.
- `Published node info` is logged when what is published, or where, has changed; repetitions go to the debug log.
- What every peer refuses is not said to be published: the cause, and what to do, is said once. Our own copy is no help.
"""

import ipaddress
import logging
import math
import socket
from collections.abc import Callable, Sequence
from random import Random

import attrs
import trio

from llamanet.dht.service import Dht
from llamanet.dht.shards import shard_names
from llamanet.dht.storage import Refusal
from llamanet.wire.facts import (
    ALL_NODES,
    NodeFacts,
    ServiceFacts,
    announced_hosts,
    encode_facts,
    is_model_key_name,
    key_of,
    model_key_name,
    node_key_name,
)
from llamanet.wire.rpc import Contact

log = logging.getLogger(__name__)

SHARED_INTERVAL_S = 120.0
SOON_S = 5.0
"""After what has a new key, so at the next heartbeat; doubled each time up to `SHARED_INTERVAL_S` while none is new."""
SHARED_LIFETIME_S = 300
HEARTBEATS_A_LIFE = 3
HEARTBEAT_HOLDERS = 3
"""Who are told of the load between two lookups of all holders."""
JITTER = 0.1
"""Share of an interval by which it varies, so that nodes that started together do not stay together."""
SPACING_S = 1.0
"""Between two announcements that peers cause."""
SETTLE_S = 0.05
"""After a change, for others that come with it."""
SMALL_SWARM = 16
"""With so many contacts or fewer, a newcomer may be one of the nodes that should keep our records."""
WITHDRAW_S = 2.0
REMEDIES = {
    Refusal.TIME.value: "this machine's clock is probably off by more than a minute: set it, best by NTP",
    Refusal.KEYS.value: "serve fewer models from one node",
    Refusal.FULL.value: "start more nodes, or publish fewer keys",
}
"""What to do where all peers refuse a record, by why they do. Other refusals, as of a sample, are in good order."""


@attrs.frozen(kw_only=True)
class Announcement:
    """What a node has to say: of itself, and of each model."""

    node: NodeFacts
    services: tuple[tuple[str, ServiceFacts], ...]


@attrs.frozen
class _Held:
    """A record of ours: the name that its key is a shard of, or its own, and when it expires, on trio's clock."""

    root: str
    until: float


class Announcer:
    """Keeps one node's records in the swarm."""

    def __init__(
        self,
        dht: Dht,
        describe: Callable[[tuple[str, ...]], Announcement],
        *,
        announce: str | None,
        bound_host: str,
        heartbeat_interval: float,
        rng: Random | None = None,
    ) -> None:
        """`describe(hosts)` is called for each announcement; `hosts` are what `Announcer.hosts` says.

        `announce` are the hosts that others reach the node by, if somebody said so; `bound_host` the address that its
        endpoint listens on; `heartbeat_interval` is in seconds.
        """
        self._dht = dht
        self._describe = describe
        self._announce = announce
        self._local_hosts = local_hosts(bound_host)
        self._heartbeat_interval = heartbeat_interval
        self._rng = rng or Random()
        self._changed = trio.Event()
        self._settled = trio.Event()
        self._held: dict[str, _Held] = {}
        """What holds something of ours, as far as we know, by its key's name."""
        self._told: object = None
        self._told_load: NodeFacts | None = None
        """At the last heartbeat; None if that one was skipped, for it would have told nothing new."""
        self._warned: set[str] = set()
        """Refusals that were told of."""

    def refresh(self) -> None:
        """What the node serves has changed: tell it now."""
        self._changed.set()
        if self._settled.is_set():
            self._settled = trio.Event()

    async def wait_settled(self) -> None:
        """Return when all that the node serves is published."""
        await self._settled.wait()

    def hosts(self) -> tuple[str, ...]:
        """The hosts that others can reach the node by, best first."""
        if self._announce is not None:
            return announced_hosts(self._announce)
        return self._dht.observed_hosts() or self._local_hosts

    async def serve(self) -> None:
        """Announce until cancelled. `withdraw` takes back what was announced."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_peers)
            await self._keep_announcing()

    async def withdraw(self) -> None:
        """Take back everything, as far as that goes within `WITHDRAW_S`."""
        self._told = None
        self._settled = trio.Event()
        with trio.move_on_after(WITHDRAW_S):
            await self._withdraw(list(self._held))

    async def _keep_announcing(self) -> None:
        shared_due, hosts, pause = -math.inf, self.hosts(), SOON_S
        while True:
            now = trio.current_time()
            anew = self._told is None or self._changed.is_set() or self.hosts() != hosts
            if anew or now >= shared_due:
                self._changed, hosts = trio.Event(), self.hosts()
                known = set(self._held)
                await self._publish_all(hosts, anew=anew)
                if not self._held.keys() <= known:
                    pause = SOON_S
                elif not anew:
                    pause = min(2 * pause, SHARED_INTERVAL_S)
                shared_due = now + self._jittered(pause)
                if not self._changed.is_set():
                    self._settled.set()
            if not anew:
                await self._tell_load(self._describe(hosts).node)
            with trio.move_on_after(self._jittered(self._heartbeat_interval)):
                await self._changed.wait()
                await trio.sleep(SETTLE_S)

    async def _watch_peers(self) -> None:
        known: frozenset[Contact] = frozenset()
        while True:
            contacts = frozenset(self._dht.contacts())
            if contacts <= known:
                await self._dht.wait_peers_changed()
                continue
            known = contacts
            if len(contacts) <= SMALL_SWARM:
                self.refresh()
            await trio.sleep(SPACING_S)

    async def _tell_load(self, facts: NodeFacts) -> None:
        if facts == self._told_load:
            self._told_load = None
            return
        await self._publish(self._own_records(facts), holders=HEARTBEAT_HOLDERS)
        self._told_load = facts

    async def _publish_all(self, hosts: tuple[str, ...], *, anew: bool) -> None:
        """Publish everything, `anew` at the nodes that are nearest now; else what is shared, where it was last."""
        announcement = self._describe(hosts)
        without_load = attrs.evolve(announcement.node, running=0, waiting=0, tokens_per_second=0.0)
        shared: dict[str, ServiceFacts | NodeFacts] = {
            **{model_key_name(model): facts for model, facts in announcement.services},
            ALL_NODES: without_load,
        }
        own = self._own_records(announcement.node)
        records = {name: (encode_facts(facts), SHARED_LIFETIME_S) for name, facts in shared.items()}
        if anew:
            records |= own
            self._told_load = announcement.node
        refused = await self._publish(records, holders=None if anew else self._dht.config.replicas)
        names = shared.keys() | own.keys()
        now = trio.current_time()
        self._held = {name: held for name, held in self._held.items() if held.until > now}
        await self._withdraw([name for name, held in self._held.items() if held.root not in names])
        told = (without_load, announcement.services)
        level = logging.DEBUG if told == self._told else logging.INFO
        self._told = told
        place = f"{', '.join(hosts)} port {announcement.node.port}"
        if names - refused:
            log.log(level, "Published node info: %s (at %s)", ", ".join(sorted(names - refused)), place)

    def _own_records(self, facts: NodeFacts) -> dict[str, tuple[bytes, int]]:
        lifetime = math.ceil(HEARTBEATS_A_LIFE * self._heartbeat_interval)
        names = (node_key_name(facts.label), node_key_name(self._dht.identity.node_id))
        return dict.fromkeys(names, (encode_facts(facts), lifetime))

    async def _publish(self, records: dict[str, tuple[bytes, int]], *, holders: int | None) -> set[str]:
        """Publish under all names, at so many of the last `holders` or (None) at the nearest nodes.

        Returns the names whose records no other node would keep, which is said once.
        """
        refused: dict[str, str] = {}

        async def publish(name: str, root: str, value: bytes, lifetime: int) -> None:
            self._held[name] = _Held(root, trio.current_time() + lifetime)
            if holders is None:
                published = await self._dht.publish(key_of(name), value, lifetime=lifetime)
            else:
                published = await self._dht.renew(key_of(name), value, lifetime=lifetime, most=holders)
            if not published.elsewhere:
                refused.update((name, reason) for reason in REMEDIES.keys() & published.refusals)
            if name == root and is_model_key_name(name):
                for shard in shard_names(name, self._dht.identity.node_id, published.publishers):
                    nursery.start_soon(publish, shard, root, value, lifetime)

        async with trio.open_nursery() as nursery:
            for name, (value, lifetime) in records.items():
                nursery.start_soon(publish, name, name, value, lifetime)
        for reason in sorted(set(refused.values()) - self._warned):
            names = ", ".join(sorted(name for name in refused if refused[name] == reason))
            log.warning("no peer stores %s, for the reason %r: %s", names, reason, REMEDIES[reason])
            self._warned.add(reason)
        return set(refused)

    async def _withdraw(self, names: Sequence[str]) -> None:
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(self._dht.withdraw, key_of(name))
        for name in names:
            del self._held[name]

    def _jittered(self, interval: float) -> float:
        return interval * self._rng.uniform(1 - JITTER, 1 + JITTER)


def local_hosts(bound_host: str) -> tuple[str, ...]:
    """What a node listening on `bound_host` can say of itself before any peer told it the address that it sees."""
    if not ipaddress.ip_address(bound_host).is_unspecified:
        return (bound_host,)
    family, anywhere, loopback = socket.AF_INET, "192.0.2.1", "127.0.0.1"
    if ":" in bound_host:
        family, anywhere, loopback = socket.AF_INET6, "2001:db8::1", "::1"
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            # Sends nothing: connecting a UDP socket only asks the system for the route, and so for our address on it.
            probe.connect((anywhere, 9))
        except OSError:
            return (loopback,)
        host: str = probe.getsockname()[0]
        return (host,)
