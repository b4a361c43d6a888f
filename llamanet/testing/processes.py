"""Real nodes in real processes, for tests, benchmarks and the demo: started, listened to, stopped, killed.

Rules:
- A node says when it is ready in its log (JSON, on standard error); nobody waits by sleeping.
- Each node has its own process group, so that Ctrl-C in a terminal reaches only the program that started it.
- Whoever starts a node closes it: leaving the `with` block ends the process, whatever state it is in.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

LogEntry = dict[str, Any]
"""A line of the log: `time`, `level`, `logger`, `message` and what else the line carries."""
READY = re.compile(r"Node (.+) \([0-9a-f]{64}\) serves .*:(\d+) \(TCP.*DHT on port (\d+) \(UDP\)")
"""What a node logs when it can be asked: its label, its port, its DHT port."""
READY_S = 60.0
CLOSE_S = 5.0
"""How long a node may drain before it is killed."""


class NodeDied(RuntimeError):
    """A node ended while something was awaited of it."""


class NodeProcess:
    """`python -m llamanet.node` with `arguments`, and with `variables` beside this process's own environment."""

    label: str
    """Known, as the ports are, after `wait_ready`."""
    port: int
    """Inference, TCP."""
    dht_port: int
    """UDP."""

    def __init__(self, *arguments: str, variables: Mapping[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "llamanet.node", "--log-format", "json", *arguments]
        self.log: list[LogEntry] = []
        self._news = threading.Condition()
        self._ended = False
        self.process = subprocess.Popen(
            command,
            env={**os.environ, **(variables or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    def __enter__(self) -> "NodeProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_log(self) -> None:
        for line in self.process.stderr or ():
            try:
                entry = json.loads(line)
            except ValueError:
                entry = {"message": line.rstrip("\n")}
            with self._news:
                self.log.append(entry)
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def wait_ready(self, timeout: float = READY_S) -> "NodeProcess":
        """Return this node once it serves. Raises as `wait_for` does."""
        entry = self.wait_for(lambda entry: READY.match(entry["message"]) is not None, timeout)
        ready = READY.match(entry["message"])
        if ready:
            self.label, self.port, self.dht_port = ready[1], int(ready[2]), int(ready[3])
        return self

    @property
    def dht_address(self) -> str:
        """What to bootstrap from, for nodes and clients on this machine."""
        return f"127.0.0.1:{self.dht_port}"

    def wait_for(self, wanted: Callable[[LogEntry], bool], timeout: float) -> LogEntry:
        """The first log entry, past ones included, that is `wanted`.

        Raises `NodeDied` with the end of the log if the node ends before, or `TimeoutError` after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        seen = 0
        with self._news:
            while True:
                for entry in self.log[seen:]:
                    if wanted(entry):
                        return entry
                seen = len(self.log)
                if self._ended:
                    raise NodeDied(f"the node ended with status {self.process.wait()}:\n{self.log_tail()}")
                if not self._news.wait(deadline - time.monotonic()):
                    raise TimeoutError(f"not within {timeout} s; the node's log ends with:\n{self.log_tail()}")

    def log_tail(self) -> str:
        """The last messages of the log."""
        return "\n".join(str(entry["message"]) for entry in self.log[-20:])

    def send_signal(self, number: signal.Signals) -> None:
        """Send the node a signal."""
        self.process.send_signal(number)

    def wait(self, timeout: float) -> int:
        """The exit status, once the node has ended. Raises `subprocess.TimeoutExpired`."""
        status = self.process.wait(timeout)
        self._reader.join(timeout)
        return status

    def close(self) -> None:
        """End the process if it runs, whatever state it is in, and wait for its end."""
        close_all([self])

    def _drain(self) -> None:
        # Once only: a second signal would stop a node at once.
        if self.process.poll() is None:
            self.send_signal(signal.SIGTERM)
            self.send_signal(signal.SIGCONT)

    def _end(self) -> None:
        try:
            self.process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        if self.process.stderr:
            self.process.stderr.close()


def close_all(nodes: Sequence[NodeProcess]) -> None:
    """Close nodes together: they are told to drain, woken if they were stopped, and killed if it takes too long."""
    for node in nodes:
        node._drain()
    for node in nodes:
        node._end()


def start_node(number: int, data_dir: Path, bootstrap: Sequence[str], *arguments: str) -> NodeProcess:
    """A node on loopback, on free ports, called node-1 and so on, that keeps its files in a folder below `data_dir`."""
    return NodeProcess(
        *("--host", "127.0.0.1", "--port", "0", "--dht-port", "0", "--node-id", f"node-{number}"),
        *("--data-dir", str(data_dir / str(number)), "--bootstrap-nodes", ",".join(bootstrap), *arguments),
    )


@contextlib.contextmanager
def start_swarm(size: int, *arguments: str) -> Iterator[list[NodeProcess]]:
    """`size` nodes made by `start_node` with `arguments`, joined through the first one; ready when handed out."""
    with tempfile.TemporaryDirectory(prefix="llamanet-") as data_dir:
        nodes: list[NodeProcess] = []
        try:
            for number in range(1, size + 1):
                bootstrap = [nodes[0].wait_ready().dht_address] if nodes else []
                nodes.append(start_node(number, Path(data_dir), bootstrap, *arguments))
            for node in nodes:
                node.wait_ready()
            yield nodes
        finally:
            close_all(nodes)
