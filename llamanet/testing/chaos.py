"""Many streams while nodes die, freeze, hang, lag, drain and garble: does each end exact, or in a typed error?

Everything is the real thing but model, network and clock; run it under trio's autojump clock:

    async def test_chaos(autojump_clock):
        outcome = await run_chaos(seed=1, streams=300)
        assert outcome.wrong == [] and outcome.left == []
"""

from random import Random

import attrs
import trio

from llamanet.client.client import SwarmClient
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


@attrs.define
class Outcome:
    """What came of the streams."""

    exact: int = 0
    cancelled: int = 0
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
                for number in range(streams):
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


async def _check_stream(client: SwarmClient, number: int, count: int, outcome: Outcome) -> None:
    """Every third stream has log-probabilities, every fifth a stop string, every seventh a grammar."""
    prompt = f"prompt {number}"
    expected = scripted_tokens(prompt, count, seed=number, temperature=0.7)
    text, reason = scripted_text(expected), "length"
    logprobs = None if number % 3 else LOGPROBS
    stop = None if number % 5 else text.split()[len(text.split()) // 2]
    grammar = None if number % 7 else 'root ::= "any"'
    if stop:
        # The stream ends with the token that completes the string, and the text before it.
        ends = next(end for end in range(1, count + 1) if stop in scripted_text(expected[:end]))
        expected, text, reason = expected[:ends], text[: text.index(stop)], "stop"
    try:
        reply = await client.generate(
            prompt,
            model="alpha",
            max_tokens=count,
            temperature=0.7,
            seed=number,
            stop=stop,
            logprobs=logprobs,
            grammar=grammar,
            wait=60,
        )
    except LlamaNetError as error:
        outcome.errors.append(error)
        return
    for hop in reply.hops:
        outcome.hops[hop.reason] = outcome.hops.get(hop.reason, 0) + 1
    chances = [] if logprobs is None else [scripted_logprobs(token, LOGPROBS) for token in expected]
    if (
        list(reply.token_ids) == expected
        and (reply.text, reply.finish_reason) == (text, reason)
        and (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (2, len(expected))
        and list(reply.logprobs) == chances
    ):
        outcome.exact += 1
    else:
        outcome.wrong.append(f"{prompt}: {reply}")
