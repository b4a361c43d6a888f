"""Which nodes serve what, from verified records in the DHT.

Rules:
- A record says that its publisher exists and what it serves; only an answer says that it is alive (`client/probe.py`).
- Requests do not wait for lookups: what was found is used for `FRESH_S`, and while it is in use it is looked up anew in
  the background every `REFRESH_S`. Whoever finds it wanting looks up at once. However many want the same, there is one
  lookup of it at a time.
- Most of those in the background take one node's word, which may be a copy near us: that spares the holders of a model
  with many clients. They only add to what is known; every `COMPLETE_S` one hears several holders, and takes away.
- A lookup that finds nothing proves little: what an earlier one found stays for its `FRESH_S`.
- What does not decode is left out, never reported: anybody may publish under any key.
"""

import functools
import math
from collections.abc import Awaitable, Callable, Hashable, Sequence
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
    node_key_name,
)
from llamanet.wire.identity import NodeId, PublicKey, node_id_of
from llamanet.wire.record import Record

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

FRESH_S = 60.0
REFRESH_S = 2.0
COMPLETE_S = 20.0
MAX_SERVICES = 64
"""Of one model; in larger swarms a random sample, so that clients spread over all."""
ANY_MODELS = 8
"""Names of models that are looked at when any will do."""
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


@attrs.define
class _Found(Generic[T]):
    """What lookups of one thing found. Times are on trio's clock."""

    entries: Sequence[T] = ()
    found_at: float = -math.inf
    """When `entries` were."""
    looked_at: float = -math.inf
    lookup: trio.Event | None = None
    """Set when the lookup under way has ended."""


class _Shelf(Generic[K, T]):
    """What was looked up, by key; `look_up` looks. Lookups run in `nursery`, for all who wait for them."""

    def __init__(
        self,
        nursery: trio.Nursery,
        look_up: Callable[[K, bool], Awaitable[Sequence[T]]],
        same: Callable[[T], Hashable],
    ) -> None:
        """`look_up(key, copies)`; of two entries that are the `same`, the later found counts."""
        self._nursery = nursery
        self._look_up = look_up
        self._same = same
        self._shelf: dict[K, _Found[T]] = {}

    async def get(self, key: K, *, fresh: bool) -> Sequence[T]:
        """What is there, or, if that is too old or should be `fresh`, what a lookup brings now."""
        found = self._shelf.pop(key, None) or _Found()
        self._shelf[key] = found
        if len(self._shelf) > MAX_REMEMBERED:
            del self._shelf[next(iter(self._shelf))]
        now = trio.current_time()
        # Nothing is never fresh: whatever is missing may have come meanwhile.
        wanting = fresh or not found.entries or now - found.found_at > FRESH_S
        if found.lookup is None and (wanting or now - found.looked_at > REFRESH_S):
            found.lookup = trio.Event()
            copies = not wanting and now - found.found_at < COMPLETE_S
            self._nursery.start_soon(self._run, key, found, found.lookup, copies)
        if wanting and found.lookup is not None:
            await found.lookup.wait()
        return found.entries

    async def _run(self, key: K, found: _Found[T], ended: trio.Event, copies: bool) -> None:
        try:
            entries = await self._look_up(key, copies)
            found.looked_at = now = trio.current_time()
            if copies:
                known = {self._same(entry): entry for entry in (*found.entries, *entries)}
                found.entries = tuple(known.values())
            elif entries or now - found.found_at > FRESH_S:
                found.entries, found.found_at = entries, now
        finally:
            found.lookup = None
            ended.set()


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
    """What a client has looked up. Lookups run in `nursery`."""

    def __init__(self, dht: Dht, nursery: trio.Nursery) -> None:
        self._dht = dht
        self._services: _Shelf[str, Service] = _Shelf(nursery, self._look_up, lambda service: service.public_key)
        self._names: _Shelf[None, str] = _Shelf(nursery, self._look_up_names, lambda name: name)

    async def services(self, model: str | None, *, fresh: bool = False) -> Sequence[Service]:
        """The nodes that serve `model`, or with None one of the first `ANY_MODELS`; `fresh` looks them up now."""
        if model is not None:
            return await self._services.get(model, fresh=fresh)
        models = (await self.models(fresh=fresh))[:ANY_MODELS]
        return [service for name in models for service in await self._services.get(name, fresh=fresh)]

    async def room(self, model: str | None, queued: int) -> int:
        """How many requests the known nodes have slots for, and `queued` for each node."""
        return sum(service.facts.slots + queued for service in await self.services(model))

    async def _look_up(self, model: str, copies: bool) -> Sequence[Service]:
        records = await sample(self._dht, model_key_name(model), MAX_SERVICES, copies=copies)
        return _services_untrusted(model, records)

    async def all_services(self, model: str) -> Sequence[Service]:
        """All nodes that serve `model`, at most `MAX_NODES`; looked up now."""
        return _services_untrusted(model, await everyone(self._dht, model_key_name(model), MAX_NODES))

    async def nodes(self) -> Sequence[NodeRecord]:
        """All nodes, or in a large swarm a random sample of them; looked up now."""
        return await self._nodes(ALL_NODES)

    async def named(self, label_or_id: str) -> Sequence[NodeRecord]:
        """The nodes with a label, or the one with an id (in hexadecimal); looked up now, in a swarm of any size."""
        nodes = await self._nodes(node_key_name(label_or_id))
        return [node for node in nodes if label_or_id in (node.facts.label, node_id_of(node.public_key).hex())]

    async def _nodes(self, name: str, *, copies: bool = False) -> Sequence[NodeRecord]:
        nodes = []
        for record in await self._dht.get(key_of(name), limit=MAX_NODES, copies=copies):
            try:
                facts = decode_node_facts_untrusted(record.value)
            except BadMessage:
                continue
            nodes.append(NodeRecord(public_key=record.public_key, facts=facts))
        return nodes

    async def models(self, *, fresh: bool = False) -> Sequence[str]:
        """The names of the models that nodes list, sorted; `fresh` looks them up now."""
        return sorted(await self._names.get(None, fresh=fresh))

    async def _look_up_names(self, _: None, copies: bool) -> Sequence[str]:
        nodes = await self._nodes(ALL_NODES, copies=copies)
        return tuple({model for node in nodes for model in node.facts.models})
