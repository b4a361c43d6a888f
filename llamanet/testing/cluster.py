"""Whole nodes and clients in one trio program: scripted models, an in-memory network, and disasters on command.

Everything but model and network is the real thing: DHT, engine, endpoint, TLS if asked for, choosing, failing over.
There are no threads in it, so it runs under trio's autojump clock:

    async def test_a_stream_survives_its_node(autojump_clock, nursery):
        cluster = Cluster(nursery)
        await cluster.start_nodes(2, step_time=0.01)
        client = await cluster.start_client()
        async with client.stream("hello", max_tokens=20) as stream:
            await stream.__anext__()
            cluster.kill(stream.node_id)
            async for chunk in stream:
                ...
"""

import hashlib
import math
from collections.abc import Callable
from random import Random
from typing import Any

import attrs
import trio
import trio.testing

from llamanet.client.client import SwarmClient
from llamanet.dht.service import Dht, DhtConfig, serve_dht
from llamanet.node.host import Host, Model
from llamanet.testing.backend import ScriptedBackend, TrioWorker
from llamanet.testing.network import MemoryNetwork, MemoryTransport
from llamanet.wire.identity import Identity
from llamanet.wire.rpc import Address

EPOCH = 1_900_000_000.0
"""Seconds since 1970 at trio's time 0."""
PORT, DHT_PORT = 8000, 8001
BOOTSTRAP_PEERS = 8
SETTLE_S = 2.5
"""After it, nodes that started together know each other's records."""


class Link(trio.abc.Stream):
    """A node's end of a connection, where disasters strike."""

    def __init__(self, node: "ClusterNode", stream: trio.abc.Stream) -> None:
        self._node = node
        self._stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send, unless the node is frozen; `node.tamper` may change what is sent, or break the connection."""
        await self._node.thawed.wait()
        if self._node.lag:
            await trio.sleep(self._node.lag)
        sent = self._node.tamper(bytes(data)) if self._node.tamper else data
        if sent is None:
            self.cut()
            raise trio.BrokenResourceError
        await self._stream.send_all(sent)

    async def wait_send_all_might_not_block(self) -> None:
        """As any stream's."""
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive, unless the node is frozen."""
        data = await self._stream.receive_some(max_bytes)
        await self._node.thawed.wait()
        return data

    async def aclose(self) -> None:
        """Close."""
        self._node.links.discard(self)
        await self._stream.aclose()

    def cut(self) -> None:
        """Break the connection for both sides."""
        self._node.links.discard(self)
        stream = self._stream
        if isinstance(stream, trio.StapledStream):
            stream.send_stream.close()
            stream.receive_stream.close()


class _Listener(trio.abc.Listener[Link]):
    def __init__(self) -> None:
        self.connect, self._connections = trio.open_memory_channel[Link](math.inf)

    async def accept(self) -> Link:
        return await self._connections.receive()

    async def aclose(self) -> None:
        self._connections.close()
        await trio.lowlevel.checkpoint()


@attrs.define(eq=False, kw_only=True)
class ClusterNode:
    """A node of a cluster."""

    label: str
    address: Address
    """Of its endpoint."""
    dht: Dht
    host: Host
    backends: list[ScriptedBackend]
    """One for each time that its model was loaded."""
    tamper: Callable[[bytes], bytes | None] | None = None
    """Sees each piece that the node writes to a connection, without TLS a whole websocket frame, and returns what is
    written instead; None breaks the connection."""
    lag: float = 0.0
    """Seconds by which each piece that it writes is late."""
    thawed: trio.Event
    """Set unless the node is frozen."""
    links: set[Link] = attrs.field(factory=set)
    listener: _Listener
    scope: trio.CancelScope

    @property
    def backend(self) -> ScriptedBackend:
        """Of its model as it was loaded last."""
        return self.backends[-1]


class Cluster:
    """Nodes and clients that live in `nursery`."""

    def __init__(self, nursery: trio.Nursery, network: MemoryNetwork | None = None, *, seed: int = 0) -> None:
        """`network` carries the datagrams (default: one without loss, with some delay); `seed` is of all randomness."""
        self.network = network or MemoryNetwork(seed=seed, delay=(0.0005, 0.001))
        self.nodes: dict[str, ClusterNode] = {}
        """By label, in the order of their start; those that were killed are gone."""
        self._nursery = nursery
        self._seed = seed
        self._members = 0

    async def start_node(
        self,
        label: str,
        *,
        model: str = "alpha",
        digest: bytes = bytes(32),
        tls: bool = False,
        max_waiting: int = 64,
        idle_unload: float = math.inf,
        make_backend: Callable[..., ScriptedBackend] = ScriptedBackend,
        **script: Any,
    ) -> ClusterNode:
        """A node that serves one scripted model; `script` are fields of what `make_backend` makes."""
        identity, transport = self._join()
        backends: list[ScriptedBackend] = []
        host = Host(
            identity,
            label=label,
            tls=tls,
            make_worker=TrioWorker,
            max_waiting=max_waiting,
            idle_unload=idle_unload,
        )
        address = Address(transport.addresses[0].host, PORT)
        listener = _Listener()
        scope = trio.CancelScope()

        def load() -> ScriptedBackend:
            backends.append(make_backend(**script))
            return backends[-1]

        async def run(*, task_status: trio.TaskStatus[ClusterNode]) -> None:
            with scope:
                async with trio.open_nursery() as nursery:
                    dht = await self._start_dht(nursery, identity, transport, host, client_mode=False)
                    loaded = Model(name=model, digest=digest, make_backend=load)
                    await nursery.start(host.serve_model, loaded)
                    thawed = trio.Event()
                    thawed.set()
                    node = ClusterNode(
                        label=label,
                        address=address,
                        dht=dht,
                        host=host,
                        backends=backends,
                        thawed=thawed,
                        listener=listener,
                        scope=scope,
                    )
                    self.nodes[label] = node
                    task_status.started(node)
                    await host.serve(dht, [listener], address)
                    nursery.cancel_scope.cancel()

        node: ClusterNode = await self._nursery.start(run)
        return node

    async def start_nodes(self, count: int, **options: Any) -> list[ClusterNode]:
        """Nodes "node-0", "node-1", ..., each known to all when this returns."""
        nodes = [await self.start_node(f"node-{number}", **options) for number in range(count)]
        await trio.sleep(SETTLE_S)
        return nodes

    async def start_client(self, nursery: trio.Nursery | None = None, **options: Any) -> SwarmClient:
        """Somebody who only asks, in `nursery` or the cluster's own; `options` are those of `SwarmClient`."""
        nursery = nursery or self._nursery
        identity, transport = self._join()
        dht = await self._start_dht(nursery, identity, transport, None, client_mode=True)
        rng = Random(f"{self._seed} {self._members}")
        return SwarmClient(dht, nursery, open_stream=self.open_stream, rng=rng, **options)

    async def open_stream(self, host: str, port: int) -> trio.abc.Stream:
        """A connection to a node's endpoint. Raises `ConnectionRefusedError` if no node lives there."""
        await trio.lowlevel.checkpoint()
        for node in self.nodes.values():
            if node.address == Address(host, port):
                ours, theirs = trio.testing.memory_stream_pair()
                link = Link(node, theirs)
                node.links.add(link)
                node.listener.connect.send_nowait(link)
                return ours
        raise ConnectionRefusedError(f"nobody listens on {Address(host, port)}")

    def kill(self, label: str) -> None:
        """End a node as `kill -9` does: its connections break, and nobody hears from it."""
        node = self.nodes.pop(label)
        self.network.kill(Address(node.address.host, DHT_PORT))
        for link in list(node.links):
            link.cut()
        node.scope.cancel()

    def freeze(self, label: str) -> None:
        """Stop a node as `SIGSTOP` does: its connections stay open, and nothing comes out of it."""
        node = self.nodes[label]
        node.thawed = trio.Event()
        self.network.pause(Address(node.address.host, DHT_PORT))

    def thaw(self, label: str) -> None:
        """Let a frozen node go on."""
        node = self.nodes[label]
        node.thawed.set()
        self.network.resume(Address(node.address.host, DHT_PORT))

    def _join(self) -> tuple[Identity, MemoryTransport]:
        self._members += 1
        name = f"{self._seed} {self._members}"
        identity = Identity.from_seed(hashlib.sha256(name.encode()).digest())
        return identity, self.network.transport(f"10.0.{self._members >> 8}.{self._members & 255}", DHT_PORT)

    async def _start_dht(
        self,
        nursery: trio.Nursery,
        identity: Identity,
        transport: MemoryTransport,
        host: Host | None,
        *,
        client_mode: bool,
    ) -> Dht:
        peers = [Address(node.address.host, DHT_PORT) for node in self.nodes.values()]
        config = DhtConfig(
            bootstrap=tuple(str(peer) for peer in peers[-BOOTSTRAP_PEERS:]),
            client_mode=client_mode,
            wall_clock=lambda: EPOCH + trio.current_time(),
            seed=self._seed + self._members,
        )

        async def run(*, task_status: trio.TaskStatus[Dht]) -> None:
            live_state = host.live_state if host is not None else None
            await serve_dht(identity, config, live_state=live_state, transport=transport, task_status=task_status)

        dht: Dht = await nursery.start(run)
        return dht
