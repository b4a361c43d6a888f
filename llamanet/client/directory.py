"""Which nodes serve what, from verified records in the DHT.

Rules:
- A record says that its publisher exists and what it serves; only an answer says that it is alive (`client/probe.py`).
- What was found is used for `FRESH_S` without another lookup; whoever finds it wanting looks up anew.
- What does not decode is left out, never reported: anybody may publish under any key.
"""

import attrs
import trio

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

FRESH_S = 10.0
MAX_SERVICES = 64
"""Of one model; in larger swarms a random sample, so that clients spread over all."""
MAX_NODES = 500
MAX_REMEMBERED = 64
"""Models whose services are remembered."""


@attrs.frozen(kw_only=True)
class Service:
    """One model on one node, as the node's signed record says."""

    public_key: PublicKey = attrs.field(repr=bytes.hex)
    model: str
    facts: ServiceFacts

    @property
    def node_id(self) -> NodeId:
        """The node's id."""
        return node_id_of(self.public_key)


@attrs.frozen(kw_only=True)
class NodeRecord:
    """One node, as its signed record says."""

    public_key: PublicKey = attrs.field(repr=bytes.hex)
    facts: NodeFacts


class Directory:
    """The services that a client has looked up."""

    def __init__(self, dht: Dht) -> None:
        self._dht = dht
        self._found: dict[str, tuple[float, list[Service]]] = {}

    async def services(self, model: str, *, fresh: bool = False) -> list[Service]:
        """The nodes that serve `model`; `fresh` looks them up now."""
        found_at, services = self._found.get(model, (-FRESH_S, []))
        if not fresh and services and trio.current_time() - found_at < FRESH_S:
            return services
        services = []
        for record in await self._dht.get(key_of(model_key_name(model)), limit=MAX_SERVICES):
            try:
                facts = decode_service_facts_untrusted(record.value)
            except BadMessage:
                continue
            services.append(Service(public_key=record.public_key, model=model, facts=facts))
        self._found.pop(model, None)
        self._found[model] = (trio.current_time(), services)
        if len(self._found) > MAX_REMEMBERED:
            del self._found[next(iter(self._found))]
        return services

    async def nodes(self) -> list[NodeRecord]:
        """All nodes, or in a large swarm a random sample of them."""
        nodes = []
        for record in await self._dht.get(key_of(ALL_NODES), limit=MAX_NODES):
            try:
                facts = decode_node_facts_untrusted(record.value)
            except BadMessage:
                continue
            nodes.append(NodeRecord(public_key=record.public_key, facts=facts))
        return nodes

    async def models(self) -> list[str]:
        """The names of the models that nodes list, sorted."""
        return sorted({model for node in await self.nodes() for model in node.facts.models})
