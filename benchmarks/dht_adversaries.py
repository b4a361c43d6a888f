"""What do adversaries do to DHT reads? Simulated: real decisions, a virtual clock.

A tenth of all nodes turn silent (they answer PINGs alone), and a tenth lie: they act together, tell of each other only,
say that they store, and have nothing. They keep the places in tables that they have. Honest nodes then publish and
read, each record once, by one path and by 4 disjoint ones (S/Kademlia).

40 Sybils are liars whose ids are ground (by SHA-256, as in life) to be nearer to one key than any honest node's. They
join, and upkeep goes on for 10 minutes; they have an address in 40 subnets, or all in one.
"""

import hashlib

from report import Case, main
from simulated import key, percentile

from llamanet.testing.adversaries import add_sybils, corrupt
from llamanet.testing.simulator import Simulation

SYBILS = 40
SETTLE_S = 600.0


def measure_fifth(size: int, count: int) -> list[Case]:
    sim = Simulation(seed=20)
    sim.grow(size)
    corrupt(sim, silent_share=0.1, lying_share=0.1)
    honest = [node for node in sim.nodes if node.behaviour is None]
    cases = []
    for paths in (1, 4):
        reads = []
        for number in range(count):
            publisher, reader = sim.rng.sample(honest, 2)
            name = key(paths * count + number)
            sim.put(publisher, name, b"v" * 100, paths=paths)
            reads.append(sim.get(reader, name, publisher=publisher.contact.node_id, paths=paths))
        times = [read.first_value_s for read in reads if read.first_value_s is not None]
        requests = sum(read.requests for read in reads) / count
        cases.append(
            Case(
                name=f"20 % adversaries, d = {paths}: reads that succeed",
                value=100 * len(times) / count,
                unit="%",
                better="higher",
                target=99.0 if paths == 4 else None,
                ours=f"{len(times)} of {count}, {size} nodes, {requests:.0f} requests a read, "
                f"p99 {percentile(times, 0.99):.2f} s",
            )
        )
    return cases


def measure_sybils(size: int, subnets: int, count: int) -> list[Case]:
    sim = Simulation(seed=40, upkeep=True)
    sim.grow(size)
    honest = list(sim.nodes)
    publisher = sim.rng.choice(honest)
    wanted = hashlib.sha256(b"model:wanted").digest()
    others = [(sim.rng.choice(honest), key(number)) for number in range(count)]
    sim.put(publisher, wanted, b"v")
    add_sybils(sim, wanted, SYBILS, subnets=subnets)
    sim.run_for(SETTLE_S)

    def share(name: str, found: list[bool]) -> Case:
        where = "a subnet each" if subnets > 1 else "one subnet"
        value = 100 * sum(found) / len(found)
        return Case(name=f"40 Sybils, {where}: {name}", value=value, unit="%", better="higher", ours=f"{size} nodes")

    def read(paths: int) -> bool:
        found = sim.get(sim.rng.choice(honest), wanted, publisher=publisher.contact.node_id, paths=paths)
        return found.hops is not None

    before = [read(1) for _ in range(count)]
    sim.put(publisher, wanted, b"v")
    after = [read(1) for _ in range(count)]
    sim.put(publisher, wanted, b"v", paths=4)
    disjoint = [read(4) for _ in range(count)]
    elsewhere = []
    for node, name in others:
        sim.put(node, name, b"v")
        elsewhere.append(sim.get(sim.rng.choice(honest), name).hops is not None)
    return [
        share("reads of a record stored before they came", before),
        share("reads of their key after it was stored again", after),
        share("the same with d = 4", disjoint),
        share("reads of other keys", elsewhere),
    ]


def measure(quick: bool) -> list[Case]:
    size, count = (150, 60) if quick else (1000, 1000)
    sybil_size, sybil_count = (60, 20) if quick else (500, 200)
    return [
        *measure_fifth(size, count),
        *measure_sybils(sybil_size, SYBILS, sybil_count),
        *measure_sybils(sybil_size, 1, sybil_count),
    ]


if __name__ == "__main__":
    main(measure)
