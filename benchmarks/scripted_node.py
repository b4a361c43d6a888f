"""A node whose model draws from a list, for measuring everything else: prints its DHT port, and serves until killed.

Its arguments are peers to join through.

For each line on standard input it prints the processor time, in seconds, that went into the model so far: decoding
burns 10 ms without the interpreter's lock, as llama.cpp would. A model that sleeps instead would leave a core idle, and
the time it takes the kernel to wake one would be counted with what wakes it.
"""

import hashlib
import sys
import time
from collections.abc import Sequence

import attrs
import trio

from llamanet.node.backend import Chunk
from llamanet.node.host import Model
from llamanet.swarm import Swarm
from llamanet.testing.backend import ScriptedBackend

SLOTS = 8
STEP_S = 0.01


@attrs.define
class BusyBackend(ScriptedBackend):
    """Computes for `STEP_S` a step; `burnt` is the processor time of that, and of the draws."""

    burnt: float = 0.0
    _rounds: int = 0

    def decode(self, chunks: Sequence[Chunk]) -> None:
        start = time.thread_time()
        super().decode(chunks)
        if not self._rounds:
            self._rounds = _rounds_in(STEP_S)
        hashlib.pbkdf2_hmac("sha256", b"", b"", self._rounds)
        self.burnt += time.thread_time() - start

    def draw(self, slot: int, position: int) -> int:
        start = time.thread_time()
        token = super().draw(slot, position)
        self.burnt += time.thread_time() - start
        return token


def _rounds_in(seconds: float) -> int:
    """How many rounds of the hash take so long."""
    rounds = 10_000
    start = time.perf_counter()
    hashlib.pbkdf2_hmac("sha256", b"", b"", rounds)
    return max(1, int(rounds * seconds / (time.perf_counter() - start)))


async def _serve() -> None:
    backend = BusyBackend(slots=SLOTS)
    async with Swarm(sys.argv[1:], host="127.0.0.1") as swarm:
        await swarm.serve(Model(name="script", digest=bytes(32), make_backend=lambda: backend))
        print(swarm.dht_port, flush=True)
        while await trio.to_thread.run_sync(sys.stdin.readline):
            print(backend.burnt, flush=True)


if __name__ == "__main__":
    trio.run(_serve)
