"""Nodes that come and go: what is published stays readable, and sessions are as long as asked for."""

import math

import pytest
from simulated import grown, key

from llamanet.testing.churn import Churn
from llamanet.testing.simulator import AskerLeft


def test_records_survive_their_holders():
    sim = grown(40, upkeep=True, loss=0.01)
    publishers = sim.nodes[:8]
    for number, node in enumerate(publishers):
        node.keep_published(key(f"{number}"), b"v", lifetime=300, interval=120)
    churn = Churn(sim, median_session=900, staying=publishers)
    reads = []
    for turn in range(40):
        sim.run_for(30)
        number = turn % len(publishers)
        publisher = publishers[number].contact.node_id
        reads.append(sim.get(sim.random_peer(publishers[number]), key(f"{number}"), publisher=publisher))
    assert churn.left > 20
    assert all(read.hops is not None for read in reads)


def test_a_publisher_that_left_is_not_found_past_its_record():
    sim = grown(40, upkeep=True)
    publisher = sim.nodes[3]
    publisher.keep_published(key("x"), b"v", lifetime=300, interval=120)
    sim.run_for(60)
    assert sim.get(sim.nodes[7], key("x")).hops is not None
    sim.leave(publisher)
    assert publisher not in sim.nodes
    sim.run_for(400)
    assert sim.get(sim.nodes[7], key("x")).hops is None


def test_sessions_have_the_median_asked_for():
    sim = grown(20, upkeep=True)
    staying = sim.nodes[:10]
    churn = Churn(sim, median_session=60, staying=staying)
    sim.run_for(900)
    expected = 10 * 900 * math.log(2) / 60
    assert 0.8 * expected < churn.left < 1.2 * expected
    assert len(sim.nodes) == 20
    assert set(staying) <= set(sim.nodes)
    assert sum(node.joined for node in sim.nodes) >= 19


def test_the_share_behind_nats_stays():
    sim = grown(30, upkeep=True, unreachable=0.4)
    unreachable = sum(not node.reachable for node in sim.nodes)
    assert unreachable > 5
    churn = Churn(sim, median_session=60)
    sim.run_for(300)
    assert churn.left > 50
    assert sum(not node.reachable for node in sim.nodes) == unreachable


def test_who_leaves_by_itself_is_not_replaced():
    sim = grown(10, upkeep=True)
    churn = Churn(sim, median_session=60, staying=sim.nodes[:5])
    leaving = sim.nodes[7]
    sim.leave(leaving)
    sim.leave(leaving)
    sim.run_for(600)
    assert churn.left > 10
    assert len(sim.nodes) == 9


@pytest.mark.parametrize("asking", ["get", "put"])
def test_whoever_leaves_in_the_middle_of_its_own_question_ends_it(asking):
    sim = grown(20, upkeep=True)
    asker = sim.nodes[5]
    sim.after(0.001, sim.leave, asker)
    with pytest.raises(AskerLeft):
        sim.get(asker, key("nothing")) if asking == "get" else sim.put(asker, key("x"), b"v")
    assert sim.now < 60
