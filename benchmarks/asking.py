"""Asking a node through `Swarm` as the peers in `peers.py` are asked, and what a process of it costs."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Protocol

import attrs
import trio
from peers import Answer

from llamanet.swarm import Swarm

WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state")


class Server(Protocol):
    """What is asked: a peer, or the swarm."""

    async def ask(self, prompt: str, max_tokens: int) -> Answer: ...


@attrs.frozen
class Ours:
    """The node, through the swarm."""

    swarm: Swarm

    async def ask(self, prompt: str, max_tokens: int) -> Answer:
        answer = Answer(time.perf_counter())
        async with self.swarm.stream(prompt, max_tokens=max_tokens, temperature=0.0, ignore_eos=True) as stream:
            async for chunk in stream:
                answer.arrivals.append((time.perf_counter(), len(chunk.token_ids)))
                answer.text += chunk.text
        if usage := stream.usage:
            answer.prompt_tokens, answer.cached_tokens = usage.prompt_tokens, usage.cached_tokens
        return answer


def words(random: Random, count: int) -> str:
    """A text of about `count` tokens."""
    return " ".join(random.choice(WORDS) for _ in range(count))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all are not above."""
    return sorted(values)[max(0, -(-int(len(values) * share * 1000) // 1000) - 1)]


async def ask_all(server: Server, prompts: Sequence[str], max_tokens: int) -> list[Answer]:
    """Ask for all at the same time."""
    answers: list[Answer] = []

    async def one(prompt: str) -> None:
        answers.append(await server.ask(prompt, max_tokens))

    async with trio.open_nursery() as nursery:
        for prompt in prompts:
            nursery.start_soon(one, prompt)
    return answers


def memory_bytes(pid: int) -> int:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def threads(pid: int) -> int:
    """Threads of a process, but for those that trio keeps for the next job: they end when idle for 10 s."""
    names = [(task / "comm").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return sum(not name.startswith("Trio thread") for name in names)


def cpu_s(pid: int) -> float:
    """Processor time of all threads of a process; nanoseconds are in the first field (kernel, sched-stats.rst)."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


@attrs.frozen
class ScriptedNode:
    """`scripted_node.py`, running in a process of its own."""

    process: "subprocess.Popen[str]"
    dht_port: int

    def overhead_s(self) -> float:
        """Processor time of the process so far without that of its model."""
        whole = cpu_s(self.process.pid)
        if self.process.stdin is None or self.process.stdout is None:
            raise ValueError("the node was started without pipes")
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return whole - float(self.process.stdout.readline())


@contextlib.contextmanager
def scripted_node(*peers: str) -> Iterator[ScriptedNode]:
    """A node whose model draws from a list, in the swarm of `peers`."""
    command = [sys.executable, str(Path(__file__).with_name("scripted_node.py")), *peers]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            yield ScriptedNode(process, int(line))
        finally:
            process.kill()
