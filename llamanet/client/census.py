"""Who is there: verified records with the live state of each node that answers. The dead are left out."""

from collections.abc import Sequence

import attrs
import trio

from llamanet.client.directory import Directory, NodeRecord, Service
from llamanet.client.probe import ask
from llamanet.client.selection import load_of
from llamanet.dht.service import Dht
from llamanet.wire.facts import NodeFacts, ServiceFacts
from llamanet.wire.identity import PublicKey, node_id_of
from llamanet.wire.invite import MAX_INVITED_PEERS, InvitedPeer
from llamanet.wire.rpc import Address
from llamanet.wire.state import ModelState

ASKED_AT_ONCE = 64


@attrs.frozen(kw_only=True)
class NodeView:
    """A node that is alive. Sums are over the models that were asked for: all, or one."""

    node_id: str
    """Its label."""
    id: str
    """Its id, in hexadecimal."""
    models: tuple[str, ...]
    address: str
    """Of its inference endpoint, host:port."""
    running: int
    waiting: int
    slots: int
    load: float
    """Requests running and waiting, for each slot."""
    tokens_per_second: float
    """Of one stream; of the fastest model, if there are several."""
    ttft_s: float
    """Seconds to the first token that a short prompt should expect; of the quickest model."""
    draining: bool
    tls: bool
    version: str
    rtt: float
    """Seconds."""


@attrs.frozen(kw_only=True)
class ModelView:
    """A model that some node serves."""

    name: str
    digests: tuple[str, ...]
    """SHA-256 of the model files by this name, in hexadecimal; more than one is more than one file."""
    nodes: int
    slots: int
    running: int
    waiting: int
    n_ctx: int
    """Tokens a slot; the largest."""


async def list_nodes(dht: Dht, directory: Directory, model: str | None, node: str | None) -> list[NodeView]:
    """The nodes that answer, by label: those with the label or id `node`, those of `model`, or all."""
    if node is not None:
        return await _look_at_all(dht, await directory.named(node), model)
    if model is None:
        return await _look_at_all(dht, await directory.nodes(), None)
    return await _look_at_all(dht, await directory.all_services(model), model)


async def _look_at_all(dht: Dht, known: Sequence[NodeRecord] | Sequence[Service], model: str | None) -> list[NodeView]:
    views: list[NodeView] = []
    limiter = trio.CapacityLimiter(ASKED_AT_ONCE)

    async def look_at(public_key: PublicKey, facts: NodeFacts | ServiceFacts) -> None:
        async with limiter:
            answer = await ask(dht, public_key, facts.hosts, facts.dht_port, model)
        if answer is None:
            return
        pong = answer.pinged.pong
        states = [state for state in pong.models if model in (None, state.name)]
        if model is None or states:
            address = Address(answer.address.host, facts.port)
            views.append(_view(public_key, facts, address, states, pong.draining, pong.version, answer.pinged.rtt))

    async with trio.open_nursery() as nursery:
        for entry in known:
            nursery.start_soon(look_at, entry.public_key, entry.facts)
    return sorted(views, key=lambda view: (view.node_id, view.id))


def _view(
    public_key: PublicKey,
    facts: NodeFacts | ServiceFacts,
    address: Address,
    states: Sequence[ModelState],
    draining: bool,
    version: str,
    rtt: float,
) -> NodeView:
    running = sum(state.running for state in states)
    waiting = sum(state.waiting for state in states)
    slots = sum(state.slots for state in states)
    return NodeView(
        node_id=facts.label,
        id=node_id_of(public_key).hex(),
        models=tuple(state.name for state in states),
        address=str(address),
        running=running,
        waiting=waiting,
        slots=slots,
        load=load_of(running, waiting, slots),
        tokens_per_second=max((state.tokens_per_second for state in states), default=0.0),
        ttft_s=min((state.ttft_s for state in states), default=0.0),
        draining=draining,
        tls=facts.tls,
        version=version,
        rtt=rtt,
    )


async def list_invited(dht: Dht, directory: Directory) -> list[InvitedPeer]:
    """Nodes that answer, for others to join through: first each by its best host, then by its further ones."""
    alive: list[NodeRecord] = []

    async def look_at(node: NodeRecord) -> None:
        if await ask(dht, node.public_key, node.facts.hosts, node.facts.dht_port, None):
            alive.append(node)
            if len(alive) == MAX_INVITED_PEERS:
                nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for node in await directory.nodes():
            nursery.start_soon(look_at, node)
    ranked = [(rank, host, node) for node in alive for rank, host in enumerate(node.facts.hosts)]
    ranked.sort(key=lambda entry: entry[0])
    return [InvitedPeer(node.public_key, host, node.facts.dht_port) for _, host, node in ranked[:MAX_INVITED_PEERS]]


async def list_models(dht: Dht, directory: Directory) -> list[ModelView]:
    """The models that answering nodes serve, by name."""
    names = await directory.models(fresh=True)
    views: list[ModelView] = []

    async def look_at(name: str) -> None:
        known = await directory.all_services(name)
        nodes = await _look_at_all(dht, known, name)
        if not nodes:
            return
        alive = {node.id for node in nodes}
        services = [service for service in known if service.node_id.hex() in alive]
        view = ModelView(
            name=name,
            digests=tuple(sorted({service.facts.digest.hex() for service in services})),
            nodes=len(nodes),
            slots=sum(node.slots for node in nodes),
            running=sum(node.running for node in nodes),
            waiting=sum(node.waiting for node in nodes),
            n_ctx=max((service.facts.n_ctx for service in services), default=0),
        )
        views.append(view)

    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(look_at, name)
    return sorted(views, key=lambda view: view.name)
