"""Is one node worth as much to many people at once as llama-server, and more than llama-cpp-python's own server?

Ours: a node in its own process, asked through `Swarm`: DHT, TLS websocket and all. The peers: llama-server (from the
wheel xllamacpp) and `llama_cpp.server`, each in its own process, streaming over HTTP without TLS. Same machine, model,
prompts, threads and slots; greedy; taken in turn, so that what else the machine does falls on all. The client runs on
the same cores. Cancellation is timed inside, on an engine in this process.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Protocol

import attrs
import trio
from peers import Answer, HttpPeer, llama_server, python_server
from report import MODELS, Case, main, spread

from llamanet.cli.demo_model import demo_model
from llamanet.node.backend import Chunk
from llamanet.node.cores import physical_cores
from llamanet.node.engine import Engine, EngineConfig, serve_engine
from llamanet.node.llama import LlamaBackend, LlamaConfig
from llamanet.swarm import Swarm
from llamanet.testing.processes import NodeProcess, start_swarm
from llamanet.wire.inference import Generate, Sampling, TokenLogprobs, Tokens

SLOTS = 16
N_CTX = 2048
STREAMS = (1, 2, 4, 8, 16)
THREADS = physical_cores()
SYSTEM_TOKENS = 700
LONG_TOKENS = 1000
NEAR_TIE = 0.25
"""Between the log-probabilities of the two likeliest tokens: as far as batches of another shape round otherwise."""
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


class Bench:
    """The three servers, and what all cases need."""

    def __init__(self, ours: Ours, peer: HttpPeer, single: HttpPeer, node: NodeProcess, *, quick: bool) -> None:
        self.ours, self.peer, self.single, self.node, self.quick = ours, peer, single, node, quick
        self.random = Random(1)

    async def streams(self) -> list[Case]:
        """Tokens/s of many streams at once, from the first request to the last token."""
        tokens, rounds = (24, 1) if self.quick else (128, 5)
        rates: dict[tuple[str, int], list[float]] = {}
        for number in range(rounds):
            for count in STREAMS:
                servers: list[tuple[str, Server]] = [("ours", self.ours), ("peer", self.peer)]
                if count == 8 and (number == 0 or not self.quick):
                    servers.append(("single", self.single))
                # Whoever comes later may find the machine warmer.
                for name, server in servers if number % 2 else reversed(servers):
                    prompts = [f"{self.random.randint(100, 999)} tales. Count: 1, 2, 3, 4," for _ in range(count)]
                    start = time.perf_counter()
                    answers = await ask_all(server, prompts, tokens)
                    seconds = time.perf_counter() - start
                    rates.setdefault((name, count), []).append(sum(answer.tokens for answer in answers) / seconds)
        cases = [
            self._rates(f"{count} streams / llama-server", rates["ours", count], rates["peer", count], 1.0)
            for count in STREAMS
        ]
        return [*cases, self._rates("8 streams / llama_cpp.server", rates["ours", 8], rates["single", 8], 1.4)]

    def _rates(self, name: str, ours: list[float], peer: list[float], target: float) -> Case:
        return Case(
            name=name,
            value=statistics.median(ours) / statistics.median(peer),
            unit="of its tokens/s",
            better="higher",
            target=target,
            ours=spread(ours, "tokens/s"),
            peer=spread(peer, "tokens/s"),
        )

    async def shared_prefix(self) -> list[Case]:
        """TTFT of questions after one long system prompt, which the server knows already, and of unknown ones."""
        cold_count, warm_count = (1, 4) if self.quick else (5, 20)
        ttft: dict[tuple[str, str], list[float]] = {}
        system = words(self.random, SYSTEM_TOKENS)
        for name, server in (("ours", self.ours), ("peer", self.peer)):
            for _ in range(cold_count):
                answer = await server.ask(words(self.random, SYSTEM_TOKENS), 2)
                ttft.setdefault((name, "cold"), []).append(answer.ttft)
            await server.ask(system, 2)
        for number in range(warm_count):
            for name, server in (("ours", self.ours), ("peer", self.peer)):
                answer = await server.ask(
                    f"{system}\nQuestion {number}: what is {WORDS[number % len(WORDS)]}?\nAnswer:", 2
                )
                ttft.setdefault((name, "warm"), []).append(answer.ttft)
        median = {key: statistics.median(values) for key, values in ttft.items()}
        return [
            Case(
                name="TTFT, shared system prompt / llama-server",
                value=median["ours", "warm"] / median["peer", "warm"],
                unit="of its p50",
                better="lower",
                target=1.0,
                ours=spread(ttft["ours", "warm"], "s"),
                peer=spread(ttft["peer", "warm"], "s"),
            ),
            Case(
                name="TTFT, shared system prompt, warm / cold",
                value=median["ours", "warm"] / median["ours", "cold"],
                unit="of the cold one",
                better="lower",
                target=1 / 8,
                ours=spread(ttft["ours", "warm"], "s"),
                peer=spread(ttft["ours", "cold"], "s, cold"),
            ),
        ]

    async def burst(self) -> list[Case]:
        """Time until all of eight questions that come together have their first token; one long prompt precedes each."""
        rounds, count = (1, 8) if self.quick else (5, 8)
        seconds: dict[str, list[float]] = {"ours": [], "peer": []}
        for number in range(rounds):
            for name, server in (("ours", self.ours), ("peer", self.peer)):
                system = f"{number} {name}: {words(self.random, SYSTEM_TOKENS)}"
                answers = await ask_all(
                    server, [f"{system}\nQuestion {n}: what is {WORDS[n]}?" for n in range(count)], 2
                )
                seconds[name].append(max(answer.ttft for answer in answers))
        return [
            Case(
                name="8 at once with a new system prompt in common: last TTFT / llama-server",
                value=statistics.median(seconds["ours"]) / statistics.median(seconds["peer"]),
                unit="of its time",
                better="lower",
                target=1.0,
                ours=spread(seconds["ours"], "s"),
                peer=spread(seconds["peer"], "s"),
            )
        ]

    async def multi_turn(self) -> list[Case]:
        """Tokens that a turn of a conversation computes, beyond those that are new in it."""
        turns = 3 if self.quick else 8
        beyond = []
        prompt, known = words(self.random, 60), 0
        for turn in range(turns):
            answer = await self.ours.ask(prompt, 16)
            if turn:
                new = answer.prompt_tokens - known
                beyond.append(float(answer.prompt_tokens - answer.cached_tokens - new))
            known = answer.prompt_tokens + answer.tokens
            prompt += f"{answer.text}\nAnd number {turn}? "
        return [
            Case(
                name="multi-turn chat: tokens computed again in a turn",
                value=max(beyond),
                unit="tokens",
                better="lower",
                # The last drawn token was never computed, and a text may end inside a token.
                target=4,
                ours=spread(beyond, "tokens"),
            )
        ]

    async def mixed(self) -> list[Case]:
        """Gaps between the tokens of four streams while long prompts arrive, and what all of them got together."""
        stream_tokens, arrivals, rounds = (40, 2, 1) if self.quick else (160, 4, 3)
        gaps: dict[str, list[float]] = {"ours": [], "peer": []}
        rates: dict[str, list[float]] = {"ours": [], "peer": []}
        for _ in range(rounds):
            for name, server in (("ours", self.ours), ("peer", self.peer)):
                start = time.perf_counter()
                streams: list[Answer] = []
                prompts: list[Answer] = []
                async with trio.open_nursery() as nursery:

                    async def stream(server: Server, into: list[Answer], prompt: str, tokens: int) -> None:
                        into.append(await server.ask(prompt, tokens))

                    for number in range(4):
                        prompt = f"{self.random.randint(100, 999)} tales {number}. Count: 1, 2, 3,"
                        nursery.start_soon(stream, server, streams, prompt, stream_tokens)
                    for _ in range(arrivals):
                        await trio.sleep(0.5)
                        nursery.start_soon(stream, server, prompts, words(self.random, LONG_TOKENS), 4)
                seconds = time.perf_counter() - start
                gaps[name] += [gap for answer in streams for gap in answer.gaps]
                done = sum(answer.tokens for answer in (*streams, *prompts))
                rates[name].append((done + sum(answer.prompt_tokens for answer in prompts)) / seconds)
        p99 = {name: percentile(values, 0.99) for name, values in gaps.items()}
        return [
            Case(
                name="p99 gap in streams while long prompts arrive / llama-server",
                value=p99["ours"] / p99["peer"],
                unit="of its gap",
                better="lower",
                target=0.2,
                ours=f"{p99['ours'] * 1e3:.0f} ms, longest {max(gaps['ours']) * 1e3:.0f}",
                peer=f"{p99['peer'] * 1e3:.0f} ms, longest {max(gaps['peer']) * 1e3:.0f}",
            ),
            self._rates("throughput meanwhile / llama-server", rates["ours"], rates["peer"], 0.9),
        ]

    async def short_requests(self) -> list[Case]:
        """What is left in the node after many short requests, a third of them cancelled at any moment."""
        count = 45 if self.quick else 1000
        limit = trio.CapacityLimiter(2 * SLOTS)

        async def one(number: int) -> None:
            async with limit:
                cancelled = number % 3 == 0
                with trio.move_on_after(self.random.uniform(0, 1.5) if cancelled else 600):
                    await self.ours.ask(f"{number}: {words(self.random, 8)}", 8)

        async def requests(count: int) -> None:
            async with trio.open_nursery() as nursery:
                for number in range(count):
                    nursery.start_soon(one, number)

        await requests(count // 3)
        before = _memory_bytes(self.node.process.pid), _threads(self.node.process.pid)
        start = time.perf_counter()
        await requests(count)
        seconds = time.perf_counter() - start
        # Nobody tells when a node is idle.
        for _ in range(25):
            if (busy := await self._busy()) == 0:
                break
            await trio.sleep(0.2)
        after = _memory_bytes(self.node.process.pid), _threads(self.node.process.pid)
        return [
            Case(
                name="1,000 requests, a third cancelled: slots and threads left behind",
                value=busy + max(0, after[1] - before[1]),
                unit="slots and threads",
                better="lower",
                target=0,
                ours=f"{count} in {seconds:.0f} s, {after[1]} threads",
            ),
            Case(
                name="1,000 requests, a third cancelled: growth of the node's memory",
                value=(after[0] - before[0]) / 1e6,
                unit="MB",
                better="lower",
                target=20,
                ours=f"{after[0] / 1e6:.0f} MB",
            ),
        ]

    async def _busy(self) -> int:
        return sum(view.running + view.waiting for view in await self.ours.swarm.nodes())


def _memory_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _threads(pid: int) -> int:
    """Threads of a process, but for those that trio keeps for the next job: they end when idle for 10 s."""
    names = [(task / "comm").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return sum(not name.startswith("Trio thread") for name in names)


def _cpu_s(pid: int) -> float:
    """Processor time of all threads of a process; nanoseconds are in the first field (kernel, sched-stats.rst)."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


class TimedBackend(LlamaBackend):
    """Notes when slots become free, and how many steps were begun."""

    steps = 0
    freed_at = 0.0
    freed = threading.Event()

    def decode(self, chunks: Sequence[Chunk]) -> None:
        TimedBackend.steps += 1
        super().decode(chunks)

    def end(self, slot: int) -> None:
        super().end(slot)
        TimedBackend.freed_at = time.perf_counter()
        TimedBackend.freed.set()


async def cancellation(path: Path, quick: bool) -> list[Case]:
    """From `cancel` to a free slot, while a request decodes and while it is in its prompt."""
    rounds = 5 if quick else 60
    random = Random(2)
    cases = []

    def load() -> LlamaBackend:
        return TimedBackend(LlamaConfig(model_path=path, n_ctx=N_CTX, n_parallel=4, n_threads=THREADS))

    async with trio.open_nursery() as nursery:
        engine: Engine = await nursery.start(serve_engine, "model", bytes(32), load, EngineConfig())
        for phase, tokens in (("decode", 8), ("prefill", 1500)):
            seconds, steps = [], []
            for _ in range(rounds):
                prompt = words(random, tokens)
                generation = engine.submit(Generate(id=1, prompt=prompt, sampling=Sampling(ignore_eos=True)))
                while not isinstance(await generation.receive(), Tokens) and phase == "decode":
                    pass
                await trio.sleep(random.uniform(0.0, 0.1))
                TimedBackend.freed.clear()
                start, begun = time.perf_counter(), TimedBackend.steps
                generation.cancel()
                await trio.to_thread.run_sync(TimedBackend.freed.wait)
                seconds.append(TimedBackend.freed_at - start)
                steps.append(TimedBackend.steps - begun)
            cases.append(
                Case(
                    name=f"cancel during {phase}: steps begun until the slot is free",
                    value=max(steps),
                    unit="steps",
                    better="lower",
                    target=1,
                    ours=f"p50 {statistics.median(seconds) * 1e3:.1f} ms, p99 {percentile(seconds, 0.99) * 1e3:.1f}",
                )
            )
        nursery.cancel_scope.cancel()
    return cases


async def several_models(path: Path, quick: bool) -> list[Case]:
    """Tokens/s of two engines at once, four streams each, and of one engine with eight."""
    tokens, rounds = (16, 1) if quick else (64, 5)
    sampling = Sampling(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    rates: dict[int, list[float]] = {1: [], 2: []}

    async def ask(engine: Engine, number: int) -> None:
        async for _ in engine.submit(Generate(id=number, prompt=f"{number} tales. Count: 1, 2,", sampling=sampling)):
            pass

    for _ in range(rounds):
        for count in rates:
            async with trio.open_nursery() as nursery:
                config = LlamaConfig(model_path=path, n_ctx=512, n_parallel=8, n_threads=THREADS)
                engines: list[Engine] = [
                    await nursery.start(serve_engine, "model", bytes(32), partial(LlamaBackend, config), EngineConfig())
                    for _ in range(count)
                ]
                start = time.perf_counter()
                async with trio.open_nursery() as streams:
                    for number in range(8):
                        streams.start_soon(ask, engines[number % count], number)
                rates[count].append(8 * tokens / (time.perf_counter() - start))
                nursery.cancel_scope.cancel()
    return [
        Case(
            name="two models in one node at once / one model, eight streams",
            value=statistics.median(rates[2]) / statistics.median(rates[1]),
            unit="of its tokens/s",
            better="higher",
            target=0.7,
            ours=spread(rates[2], "tokens/s"),
            peer=spread(rates[1], "tokens/s, one model"),
        )
    ]


async def agreement(path: Path, quick: bool) -> list[Case]:
    """Greedy texts of many streams in one batch, and each alone: where they part, how near was the draw?"""
    count, tokens = (4, 16) if quick else (16, 64)
    random = Random(3)
    prompts = [f"{words(random, 40)}. {number} tales:" for number in range(count)]
    ties = others = 0

    async def ask(engine: Engine, prompt: str) -> list[TokenLogprobs]:
        sampling = Sampling(temperature=0.0, max_tokens=tokens, ignore_eos=True, logprobs=2)
        answer = engine.submit(Generate(id=1, prompt=prompt, sampling=sampling))
        return [told async for message in answer if isinstance(message, Tokens) for told in message.logprobs]

    async with trio.open_nursery() as nursery:
        config = LlamaConfig(model_path=path, n_ctx=N_CTX, n_parallel=SLOTS, n_threads=THREADS)
        engine: Engine = await nursery.start(
            serve_engine, "model", bytes(32), lambda: LlamaBackend(config), EngineConfig()
        )
        alone = [await ask(engine, prompt) for prompt in prompts]
        for _ in ("with the memory of the first round", "with that of the second"):
            together: dict[int, list[TokenLogprobs]] = {}

            async def one(number: int, into: dict[int, list[TokenLogprobs]]) -> None:
                into[number] = await ask(engine, prompts[number])

            async with trio.open_nursery() as streams:
                for number in range(count):
                    streams.start_soon(one, number, together)
            for number, told in together.items():
                parted = [pair for pair in zip(alone[number], told, strict=True) if pair[0].token != pair[1].token]
                if parted:
                    near = min(each.top[0].logprob - each.top[1].logprob for each in parted[0]) < NEAR_TIE
                    ties += near
                    others += not near
        nursery.cancel_scope.cancel()
    return [
        Case(
            name="greedy texts in one batch that part from alone, not at a near tie",
            value=others,
            unit="texts",
            better="lower",
            target=0,
            ours=f"{ties} of {2 * count} at a near tie",
        )
    ]


async def overhead(quick: bool) -> list[Case]:
    """Processor time of a node whose model computes nothing and draws from a list."""
    tokens = 200 if quick else 2000
    cases = []
    with scripted_node() as (pid, port):
        async with Swarm(f"127.0.0.1:{port}") as swarm:
            await ask_all(Ours(swarm), ["warm up"] * 8, 20)
            for streams in (1, 8):
                before = _cpu_s(pid)
                answers = await ask_all(Ours(swarm), [f"prompt {n}" for n in range(streams)], tokens)
                spent = (_cpu_s(pid) - before) / sum(answer.tokens for answer in answers)
                cases.append(
                    Case(
                        name=f"node's processor time a token, decode and draw apart, {streams} streams",
                        value=spent * 1e6,
                        unit="µs",
                        better="lower",
                        target=150,
                    )
                )
    return cases


@contextlib.contextmanager
def scripted_node() -> Iterator[tuple[int, int]]:
    """Process id and DHT port of `scripted_node.py`, running."""
    command = [sys.executable, str(Path(__file__).with_name("scripted_node.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            yield process.pid, int(line)
        finally:
            process.kill()


@contextlib.contextmanager
def servers(path: Path) -> Iterator[tuple[NodeProcess, HttpPeer, HttpPeer]]:
    """All three, ready."""
    arguments = ["--model-path", str(path), "--n-parallel", str(SLOTS), "--n-ctx", str(N_CTX)]
    with (
        llama_server(path, slots=SLOTS, n_ctx=N_CTX, threads=THREADS) as peer,
        python_server(path, n_ctx=N_CTX, threads=THREADS) as single,
        start_swarm(1, *arguments, "--n-threads", str(THREADS)) as (node,),
    ):
        yield node, peer, single


async def _measure(quick: bool) -> list[Case]:
    path = await demo_model(MODELS)
    cases = []
    with servers(path) as (node, peer, single):
        async with Swarm(bootstrap_nodes=[node.dht_address]) as swarm:
            bench = Bench(Ours(swarm), peer, single, node, quick=quick)
            for server in (bench.ours, peer, single):
                await server.ask("Count: 1, 2,", 4)
            for case in (
                bench.streams,
                bench.shared_prefix,
                bench.burst,
                bench.multi_turn,
                bench.mixed,
                bench.short_requests,
            ):
                cases += await case()
    return [
        *cases,
        *await cancellation(path, quick),
        *await several_models(path, quick),
        *await agreement(path, quick),
        *await overhead(quick),
    ]


def measure(quick: bool) -> list[Case]:
    return trio.run(_measure, quick)


if __name__ == "__main__":
    main(measure)
