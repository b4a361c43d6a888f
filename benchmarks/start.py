"""How soon is a swarm there? Processes started together, in the least handy order, and the whole demo.

"Seen": three `python -m llamanet.node` processes, the bootstrap node last; from its start until a client sees all three
through each of them. "Demo": from the start of `llamanet demo`, its model being there, to the first token shown.
"""

import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import trio
from report import MODELS, Case, main, spread

from llamanet.cli.demo_model import demo_model
from llamanet.swarm import Swarm
from llamanet.testing.processes import close_all, start_node

NODES = 3


async def see_all(address: str) -> None:
    """Return once a client sees all nodes through `address`."""
    async with Swarm(bootstrap_nodes=[address]) as swarm:
        while len(await swarm.nodes()) < NODES:
            await trio.lowlevel.checkpoint()


def seconds_until_seen(path: Path) -> float:
    with socket.socket(type=socket.SOCK_DGRAM) as udp, tempfile.TemporaryDirectory() as data_dir:
        udp.bind(("127.0.0.1", 0))
        port = udp.getsockname()[1]
        arguments = ("--model-path", str(path), "--n-threads", "1")
        peers = [f"127.0.0.1:{port}"]
        nodes = [start_node(number, Path(data_dir), peers, *arguments) for number in range(1, NODES)]
        try:
            for node in nodes:
                node.wait_ready()
            udp.close()
            start = time.perf_counter()
            nodes.append(start_node(NODES, Path(data_dir), [], *arguments, "--dht-port", str(port)))
            nodes[-1].wait_ready()
            for node in nodes:
                trio.run(see_all, node.dht_address)
            return time.perf_counter() - start
        finally:
            close_all(nodes)


def seconds_until_demo_speaks() -> float:
    command = [sys.executable, "-u", "-m", "llamanet", "demo", "--models-dir", str(MODELS)]
    start = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as demo:
        output = b""
        while demo.stdout and not output.partition(b"\nnode-")[2].partition(b": ")[2]:
            output += demo.stdout.read(1)
        elapsed = time.perf_counter() - start
        if demo.stdout:
            demo.stdout.read()
    return elapsed


def measure(quick: bool) -> list[Case]:
    path = trio.run(demo_model, MODELS)
    rounds = range(3 if quick else 10)
    seen = [seconds_until_seen(path) for _ in rounds]
    demo = [seconds_until_demo_speaks() for _ in rounds]
    return [
        Case(
            name="three nodes, bootstrap last: each sees all",
            value=statistics.median(seen),
            unit="s",
            better="lower",
            target=5.0,
            ours=spread(seen, "s"),
        ),
        Case(
            name="llamanet demo: first token",
            value=statistics.median(demo),
            unit="s",
            better="lower",
            target=10.0,
            ours=spread(demo, "s"),
        ),
    ]


if __name__ == "__main__":
    main(measure)
