"""Does every stream end exact or in a typed error, whatever happens to the nodes, and is nothing left of it?

Ten thousand streams, some at once, in swarms of nodes that die, freeze, hang, lag, drain and garble. Everything is the
real thing but model, network and clock, so an hour of it takes minutes. A twentieth is given up by its caller; a fifth
is asked for in batches, of which every third is broken off.
"""

import logging
from collections import Counter

import click
import trio
from report import Case, main
from trio.testing import MockClock

from llamanet.testing.chaos import Outcome, run_chaos

STREAMS = 500
"""Of one swarm."""


async def _run(seed: int) -> Outcome:
    return await run_chaos(seed=seed, streams=STREAMS)


def measure(quick: bool) -> list[Case]:
    logging.disable(logging.WARNING)  # That nodes are down is no news here.
    swarms = 1 if quick else 20
    outcomes = []
    reasons: Counter[str] = Counter()
    for seed in range(swarms):
        outcome = trio.run(_run, seed, clock=MockClock(autojump_threshold=0))
        outcomes.append(outcome)
        reasons.update(outcome.hops)
        for line in (*outcome.wrong, *outcome.left, *map(str, outcome.errors)):
            click.echo(f"swarm {seed}: {line}", err=True)
    exact = sum(outcome.exact for outcome in outcomes)
    given_up = sum(outcome.cancelled for outcome in outcomes)
    errors = sum(len(outcome.errors) for outcome in outcomes)
    for reason, count in reasons.most_common(12):
        click.echo(f"{count} times: {reason}", err=True)
    batched = sum(outcome.batched for outcome in outcomes)
    told = (
        f"{swarms * STREAMS} streams: {exact} exact ({batched} in batches), {given_up} given up, "
        f"{sum(reasons.values())} changes of node"
    )
    return [
        Case(
            name="streams in chaos that are not exact and give no typed error",
            value=sum(len(outcome.wrong) for outcome in outcomes),
            unit="streams",
            better="lower",
            target=0,
            ours=told,
        ),
        Case(
            name="streams in chaos that end in a typed error",
            value=100 * errors / (swarms * STREAMS),
            unit="%",
            better="lower",
            target=1.0,
        ),
        Case(
            name="tasks, slots and sockets left after chaos",
            value=sum(len(outcome.left) for outcome in outcomes),
            unit="",
            better="lower",
            target=0,
        ),
    ]


if __name__ == "__main__":
    main(measure)
