"""How soon does a heap of unequal nodes answer? Simulated under a virtual clock, with the policy of real clients.

50 nodes whose speeds spread over 8 times get requests of 10 clients in an open loop (Poisson). Prompts and answers have
lognormal lengths with the medians of conversations in Azure's traces (1,020 and 129 tokens: Patel et al., "Splitwise",
ISCA '24, section 3). Each node has load of its own that comes and goes, and on average 5 % of the nodes are slow (a
tenth of their speed) or hang, for half a minute each. "Capacity" is what all nodes serve with all slots full; the load
includes the nodes' own. "Published" takes the node with the least load that nodes published, every 10 s; the oracle
knows every queue at every moment, and how long each request in it will run. A request without its first token after
60 s is an error, and counts with 60 s. All recover alike: by client/peers.py a node that takes too long is left, and a
second one is asked after the 95th percentile, for at most 5 % of the requests (the oracle needs neither).
The full run writes docs/routing.png.
"""

import hashlib
from collections import Counter
from random import Random
from typing import Any

from report import ROOT, Case, main
from simulated import percentile
from simulated_clients import (
    ANSWER,
    DEADLINE_S,
    NODES,
    PROMPT,
    SPREAD,
    STRATEGIES,
    WARM_UP_S,
    Client,
    Outcome,
    Process,
    World,
    length,
)
from simulated_swarm import SLOTS

from llamanet.client.affinity import BLOCK_CHARS, Block
from llamanet.client.router import Question
from llamanet.client.selection import CHARACTERS_A_TOKEN, Wishes

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise SystemExit("the plot needs matplotlib: pip install 'llamanet[bench]'") from error

NAIVE = STRATEGIES[:3]
SHARES = (0.6, 0.75, 0.9)
CLIENTS = 10
CROWD = 1000
CROWD_PROMPT = 500
TALK_NODES, TALKS, TURNS = 10, 62, 8
"""Conversations at a time, and turns in each."""
THINK_S = 15.0
WISHES = Wishes(model="alpha")
PLOT = ROOT / "docs" / "routing.png"


def run(strategy: str, share: float, requests: int, seed: int, clients: int = CLIENTS) -> Outcome:
    """An open loop of about so many requests after the warm-up."""
    world, outcome = World(seed), Outcome()
    crowd = [Client(world, strategy, outcome, f"{seed} {number}") for number in range(clients)]
    rate = share * world.capacity - world.background
    end = WARM_UP_S + requests / rate

    def arrivals() -> Process:
        rng = Random(seed)
        while world.clock.now < end:
            question = Question(wishes=WISHES, prompt_tokens=length(rng, PROMPT))
            world.clock.spawn(rng.choice(crowd).request(question, length(rng, ANSWER)))
            yield rng.expovariate(rate)

    world.clock.spawn(arrivals())
    world.clock.run(end + 5 * DEADLINE_S)
    return outcome


def merge(outcomes: list[Outcome]) -> Outcome:
    merged = Outcome()
    for outcome in outcomes:
        merged.ttfts += outcome.ttfts
        merged.totals += outcome.totals
        merged.requests += outcome.requests
        merged.errors += outcome.errors
        merged.probes += outcome.probes
        merged.choices += outcome.choices
        merged.policy_s += outcome.policy_s
    return merged


def start_together(spread: float) -> tuple[dict[Any, int], World]:
    """How many of a crowd of new clients, each with one request at the same moment, ask each node first."""
    world = World(1, spread=spread)
    asked: Counter[Any] = Counter()

    def one(client: Client) -> Process:
        client.router.probes.earn()
        order = yield from client.choose(Question(wishes=WISHES, prompt_tokens=CROWD_PROMPT), set())
        asked[order[0]] += 1

    for number in range(CROWD):
        world.clock.spawn(one(Client(world, "ours", Outcome(), f"crowd {number}")))
    world.clock.run(1.0)
    return asked, world


def talk(seconds: float, seed: int) -> tuple[int, int, float]:
    """Conversations over few nodes: turns after the first, those at the node of the turn before, and the load."""
    world, outcome = World(seed, nodes=TALK_NODES, quiet=True), Outcome()
    clients = [Client(world, "ours", outcome, f"{seed} {number}") for number in range(4)]
    turns = landed = 0
    taken: list[float] = []

    def conversations(number: int) -> Process:
        nonlocal turns, landed
        rng = Random(f"{seed} {number}")
        client = rng.choice(clients)
        yield rng.uniform(0, THINK_S)
        while world.clock.now < seconds:
            ends, last = [length(rng, PROMPT)], None
            name = f"{number} {world.clock.now}"
            for _ in range(TURNS):
                question = Question(wishes=WISHES, prompt_tokens=ends[-1], blocks=blocks(name, ends))
                answer = length(rng, ANSWER)
                at = yield from client.request(question, answer)
                if last is not None and at is not None and world.clock.now > WARM_UP_S:
                    turns += 1
                    landed += at is last
                last = at
                ends += [ends[-1] + answer, ends[-1] + answer + length(rng, ANSWER)]
                yield rng.expovariate(1 / THINK_S)

    def watch() -> Process:
        while world.clock.now < seconds:
            taken.append(sum(len(node.running) for node in world.nodes.values()) / (TALK_NODES * SLOTS))
            yield 1.0

    for number in range(TALKS):
        world.clock.spawn(conversations(number))
    world.clock.spawn(watch())
    world.clock.run(seconds)
    return turns, landed, sum(taken) / len(taken)


def blocks(name: str, ends: list[int]) -> tuple[Block, ...]:
    """Those of a conversation whose messages end after so many tokens."""
    made: list[Block] = []
    start = 0
    for end in (CHARACTERS_A_TOKEN * tokens for tokens in ends):
        places = (*range(start + BLOCK_CHARS, end, BLOCK_CHARS), end)
        made += [Block(hashlib.sha256(f"{name} {place}".encode()).digest(), place) for place in places]
        start = end
    return tuple(made)


def plot(found: dict[tuple[str, float], Outcome]) -> None:
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    for strategy in STRATEGIES:
        tails = [percentile(found[strategy, share].ttfts, 0.99) for share in SHARES]
        axes[0].plot([100 * share for share in SHARES], tails, "o-", label=strategy)
        ttfts = sorted(found[strategy, 0.75].ttfts)
        axes[1].plot(ttfts, [100 * (place + 1) / len(ttfts) for place in range(len(ttfts))], label=strategy)
    axes[0].set(
        yscale="log", xlabel="load, % of capacity", ylabel="p99 time to the first token, s", xticks=[60, 75, 90]
    )
    axes[1].set(xscale="log", xlabel="time to the first token at 75 %, s", ylabel="% of requests", xlim=(0.1, 60))
    axes[1].legend()
    figure.savefig(PLOT, dpi=120)


def row(outcome: Outcome) -> str:
    return (
        f"p50 {percentile(outcome.ttfts, 0.5):.2f} s, p99 {percentile(outcome.ttfts, 0.99):.1f} s, "
        f"total p99 {percentile(outcome.totals, 0.99):.0f} s, errors {100 * outcome.errors / outcome.requests:.1f} %"
    )


def load_cases(found: dict[tuple[str, float], Outcome], share: float) -> list[Case]:
    """Ours beside each of the others, and the two ratios."""
    tails = {strategy: percentile(found[strategy, share].ttfts, 0.99) for strategy in STRATEGIES}
    at = f"at {100 * share:.0f} %"
    judged = share == 0.75
    best = min(NAIVE, key=tails.__getitem__)
    cases = [
        Case(
            name=f"{at}: p99 TTFT, ours to the best naive",
            value=tails["ours"] / tails[best],
            unit="x",
            better="lower",
            target=1 / 3 if judged else None,
            ours=row(found["ours", share]),
            peer=f"{best}: {row(found[best, share])}",
        ),
        Case(
            name=f"{at}: p99 TTFT, ours to the oracle",
            value=tails["ours"] / tails["oracle"],
            unit="x",
            better="lower",
            target=1.3 if judged else None,
            ours=row(found["ours", share]),
            peer=f"oracle: {row(found['oracle', share])}",
        ),
    ]
    for strategy in STRATEGIES:
        outcome = found[strategy, share]
        cases.append(
            Case(name=f"{at}: p99 TTFT, {strategy}", value=tails[strategy], unit="s", better="lower", ours=row(outcome))
        )
    return cases


def measure(quick: bool) -> list[Case]:
    seeds, requests = ((1,), 1500) if quick else ((1, 2, 3, 4, 5), 4000)
    found = {
        (strategy, share): merge([run(strategy, share, requests, seed) for seed in seeds])
        for share in SHARES
        for strategy in STRATEGIES
    }
    if not quick:
        plot(found)
    cases = [case for share in SHARES for case in load_cases(found, share)]
    for clients in (1, 100):
        outcome = merge([run("ours", 0.75, requests, seed, clients) for seed in seeds])
        tail, best = percentile(outcome.ttfts, 0.99), percentile(found["oracle", 0.75].ttfts, 0.99)
        name = f"at 75 %, {clients} clients instead of {CLIENTS}: p99 TTFT, ours to the oracle"
        cases.append(Case(name=name, value=tail / best, unit="x", better="lower", ours=row(outcome)))
    ours = found["ours", 0.75]
    cases += [
        Case(
            name="probes for each request, its moves and hedges included",
            # What the last requests owe is never repaid.
            value=round(ours.probes / ours.requests, 2),
            unit="",
            better="lower",
            target=3.0,
            ours=f"{ours.probes} for {ours.requests} requests, {ours.choices - ours.requests} moves and hedges",
        ),
        Case(
            name="the policy's time, a request",
            value=1000 * ours.policy_s / ours.requests,
            unit="ms",
            better="lower",
            target=2.0,
        ),
    ]
    asked, world = start_together(1.0)
    cases.append(
        Case(
            name=f"{CROWD} clients start together, equal nodes: largest share",
            value=max(asked.values()) * NODES / CROWD,
            unit="x fair",
            better="lower",
            target=2.0,
            ours=f"{max(asked.values())} of {CROWD}",
        )
    )
    asked, world = start_together(SPREAD)
    shares = {at: count / (CROWD * world.capacities[at] / world.capacity) for at, count in asked.items()}
    cases.append(
        Case(
            name=f"{CROWD} clients start together, unequal nodes: largest share by capacity",
            value=max(shares.values()),
            unit="x fair",
            better="lower",
            target=2.0,
            ours=f"{max(asked.values())} of {CROWD}",
        )
    )
    turns, landed, load = talk(300.0 if quick else 1200.0, 1)
    cases.append(
        Case(
            name=f"conversations over {TALK_NODES} nodes: turns that land on their prefix",
            value=100 * landed / turns,
            unit="%",
            better="higher",
            target=90.0,
            ours=f"{landed} of {turns}, {100 * load:.0f} % of all slots taken",
        )
    )
    return cases


if __name__ == "__main__":
    main(measure)
