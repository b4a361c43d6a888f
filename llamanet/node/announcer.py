"""Telling the swarm what a node serves, and taking it back when the node leaves.

Rules:
- Keys that many nodes share (`model:{name}`, `all_nodes`) get slow facts, every two minutes: load has no place there.
  A node's own keys (`node:{label}`, `node:{id}`) get its load, at every heartbeat.
- What changed is told at once: a model, a host, or peers that a small swarm's records should be kept by.
- `Published node info` is logged when what is published, or where, has changed; repetitions go to the debug log.
"""

import logging
import math
from collections.abc import Callable, Mapping
from random import Random

import attrs
import trio

from llamanet._version import __version__
from llamanet.dht.service import Dht
from llamanet.node.engine import Engine
from llamanet.wire.facts import (
    ALL_NODES,
    NodeFacts,
    ServiceFacts,
    encode_facts,
    key_of,
    model_key_name,
    node_key_name,
)

logger = logging.getLogger(__name__)

SHARED_INTERVAL_S = 120.0
SHARED_LIFETIME_S = 300
JITTER = 0.1
"""Share of an interval by which it varies, so that nodes that started together do not stay together."""
HEARTBEATS_A_LIFE = 3
SETTLE_S = 0.1
"""After a change, for the changes that come with it."""
SPACING_S = 1.0
"""Between two announcements that changes of peers cause."""
SMALL_SWARM = 16
"""With so many contacts or fewer, a newcomer may be among the nodes that should keep our records."""
WITHDRAW_S = 2.0


@attrs.frozen(kw_only=True)
class Place:
    """Where a node's endpoint is reached, and what it is called."""

    label: str
    port: int
    """Inference, TCP."""
    tls: bool
    announce: str | None
    """The host that others reach it by, if somebody said so."""
    local_hosts: tuple[str, ...]
    """What to say before any peer told the address that it sees."""


class Announcer:
    """Keeps the records of one node."""

    def __init__(
        self,
        dht: Dht,
        place: Place,
        engines: Mapping[str, Engine],
        *,
        heartbeat_interval: float,
        is_draining: Callable[[], bool],
        rng: Random | None = None,
    ) -> None:
        """`engines` is looked at anew for each announcement; `changed` says that it should be soon."""
        self._dht = dht
        self._place = place
        self._engines = engines
        self._heartbeat_interval = heartbeat_interval
        self._is_draining = is_draining
        self._rng = rng or Random()
        self._published: dict[str, bytes] = {}
        """Names of keys, and what was last logged of their values."""
        self._changed = trio.Event()

    def changed(self) -> None:
        """What the node serves has changed: tell it."""
        self._changed.set()

    async def run(self) -> None:
        """Announce until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_peers)
            shared_due = -math.inf
            while True:
                self._changed, changed = trio.Event(), self._changed.is_set()
                shared = changed or trio.current_time() >= shared_due
                if shared:
                    shared_due = trio.current_time() + self._jittered(SHARED_INTERVAL_S)
                await self._publish(shared=shared)
                with trio.move_on_after(self._jittered(self._heartbeat_interval)):
                    await self._changed.wait()
                    await trio.sleep(SETTLE_S)

    async def withdraw(self) -> None:
        """Take everything back, as far as that goes within `WITHDRAW_S`."""
        with trio.move_on_after(WITHDRAW_S):
            async with trio.open_nursery() as nursery:
                for name in self._published:
                    nursery.start_soon(self._dht.withdraw, key_of(name))

    def hosts(self) -> tuple[str, ...]:
        """The hosts that others can reach the node by, best first."""
        if self._place.announce is not None:
            return (self._place.announce,)
        return self._dht.observed_hosts() or self._place.local_hosts

    async def _watch_peers(self) -> None:
        while True:
            await self._dht.wait_peers_changed()
            if len(self._dht.contacts()) <= SMALL_SWARM:
                self._changed.set()
            await trio.sleep(SPACING_S)

    async def _publish(self, *, shared: bool) -> None:
        hosts = self.hosts()
        node_facts = self._node_facts(hosts)
        own_value = encode_facts(node_facts)
        own_lifetime = math.ceil(HEARTBEATS_A_LIFE * self._heartbeat_interval)
        records = [
            (node_key_name(name), own_value, own_lifetime) for name in (self._place.label, self._dht.identity.node_id)
        ]
        if shared:
            for engine in self._engines.values():
                value = encode_facts(self._service_facts(hosts, engine))
                records.append((model_key_name(engine.name), value, SHARED_LIFETIME_S))
            records.append((ALL_NODES, encode_facts(_without_load(node_facts)), SHARED_LIFETIME_S))
        async with trio.open_nursery() as nursery:
            for name, value, lifetime in records:
                nursery.start_soon(self._publish_one, name, value, lifetime)
        if shared:
            self._log(records)

    async def _publish_one(self, name: str, value: bytes, lifetime: int) -> None:
        await self._dht.publish(key_of(name), value, lifetime=lifetime)

    def _log(self, records: list[tuple[str, bytes, int]]) -> None:
        ...

    def _jittered(self, interval: float) -> float:
        return interval * self._rng.uniform(1 - JITTER, 1 + JITTER)

    def _service_facts(self, hosts: tuple[str, ...], engine: Engine) -> ServiceFacts:
        return ServiceFacts(
            hosts=hosts,
            port=self._place.port,
            dht_port=self._dht.port,
            tls=self._place.tls,
            label=self._place.label,
            digest=engine.digest,
            n_ctx=engine.n_ctx,
            slots=engine.slots,
            version=__version__,
        )
