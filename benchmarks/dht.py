"""How does the DHT compare with PyPI's kademlia? Both on loopback in one process, a slice of each in turn.

Theirs neither signs nor encrypts nor authenticates. "Equal" is both at k = 20, alpha = 3; "default" is ours at its own
values (theirs are the same). Readers are never holders. A request is a datagram that asks for a reply.
"""

import asyncio
import hashlib
import logging
import random
import resource
import statistics
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import attrs
import trio
from report import Case, main, spread

from llamanet.dht.service import Dht, DhtConfig, serve_dht
from llamanet.dht.transport import Deliver, UdpTransport
from llamanet.wire.identity import Identity
from llamanet.wire.rpc import Address, Contact

try:
    from kademlia.network import Server
    from kademlia.utils import digest
except ImportError as error:
    raise SystemExit("the peer is not installed: pip install 'llamanet[bench]'") from error

T = TypeVar("T")

HOST = "127.0.0.1"
HOLDERS = 20
"""The larger number of replicas of the two: whoever is not among the nearest 20 holds nothing."""
ASKERS = 20
"""Tasks that PING at once."""
SETTLE_S = 2.0
UPKEEP_S = 60.0
"""Between two checks of a contact, and two refreshes of a bucket, of a node of ours; theirs refresh hourly, and never
check. Hundreds of nodes that have all just joined one process would else mostly measure their own upkeep."""
DEAD_SHARE = 0.2
SIZES = (32, 128, 512)
DEAD_SIZE = 128
VALUE = b"v" * 100
PROFILES = {"default": (16, 4), "equal": (20, 3)}


@attrs.frozen
class Amounts:
    """How much is done in each round."""

    rounds: int
    pings: int
    puts: int
    gets: int
    colds: int
    dead_gets: int


QUICK = Amounts(rounds=2, pings=500, puts=12, gets=100, colds=5, dead_gets=60)
FULL = Amounts(rounds=5, pings=5000, puts=200, gets=1000, colds=20, dead_gets=400)


def nearest(numbers: Sequence[int], key: int) -> list[int]:
    """Indices of the nodes with these ids, the nearest to `key` first."""
    return sorted(range(len(numbers)), key=lambda index: numbers[index] ^ key)


class MutableTransport(UdpTransport):
    """UDP that can fall silent with its port still open, like a host that lost its cable."""

    muted = False

    async def receive(self, deliver: Deliver) -> None:
        await super().receive(lambda datagram, source: None if self.muted else deliver(datagram, source))


class Ours:
    """A network of our nodes."""

    def __init__(self, nursery: trio.Nursery, k: int, alpha: int) -> None:
        self.nursery = nursery
        self.options: dict[str, Any] = {"hosts": (HOST,), "k": k, "alpha": alpha, "liveness_interval": UPKEEP_S}
        self.nodes: list[Dht] = []
        self.transports: list[MutableTransport] = []

    async def start(self, *, client_mode: bool = False) -> tuple[Dht, MutableTransport]:
        transport = MutableTransport.bind((HOST,), 0)
        config = DhtConfig(
            bootstrap=(f"{HOST}:{self.nodes[0].port}",) if self.nodes else (),
            client_mode=client_mode,
            **self.options,
        )
        seed = hashlib.sha256(b"%d %d" % (client_mode, len(self.nodes))).digest()
        identity = Identity.generate() if client_mode else Identity.from_seed(seed)

        async def run(*, task_status: trio.TaskStatus[Dht]) -> None:
            await serve_dht(identity, config, transport=transport, task_status=task_status)

        dht: Dht = await self.nursery.start(run)
        await dht.wait_joined()
        return dht, transport

    async def join(self, count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            dht, transport = await self.start()
            await dht.find_nodes(dht.identity.node_id)
            self.nodes.append(dht)
            self.transports.append(transport)
        return count / (time.perf_counter() - start)

    def reader(self, key: bytes, rng: random.Random) -> Dht:
        ids = [int.from_bytes(node.identity.node_id, "big") for node in self.nodes]
        far = nearest(ids, int.from_bytes(key, "big"))[HOLDERS:]
        return self.nodes[rng.choice([index for index in far if not self.transports[index].muted])]

    async def pings(self, count: int) -> float:
        peer = Contact(self.nodes[1].identity.public_key, Address(HOST, self.nodes[1].port))

        async def ping() -> None:
            for _ in range(count // ASKERS):
                await self.nodes[0].ping(peer)

        start = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(ASKERS):
                nursery.start_soon(ping)
        return count / (time.perf_counter() - start)

    async def puts(self, keys: Sequence[bytes], rng: random.Random) -> tuple[float, float]:
        writers = [self.reader(key, rng) for key in keys]
        requests = 0
        start = time.perf_counter()
        for node, key in zip(writers, keys, strict=True):
            before = node.health().requests_sent
            if not (await node.publish(key, VALUE, lifetime=1800)).stored:
                raise RuntimeError("nobody stores")
            requests += node.health().requests_sent - before
        rate = len(keys) / (time.perf_counter() - start)
        return rate, requests / len(keys)

    async def gets(self, readers: Sequence[tuple[Any, bytes]]) -> float:
        start = time.perf_counter()
        for node, key in readers:
            if not await node.get(key, limit=1):
                raise RuntimeError("not found")
        return len(readers) / (time.perf_counter() - start)

    async def colds(self, keys: Sequence[bytes]) -> list[float]:
        """Seconds from a bare newcomer that knows one peer to its first value."""
        times = []
        for key in keys:
            start = time.perf_counter()
            dht, _ = await self.start(client_mode=True)
            if not await dht.get(key, limit=1):
                raise RuntimeError("not found")
            times.append(time.perf_counter() - start)
        return times

    async def at_once(self, readers: Sequence[tuple[Any, bytes]]) -> tuple[list[float], int]:
        times: list[float] = []
        found = 0

        async def get(node: Dht, key: bytes) -> None:
            nonlocal found
            start = time.perf_counter()
            records = await node.get(key, limit=1)
            found += bool(records)
            times.append(time.perf_counter() - start)

        async with trio.open_nursery() as nursery:
            for node, key in readers:
                nursery.start_soon(get, node, key)
        return times, found

    def mute(self, dead: Sequence[int]) -> None:
        for index in dead:
            self.transports[index].muted = True


class Counting:
    """A transport of asyncio that counts requests."""

    def __init__(self, transport: asyncio.DatagramTransport) -> None:
        self.transport = transport
        self.requests = 0

    def sendto(self, data: bytes, address: tuple[str, int]) -> None:
        self.requests += data[:1] == b"\0"
        self.transport.sendto(data, address)

    def close(self) -> None:
        self.transport.close()


class Theirs:
    """A network of kademlia's nodes, in a thread that runs only while we wait for it: two loops do not nest."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = ThreadPoolExecutor(1)
        self.nodes: list[Any] = []
        self.newcomers: list[Any] = []
        self.muted: set[int] = set()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.thread.submit(self.loop.run_until_complete, work).result()

    async def start(self, number: int | None) -> Any:
        # None draws a random id.
        node_id = None if number is None else hashlib.sha1(b"%d" % number).digest()
        server = Server(node_id=node_id)
        await server.listen(0, HOST)
        server.protocol.transport = server.transport = Counting(server.transport)
        server.port = server.transport.transport.get_extra_info("sockname")[1]
        if self.nodes:
            await server.bootstrap([(HOST, self.nodes[0].port)])
        return server

    async def join(self, count: int) -> float:
        start = time.perf_counter()
        for number in range(count):
            self.nodes.append(await self.start(number))
        return count / (time.perf_counter() - start)

    def reader(self, key: bytes, rng: random.Random) -> Any:
        far = nearest([node.node.long_id for node in self.nodes], int(digest(key).hex(), 16))[HOLDERS:]
        return self.nodes[rng.choice([index for index in far if index not in self.muted])]

    async def pings(self, count: int) -> float:
        asker = self.nodes[0]

        async def ping() -> None:
            for _ in range(count // ASKERS):
                await asker.protocol.ping((HOST, self.nodes[1].port), asker.node.id)

        start = time.perf_counter()
        await asyncio.gather(*(ping() for _ in range(ASKERS)))
        return count / (time.perf_counter() - start)

    async def puts(self, keys: Sequence[bytes], rng: random.Random) -> tuple[float, float]:
        writers = [self.reader(key, rng) for key in keys]
        requests = 0
        start = time.perf_counter()
        for node, key in zip(writers, keys, strict=True):
            before = node.transport.requests
            if not await node.set(key, VALUE):
                raise RuntimeError("nobody stores")
            requests += node.transport.requests - before
        rate = len(keys) / (time.perf_counter() - start)
        return rate, requests / len(keys)

    async def gets(self, readers: Sequence[tuple[Any, bytes]]) -> float:
        start = time.perf_counter()
        for node, key in readers:
            if await node.get(key) is None:
                raise RuntimeError("not found")
        return len(readers) / (time.perf_counter() - start)

    async def colds(self, keys: Sequence[bytes]) -> list[float]:
        times = []
        for key in keys:
            start = time.perf_counter()
            server = await self.start(None)
            if await server.get(key) is None:
                raise RuntimeError("not found")
            times.append(time.perf_counter() - start)
            self.newcomers.append(server)  # not stopped yet: dead nodes would cost every later lookup 5 s
        return times

    async def at_once(self, readers: Sequence[tuple[Any, bytes]]) -> tuple[list[float], int]:
        async def get(node: Any, key: bytes) -> tuple[float, bool]:
            start = time.perf_counter()
            value = await node.get(key)
            return time.perf_counter() - start, value is not None

        outcomes = await asyncio.gather(*(get(node, key) for node, key in readers))
        return [elapsed for elapsed, _ in outcomes], sum(found for _, found in outcomes)

    def mute(self, dead: Sequence[int]) -> None:
        self.muted.update(dead)
        for index in dead:
            self.nodes[index].protocol.datagram_received = lambda data, address: None

    async def stop(self) -> None:
        for node in self.nodes + self.newcomers:
            node.stop()

    def close(self) -> None:
        self.run(self.stop())
        self.thread.submit(self.loop.close).result()
        self.thread.shutdown()


def compare(name: str, ours: Sequence[float], theirs: Sequence[float], unit: str, target: float | None) -> Case:
    """Median of ours over median of theirs."""
    ratio = statistics.median(ours) / statistics.median(theirs)
    better = "higher" if unit.endswith("/s") else "lower"
    return Case(
        name=name,
        value=ratio,
        unit="x",
        better=better,
        target=target,
        ours=spread(ours, unit),
        peer=spread(theirs, unit),
    )


def p95(times: Sequence[float]) -> float:
    return sorted(times)[int(0.95 * len(times))]


async def measure_size(size: int, profile: str, theirs: Theirs, amounts: Amounts, *, dead: bool) -> list[Case]:
    """One of our networks against theirs of the same size."""
    rng = random.Random(size)
    label = f"N={size}, {profile}"
    figures: dict[str, tuple[list[float], list[float]]] = {}

    def note(name: str, our: float, their: float) -> None:
        ours_of, theirs_of = figures.setdefault(name, ([], []))
        ours_of.append(our)
        theirs_of.append(their)

    async with trio.open_nursery() as nursery:
        ours = Ours(nursery, *PROFILES[profile])
        joins = await ours.join(size)
        theirs_joins = theirs.run(theirs.join(size)) if not theirs.nodes else None
        await trio.sleep(SETTLE_S)
        keys: list[bytes] = []
        for turn in range(amounts.rounds):
            fresh = [b"key %s %d %d" % (profile.encode(), turn, number) for number in range(amounts.puts)]
            our_keys = [hashlib.sha256(key).digest() for key in fresh]
            note("PINGs", await ours.pings(amounts.pings), theirs.run(theirs.pings(amounts.pings)))
            our_put, their_put = await ours.puts(our_keys, rng), theirs.run(theirs.puts(fresh, rng))
            note("puts", our_put[0], their_put[0])
            note("requests a put", our_put[1], their_put[1])
            keys += fresh
            chosen = [rng.choice(keys) for _ in range(amounts.gets)]
            our_readers = [(ours.reader(key, rng), key) for key in (hashlib.sha256(key).digest() for key in chosen)]
            their_readers = [(theirs.reader(key, rng), key) for key in chosen]
            note("gets", await ours.gets(our_readers), theirs.run(theirs.gets(their_readers)))
            note("gets, again", await ours.gets(our_readers), theirs.run(theirs.gets(their_readers)))
            cold = chosen[: amounts.colds]
            our_cold = await ours.colds([hashlib.sha256(key).digest() for key in cold])
            note("join and get", *(1e3 * statistics.median(t) for t in (our_cold, theirs.run(theirs.colds(cold)))))
        cases = [
            compare(f"PINGs ({label})", *figures["PINGs"], "/s", 1.0),
            compare(f"puts ({label})", *figures["puts"], "/s", 2.0),
            compare(f"requests a put ({label})", *figures["requests a put"], "", 0.6),
            compare(f"gets ({label})", *figures["gets"], "/s", 1.0),
            compare(f"gets, again ({label})", *figures["gets, again"], "/s", 1.0),
            compare(f"cold: join and first get ({label})", *figures["join and get"], "ms", None),
        ]
        if theirs_joins is not None:
            cases.insert(0, compare(f"joins ({label})", [joins], [theirs_joins], "/s", None))
        if dead:
            cases += await measure_dead(ours, theirs, keys, amounts, rng, label)
        nursery.cancel_scope.cancel()
    return cases


async def measure_dead(
    ours: Ours, theirs: Theirs, keys: Sequence[bytes], amounts: Amounts, rng: random.Random, label: str
) -> list[Case]:
    """A fifth of the nodes falls silent, and at once the others read."""
    dead = rng.sample(range(1, len(ours.nodes)), int(DEAD_SHARE * len(ours.nodes)))
    ours.mute(dead)
    theirs.mute(dead)
    chosen = [rng.choice(keys) for _ in range(amounts.dead_gets)]
    our_keys = [hashlib.sha256(key).digest() for key in chosen]
    our_times, our_found = await ours.at_once([(ours.reader(key, rng), key) for key in our_keys])
    their_times, their_found = theirs.run(theirs.at_once([(theirs.reader(key, rng), key) for key in chosen]))
    return [
        compare(f"p95 of gets, 20 % silent ({label})", [p95(our_times)], [p95(their_times)], "s", 0.1),
        Case(
            name=f"gets that succeed, 20 % silent ({label})",
            value=100 * our_found / len(chosen),
            unit="%",
            better="higher",
            target=100.0,
            ours=f"{our_found} of {len(chosen)}",
            peer=f"{their_found} of {len(chosen)}",
        ),
    ]


async def measure_all(amounts: Amounts) -> list[Case]:
    cases: list[Case] = []
    for size in SIZES:
        theirs = Theirs()
        try:
            for profile in PROFILES:
                last = profile == list(PROFILES)[-1]
                cases += await measure_size(size, profile, theirs, amounts, dead=last and size == DEAD_SIZE)
        finally:
            theirs.close()
    return cases


def measure(quick: bool) -> list[Case]:
    logging.disable(logging.ERROR)  # theirs logs each lost request
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return trio.run(measure_all, QUICK if quick else FULL)


if __name__ == "__main__":
    main(measure)
