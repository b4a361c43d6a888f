"""How do DHT lookups grow with the network? Simulated: the real lookup, table, store and handlers, a virtual clock.

Hops are those of probe-lab's RFM 19.1 ("Balanced Buckets Report", 2023, results/rfm19.1-kademlia-balanced-buckets.md in
probe-lab/network-measurements), whose simulation of IPFS gives 1.929 with 25,000 peers, k = 20, concurrency 10 and
replication 20: 0 if the reader is one of the 20 nodes nearest to the key, 1 if one of the 10 nearest contacts in its
table is, 2 if one of the 10 nearest contacts in those contacts' tables is, and so on. It is told twice: for real reads,
as the number of nodes from the reader to the holder whose record came first; and by that procedure, in strict rounds,
over the nodes' tables. Theirs are filled at random with perfect knowledge. Ours are what joining leaves, by the nodes'
own lookups; where a bucket has room after that, random nodes answer, as in a swarm that has lived for a while, and the
table decides. What joining alone leaves is told beside it.

"Bad" has the settings that nodes have by default, a median round trip of 80 ms, 1 % of messages lost, and 20 % of all
nodes silently dead after the records were stored. The full run draws docs/dht_scale.png.
"""

import gc
import heapq
import math
import statistics
import time
from collections.abc import Sequence

import attrs
from report import ROOT, Case, main
from simulated import key, percentile, resident_bytes

from llamanet.dht.distance import number_of
from llamanet.testing.simulator import Found, Put, SimulatedNode, Simulation

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise SystemExit("the plot needs matplotlib: pip install 'llamanet[bench]'") from error

FULL_SIZES = (1000, 5000, 25_000)
QUICK_SIZES = (200, 400, 800)
RFM = {"k": 20, "alpha": 10, "replicas": 20}
"""The settings of RFM 19.1."""
DEAD_SHARE = 0.2
LOSS = 0.01
PLOT = ROOT / "docs" / "dht_scale.png"


@attrs.frozen(kw_only=True)
class Grown:
    """What was measured in a network of one size."""

    size: int
    puts: list[Put]
    reads: list[Found]
    rounds: list[int]
    joined_rounds: list[int]
    """Before the tables were settled."""
    seconds: float
    bytes: int

    @property
    def hops(self) -> float:
        return statistics.mean(read.hops for read in self.reads if read.hops is not None)

    @property
    def put_requests(self) -> float:
        return statistics.mean(put.requests for put in self.puts)

    @property
    def read_requests(self) -> float:
        return statistics.mean(read.requests for read in self.reads)


def rounds_to(sim: Simulation, reader: SimulatedNode, target: bytes) -> int:
    """Hops from `reader` to one of the nodes nearest to `target`, by RFM 19.1's procedure."""
    number = number_of(target)
    contacts = (node.contact for node in sim.nodes)
    holders = set(heapq.nsmallest(sim.config.replicas, contacts, key=lambda contact: contact.number ^ number))
    frontier, hops = [reader.contact], 0
    while not holders.intersection(frontier):
        told = {
            contact for asked in frontier for contact in sim.at(asked.address).table.closest(target, sim.config.alpha)
        }
        frontier = heapq.nsmallest(sim.config.alpha, told, key=lambda contact: contact.number ^ number)
        hops += 1
    return hops


def many_rounds(sim: Simulation, count: int) -> list[int]:
    return [rounds_to(sim, sim.rng.choice(sim.nodes), sim.rng.randbytes(32)) for _ in range(count)]


def grow(size: int, count: int) -> Grown:
    start = time.process_time()
    before = resident_bytes()
    sim = Simulation(seed=size, **RFM)
    sim.grow(size)
    joined_rounds = many_rounds(sim, count)
    sim.settle()
    grown_bytes = resident_bytes() - before
    puts = [sim.put(sim.rng.choice(sim.nodes), key(number), b"v" * 100) for number in range(count)]
    reads = [sim.get(sim.rng.choice(sim.nodes), key(sim.rng.randrange(count))) for _ in range(4 * count)]
    rounds = many_rounds(sim, count)
    seconds = time.process_time() - start
    return Grown(
        size=size,
        puts=puts,
        reads=reads,
        rounds=rounds,
        joined_rounds=joined_rounds,
        seconds=seconds,
        bytes=grown_bytes,
    )


def measure_bad(size: int, count: int) -> list[Case]:
    sim = Simulation(seed=size)
    sim.grow(size)
    sim.settle()
    for number in range(count):
        sim.put(sim.rng.choice(sim.nodes), key(number), b"v" * 100)
    sim.loss = LOSS
    for node in sim.rng.sample(sim.nodes, int(DEAD_SHARE * len(sim.nodes))):
        node.alive = False
    alive = [node for node in sim.nodes if node.alive]
    reads = [sim.get(sim.rng.choice(alive), key(sim.rng.randrange(count))) for _ in range(4 * count)]
    times = [read.first_value_s for read in reads if read.first_value_s is not None]
    stores = [sim.put(sim.rng.choice(alive), key(count + number), b"v").elapsed_s for number in range(count)]
    return [
        Case(name="bad: first value, p50", value=percentile(times, 0.5), unit="s", better="lower", target=0.3),
        Case(name="bad: first value, p99", value=percentile(times, 0.99), unit="s", better="lower", target=1.0),
        Case(name="bad: store, p95", value=percentile(stores, 0.95), unit="s", better="lower", target=2.0),
        Case(
            name="bad: reads that succeed",
            value=100 * len(times) / len(reads),
            unit="%",
            better="higher",
            target=99.9,
            ours=f"{len(times)} of {len(reads)}, {size} nodes",
        ),
    ]


def plot(networks: Sequence[Grown]) -> None:
    figure = Figure(figsize=(8, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    sizes = [grown.size for grown in networks]
    left.plot(sizes, [grown.hops for grown in networks], "o-", label="reads")
    left.plot(sizes, [statistics.mean(grown.rounds) for grown in networks], "s--", label="in rounds, over the tables")
    left.plot([25_000], [1.929], "k*", label="RFM 19.1 (IPFS)")
    left.set(ylabel="hops to the first value", ylim=(0, None))
    right.plot(sizes, [grown.put_requests for grown in networks], "o-", label="a put to 20 nodes")
    right.plot(sizes, [grown.read_requests for grown in networks], "s-", label="a read, to its first value")
    right.set(ylabel="requests", ylim=(0, None))
    for axes in (left, right):
        axes.set(xscale="log", xlabel="nodes")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle("Lookups and the size of the network (k = 20, alpha = 10, 20 replicas)")
    figure.savefig(PLOT, dpi=120)


def measure(quick: bool) -> list[Case]:
    # There are no cycles to speak of, and looking for them among so many objects takes a sixth of the time.
    gc.disable()
    count = 60 if quick else 500
    networks = [grow(size, count) for size in (QUICK_SIZES if quick else FULL_SIZES)]
    if not quick:
        plot(networks)
    smallest, largest = networks[0], networks[-1]
    doublings = math.log2(largest.size / smallest.size)

    def at_each_size(values: list[float]) -> str:
        return ", ".join(f"{grown.size}: {value:.2f}" for grown, value in zip(networks, values, strict=True))

    rounds = [statistics.mean(grown.rounds) for grown in networks]
    return [
        Case(
            name="hops to the first value, largest network",
            value=largest.hops,
            unit="",
            better="lower",
            target=2.0,
            ours=at_each_size([grown.hops for grown in networks]),
            peer="RFM 19.1: 1.93",
        ),
        Case(
            name="the same in rounds, over the tables",
            value=rounds[-1],
            unit="",
            better="lower",
            target=2.0,
            ours=at_each_size(rounds),
            peer="RFM 19.1: 1.93",
        ),
        Case(
            name="the same in rounds, as joining alone leaves the tables",
            value=statistics.mean(largest.joined_rounds),
            unit="",
            better="lower",
            ours=at_each_size([statistics.mean(grown.joined_rounds) for grown in networks]),
        ),
        Case(
            name="requests a read, more for each doubling of the network",
            value=(largest.read_requests - smallest.read_requests) / doublings,
            unit="",
            better="lower",
            ours=at_each_size([grown.read_requests for grown in networks]),
        ),
        Case(
            name="requests a put, more for each doubling of the network",
            value=(largest.put_requests - smallest.put_requests) / doublings,
            unit="",
            better="lower",
            ours=at_each_size([grown.put_requests for grown in networks]),
        ),
        Case(
            name="CPU time to grow and ask the largest network",
            value=largest.seconds,
            unit="s",
            better="lower",
            target=900.0,
            ours=f"{largest.size} nodes",
        ),
        Case(
            name="memory a node",
            value=max(grown.bytes / grown.size for grown in networks) / 1000,
            unit="kB",
            better="lower",
            target=150.0,
            ours=at_each_size([grown.bytes / grown.size / 1000 for grown in networks]),
        ),
        *measure_bad(QUICK_SIZES[1] if quick else FULL_SIZES[1], count),
    ]


if __name__ == "__main__":
    main(measure)
