"""The same in asyncio: the blocking client runs in threads, so that the loop goes on.

python examples/asyncio_app.py 127.0.0.1:8001
"""

import asyncio
import sys

from llamanet.client import Client

QUESTIONS = ("What is a llama?", "What is an alpaca?")


def ask(client: Client, question: str) -> str:
    turns = [{"role": "user", "content": question}]
    reply = client.generate(messages=turns, max_tokens=40)
    return f"{question} -- {reply.node_id}\n{reply.text}\n"


async def main() -> None:
    with Client(bootstrap_nodes=sys.argv[1]) as client:
        for answer in asyncio.as_completed([asyncio.to_thread(ask, client, question) for question in QUESTIONS]):
            print(await answer)


asyncio.run(main())
