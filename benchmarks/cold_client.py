"""How soon does a new client have its first token? A fresh process: import, join, look up, probe, ask, first token.

The clock runs from the start of `llamanet ask` to the first byte on its standard output; three nodes run on loopback,
and the prompt has 20 tokens.
"""

import statistics
import subprocess
import sys
import time

import trio
from report import MODELS, Case, main, spread

from llamanet.cli.demo_model import demo_model
from llamanet.testing.processes import start_swarm

PROMPT = "Count: 1, 2, 3, 4, 5, 6,"
"""20 tokens of the demo's model."""


def first_byte_after(*command: str) -> float:
    """Seconds from the start of a process to the first byte of its output."""
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        if not process.stdout or not process.stdout.read(1):
            raise RuntimeError(f"no output from {command}")
        elapsed = time.perf_counter() - start
        process.stdout.read()
    return elapsed


def measure(quick: bool) -> list[Case]:
    path = trio.run(demo_model, MODELS)
    with start_swarm(3, "--model-path", str(path)) as nodes:
        ask = ("-m", "llamanet", "ask", PROMPT, "--no-chat", "--max-tokens", "1", "--temperature", "0")
        rounds = range(5 if quick else 25)
        first_byte_after(*ask, "--bootstrap-nodes", nodes[0].dht_address)
        cold = [first_byte_after(*ask, "--bootstrap-nodes", nodes[n % len(nodes)].dht_address) for n in rounds]
        bare = [first_byte_after("-c", "print(1)") for _ in rounds]
    return [
        Case(
            name="cold client: process start to first token",
            value=statistics.median(cold),
            unit="s",
            better="lower",
            target=1.0,
            ours=spread(cold, "s"),
            peer=f"bare Python: {spread(bare, 's')}",
        )
    ]


if __name__ == "__main__":
    main(measure)
