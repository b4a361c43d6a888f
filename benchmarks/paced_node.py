"""A node whose model costs nothing, and says a token a step to many streams: `paced_node.py MODEL STEP_S [PEER]`.

Prints its DHT port, and serves until its standard input is closed. Without a PEER it starts a swarm.
"""

import sys
import time

import trio

from llamanet.node.host import Model
from llamanet.swarm import Swarm
from llamanet.testing.backend import ScriptedBackend

SLOTS = 160


async def _serve(model: str, step_s: float, peer: str = "") -> None:
    backend = ScriptedBackend(slots=SLOTS, n_ctx=4096, step_time=step_s, sleep=time.sleep)
    async with Swarm(peer, host="127.0.0.1") as swarm:
        await swarm.serve(Model(name=model, digest=bytes(32), make_backend=lambda: backend))
        print(swarm.dht_port, flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


if __name__ == "__main__":
    trio.run(_serve, sys.argv[1], float(sys.argv[2]), *sys.argv[3:])
