"""How do lookups grow with the network? Simulated: the real lookup, table, store and handlers under a virtual clock.

Hops to the first value are counted as in probe-lab's RFM 19.1 (1.93 on IPFS's network, k = 20, alpha = 10): 1 for a
node that the reader knew. The round-trip time of two nodes is 80 ms in the median. "Bad" is 1 % of messages lost and
20 % of all nodes silently dead after the records were stored. A plot goes to dht_scale.png in the current folder.
"""

import hashlib
import math
import resource
import statistics
import time
from pathlib import Path

import attrs
from report import Case, main

from llamanet.testing.simulator import Found, Put, Simulation

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise SystemExit("the plot needs matplotlib: pip install 'llamanet[bench]'") from error

FULL_SIZES = (1000, 5000, 25_000)
QUICK_SIZES = (250, 500, 1000)
DEAD_SHARE = 0.2
LOSS = 0.01
PLOT = Path("dht_scale.png")


@attrs.frozen
class Grown:
    """What was measured in a network of one size."""

    size: int
    simulation: Simulation
    puts: list[Put]
    reads: list[Found]
    seconds: float
    bytes: int


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def key(number: int) -> bytes:
    return hashlib.sha256(b"key %d" % number).digest()


def grow(size: int, count: int) -> Grown:
    start = time.perf_counter()
    before = resident_bytes()
    sim = Simulation(seed=size, k=20, alpha=10)
    sim.grow(size)
    grown_bytes = resident_bytes() - before
    puts = [sim.put(sim.rng.choice(sim.nodes), key(number), b"v" * 100) for number in range(count)]
    reads = [sim.get(sim.rng.choice(sim.nodes), key(sim.rng.randrange(count))) for _ in range(count)]
    return Grown(size, sim, puts, reads, time.perf_counter() - start, grown_bytes)


def hops(grown: Grown) -> float:
    return statistics.mean(read.hops for read in grown.reads if read.hops is not None)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def measure_bad(sim: Simulation, count: int) -> list[Case]:
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
            ours=f"{len(times)} of {len(reads)}",
        ),
    ]


def plot(networks: list[Grown]) -> None:
    figure = Figure(figsize=(6, 4))
    axes = figure.add_subplot()
    sizes = [grown.size for grown in networks]
    axes.plot(sizes, [hops(grown) for grown in networks], "o-", label="hops to the first value")
    axes.plot(
        sizes, [statistics.mean(put.requests for put in grown.puts) for grown in networks], "s-", label="requests a put"
    )
    axes.set(xscale="log", yscale="log", xlabel="nodes", title="Lookups and the size of the network")
    axes.legend()
    figure.savefig(PLOT, dpi=120)


def measure(quick: bool) -> list[Case]:
    count = 60 if quick else 500
    networks = [grow(size, count) for size in (QUICK_SIZES if quick else FULL_SIZES)]
    plot(networks)
    smallest, largest = networks[0], networks[-1]
    growth = [f"{grown.size}: {hops(grown):.2f}" for grown in networks]
    lookups = [f"{grown.size}: {statistics.mean(put.requests for put in grown.puts):.1f}" for grown in networks]
    doublings = math.log2(largest.size / smallest.size)
    return [
        Case(
            name="hops to the first value, largest network",
            value=hops(largest),
            unit="",
            better="lower",
            target=2.0,
            ours=", ".join(growth),
            peer="IPFS: 1.93",
        ),
        Case(
            name="requests a put, more for each doubling of the network",
            value=(
                statistics.mean(put.requests for put in largest.puts)
                - statistics.mean(put.requests for put in smallest.puts)
            )
            / doublings,
            unit="",
            better="lower",
            ours=", ".join(lookups),
        ),
        Case(
            name="time to grow and ask the largest network",
            value=largest.seconds,
            unit="s",
            better="lower",
            target=900.0,
            ours=f"{largest.size} nodes",
        ),
        Case(
            name="memory of an idle node",
            value=max(grown.bytes / grown.size for grown in networks) / 1000,
            unit="kB",
            better="lower",
            target=150.0,
            ours=", ".join(f"{grown.size}: {grown.bytes / grown.size / 1000:.0f}" for grown in networks),
        ),
        *measure_bad(largest.simulation, count),
    ]


if __name__ == "__main__":
    main(measure)
