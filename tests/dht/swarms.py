"""Contacts, records and whole swarms for the DHT's tests."""

import hashlib
import random
from collections.abc import Sequence
from typing import Any

import trio

from llamanet.dht.service import Dht, DhtConfig, serve_dht
from llamanet.testing.network import MemoryNetwork
from llamanet.wire.envelope import Envelope, Network
from llamanet.wire.identity import Identity, PublicKey
from llamanet.wire.record import Record
from llamanet.wire.rpc import Address, Contact, encode_rpc

EPOCH = 1_900_000_000.0


def virtual_wall_clock() -> float:
    return EPOCH + trio.current_time()


def contact(number: int, host: str | None = None) -> Contact:
    """A contact with its own address; its id is as good as random."""
    host = host or f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    return Contact(PublicKey(number.to_bytes(32, "big")), Address(host, 4000 + number % 60_000))


def unsigned_record(key: int, publisher: int, sequence: int = 1, *, issued: int = 1000, lifetime: int = 300) -> Record:
    return Record(
        key=hashlib.sha256(b"key %d" % key).digest(),
        public_key=PublicKey(publisher.to_bytes(32, "big")),
        sequence=sequence,
        issued_at=issued,
        lifetime=lifetime,
        value=b"v" * (publisher % 50),
        signature=bytes(64),
    )


def identity(number: int) -> Identity:
    return Identity.from_seed(hashlib.sha256(b"identity %d" % number).digest())


class Swarm:
    """DHT nodes over one in-memory network, each with its own cancel scope."""

    def __init__(self, nursery: trio.Nursery, network: MemoryNetwork | None = None) -> None:
        self.nursery = nursery
        self.network = network or MemoryNetwork(seed=1, delay=(0.005, 0.02))
        self.addresses: dict[Dht, Address] = {}
        self.scopes: dict[Dht, trio.CancelScope] = {}

    async def start(
        self, number: int, *, bootstrap: Sequence[Any] = (), address: Address | None = None, **options: Any
    ):
        host, port = (address.host, address.port) if address else (f"10.1.{number >> 8}.{number & 255}", 8001)
        transport = self.network.transport(host, port)
        peers = tuple(str(self.addresses[peer]) if isinstance(peer, Dht) else str(peer) for peer in bootstrap)
        live_state = options.pop("live_state", None)
        config = DhtConfig(bootstrap=peers, wall_clock=virtual_wall_clock, seed=number, **options)
        scope = trio.CancelScope()

        async def run(task_status: trio.TaskStatus[Dht]) -> None:
            with scope:
                await serve_dht(
                    identity(number), config, live_state=live_state, transport=transport, task_status=task_status
                )

        dht: Dht = await self.nursery.start(run)
        self.addresses[dht] = transport.addresses[0]
        self.scopes[dht] = scope
        return dht

    async def start_many(self, count: int, **options: Any) -> list[Dht]:
        """The first node is the bootstrap peer of the rest."""
        first = await self.start(0, **options)
        nodes = [first, *[await self.start(number, bootstrap=[first], **options) for number in range(1, count)]]
        for node in nodes[1:]:
            await node.wait_joined()
        await trio.sleep(5)
        return nodes

    def kill(self, dht: Dht) -> None:
        self.network.kill(self.addresses[dht])
        self.scopes[dht].cancel()


class Attacker:
    """Speaks the protocol by hand, from any address."""

    def __init__(self, swarm, host="10.6.6.6", *, network=None):
        address = Address(host, 666)
        self.transport = swarm.network.transport(address.host, address.port)
        self.network = swarm.network
        self.address = address
        self.identity = identity(666)
        self.envelope = Envelope(self.identity, network or Network())
        self.received = []
        swarm.nursery.start_soon(self.transport.receive, lambda datagram, source: self.received.append(datagram))

    def send(self, swarm, victim, datagram, source=None):
        self.network.send(datagram, source or self.address, swarm.addresses[victim])

    def seal(self, victim, message, pad_to=0):
        return self.envelope.seal(victim.identity.public_key, encode_rpc(message, pad_to=pad_to))


def closest_nodes(nodes: Sequence[Dht], key: bytes, count: int) -> list[Dht]:
    number = int.from_bytes(key, "big")
    return sorted(nodes, key=lambda node: int.from_bytes(node.identity.node_id, "big") ^ number)[:count]


def key(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def seeded(seed: int) -> random.Random:
    return random.Random(seed)
