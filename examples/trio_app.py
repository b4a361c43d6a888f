"""A trio application with the swarm inside: two answers stream at the same time, and either may change its node.

python examples/trio_app.py 127.0.0.1:8001
"""

import sys

import trio

import llamanet

QUESTIONS = ("What is a llama?", "What is an alpaca?")


async def ask(swarm: llamanet.Swarm, question: str) -> None:
    turns = [{"role": "user", "content": question}]
    async with swarm.stream(messages=turns, max_tokens=40) as stream:
        text = "".join([chunk.text async for chunk in stream])
    moves = "".join(f" (left {hop.node_id}: {hop.reason})" for hop in stream.hops)
    print(f"{question} -- {stream.node_id}{moves}\n{text}\n")


async def main() -> None:
    async with llamanet.Swarm(bootstrap_nodes=sys.argv[1]) as swarm, trio.open_nursery() as nursery:
        for question in QUESTIONS:
            nursery.start_soon(ask, swarm, question)


trio.run(main)
