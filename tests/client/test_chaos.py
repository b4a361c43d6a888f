"""Streams while nodes die, freeze, garble and lose datagrams: each ends exact, or in a typed error; nothing is left."""

from random import Random

import pytest
import trio
import trio.testing

from llamanet.errors import LlamaNetError, NoNodeServes, NotJoined, SwarmBusy
from llamanet.testing.backend import scripted_text, scripted_tokens
from llamanet.testing.cluster import Cluster
from llamanet.testing.network import MemoryNetwork

STREAMS = 30
DISASTERS = 25
SETTLED_S = 200


class Chaos:
    def __init__(self, cluster, rng):
        self.cluster = cluster
        self.rng = rng
        self.started = len(cluster.nodes)
        self.frozen = set()

    async def strike(self):
        """One disaster (what is garbled breaks TLS, and is noticed); at least one node in good health is left."""
        healthy = [label for label in self.cluster.nodes if label not in self.frozen]
        kind = self.rng.choice(["kill", "freeze", "cut", "garble", "start"])
        if len(healthy) < 3 or kind == "start":
            await self.cluster.start_node(f"node-{self.started}", step_time=0.02, slots=8, tls=True)
            self.started += 1
            return
        label = self.rng.choice(healthy)
        node = self.cluster.nodes[label]
        if kind == "kill":
            self.cluster.kill(label)
        elif kind == "freeze":
            self.cluster.freeze(label)
            self.frozen.add(label)
        elif kind == "cut":
            for link in list(node.links):
                link.cut()
        else:
            node.tamper = self.garble_once(node)

    def garble_once(self, node):
        def tamper(data):
            node.tamper = None
            at = self.rng.randrange(len(data))
            return data[:at] + bytes([data[at] ^ (1 << self.rng.randrange(8))]) + data[at + 1 :]

        return tamper

    def relent(self):
        for label in self.frozen & self.cluster.nodes.keys():
            self.cluster.thaw(label)
        self.frozen.clear()


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_happens_a_stream_is_exact_or_says_why_not(autojump_clock, nursery, seed):
    rng = Random(seed)
    network = MemoryNetwork(seed=seed, loss=0.03, delay=(0.001, 0.02), duplicate=0.05)
    cluster = Cluster(nursery, network, seed=seed)
    await cluster.start_nodes(4, step_time=0.02, slots=8, tls=True)
    chaos = Chaos(cluster, rng)
    client = await cluster.start_client()
    errors = []

    async def one(number, count):
        prompt = f"prompt {number}"
        try:
            reply = await client.generate(prompt, model="alpha", max_tokens=count, temperature=0.7, seed=number)
        except LlamaNetError as error:
            errors.append(error)
            return
        expected = scripted_tokens(prompt, count, seed=number, temperature=0.7)
        assert list(reply.token_ids) == expected, reply.hops
        assert reply.text == scripted_text(expected)
        assert reply.usage.completion_tokens == count

    async def disasters():
        for _ in range(DISASTERS):
            await trio.sleep(rng.uniform(0.1, 2.0))
            await chaos.strike()

    async with trio.open_nursery() as streams:
        streams.start_soon(disasters)
        for number in range(STREAMS):
            streams.start_soon(one, number, rng.randint(20, 300))
            await trio.sleep(rng.uniform(0.0, 0.5))
    assert all(isinstance(error, NoNodeServes | NotJoined | SwarmBusy) for error in errors)
    assert len(errors) <= STREAMS // 10

    chaos.relent()
    await trio.sleep(SETTLED_S)
    for node in cluster.nodes.values():
        for engine in node.host.endpoint.engines.values():
            assert (engine.state().running, engine.state().waiting) == (0, 0)
        assert not node.links
