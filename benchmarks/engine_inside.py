"""What is measured inside an engine, or of a node that computes nothing: cancelling, models, agreement, cost."""

import statistics
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from random import Random

import trio
from asking import Ours, ask_all, percentile, scripted_node, words
from report import Case, spread

from llamanet.node.backend import Chunk
from llamanet.node.cores import physical_cores
from llamanet.node.engine import Engine, EngineConfig, serve_engine
from llamanet.node.llama import LlamaBackend, LlamaConfig
from llamanet.swarm import Swarm
from llamanet.wire.inference import Generate, Sampling, TokenLogprobs, Tokens

SLOTS = 16
N_CTX = 2048
THREADS = physical_cores()
NEAR_TIE = 0.25
"""Between the log-probabilities of the two likeliest tokens: as far as batches of another shape round otherwise."""


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
    """Processor time of a node beside that of its model."""
    tokens = 100 if quick else 2000
    cases = []
    with scripted_node() as node:
        async with Swarm(f"127.0.0.1:{node.dht_port}") as swarm:
            await ask_all(Ours(swarm), ["warm up"] * 8, 20)
            for streams in (1, 8):
                before = node.overhead_s()
                answers = await ask_all(Ours(swarm), [f"prompt {n}" for n in range(streams)], tokens)
                spent = (node.overhead_s() - before) / sum(answer.tokens for answer in answers)
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
