"""Real nodes with the real model, for tests that look at the whole from outside.

The nodes compute with one thread each: several with a thread for every core would mostly wait for each other.
"""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from llamanet.testing.processes import NodeProcess, start_swarm

StartSwarm = Callable[..., list[NodeProcess]]


@pytest.fixture(scope="session", autouse=True)
def _end_nodes_when_told_to_stop() -> None:
    """SIGTERM ends the tests as Ctrl-C does: through the fixtures that end the node processes."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session")
def swarm_of_three(model: Path) -> Iterator[list[NodeProcess]]:
    """Three nodes that all tests share; whoever harms a node starts others."""
    with start_swarm(3, "--model-path", str(model), "--n-threads", "1") as nodes:
        yield nodes


@pytest.fixture
def new_swarm(model: Path) -> Iterator[StartSwarm]:
    """Start `size` nodes of one's own, with further arguments; they are closed after the test."""
    with ExitStack() as stack:

        def start(size: int, *arguments: str, model_path: Path = model) -> list[NodeProcess]:
            own = start_swarm(size, "--model-path", str(model_path), "--n-threads", "1", *arguments)
            return stack.enter_context(own)

        yield start


@pytest.fixture
def start_asking() -> Iterator[Callable[..., "subprocess.Popen[bytes]"]]:
    """Start `llamanet ask ARGUMENTS` and hand out the process, with its outputs as pipes; killed after the test."""
    with ExitStack() as stack:

        def start(*arguments: str) -> "subprocess.Popen[bytes]":
            command = [sys.executable, "-m", "llamanet", "ask", *arguments]
            pipe = subprocess.PIPE
            process = stack.enter_context(subprocess.Popen(command, stdout=pipe, stderr=pipe, bufsize=0))
            stack.callback(process.kill)
            return process

        yield start
