"""The simulator: the same figures for the same seed, and figures that can be right."""

import pytest
from swarms import key

from llamanet.dht.distance import distance
from llamanet.testing.simulator import Simulation


def network(size=120, **options):
    sim = Simulation(**{"seed": 1, **options})
    sim.grow(size)
    return sim


def test_records_are_kept_by_the_nearest_nodes_and_found_by_all():
    sim = network()
    for number in range(10):
        name = key(f"x {number}")
        put = sim.put(sim.nodes[number], name, b"v")
        nearest = sorted(sim.nodes, key=lambda node: distance(node.contact.node_id, name))[:9]
        holders = [node for node in sim.nodes if node.store.records]
        assert put.stored == 8
        assert set(holders) <= set(nearest)
        for node in holders:
            node.store.expire(float("inf"))
        sim.put(sim.nodes[number], name, b"v")
        found = sim.get(sim.nodes[-1 - number], name)
        assert found.hops in (1, 2)
        assert found.first_value_s > 0.01
        for node in sim.nodes:
            node.store.expire(float("inf"))


def test_what_nobody_has_is_not_found_and_the_search_ends():
    sim = network(40)
    found = sim.get(sim.nodes[3], key("nothing"))
    assert (found.first_value_s, found.hops) == (None, None)
    assert 8 <= found.requests <= 40


def test_the_same_seed_gives_the_same_figures():
    def figures(seed):
        sim = network(60, seed=seed, loss=0.02)
        return [sim.put(sim.nodes[n], key(f"{n}"), b"v") for n in range(5)], sim.now

    assert figures(3) == figures(3)
    assert figures(3) != figures(4)


@pytest.mark.parametrize("loss", [0.0, 0.01])
def test_a_fifth_of_the_nodes_dead_hides_no_record(loss):
    sim = network(loss=loss)
    names = [key(f"{n}") for n in range(20)]
    for number, name in enumerate(names):
        assert sim.put(sim.nodes[number], name, b"v").stored >= 6
    dead = sim.rng.sample(sim.nodes, len(sim.nodes) // 5)
    for node in dead:
        node.alive = False
    readers = [node for node in sim.nodes if node.alive]
    times = [sim.get(sim.rng.choice(readers), name).first_value_s for name in names]
    assert all(time is not None and time < 2 for time in times)
