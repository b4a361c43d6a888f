"""How does the DHT compare with PyPI's kademlia? Both on loopback in one process, a slice of each in turn.

What each does, so that the ratios can be read for what they are:

- PING, 20 at once: ours is boxed, matched to the address and key that were asked, and answered with version and state;
  theirs is plain text, matched by a random number, and answered with an id.
- put: ours looks up the 8 nearest nodes and sends each a signed record with the token that it gave; each checks token,
  signature and times. Theirs looks up its k = 20 nearest and sends each the bare value. Profile "20 replicas" is ours
  with as many, for comparison; it has no targets.
- get, by a node that holds nothing: ours asks nearer and nearer nodes for signed records and verifies what it found.
  Theirs asks three at a time, waits for all three, and takes the value that most of them tell.
- "equal" is both at k = 20, alpha = 3; "default" is ours at its own values (theirs are the same). Values: 100 bytes.
- A newcomer of ours is a client, theirs is a full node. Both know one peer.

A request is a datagram that asks for a reply. While one network runs, the other stands still, as its loop does; so each
gets a moment to itself after that, before it is measured. A ratio is the median of those of all rounds. Each size has a
process of its own; with `--quick` two of them run at once.
"""

import asyncio
import collections
import hashlib
import itertools
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
from parallel import in_processes
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
SETTLE_NODES = 4.0
"""Nodes that settle in a second after joining: for two minutes each of 512 looks up its new neighbours, ever more
rarely, which takes a fifth of a core at first."""
POLL_S = 0.001
"""Between two looks if a node of ours has looked itself up."""
PAUSE_S = 0.2
"""After a network stood still."""
UPKEEP_S = 60.0
"""Between two checks of a contact, and two refreshes of a bucket, of a node of ours; theirs refresh hourly, and never
check. Hundreds of nodes that have all just joined one process would else mostly measure their own upkeep."""
DEAD_SHARE = 0.2
SIZES = (32, 128, 512)
DEAD_SIZE = 128
VALUE = b"v" * 100


@attrs.frozen
class Profile:
    """How our nodes run."""

    k: int
    alpha: int
    replicas: int
    sizes: tuple[int, ...] = SIZES
    has_targets: bool = True


PROFILES = {
    "default": Profile(16, 4, 8),
    "20 replicas": Profile(20, 3, 20, sizes=(128,), has_targets=False),
    "equal": Profile(20, 3, 8),
}


@attrs.frozen
class Amounts:
    """How much is done in each round, and how many seconds a network settles for each second that it should."""

    rounds: int
    pings: int
    puts: int
    gets: int
    colds: int
    dead_gets: int
    settle: float


QUICK = Amounts(rounds=2, pings=500, puts=12, gets=100, colds=3, dead_gets=60, settle=1 / 64)
FULL = Amounts(rounds=5, pings=5000, puts=200, gets=1000, colds=20, dead_gets=400, settle=1.0)


@attrs.frozen
class Gets:
    """What gets came to: how many a second, requests for each, and how many found their value."""

    rate: float
    requests: float
    found: int


def nearest(numbers: Sequence[int], key: int) -> list[int]:
    """Indices of the nodes with these ids, the nearest to `key` first."""
    return sorted(range(len(numbers)), key=lambda index: numbers[index] ^ key)


class MutableTransport(UdpTransport):
    """UDP that can fall silent with its port still open, like a host that lost its cable."""

    muted = False

    async def receive(self, deliver: Deliver) -> None:
        with trio.CancelScope() as self._receiving:
            await super().receive(deliver)
        await trio.sleep_forever()

    def mute(self) -> None:
        self.muted = True
        self._receiving.cancel()


class Ours:
    """A network of our nodes."""

    def __init__(self, nursery: trio.Nursery, profile: Profile) -> None:
        self.nursery = nursery
        self.options: dict[str, Any] = {
            "hosts": (HOST,),
            "k": profile.k,
            "alpha": profile.alpha,
            "replicas": profile.replicas,
            "liveness_interval": UPKEEP_S,
        }
        self.nodes: list[Dht] = []
        self.transports: list[MutableTransport] = []
        self.written: collections.Counter[int] = collections.Counter()
        """Puts by each node."""

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
            while self.nodes and not dht.health().lookups:  # noqa: ASYNC110  # a node tells of no such event
                await trio.sleep(POLL_S)
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

    def writer(self, key: bytes) -> Dht:
        """As `reader`, but each in its turn: a holder keeps 32 keys of one publisher, and more would be refused."""
        ids = [int.from_bytes(node.identity.node_id, "big") for node in self.nodes]
        far = nearest(ids, int.from_bytes(key, "big"))[HOLDERS:]
        index = min(far, key=lambda index: self.written[index])
        self.written[index] += 1
        return self.nodes[index]

    async def puts(self, keys: Sequence[bytes], rng: random.Random) -> tuple[float, float]:
        writers = [self.writer(key) for key in keys]
        before = self.requests(writers)
        start = time.perf_counter()
        for node, key in zip(writers, keys, strict=True):
            if not (await node.publish(key, VALUE, lifetime=1800)).stored:
                raise RuntimeError("nobody stores")
        rate = len(keys) / (time.perf_counter() - start)
        return rate, (self.requests(writers) - before) / len(keys)

    async def gets(self, readers: Sequence[tuple[Any, bytes]]) -> "Gets":
        nodes = [node for node, _ in readers]
        before = self.requests(nodes)
        found = 0
        start = time.perf_counter()
        for node, key in readers:
            found += bool(await node.get(key, limit=1))
        rate = len(readers) / (time.perf_counter() - start)
        return Gets(rate, (self.requests(nodes) - before) / len(readers), found)

    def requests(self, nodes: Sequence[Dht]) -> int:
        """Sent so far by these nodes, their upkeep included."""
        return sum(node.health().requests_sent for node in {id(node): node for node in nodes}.values())

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
            self.transports[index].mute()


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

    def pause(self) -> None:
        self.run(asyncio.sleep(PAUSE_S))

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
            # It says no where it finds nobody to store at; what that costs shows in the gets that succeed.
            await node.set(key, VALUE)
            requests += node.transport.requests - before
        rate = len(keys) / (time.perf_counter() - start)
        return rate, requests / len(keys)

    async def gets(self, readers: Sequence[tuple[Any, bytes]]) -> "Gets":
        requests = found = 0
        start = time.perf_counter()
        for node, key in readers:
            before = node.transport.requests
            found += await node.get(key) is not None
            requests += node.transport.requests - before
        rate = len(readers) / (time.perf_counter() - start)
        return Gets(rate, requests / len(readers), found)

    async def colds(self, keys: Sequence[bytes]) -> list[float]:
        times = []
        for key in keys:
            start = time.perf_counter()
            server = await self.start(None)
            await server.get(key)  # found or not: it has done its best
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
    """Median of ours over theirs."""
    ratio = statistics.median(our / their for our, their in zip(ours, theirs, strict=True))
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


def succeeding(name: str, ours: int, theirs: int, count: int) -> Case:
    """Of `count` gets."""
    return Case(
        name=name,
        value=100 * ours / count,
        unit="%",
        better="higher",
        target=100.0,
        ours=f"{ours} of {count}",
        peer=f"{theirs} of {count}",
    )


def p95(times: Sequence[float]) -> float:
    return sorted(times)[int(0.95 * len(times))]


async def measure_size(
    size: int, name: str, profile: Profile, theirs: Theirs, amounts: Amounts, *, dead: bool
) -> list[Case]:
    """One of our networks against theirs of the same size."""
    rng = random.Random(size)
    label = f"N={size}, {name}"
    figures: dict[str, tuple[list[float], list[float]]] = {}
    found: list[tuple[int, int]] = []

    def note(what: str, our: float, their: float) -> None:
        ours_of, theirs_of = figures.setdefault(what, ([], []))
        ours_of.append(our)
        theirs_of.append(their)

    async with trio.open_nursery() as nursery:
        ours = Ours(nursery, profile)
        joins = await ours.join(size)
        theirs_joins = theirs.run(theirs.join(size)) if not theirs.nodes else None
        await trio.sleep(amounts.settle * size / SETTLE_NODES)
        keys: list[bytes] = []
        for turn in range(amounts.rounds):
            fresh = [b"key %s %d %d" % (name.encode(), turn, number) for number in range(amounts.puts)]
            our_keys = [hashlib.sha256(key).digest() for key in fresh]
            keys += fresh
            chosen = [rng.choice(keys) for _ in range(amounts.gets)]
            our_readers = [(ours.reader(key, rng), key) for key in (hashlib.sha256(key).digest() for key in chosen)]
            their_readers = [(theirs.reader(key, rng), key) for key in chosen]
            cold = chosen[: amounts.colds]

            await trio.sleep(PAUSE_S)
            our_pings = await ours.pings(amounts.pings)
            our_puts = await ours.puts(our_keys, rng)
            theirs.pause()
            note("PINGs", our_pings, theirs.run(theirs.pings(amounts.pings)))
            their_puts = theirs.run(theirs.puts(fresh, rng))
            note("puts", our_puts[0], their_puts[0])
            note("requests a put", our_puts[1], their_puts[1])

            await trio.sleep(PAUSE_S)
            our_first, our_again = await ours.gets(our_readers), await ours.gets(our_readers)
            our_cold = await ours.colds([hashlib.sha256(key).digest() for key in cold])
            theirs.pause()
            their_first, their_again = theirs.run(theirs.gets(their_readers)), theirs.run(theirs.gets(their_readers))
            note("gets", our_first.rate, their_first.rate)
            note("requests a get", our_first.requests, their_first.requests)
            note("gets, again", our_again.rate, their_again.rate)
            found.append((our_first.found, their_first.found))
            note("join and get", *(1e3 * statistics.median(t) for t in (our_cold, theirs.run(theirs.colds(cold)))))
        targets = {"PINGs": 1.0, "puts": 2.0, "requests a put": 0.6, "gets": 1.0, "gets, again": 1.0}
        units = {"requests a put": "", "requests a get": "", "join and get": "ms"}
        cases = [
            compare(
                f"{what} ({label})", *pair, units.get(what, "/s"), targets.get(what) if profile.has_targets else None
            )
            for what, pair in figures.items()
        ]
        cases.append(
            succeeding(f"gets that succeed ({label})", *map(sum, zip(*found, strict=True)), len(chosen) * len(found))
        )
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
        succeeding(f"gets that succeed, 20 % silent ({label})", our_found, their_found, len(chosen)),
    ]


async def measure_profiles(size: int, amounts: Amounts) -> list[Case]:
    cases: list[Case] = []
    theirs = Theirs()
    try:
        for name, profile in PROFILES.items():
            if size in profile.sizes:
                # At last, for the dead stay dead.
                dead = name == list(PROFILES)[-1] and size == DEAD_SIZE
                cases += await measure_size(size, name, profile, theirs, amounts, dead=dead)
    finally:
        theirs.close()
    return cases


def measure_alone(size: int, amounts: Amounts) -> list[Case]:
    """All that is measured with networks of one size, in this process."""
    logging.disable(logging.ERROR)  # theirs logs each lost request
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return trio.run(measure_profiles, size, amounts)


def measure(quick: bool) -> list[Case]:
    # The longest first.
    calls = [(measure_alone, (size, QUICK if quick else FULL)) for size in reversed(SIZES)]
    return list(itertools.chain.from_iterable(reversed(in_processes(2 if quick else 1, calls))))


if __name__ == "__main__":
    main(measure)
