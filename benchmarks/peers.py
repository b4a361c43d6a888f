"""The servers that the engine is compared with, each in a process of its own, and how they are asked: HTTP, streaming.

llama-server comes in the wheel `xllamacpp`; `python -m llama_cpp.server` belongs to llama-cpp-python. Both are asked at
`/v1/completions`. Run as a program, this file is one of them: `peers.py NAME ARGUMENTS...`.
"""

import contextlib
import importlib.util
import itertools
import json
import re
import runpy
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import click
import trio

_PORT = re.compile(r"http://127\.0\.0\.1:(\d+)")


@attrs.define
class Answer:
    """What came back, and when: for each arrival its time on `time.perf_counter` and the tokens in it."""

    asked: float
    arrivals: list[tuple[float, int]] = attrs.field(factory=list)
    text: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0

    @property
    def tokens(self) -> int:
        return sum(count for _, count in self.arrivals)

    @property
    def ttft(self) -> float:
        """Seconds."""
        return self.arrivals[0][0] - self.asked

    @property
    def gaps(self) -> list[float]:
        """Seconds between arrivals."""
        times = [moment for moment, _ in self.arrivals]
        return [later - earlier for earlier, later in itertools.pairwise(times)]


@attrs.frozen
class HttpPeer:
    """A server on loopback."""

    name: str
    port: int

    async def ask(self, prompt: str, max_tokens: int) -> Answer:
        """Complete `prompt`, greedily, to exactly `max_tokens` tokens where the server can be told so."""
        options = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "stream": True, "ignore_eos": True}
        body = json.dumps(options).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        answer = Answer(time.perf_counter())
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
            await stream.send_all(head.encode() + body)
            rest = b""
            async for data in stream:
                now = time.perf_counter()
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._take(line, answer, now)
        if not answer.arrivals:
            raise RuntimeError(f"{self.name} answered nothing to a prompt of {len(prompt)} characters: {rest!r}")
        return answer

    def _take(self, line: bytes, answer: Answer, now: float) -> None:
        if not line.startswith(b"data: {"):
            return
        event = json.loads(line.removeprefix(b"data: "))
        if usage := event.get("usage"):
            answer.prompt_tokens = usage["prompt_tokens"]
            answer.cached_tokens = usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)
        choice = event["choices"][0]
        answer.text += choice["text"]
        if choice["text"]:
            answer.arrivals.append((now, 1))


def need(module: str) -> None:
    """End with the line that installs what is missing."""
    if importlib.util.find_spec(module) is None:
        raise click.ClickException(f"{module} is not installed; run: {sys.executable} -m pip install -e '.[bench]'")


@contextlib.contextmanager
def llama_server(model: Path, *, slots: int, n_ctx: int, threads: int) -> Iterator[HttpPeer]:
    """llama-server with its default batch; `n_ctx` tokens for each slot."""
    need("xllamacpp")
    command = [sys.executable, __file__, "llama-server", str(model), str(slots), str(n_ctx), str(threads)]
    with _serving("llama-server", command) as port:
        yield HttpPeer("llama-server", port)


@contextlib.contextmanager
def python_server(model: Path, *, n_ctx: int, threads: int) -> Iterator[HttpPeer]:
    """llama-cpp-python's own server, which takes one request at a time."""
    need("uvicorn")
    command = [sys.executable, __file__, "llama_cpp.server", "--model", str(model), "--n_ctx", str(n_ctx)]
    command += ["--n_threads", str(threads), "--n_threads_batch", str(threads), "--port", "0", "--host", "127.0.0.1"]
    # A new request would otherwise end the one that is being answered.
    command += ["--interrupt_requests", "false"]
    with _serving("llama_cpp.server", command) as port:
        yield HttpPeer("llama_cpp.server", port)


@contextlib.contextmanager
def _serving(name: str, command: Sequence[str]) -> Iterator[int]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            log: list[str] = []
            for line in process.stdout or ():
                log.append(line)
                if found := _PORT.search(line):
                    break
            else:
                raise RuntimeError(f"{name} ended:\n{''.join(log[-20:])}")
            # Whoever reads no pipe stops its writer.
            threading.Thread(target=_read_all, args=[process], daemon=True).start()
            yield int(found[1])
        finally:
            process.kill()


def _read_all(process: "subprocess.Popen[str]") -> None:
    for _ in process.stdout or ():
        pass


def run_python_server() -> None:
    """Be `llama_cpp.server` until killed."""
    import llama_cpp.llama_cpp as lib

    default_params = lib.llama_model_default_params

    def params() -> Any:
        # As in llamanet/node/llama.py, which says why.
        made = default_params()
        made.use_extra_bufts = b"AMX_INT8 = 1" not in lib.llama_print_system_info()
        return made

    lib.llama_model_default_params = params
    runpy.run_module("llama_cpp.server", run_name="__main__")


def run_llama_server(model: str, slots: int, n_ctx: int, threads: int) -> None:
    """Be llama-server until killed."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_parallel = slots
    params.n_ctx = slots * n_ctx
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.verbosity = 0
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    name = sys.argv.pop(1)
    if name == "llama-server":
        run_llama_server(sys.argv[1], *map(int, sys.argv[2:]))
    else:
        run_python_server()
