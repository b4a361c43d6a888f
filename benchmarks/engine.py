"""Is one node worth as much to many people at once as llama-server, and more than llama-cpp-python's own server?

Ours: a node in its own process, asked through `Swarm`: DHT, TLS websocket and all. The peers: llama-server (from the
wheel xllamacpp) and `llama_cpp.server`, each in its own process, streaming over HTTP without TLS. Same machine, model,
prompts, threads and slots; greedy; taken in turn, so that what else the machine does falls on all. The client runs on
the same cores. Cancellation is timed inside, on an engine in this process.
"""

import contextlib
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import trio
from asking import WORDS, Ours, Server, ask_all, memory_bytes, percentile, threads, words
from engine_inside import N_CTX, SLOTS, THREADS, agreement, cancellation, overhead, several_models
from peers import Answer, HttpPeer, llama_server, python_server
from report import MODELS, Case, main, spread

from llamanet.cli.demo_model import demo_model
from llamanet.swarm import Swarm
from llamanet.testing.processes import NodeProcess, start_swarm

STREAMS = (1, 2, 4, 8, 16)
SYSTEM_TOKENS = 700
LONG_TOKENS = 1000


class Bench:
    """The three servers, and what all cases need."""

    def __init__(self, ours: Ours, peer: HttpPeer, single: HttpPeer, node: NodeProcess, *, quick: bool) -> None:
        self.ours, self.peer, self.single, self.node, self.quick = ours, peer, single, node, quick
        self.random = Random(1)

    async def streams(self) -> list[Case]:
        """Tokens/s of many streams at once, from the first request to the last token."""
        tokens, rounds = (12, 1) if self.quick else (128, 3)
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

    async def coming_and_going(self) -> list[Case]:
        """Tokens/s of eight readers who ask one thing after the other, with answers of any length."""
        requests, rounds = (2, 1) if self.quick else (6, 3)
        rates: dict[str, list[float]] = {"ours": [], "peer": []}

        async def reader(server: Server, lengths: list[int], into: list[Answer]) -> None:
            for number, tokens in enumerate(lengths):
                into.append(await server.ask(f"{self.random.randint(100, 999)} tales. Count: {number},", tokens))

        for _ in range(rounds):
            longest = 16 if self.quick else 128
            lengths = [[self.random.randint(4, longest) for _ in range(requests)] for _ in range(8)]
            for name, server in (("ours", self.ours), ("peer", self.peer)):
                answers: list[Answer] = []
                start = time.perf_counter()
                async with trio.open_nursery() as nursery:
                    for each in lengths:
                        nursery.start_soon(reader, server, each, answers)
                rates[name].append(sum(answer.tokens for answer in answers) / (time.perf_counter() - start))
        return [self._rates("8 readers, answers of any length / llama-server", rates["ours"], rates["peer"], 1.0)]

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
        cold_count, warm_count, tokens = (1, 4, 300) if self.quick else (5, 20, SYSTEM_TOKENS)
        ttft: dict[tuple[str, str], list[float]] = {}
        system = words(self.random, tokens)
        for name, server in (("ours", self.ours), ("peer", self.peer)):
            for text in (*(words(self.random, tokens) for _ in range(cold_count - 1)), system):
                answer = await server.ask(text, 2)
                ttft.setdefault((name, "cold"), []).append(answer.ttft)
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
        """Time until eight questions that come together, after one long new prompt, all have their first token."""
        rounds, tokens, count = (1, 80, 8) if self.quick else (5, SYSTEM_TOKENS, 8)
        seconds: dict[str, list[float]] = {"ours": [], "peer": []}
        for number in range(rounds):
            for name, server in (("ours", self.ours), ("peer", self.peer)):
                system = f"{number} {name}: {words(self.random, tokens)}"
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
        stream_tokens, arrivals, rounds, long = (30, 2, 1, 400) if self.quick else (160, 4, 3, LONG_TOKENS)
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
                        nursery.start_soon(stream, server, prompts, words(self.random, long), 4)
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
        count = 30 if self.quick else 1000
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
        before = memory_bytes(self.node.process.pid), threads(self.node.process.pid)
        start = time.perf_counter()
        await requests(count)
        seconds = time.perf_counter() - start
        # Nobody tells when a node is idle.
        for _ in range(25):
            if (busy := await self._busy()) == 0:
                break
            await trio.sleep(0.2)
        after = memory_bytes(self.node.process.pid), threads(self.node.process.pid)
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
                bench.coming_and_going,
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
