"""What does asking cost the machine that asks? Processor time of a client, a token and a request.

A node in its own process whose model computes nothing streams 100 tokens/s to each of many streams, through TLS. This
process does nothing but read them. At one stream nearly all of the time is waking up, a hundred times a second.
"""

import statistics
import time

import trio
from asking import Ours, ask_all, scripted_node
from report import Case, main, spread

from llamanet.swarm import Swarm

STREAMS = (1, 8)


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


async def _measure(rounds: int, tokens: int, requests: int) -> list[Case]:
    a_token: dict[int, list[float]] = {streams: [] for streams in STREAMS}
    a_request = []
    with scripted_node() as node:
        async with Swarm(f"127.0.0.1:{node.dht_port}") as swarm:
            await request_cost(swarm, 80)
            for _ in range(rounds):
                for streams in STREAMS:
                    a_token[streams].append(1e6 * await token_cost(swarm, streams, tokens))
                a_request.append(1e3 * await request_cost(swarm, requests))
    cases = [
        Case(
            name=f"client's processor time a token, {streams} streams",
            value=statistics.median(values),
            unit="µs",
            better="lower",
            target=100,
            ours=spread(values, "µs"),
        )
        for streams, values in a_token.items()
    ]
    return [
        *cases,
        Case(
            name="client's processor time a request",
            value=statistics.median(a_request),
            unit="ms",
            better="lower",
            target=2,
            ours=spread(a_request, "ms"),
        ),
    ]


def measure(quick: bool) -> list[Case]:
    return trio.run(_measure, *((2, 200, 80) if quick else (5, 1000, 800)))


if __name__ == "__main__":
    main(measure)
