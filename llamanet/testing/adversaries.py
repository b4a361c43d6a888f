"""Bad nodes for a simulation: silent, lying, flooding, and Sybils next to a key.

An adversary is a node with a `behaviour` in place of its handlers. It answers PINGs like anybody, for that is what gets
it into tables; its other answers are its own.
"""

import hashlib
import heapq
from collections.abc import Sequence

from llamanet.dht.distance import number_of
from llamanet.testing.simulated_node import TRANSACTION, SimulatedNode
from llamanet.testing.simulator import Simulation
from llamanet.wire.identity import Identity
from llamanet.wire.rpc import (
    MAX_CONTACTS,
    TOKEN_BYTES,
    Contact,
    FindNode,
    FindValue,
    Nodes,
    Ping,
    Pong,
    Reply,
    Request,
    Stored,
    Values,
)


def silent(node: SimulatedNode, request: Request, asker: Contact) -> Reply | None:
    """Answers PINGs, and nothing else: it stays in tables, and costs each lookup a timeout."""
    if isinstance(request, Ping):
        return Pong(transaction=request.transaction, observed=asker.address)
    return None


class Liars:
    """Nodes that act together: each tells of the others alone, says that it stores, and has nothing.

    Give an instance as the `behaviour` of its members.
    """

    def __init__(self, members: Sequence[SimulatedNode]) -> None:
        self._contacts = [member.contact for member in members]

    def __call__(self, node: SimulatedNode, request: Request, asker: Contact) -> Reply | None:
        """The nearest of us to what is asked for, and no record."""
        transaction, observed, token = request.transaction, asker.address, bytes(TOKEN_BYTES)
        if isinstance(request, Ping):
            return Pong(transaction=transaction, observed=observed)
        if isinstance(request, FindNode):
            contacts = self._nearest(request.target)
            return Nodes(transaction=transaction, observed=observed, token=token, contacts=contacts)
        if isinstance(request, FindValue):
            return Values(
                transaction=transaction,
                observed=observed,
                token=token,
                records=(),
                total=0,
                next_cursor=None,
                contacts=self._nearest(request.key),
            )
        return Stored(transaction=transaction, observed=observed)

    def _nearest(self, target: bytes) -> tuple[Contact, ...]:
        number = number_of(target)
        return tuple(heapq.nsmallest(MAX_CONTACTS, self._contacts, key=lambda contact: contact.number ^ number))


def corrupt(sim: Simulation, *, silent_share: float, lying_share: float) -> list[SimulatedNode]:
    """Turn random nodes of `sim` into silent ones and into liars who act together; they keep their places in tables."""
    silent_count, lying_count = int(silent_share * len(sim.nodes)), int(lying_share * len(sim.nodes))
    bad = sim.rng.sample(sim.nodes, silent_count + lying_count)
    liars = Liars(bad[silent_count:])
    for number, node in enumerate(bad):
        node.behaviour = silent if number < silent_count else liars
    return bad


def add_sybils(sim: Simulation, key: bytes, count: int, *, subnets: int) -> list[SimulatedNode]:
    """`count` liars whose ids are nearer to `key` than any other node's, spread over so many subnets; they join.

    Their ids are really ground: keys are drawn until the SHA-256 of one is near enough. That takes about as many draws
    for each Sybil as there are nodes: no obstacle in a network of thousands.
    """
    number = number_of(key)
    nearest = min(node.contact.number ^ number for node in sim.nodes)
    sybils = []
    for index in range(count):
        identity = _grind(sim, number, nearest)
        subnet = index % subnets
        sybils.append(
            sim.start(identity=identity, host=f"{100 + (subnet >> 8)}.7.{subnet & 255}.{1 + index // subnets}")
        )
    liars = Liars(sybils)
    for sybil in sybils:
        sybil.behaviour = liars
    for sybil in sybils:
        sybil.join(sim.random_peer(sybil))
    return sybils


def _grind(sim: Simulation, number: int, nearest: int) -> Identity:
    """An identity whose id is nearer to `number` than `nearest`."""
    while True:
        identity = Identity.from_seed(sim.rng.randbytes(32))
        if number_of(identity.node_id) ^ number < nearest:
            return identity


def flood(attacker: SimulatedNode, victim: SimulatedNode, *, rate: float, seconds: float) -> None:
    """From now on `attacker` sends `victim` so many requests a second, for so long, each for another key."""
    sim = attacker.simulation
    end = sim.now + seconds

    def send() -> None:
        target = hashlib.sha256(sim.rng.randbytes(8)).digest()
        request = FindNode(transaction=TRANSACTION, client=False, target=target)
        attacker.ask(victim.contact, request, lambda contact, reply: None)
        if sim.now + 1 / rate < end:
            sim.after(1 / rate, send)

    send()
