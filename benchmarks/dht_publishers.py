"""Does a name with very many publishers hold? Simulated: 10,000 nodes that all publish one model (`--quick`: 1,500).

Every node publishes under the model's name and, when holders say that it has more than 256 publishers, in two of its
shards, every two minutes, as a node's announcer does. Then some read samples of 64 publishers: first the name, which
tells how many there are, and after that up to 32 random shards at once; their lookups are among the round trips that
are counted. All nodes are 80 ms apart by then, so that time counts round trips. Tables are settled.

The chi-square is that of all samples over 100 groups of publishers drawn at random: about 99 if every publisher is as
likely to be told as another, and under 149 with a probability of 0.999.
"""

import functools
import time
from collections import Counter

import attrs
from report import Case, main, spread

from llamanet.dht.guard import SEND_RATE
from llamanet.dht.members import SAMPLED_SHARDS, share_of
from llamanet.dht.shards import Crowd, publish_depth, read_depth, shard_name, shard_names
from llamanet.dht.storage import MAX_PUBLISHERS_PER_KEY
from llamanet.testing.simulator import Put, SimulatedNode, Simulation
from llamanet.wire.envelope import MAX_DATAGRAM_BYTES
from llamanet.wire.facts import key_of
from llamanet.wire.identity import NodeId
from llamanet.wire.record import Record

NAME = "model:popular"
SAMPLE = 64
GROUPS = 100
INTERVAL_S = 120.0
ROUNDS = 2
LIFETIME_S = 300
VALUE = bytes(150)


@attrs.frozen(kw_only=True)
class Sampled:
    """One reader's sample, what it believed the number of publishers to be, and round trips after the first lookup."""

    publishers: list[NodeId]
    believed: int
    round_trips: float


def publish(node: SimulatedNode) -> None:
    """Once, as `node.announcer` does: the root, and then the shards that its holders' word leads to."""

    def publish_shards(put: Put) -> None:
        for shard in shard_names(NAME, node.contact.node_id, put.publishers):
            node.put(key_of(shard), VALUE, LIFETIME_S, lambda put: None)

    node.put(key_of(NAME), VALUE, LIFETIME_S, publish_shards)


def publish_all(sim: Simulation) -> float:
    """Let every node publish within one interval; the most answers a second that one node gave."""
    served = {node: node.served for node in sim.nodes}
    for node in sim.nodes:
        sim.after(sim.rng.uniform(0, INTERVAL_S), publish, node)
    sim.run_for(INTERVAL_S)
    return max(node.served - before for node, before in served.items()) / INTERVAL_S


def sample(sim: Simulation, reader: SimulatedNode) -> Sampled:
    """As `dht.members.sample`."""
    crowd, root = Crowd(), list[list[Record]]()
    reader.read(key_of(NAME), SAMPLE, root.append, crowd=crowd)
    sim.run(until=lambda: bool(root))
    start, depth = sim.now, read_depth(crowd.publishers)
    prefixes = sim.rng.sample(range(2**depth), min(2**depth, SAMPLED_SHARDS))
    shares = list[list[Record]]()
    for prefix in prefixes:
        reader.read(key_of(shard_name(NAME, prefix, depth)), share_of(SAMPLE, len(prefixes)), shares.append)
    sim.run(until=lambda: len(shares) == len(prefixes) or sum(map(len, shares)) >= SAMPLE)
    return Sampled(
        publishers=[record.publisher for share in shares for record in share][:SAMPLE],
        believed=crowd.publishers,
        round_trips=(sim.now - start) / sim.rtt,
    )


def chi_square(sim: Simulation, samples: list[Sampled]) -> float:
    """Of the groups that publishers were drawn into: one group may be in a sample as often as another."""
    members = sim.rng.sample(sim.nodes, len(sim.nodes))
    group_of = {node.contact.node_id: number % GROUPS for number, node in enumerate(members)}
    counts = Counter(group_of[publisher] for one in samples for publisher in one.publishers)
    mean = counts.total() / GROUPS
    return sum((counts[group] - mean) ** 2 for group in range(GROUPS)) / mean


def most_stored(sim: Simulation, publishers: int) -> int:
    """The most records of one of the name's keys that one node holds."""
    deepest = publish_depth(publishers) + 1
    names = [NAME, *(shard_name(NAME, prefix, depth) for depth in range(1, deepest + 1) for prefix in range(2**depth))]
    holders = [node for node in sim.nodes if node.store.records]
    return max(len(node.store.records_of(key_of(name), sim.wall_now)) for node in holders for name in names)


def measure(quick: bool) -> list[Case]:
    size, readers = (1500, 150) if quick else (10_000, 500)
    start = time.perf_counter()
    sim = Simulation(seed=1)
    sim.grow(size)
    sim.settle()
    answers = [publish_all(sim) for _ in range(ROUNDS)]
    for node in sim.nodes:
        node.delay = sim.rtt / 4
    samples = [sample(sim, reader) for reader in sim.rng.sample(sim.nodes, readers)]
    case = functools.partial(Case, unit="", better="lower")
    round_trips = [one.round_trips for one in samples]
    errors = [100 * abs(one.believed - size) / size for one in samples]
    return [
        case(
            name="fairness of samples, chi-square with 99 degrees of freedom",
            value=chi_square(sim, samples),
            target=149.0,
            ours=f"{len(samples)} samples",
        ),
        case(
            name="round trips of a sample after the lookup, most",
            value=max(round_trips),
            target=3.0,
            ours=spread(round_trips, ""),
        ),
        Case(
            name="publishers in a sample, fewest",
            value=min(len(set(one.publishers)) for one in samples),
            unit="",
            better="higher",
            target=SAMPLE,
        ),
        Case(
            name="error of the number of publishers that readers believe, most",
            value=max(errors),
            unit="%",
            better="lower",
            target=28.0,
            ours=spread([one.believed for one in samples], ""),
        ),
        case(
            name="records of one key that a node stores, most",
            value=most_stored(sim, size),
            target=MAX_PUBLISHERS_PER_KEY,
        ),
        Case(
            name="answers of one node while all publish, most",
            value=max(answers),
            unit="/s",
            better="lower",
            target=SEND_RATE / MAX_DATAGRAM_BYTES,
            ours=", ".join(f"{rate:.0f}" for rate in answers),
        ),
        case(
            name="requests that guards dropped",
            value=sum(node.drops.counts.total() for node in sim.nodes),
            target=0.0,
        ),
        Case(
            name="time to simulate",
            value=time.perf_counter() - start,
            unit="s",
            better="lower",
            ours=f"{size} publishers, {sim.events} events",
        ),
    ]


if __name__ == "__main__":
    main(measure)
