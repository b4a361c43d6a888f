"""Which nodes serve what, from verified records in the DHT.

Rules:
- A record says that its publisher exists and what it serves; only an answer says that it is alive (`client/probe.py`).
- Requests do not wait for lookups: what was found is used for `FRESH_S`, and while it is in use it is looked up anew in
  the background every `REFRESH_S`. Whoever finds it wanting looks up at once.
- What does not decode is left out, never reported: anybody may publish under any key.
"""

import functools
import math
from collections.abc import Sequence
from typing import Generic, TypeVar

import attrs
import trio

from llamanet.dht.members import everyone, sample
from llamanet.dht.service import Dht
from llamanet.errors import BadMessage
from llamanet.wire.facts import (
    ALL_NODES,
    NodeFacts,
    ServiceFacts,
    decode_node_facts_untrusted,
    decode_service_facts_untrusted,
    key_of,
    model_key_name,
)
from llamanet.wire.identity import NodeId, PublicKey, node_id_of
from llamanet.wire.record import Record

T = TypeVar("T")

FRESH_S = 60.0
REFRESH_S = 2.0
MAX_SERVICES = 64
"""Of one model; in larger swarms a random sample, so that clients spread over all."""
MAX_NODES = 500
MAX_REMEMBERED = 64
"""Models whose services are remembered."""


@attrs.frozen(kw_only=True, cache_hash=True)
class Service:
    """One model on one node, as the node's signed record says."""

    public_key: PublicKey = attrs.field(repr=bytes.hex)
    model: str
    facts: ServiceFacts

    @functools.cached_property
    def node_id(self) -> NodeId:
        """The node's id."""
        return node_id_of(self.public_key)


@attrs.frozen(kw_only=True)
class NodeRecord:
    """One node, as its signed record says."""

    public_key: PublicKey = attrs.field(repr=bytes.hex)
    facts: NodeFacts


@attrs.frozen
class _Found(Generic[T]):
    """What a lookup found. Nothing is never fresh: whatever is missing may have come meanwhile."""

    entries: Sequence[T]
    at: float = attrs.field(factory=trio.current_time)

    @property
    def age(self) -> float:
        """Seconds since the lookup."""
        return trio.current_time() - self.at if self.entries else math.inf


def _services_untrusted(model: str, records: Sequence[Record]) -> list[Service]:
    services = []
    for record in records:
        try:
            facts = decode_service_facts_untrusted(record.value)
        except BadMessage:
            continue
        services.append(Service(public_key=record.public_key, model=model, facts=facts))
    return services


class Directory:
    """What a client has looked up. Lookups in the background run in `nursery`."""

    def __init__(self, dht: Dht, nursery: trio.Nursery) -> None:
        self._dht = dht
        self._nursery = nursery
        self._services: dict[str, _Found[Service]] = {}
        self._names: _Found[str] = _Found(())
        self._refreshing: set[str] = set()

    async def services(self, model: str, *, fresh: bool = False) -> Sequence[Service]:
        """The nodes that serve `model`; `fresh` looks them up now."""
        found = self._services.get(model, _Found(()))
        if fresh or found.age > FRESH_S:
            return await self._look_up(model)
        if found.age > REFRESH_S and model not in self._refreshing:
            self._refreshing.add(model)
            self._nursery.start_soon(self._refresh, model)
        return found.entries

    async def _refresh(self, model: str) -> None:
        try:
            await self._look_up(model)
        finally:
            self._refreshing.discard(model)

    async def _look_up(self, model: str) -> Sequence[Service]:
        services = _services_untrusted(model, await sample(self._dht, model_key_name(model), MAX_SERVICES))
        self._services.pop(model, None)
        self._services[model] = _Found(services)
        if len(self._services) > MAX_REMEMBERED:
            del self._services[next(iter(self._services))]
        return services

    async def all_services(self, model: str) -> Sequence[Service]:
        """All nodes that serve `model`, at most `MAX_NODES`; looked up now."""
        return _services_untrusted(model, await everyone(self._dht, model_key_name(model), MAX_NODES))

    async def nodes(self) -> Sequence[NodeRecord]:
        """All nodes, or in a large swarm a random sample of them; looked up now."""
        nodes = []
        for record in await self._dht.get(key_of(ALL_NODES), limit=MAX_NODES):
            try:
                facts = decode_node_facts_untrusted(record.value)
            except BadMessage:
                continue
            nodes.append(NodeRecord(public_key=record.public_key, facts=facts))
        return nodes

    async def models(self, *, fresh: bool = False) -> Sequence[str]:
        """The names of the models that nodes list, sorted; `fresh` looks them up now."""
        if fresh or self._names.age > FRESH_S:
            self._names = _Found(sorted({model for node in await self.nodes() for model in node.facts.models}))
        return self._names.entries
