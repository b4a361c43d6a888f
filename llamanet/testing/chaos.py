"""Many streams while nodes die, freeze, hang, lag, drain and garble: does each end exact, or in a typed error?

A part of them is asked for in batches (`SwarmClient.map`), some of which are broken off.

Everything is the real thing but model, network and clock; run it under trio's autojump clock:

    async def test_chaos(autojump_clock):
        outcome = await run_chaos(seed=1, streams=300)
        assert outcome.wrong == [] and outcome.left == []
"""

from random import Random
from typing import Any

import attrs
import trio

from llamanet.client.client import SwarmClient
from llamanet.client.reply import Reply
from llamanet.errors import LlamaNetError
from llamanet.testing.backend import scripted_logprobs, scripted_text, scripted_tokens
from llamanet.testing.cluster import Cluster, ClusterNode
from llamanet.testing.network import MemoryNetwork

NODES = 6
SLOTS = 8
STEP_S = 0.02
STREAMS_AT_ONCE = 24
TOKENS = (1, 60)
CALM_S = (0.1, 1.5)
"""Between two disasters."""
LAG_S = (0.05, 3.0)
"""By which all that a node writes is late, until the next disasters are over."""
LOGPROBS = 2
SETTLED_S = 200.0
"""After it nothing of a stream may be left: idle connections are closed, dead ones noticed."""
CANCELLED = 0.05
"""The share of streams that their callers give up."""
BATCH = 10
BATCHED = 0.2
"""The share of streams that are asked for in batches of `BATCH`; every third batch is broken off in its middle."""


@attrs.define
class Outcome:
    """What came of the streams."""

    exact: int = 0
    cancelled: int = 0
    batched: int = 0
    """Of the exact ones, those of batches."""
    errors: list[LlamaNetError] = attrs.field(factory=list)
    wrong: list[str] = attrs.field(factory=list)
    """Streams with a token or a character too many, too few, or another one."""
    left: list[str] = attrs.field(factory=list)
    """What was left behind: tasks, slots, sockets, turns."""
    hops: dict[str, int] = attrs.field(factory=dict)
    """How often streams changed their node, by reason."""


class _Disasters:
    def __init__(self, cluster: Cluster, rng: Random) -> None:
        self._cluster = cluster
        self._rng = rng
        self._struck: set[str] = set()
        self._started = 0

    async def start(self) -> None:
        self._started += 1
        await self._cluster.start_node(f"node-{self._started}", step_time=STEP_S, slots=SLOTS, tls=True)

    async def run(self) -> None:
        """Strike until cancelled; half of the nodes are always in good health."""
        while True:
            await trio.sleep(self._rng.uniform(*CALM_S))
            healthy = [label for label in self._cluster.nodes if label not in self._struck]
            if len(healthy) <= NODES // 2:
                await self.start()
                self._relent()
            else:
                self._strike(self._cluster.nodes[self._rng.choice(healthy)])

    def _strike(self, node: ClusterNode) -> None:
        kind = self._rng.choice(("kill", "freeze", "hang", "lag", "cut", "garble", "drain"))
        if kind == "kill":
            self._cluster.kill(node.label)
        elif kind == "cut":
            for link in list(node.links):
                link.cut()
        elif kind == "garble":
            node.tamper = self._garble_once(node)
        else:
            self._struck.add(node.label)
            if kind == "freeze":
                self._cluster.freeze(node.label)
            elif kind == "hang":
                node.backend.hang_at = node.backend.drawn + self._rng.randint(1, 20)
            elif kind == "drain":
                node.host.drain()
            else:
                node.lag = self._rng.uniform(*LAG_S)

    def _garble_once(self, node: ClusterNode) -> "_Garbler":
        return _Garbler(node, self._rng)

    def _relent(self) -> None:
        """One that froze or lagged goes on; one that hangs or drains is replaced by now."""
        for label in sorted(self._struck & self._cluster.nodes.keys()):
            node = self._cluster.nodes[label]
            self._cluster.thaw(label)
            node.lag = 0.0
            if node.backend.hang_at is not None or node.host.endpoint.draining:
                self._cluster.kill(label)
        self._struck.clear()

    async def end(self) -> None:
        self._relent()


class _Garbler:
    """Turns one bit of the next piece that a node writes."""

    def __init__(self, node: ClusterNode, rng: Random) -> None:
        self._node = node
        self._rng = rng

    def __call__(self, data: bytes) -> bytes:
        self._node.tamper = None
        at = self._rng.randrange(len(data))
        return data[:at] + bytes([data[at] ^ (1 << self._rng.randrange(8))]) + data[at + 1 :]


async def run_chaos(*, seed: int, streams: int) -> Outcome:
    """Run `streams` streams of one client, some at once, in a swarm of its own."""
    rng = Random(seed)
    outcome = Outcome()
    tasks_before = trio.lowlevel.current_statistics().tasks_living
    async with trio.open_nursery() as nursery:
        network = MemoryNetwork(seed=seed, loss=0.02, delay=(0.001, 0.01), duplicate=0.02)
        cluster = Cluster(nursery, network, seed=seed)
        disasters = _Disasters(cluster, rng)
        for _ in range(NODES):
            await disasters.start()
        await trio.sleep(3)
        client = await cluster.start_client()
        limit = trio.CapacityLimiter(STREAMS_AT_ONCE)

        async def one(number: int, count: int, patience: float) -> None:
            async with limit:
                with trio.move_on_after(patience) as scope:
                    await _check_stream(client, number, count, outcome)
                outcome.cancelled += scope.cancelled_caught

        async with trio.open_nursery() as striking:
            striking.start_soon(disasters.run)
            async with trio.open_nursery() as asking:
                batched = int(BATCHED * streams) // BATCH * BATCH
                asking.start_soon(_check_batches, client, batched, rng.randint(*TOKENS), outcome)
                for number in range(batched, streams):
                    patience = rng.uniform(0, 1) if rng.random() < CANCELLED else float("inf")
                    asking.start_soon(one, number, rng.randint(*TOKENS), patience)
            striking.cancel_scope.cancel()
        await disasters.end()
        await trio.sleep(SETTLED_S)
        for node in cluster.nodes.values():
            for engine in node.host.endpoint.engines.values():
                state = engine.state()
                if state.running or state.waiting:
                    outcome.left.append(f"{node.label}: {state.running} running, {state.waiting} waiting")
            if node.links:
                outcome.left.append(f"{node.label}: {len(node.links)} connections")
        nursery.cancel_scope.cancel()
    tasks = trio.lowlevel.current_statistics().tasks_living - tasks_before
    if tasks:
        outcome.left.append(f"{tasks} tasks")
    return outcome


@attrs.frozen
class _Question:
    """A prompt, how it is asked, and what is to come of it."""

    prompt: str
    options: dict[str, Any]
    token_ids: list[int]
    text: str
    finish_reason: str

    def judge(self, reply: Reply, outcome: Outcome) -> bool:
        """Count a reply; whether it is exact."""
        for hop in reply.hops:
            outcome.hops[hop.reason] = outcome.hops.get(hop.reason, 0) + 1
        asked = self.options["logprobs"]
        chances = [] if asked is None else [scripted_logprobs(token, asked) for token in self.token_ids]
        exact = (
            list(reply.token_ids) == self.token_ids
            and (reply.text, reply.finish_reason) == (self.text, self.finish_reason)
            and (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (2, len(self.token_ids))
            and list(reply.logprobs) == chances
        )
        if exact:
            outcome.exact += 1
        else:
            outcome.wrong.append(f"{self.prompt}: {reply}")
        return exact


def _question(name: str, number: int, count: int, *, may_stop: bool) -> _Question:
    """Every third has log-probabilities, every fifth a stop string if it `may_stop`, every seventh a grammar."""
    prompt = f"prompt {name}"
    expected = scripted_tokens(prompt, count, seed=number, temperature=0.7)
    text, reason, stop = scripted_text(expected), "length", None
    if may_stop and not number % 5:
        stop = text.split()[len(text.split()) // 2]
        # The stream ends with the token that completes the string, and the text before it.
        ends = next(end for end in range(1, count + 1) if stop in scripted_text(expected[:end]))
        expected, text, reason = expected[:ends], text[: text.index(stop)], "stop"
    options = {
        "model": "alpha",
        "max_tokens": count,
        "temperature": 0.7,
        "seed": number,
        "stop": stop,
        "logprobs": None if number % 3 else LOGPROBS,
        "grammar": None if number % 7 else 'root ::= "any"',
        "wait": 60,
    }
    return _Question(prompt, options, expected, text, reason)


async def _check_stream(client: SwarmClient, number: int, count: int, outcome: Outcome) -> None:
    question = _question(str(number), number, count, may_stop=True)
    try:
        reply = await client.generate(question.prompt, **question.options)
    except LlamaNetError as error:
        outcome.errors.append(error)
    else:
        question.judge(reply, outcome)


async def _check_batches(client: SwarmClient, streams: int, count: int, outcome: Outcome) -> None:
    """One batch after the other, in order and as they come by turns."""
    for number in range(streams // BATCH):
        questions = [_question(f"{number}.{place}", number, count, may_stop=False) for place in range(BATCH)]
        left, ordered = BATCH // 2 if number % 3 == 0 else BATCH, number % 2 == 0
        came = []
        prompts = [question.prompt for question in questions]
        async with client.map(prompts, concurrency=BATCH // 2, ordered=ordered, **questions[0].options) as results:
            async for result in results:
                came.append(result.index)
                left -= 1
                if result.error is not None:
                    outcome.errors.append(result.error)
                elif result.reply is not None:
                    outcome.batched += questions[result.index].judge(result.reply, outcome)
                if not left:
                    break
        outcome.cancelled += BATCH - len(came)
        if came != list(range(len(came))) and (ordered or len(set(came)) < len(came)):
            outcome.wrong.append(f"batch {number}: results {came}")
