"""The simulator: the same events for the same seed, and figures that can be right."""

import math

import pytest
from simulated import grown, key

from llamanet.dht.distance import distance
from llamanet.dht.overlay import lookup_in
from llamanet.testing.adversaries import corrupt
from llamanet.testing.churn import Churn
from llamanet.testing.mail import NAT_S
from llamanet.testing.simulated_node import TRANSACTION
from llamanet.testing.simulator import Simulation
from llamanet.wire.rpc import Ping


def test_records_are_kept_by_the_nearest_nodes_and_found_by_all():
    sim = grown(120)
    for number in range(10):
        name = key(f"x {number}")
        put = sim.put(sim.nodes[number], name, b"v")
        nearest = sorted(sim.nodes, key=lambda node: distance(node.contact.node_id, name))[:9]
        holders = {node for node in sim.nodes if node.store.records}
        assert put.stored == len(holders) == 8
        assert holders <= set(nearest)
        reader = sim.nodes[-1 - number]
        found = sim.get(reader, name)
        if reader in holders:
            assert (found.hops, found.first_value_s, found.requests) == (0, 0.0, 0)
        else:
            assert found.hops in (1, 2)
            assert found.first_value_s > 0.01
        for node in sim.nodes:
            node.store.expire(math.inf)


def test_a_lookup_is_as_narrow_as_that_of_a_real_node():
    sim = grown(60)
    node = sim.nodes[7]
    own_id, config = node.contact.node_id, sim.config
    for name in map(str, range(20)):
        real = lookup_in(node.table, own_id, config, key(name), config.replicas)
        asked = []
        node.ask = lambda contact, request, on_reply, asked=asked: asked.append(contact)
        node.find_nodes(key(name), config.replicas, lambda found: None)
        assert asked[0] == real.next()
        assert len(asked) == (1 if real.narrow else config.alpha)
        assert real.narrow


def test_what_nobody_has_is_not_found_and_the_search_ends():
    sim = grown(40)
    found = sim.get(sim.nodes[3], key("nothing"))
    assert (found.first_value_s, found.hops) == (None, None)
    assert 8 <= found.requests <= 40


def trace(seed):
    """All that happens in a small network in the first minutes: when, and what was called."""
    happened = []

    class Traced(Simulation):
        def after(self, seconds, callback, *arguments):
            happened.append((self.now, seconds, getattr(callback, "__qualname__", "")))
            super().after(seconds, callback, *arguments)

    sim = Traced(seed=seed, loss=0.02, upkeep=True)
    sim.grow(30, unreachable=0.2)
    figures = [sim.put(node, key(f"{number}"), b"v") for number, node in enumerate(sim.nodes[:5])]
    Churn(sim, median_session=120)
    corrupt(sim, silent_share=0.1, lying_share=0.1)
    sim.run_for(120)
    figures += [sim.get(sim.random_peer(sim.nodes[0]), key(f"{number}")) for number in range(5)]
    return happened, figures, [len(node.table) for node in sim.nodes]


def test_the_same_seed_gives_the_same_events_and_figures():
    assert trace(3) == trace(3)
    assert trace(3) != trace(4)


@pytest.mark.parametrize("loss", [0.0, 0.01])
def test_a_fifth_of_the_nodes_dead_hides_no_record(loss):
    sim = grown(120, loss=loss)
    names = [key(f"{n}") for n in range(20)]
    for number, name in enumerate(names):
        assert sim.put(sim.nodes[number], name, b"v").stored >= 6
    dead = sim.rng.sample(sim.nodes, len(sim.nodes) // 5)
    for node in dead:
        node.alive = False
    readers = [node for node in sim.nodes if node.alive]
    times = [sim.get(sim.rng.choice(readers), name).first_value_s for name in names]
    assert all(time is not None and time < 2 for time in times)


def test_a_node_behind_a_nat_hears_only_from_whom_it_wrote_to():
    sim = grown(20)
    hidden = sim.add(through=sim.nodes[0], reachable=False)
    stranger = sim.nodes[5]
    asked = next(node for node in sim.nodes if node.contact.node_id in hidden.table)
    sim.run_for(NAT_S + 1)

    def reaches(node):
        served = hidden.served
        node.ask(hidden.contact, Ping(transaction=TRANSACTION, client=False), lambda contact, reply: None)
        sim.run()
        return hidden.served > served

    assert not reaches(stranger)
    assert not reaches(asked)
    hidden.check(asked.contact)
    sim.run()
    assert reaches(asked)
    sim.run_for(NAT_S + 1)
    assert not reaches(asked)


def test_nodes_behind_nats_publish_and_read():
    sim = grown(60, unreachable=0.3)
    hidden = [node for node in sim.nodes if not node.reachable]
    assert 10 <= len(hidden) <= 26
    for number, node in enumerate(hidden):
        assert sim.put(node, key(f"{number}"), b"v").stored >= 4
    sim.run_for(600)
    for number in range(len(hidden)):
        assert sim.get(sim.rng.choice(sim.nodes), key(f"{number}")).hops is not None


def test_boxed_messages_change_no_decision_and_are_counted():
    def figures(boxed):
        sim = grown(30, boxed=boxed)
        return sim, [sim.put(node, key(f"{number}"), b"v") for number, node in enumerate(sim.nodes[:3])]

    boxed, with_bytes = figures(True)
    _, without = figures(False)
    assert with_bytes == without
    sent, received = (sum(getattr(node, name) for node in boxed.nodes) for name in ("sent_bytes", "received_bytes"))
    assert sent == received
    asked = sum(node.asked for node in boxed.nodes)
    assert 2 * 100 * asked < sent < 2 * 1200 * asked


def test_upkeep_notices_the_dead_and_fills_the_table():
    sim = grown(60, upkeep=True)
    lonely = sim.nodes[-1]
    before = len(lonely.table)
    dead = sim.nodes[10:20]
    for node in dead:
        node.alive = False
    sim.run_for(900)
    for node in sim.nodes:
        if node.alive:
            assert not any(gone.contact.node_id in node.table for gone in dead)
    assert len(lonely.table) >= min(before, 40)


def test_settling_fills_tables():
    sim = grown(100)
    before = sum(len(node.table) for node in sim.nodes)
    events = sim.events
    sim.settle()
    assert sim.events == events
    assert sum(len(node.table) for node in sim.nodes) > 1.3 * before
    assert all(node.table.bucket_sizes[0] == sim.config.k for node in sim.nodes)
