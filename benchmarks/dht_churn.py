"""Do DHT reads succeed while nodes come and go, or hide behind NATs? Simulated: real decisions, a virtual clock.

Nodes have their default settings and run all of their upkeep; 1 % of messages are lost. Sessions are exponential; who
leaves says nothing, and a new node joins through a live one at once. Some nodes publish a record every 2 minutes for 5
(as `model:` keys are published); when one of them leaves another begins, with a key of its own. A read, by a random
member, succeeds if it finds the record of a publisher that lives and has published 10 s ago or more.

A node behind a NAT hears only from addresses that it wrote to within 30 s.
"""

import contextlib
import itertools
import statistics
from collections.abc import Iterator

import attrs
from parallel import in_processes
from report import Case, main
from simulated import key, percentile

from llamanet.testing.churn import Churn
from llamanet.testing.simulator import AskerLeft, Found, SimulatedNode, Simulation

LOSS = 0.01
PUBLISHERS = 20
INTERVAL_S, LIFETIME_S = 120.0, 300
SETTLE_S = 10.0
WARM_UP_S = 1800.0
HIDDEN_SHARE = 0.3


@attrs.define
class Publisher:
    """Somebody who publishes a record while it lives."""

    node: SimulatedNode
    key: bytes
    since: float


class Publishers:
    """As many as there should be, each with a key of its own."""

    def __init__(self, sim: Simulation) -> None:
        self._sim = sim
        self._numbers = iter(range(10**9))
        self._publishers = [self._start() for _ in range(PUBLISHERS)]

    def _start(self) -> Publisher:
        sim = self._sim
        node = sim.rng.choice([node for node in sim.nodes if node.joined])
        publisher = Publisher(node, key(next(self._numbers)), sim.now)
        node.keep_published(publisher.key, b"v" * 100, lifetime=LIFETIME_S, interval=INTERVAL_S)
        return publisher

    def settled(self) -> list[Publisher]:
        """Those whose records should be found; new ones take the places of those that left."""
        sim = self._sim
        self._publishers = [old if old.node.alive else self._start() for old in self._publishers]
        return [publisher for publisher in self._publishers if sim.now - publisher.since >= SETTLE_S]


def reads(sim: Simulation, seconds: float, every: float) -> Iterator[Found]:
    """Reads for so long, one `every` so many seconds."""
    publishers = Publishers(sim)
    end = sim.now + seconds
    while sim.now < end:
        sim.run_for(every)
        settled = publishers.settled()
        if settled:
            publisher = sim.rng.choice(settled)
            # The node at hand is no reader of its own record.
            reader = sim.random_peer(publisher.node)
            # Who leaves in the middle of its own read misses nothing.
            with contextlib.suppress(AskerLeft):
                yield sim.get(reader, publisher.key, publisher=publisher.node.contact.node_id)


def cases(name: str, sim: Simulation, found: list[Found], what: str, target: float | None) -> list[Case]:
    times = [read.first_value_s for read in found if read.first_value_s is not None]
    return [
        Case(
            name=f"{name}: reads that succeed",
            value=100 * len(times) / len(found),
            unit="%",
            better="higher",
            target=target,
            ours=f"{len(times)} of {len(found)}; {what}",
        ),
        Case(
            name=f"{name}: first value, p99",
            value=percentile(times, 0.99),
            unit="s",
            better="lower",
            ours=f"p50 {statistics.median(times):.3f} s",
        ),
    ]


def measure_churn(median_minutes: int, size: int, hours: float, every: float, target: float | None) -> list[Case]:
    sim = Simulation(seed=median_minutes, loss=LOSS, upkeep=True)
    sim.grow(size)
    churn = Churn(sim, median_session=60.0 * median_minutes)
    sim.run_for(WARM_UP_S)
    left = churn.left
    found = list(reads(sim, 3600 * hours, every))
    what = f"{size} nodes, {hours:g} h, {churn.left - left} left"
    return cases(f"{median_minutes}-minute sessions", sim, found, what, target)


def measure_nat(size: int, hours: float, every: float) -> list[Case]:
    sim = Simulation(seed=30, loss=LOSS, upkeep=True)
    sim.grow(size, unreachable=HIDDEN_SHARE)
    sim.run_for(WARM_UP_S)
    found = list(reads(sim, 3600 * hours, every))
    hidden = sum(not node.reachable for node in sim.nodes)
    return cases("30 % behind NATs", sim, found, f"{size} nodes, {hidden} behind NATs, {hours:g} h", None)


def measure(quick: bool) -> list[Case]:
    if quick:
        return [
            *measure_churn(60, 40, 1.0, 6.0, 99.9),
            *measure_churn(15, 40, 0.5, 3.0, None),
            *measure_nat(40, 0.5, 3.0),
        ]
    parts = in_processes(
        2,
        [
            (measure_churn, (60, 100, 24.0, 8.0, 99.9)),
            (measure_churn, (15, 100, 6.0, 4.0, None)),
            (measure_nat, (100, 2.0, 4.0)),
        ],
    )
    return list(itertools.chain.from_iterable(parts))


if __name__ == "__main__":
    main(measure)
