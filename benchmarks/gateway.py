"""What does HTTP in front of the swarm cost? Time to the first token, and time and memory of 500 streams.

Scripted nodes, in processes of their own, say 10 tokens/s to each stream. They are asked directly by a `Swarm` here,
and through `llamanet gateway` in a process of its own; what the gateway adds is the difference. LiteLLM's proxy is
given the same streams of the same nodes; it speaks to them through another gateway, whose time is not counted. Then
1,000 readers go away at random, half of them without a word, and the nodes are watched until nobody's work is left.

LiteLLM may live in an environment of its own, for its pins are many: `--litellm` (LITELLM_PYTHON) is that one's Python.
"""

import contextlib
import importlib.util
import itertools
import json
import os
import re
import secrets
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from random import Random

import attrs
import click
import trio
from asking import cpu_s, memory_bytes, percentile
from report import ROOT, Case, main, spread

from llamanet.swarm import Swarm

NODES = 4
STEP_S = 0.1
STREAMS = 500
FEW = 40
"""Streams that LiteLLM is given; at 500 it would not keep up."""
LEAVERS = 1000
START_WITHIN_S = 2.0
WARM_UP = 3
"""Tokens at a stream's begin that are not looked at: prompts are still being read."""
KEY = "sk-" + secrets.token_hex(32)
"""Without one LiteLLM does not start; the gateway, which has none, asks for none."""
_URL = re.compile(r"http://127\.0\.0\.1:(\d+)")
_WHOLE = re.compile(rb'"finish_reason": ?"length"')
_CONTENT = re.compile(rb'"content": ?"[^"]')


@attrs.define
class Heard:
    """When the pieces of one stream came, on `time.perf_counter`."""

    asked: float
    arrivals: list[float] = attrs.field(factory=list)

    @property
    def ttft(self) -> float:
        return self.arrivals[0] - self.asked

    @property
    def gaps(self) -> list[float]:
        return [later - earlier for earlier, later in itertools.pairwise(self.arrivals[WARM_UP:])]


Ask = Callable[[str, int, str], Awaitable[Heard]]
"""From a prompt, the number of tokens and the model's name."""


@attrs.frozen
class Http:
    """Something with OpenAI's API, in a process of its own."""

    port: int
    pid: int

    async def ask(self, prompt: str, tokens: int, model: str) -> Heard:
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
            return await self.ask_on(stream, prompt, tokens, model)

    async def ask_on(self, stream: trio.SocketStream, prompt: str, tokens: int, model: str) -> Heard:
        """Ask on a connection that is there. Raises `RuntimeError` for anything but a whole answer."""
        heard = Heard(time.perf_counter())
        await stream.send_all(self.request(prompt, tokens, model))
        data = b""
        while not data.endswith(b"\r\n0\r\n\r\n"):
            more = await stream.receive_some()
            if not more:
                break
            if not data and not more.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"port {self.port} answered {more!r}")  # Whose end looks different.
            now = time.perf_counter()
            heard.arrivals += [now] * len(_CONTENT.findall(more))
            data = (data + more)[-1000:]
        if b"[DONE]" not in data or not _WHOLE.search(data):
            raise RuntimeError(f"port {self.port} gave {len(heard.arrivals)} pieces, and then {data!r}")
        return heard

    def request(self, prompt: str, tokens: int, model: str) -> bytes:
        messages = [{"role": "user", "content": prompt}]
        body = json.dumps(
            {"model": model, "messages": messages, "max_tokens": tokens, "temperature": 0, "stream": True}
        )
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nAuthorization: Bearer {KEY}\r\n"
        return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


@attrs.frozen
class Direct:
    """The same nodes, without a gateway."""

    swarm: Swarm

    async def ask(self, prompt: str, tokens: int, model: str) -> Heard:
        heard = Heard(time.perf_counter())
        messages = [{"role": "user", "content": prompt}]
        async with self.swarm.stream(messages=messages, model=model, max_tokens=tokens, temperature=0.0) as stream:
            async for chunk in stream:
                if chunk.text:  # Some tokens are half a character, and are told to nobody.
                    heard.arrivals.append(time.perf_counter())
        return heard


# --- processes --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def paced_node(model: str, step_s: float, *peer: str) -> Iterator[str]:
    """A scripted node; gives its DHT's host:port."""
    command = [sys.executable, str(Path(__file__).with_name("paced_node.py")), model, str(step_s), *peer]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield f"127.0.0.1:{int(process.stdout.readline() if process.stdout else '')}"
        finally:
            process.kill()


@contextlib.contextmanager
def serving(command: Sequence[str], said: re.Pattern[str], **variables: str) -> Iterator[Http]:
    """A server that says where it serves."""
    environment = {**os.environ, **variables}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, text=True, env=environment, cwd=ROOT, **pipes) as process:
        try:
            log: list[str] = []
            for line in process.stdout or ():
                log.append(line)
                if found := said.search(line):
                    break
            else:
                raise RuntimeError(f"{command} ended:\n{''.join(log[-20:])}")
            # Whoever reads no pipe stops its writer.
            threading.Thread(target=_read_all, args=[process], daemon=True).start()
            yield Http(int(found[1]), process.pid)
        finally:
            process.kill()


def _read_all(process: "subprocess.Popen[str]") -> None:
    for _ in process.stdout or ():
        pass


def gateway(peer: str) -> contextlib.AbstractContextManager[Http]:
    """`llamanet gateway`, as anybody would start it."""
    command = [sys.executable, "-m", "llamanet", "gateway", "--http-port", "0", "--bootstrap-nodes", peer]
    return serving(command, _URL)


def litellm_python(given: str | None) -> str:
    """The Python that has LiteLLM's proxy. Ends with the line that installs it if there is none."""
    if given is None and importlib.util.find_spec("litellm") and importlib.util.find_spec("backoff"):
        return sys.executable
    if given is None or not Path(given).exists():
        install = "python3 -m venv litellm && litellm/bin/pip install 'litellm[proxy]'"
        raise click.ClickException(f"LiteLLM's proxy is not here; run: {install}; then --litellm litellm/bin/python")
    return given


@contextlib.contextmanager
def litellm(python: str, upstream: Http) -> Iterator[Http]:
    """LiteLLM's proxy, one worker, before `upstream`."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        settings = {"model": "openai/paced", "api_base": f"http://127.0.0.1:{upstream.port}/v1", "api_key": "none"}
        config = Path(folder) / "config.yaml"
        config.write_text(json.dumps({"model_list": [{"model_name": "paced", "litellm_params": settings}]}))
        command = [python, "-c", "from litellm import run_server; run_server()", "--config", str(config)]
        command += ["--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]
        said = re.compile(r"running on http://[^:]*:(\d+)")
        variables = {"LITELLM_MASTER_KEY": KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        with serving(command, said, **variables) as proxy:
            yield proxy


# --- measuring --------------------------------------------------------------------------------------------------------


async def ttfts(direct: Direct, http: Http, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds to the first token, directly and over a connection that is there; asked in turn."""
    found: tuple[list[float], list[float]] = ([], [])
    async with await trio.open_tcp_stream("127.0.0.1", http.port) as stream:
        for number in range(rounds + 5):
            heard = (
                await direct.ask(f"direct {number}", 1, "quick"),
                await http.ask_on(stream, f"gateway {number}", 1, "quick"),
            )
            if number >= 5:
                for times, one in zip(found, heard, strict=True):
                    times.append(one.ttft)
    return found


async def load(ask: Ask, streams: int, tokens: int) -> list[Heard]:
    """All streams, started one after the other within `START_WITHIN_S`."""
    heard: list[Heard] = []

    async def one(number: int) -> None:
        await trio.sleep(START_WITHIN_S * number / streams)
        heard.append(await ask(f"stream {number} of {streams}, {time.time_ns()}", tokens, "paced"))

    async with trio.open_nursery() as nursery:
        for number in range(streams):
            nursery.start_soon(one, number)
    return heard


@attrs.frozen
class Cost:
    """Of a process while it served streams."""

    us_a_token: float
    """Processor time, in microseconds."""
    bytes: int
    """Resident memory, at most."""
    gaps: list[float]
    busy: float
    """Share of the time in which it had a processor; near 1 it is saturated."""
    machine_busy: float
    """Share of all processors' time that anybody had; near 1 it is the machine that is."""


async def cost(http: Http, streams: int, tokens: int) -> Cost:
    """What it costs `http` to serve a load."""
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, memory_bytes(http.pid))
            await trio.sleep(0.2)

    before, idle, start = cpu_s(http.pid), idle_s(), time.perf_counter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        heard = await load(http.ask, streams, tokens)
        nursery.cancel_scope.cancel()
    spent, wall = cpu_s(http.pid) - before, time.perf_counter() - start
    machine_busy = 1 - (idle_s() - idle) / (wall * (os.cpu_count() or 1))
    return Cost(1e6 * spent / (streams * tokens), most, all_gaps(heard), spent / wall, machine_busy)


def idle_s() -> float:
    """Time that the processors of this machine had nothing to do; proc_stat(5), the line `cpu`, its fourth number."""
    with open("/proc/stat") as file:
        return int(file.readline().split()[4]) / os.sysconf("SC_CLK_TCK")


def saturation(costs: Sequence[Cost]) -> str:
    """What there was too little of, if anything: nodes and readers share the machine with what is measured."""
    gateway_busy, machine_busy = (
        statistics.median(getattr(one, name) for one in costs) for name in ("busy", "machine_busy")
    )
    return f"the gateway was busy {gateway_busy:.0%} of the time, the machine {machine_busy:.0%}"


def all_gaps(heard: Sequence[Heard]) -> list[float]:
    """The gaps of all streams."""
    return [gap for one in heard for gap in one.gaps]


async def leftover_s(swarm: Swarm, http: Http, readers: int, random: Random) -> float:
    """Seconds from the last reader's leaving until no node has any work."""
    left_at, most = 0.0, 0

    async def leave(starts: float, stays: float, rudely: bool) -> None:
        nonlocal left_at
        await trio.sleep(starts)
        with trio.move_on_after(stays):
            stream = await trio.open_tcp_stream("127.0.0.1", http.port)
            try:
                await stream.send_all(http.request(f"leaver {random.random()}", 3000, "paced"))
                async for _ in stream:
                    pass
            finally:
                if rudely:  # A reset instead of an end.
                    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                stream.socket.close()
        left_at = time.perf_counter()

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, await busy(swarm))
            await trio.sleep(0.1)

    async with trio.open_nursery() as watching:
        watching.start_soon(watch)
        async with trio.open_nursery() as nursery:
            for number in range(readers):
                nursery.start_soon(leave, START_WITHIN_S * random.random(), 4 * random.random(), number % 2 == 0)
        watching.cancel_scope.cancel()
    if most < readers / 10:
        raise RuntimeError(f"the nodes had {most} requests at most: the readers were not there")
    while await busy(swarm):  # noqa: ASYNC110 -- nodes are asked, and tell nobody
        await trio.sleep(0.02)
    return time.perf_counter() - left_at


async def busy(swarm: Swarm) -> int:
    """Requests that the nodes have."""
    return sum(node.running + node.waiting for node in await swarm.nodes("paced"))


async def _measure(peer: str, http: Http, proxy: Http, rounds: int, tokens: int, repeats: int) -> list[Case]:
    async with Swarm(peer) as swarm:
        direct = Direct(swarm)
        without, through = await ttfts(direct, http, rounds)
        ours, theirs = [], []
        async with trio.open_nursery() as warming_up:
            for one in (http, proxy):
                warming_up.start_soon(load, one.ask, FEW, WARM_UP)
        for _ in range(repeats):
            ours.append((await cost(http, FEW, tokens)).us_a_token)
            theirs.append((await cost(proxy, FEW, tokens)).us_a_token)
        bare = [percentile(all_gaps(await load(direct.ask, STREAMS, tokens)), 0.99) for _ in range(repeats)]
        many = [await cost(http, STREAMS, tokens) for _ in range(repeats)]
        gaps = [percentile(one.gaps, 0.99) for one in many]
        leftover = [await leftover_s(swarm, http, LEAVERS, Random(repeat)) for repeat in range(repeats)]
    ms = 1e3
    return [
        Case(
            name="added to TTFT, p50",
            value=ms * (statistics.median(through) - statistics.median(without)),
            unit="ms",
            better="lower",
            target=5,
            ours=spread([ms * value for value in through], "ms"),
            peer="direct: " + spread([ms * value for value in without], "ms"),
        ),
        Case(
            name=f"added to the time between tokens, p99, {STREAMS} streams",
            value=ms * (statistics.median(gaps) - statistics.median(bare)),
            unit="ms",
            better="lower",
            target=50,
            ours=spread([ms * value for value in gaps], "ms") + f" ({saturation(many)})",
            peer="direct: " + spread([ms * value for value in bare], "ms"),
        ),
        Case(
            name=f"processor time a token, {STREAMS} streams",
            value=statistics.median(one.us_a_token for one in many),
            unit="µs",
            better="lower",
            ours=spread([one.us_a_token for one in many], "µs"),
        ),
        Case(
            name=f"resident memory, {STREAMS} streams",
            value=max(one.bytes for one in many) / 2**20,
            unit="MiB",
            better="lower",
        ),
        Case(
            name=f"processor time a token, {FEW} streams / LiteLLM's",
            value=statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True)),
            unit="of its",
            better="lower",
            target=0.5,
            ours=spread(ours, "µs"),
            peer=spread(theirs, "µs"),
        ),
        Case(
            name=f"until nothing is left of {LEAVERS} readers who went",
            value=max(leftover),
            unit="s",
            better="lower",
            target=2,
            ours=spread(leftover, "s"),
        ),
    ]


@click.option(
    "--litellm", "python", metavar="PYTHON", envvar="LITELLM_PYTHON", help="A Python that has LiteLLM's proxy."
)
def measure(quick: bool, python: str | None) -> list[Case]:
    python = litellm_python(python)
    with contextlib.ExitStack() as held:
        peer = held.enter_context(paced_node("quick", 0.0))
        for _ in range(NODES):
            held.enter_context(paced_node("paced", STEP_S, peer))
        http = held.enter_context(gateway(peer))
        proxy = held.enter_context(litellm(python, held.enter_context(gateway(peer))))
        return trio.run(_measure, peer, http, proxy, *((30, 20, 1) if quick else (300, 150, 3)))


if __name__ == "__main__":
    main(measure)
