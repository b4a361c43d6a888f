"""What does asking cost the machine that asks? Processor time of a client, a token and a request.

A node in its own process whose model computes nothing streams 100 tokens/s to each of many streams, through TLS, and
then several such nodes do. This process does nothing but read them. At one stream nearly all of the time is waking up,
a hundred times a second; with several nodes it wakes up for each of them.
"""

import contextlib
import statistics
import time
from collections.abc import AsyncIterator

import trio
from asking import Ours, ask_all, scripted_node
from report import Case, main, spread

from llamanet.swarm import Swarm

LOADS = ((1, 1), (1, 8), (3, 8), (3, 24))
"""Nodes, and streams over all of them."""
FOUND_TRIES = 100
"""A tenth of a second apart."""


async def token_cost(swarm: Swarm, streams: int, tokens: int) -> float:
    """Seconds of processor time a token."""
    before = time.process_time()
    answers = await ask_all(Ours(swarm), [f"prompt {number}" for number in range(streams)], tokens)
    return (time.process_time() - before) / sum(answer.tokens for answer in answers)


async def request_cost(swarm: Swarm, requests: int) -> float:
    """Seconds of processor time a request of one token; eight at a time, over connections that are there."""
    before = time.process_time()
    for _ in range(requests // 8):
        await ask_all(Ours(swarm), ["hello"] * 8, 1)
    return (time.process_time() - before) / requests


@contextlib.asynccontextmanager
async def several_nodes(count: int) -> AsyncIterator[Swarm]:
    """A member of a swarm of so many nodes, which has asked them before."""
    with contextlib.ExitStack() as stack:
        first = f"127.0.0.1:{stack.enter_context(scripted_node()).dht_port}"
        for _ in range(count - 1):
            stack.enter_context(scripted_node(first))
        async with Swarm(first) as swarm:
            for _ in range(FOUND_TRIES):
                if len(await swarm.nodes("script")) == count:
                    break
                await trio.sleep(0.1)
            else:
                raise RuntimeError(f"not all of {count} nodes were found")
            await request_cost(swarm, 80)
            yield swarm


async def _measure(rounds: int, tokens: int, requests: int) -> list[Case]:
    a_token: dict[tuple[int, int], list[float]] = {load: [] for load in LOADS}
    a_request: dict[int, list[float]] = {nodes: [] for nodes, _ in LOADS}
    for nodes, values in a_request.items():
        async with several_nodes(nodes) as swarm:
            for _ in range(rounds):
                for load in LOADS:
                    if load[0] == nodes:
                        a_token[load].append(1e6 * await token_cost(swarm, load[1], tokens))
                values.append(1e3 * await request_cost(swarm, requests))
    return [
        *(
            Case(
                name=f"client's processor time a token, {_load(nodes, streams)}",
                value=statistics.median(values),
                unit="µs",
                better="lower",
                target=100,
                ours=spread(values, "µs"),
            )
            for (nodes, streams), values in a_token.items()
        ),
        *(
            Case(
                name=f"client's processor time a request{'' if nodes == 1 else f', {nodes} nodes'}",
                value=statistics.median(values),
                unit="ms",
                better="lower",
                target=2,
                ours=spread(values, "ms"),
            )
            for nodes, values in a_request.items()
        ),
    ]


def _load(nodes: int, streams: int) -> str:
    return f"{streams} streams" if nodes == 1 else f"{streams} streams from {nodes} nodes"


def measure(quick: bool) -> list[Case]:
    return trio.run(_measure, *((2, 200, 80) if quick else (5, 1000, 800)))


if __name__ == "__main__":
    main(measure)
