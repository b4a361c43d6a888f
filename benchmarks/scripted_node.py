"""A node whose model computes nothing: all the time that it takes of a processor is the engine's and the network's.

Prints its DHT port, and serves until its standard input is closed.
"""

import sys
import time

import trio

from llamanet.node.service import Model
from llamanet.swarm import Swarm
from llamanet.testing.backend import ScriptedBackend

SLOTS = 8


def _make_backend() -> ScriptedBackend:
    return ScriptedBackend(slots=SLOTS, step_time=0.01, sleep=time.sleep)


async def _serve() -> None:
    async with Swarm(host="127.0.0.1") as swarm:
        await swarm.serve(Model(name="script", digest=bytes(32), make_backend=_make_backend))
        print(swarm.dht_port, flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)


if __name__ == "__main__":
    trio.run(_serve)
