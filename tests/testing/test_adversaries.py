"""Each adversary of the simulator does harm, and the network bears what it should."""

from simulated import grown, key

from llamanet.dht.distance import distance
from llamanet.dht.guard import HOST_BURST, HOST_RATE
from llamanet.testing.adversaries import Liars, add_sybils, corrupt, flood, silent
from llamanet.testing.simulated_node import TRANSACTION
from llamanet.wire.rpc import FindNode, Ping


def answer_to(sim, asker, asked, request):
    answers = []
    asker.ask(asked.contact, request, lambda contact, reply: answers.append(reply))
    sim.run()
    return answers


def test_a_silent_node_answers_pings_alone():
    sim = grown(20)
    sim.nodes[3].behaviour = silent
    ping = Ping(transaction=TRANSACTION, client=False)
    find = FindNode(transaction=TRANSACTION, client=False, target=key("x"))
    assert answer_to(sim, sim.nodes[0], sim.nodes[3], ping)[0] is not None
    assert answer_to(sim, sim.nodes[0], sim.nodes[3], find) == [None]


def test_liars_tell_of_liars_and_keep_nothing():
    sim = grown(20)
    members = sim.nodes[2:5]
    for node in members:
        node.behaviour = Liars(members)
    find = FindNode(transaction=TRANSACTION, client=False, target=key("x"))
    [nodes] = answer_to(sim, sim.nodes[0], members[0], find)
    assert set(nodes.contacts) == {node.contact for node in members}
    for number in range(6):
        sim.put(sim.nodes[0], key(f"{number}"), b"v")
    assert not any(node.store.records for node in members)
    assert any(node.store.records for node in sim.nodes)


def test_a_fifth_of_adversaries_seldom_hides_a_record():
    sim = grown(150)
    bad = corrupt(sim, silent_share=0.1, lying_share=0.1)
    assert len(bad) == 30
    honest = [node for node in sim.nodes if node.behaviour is None]
    reads = []
    for number in range(40):
        publisher, reader = sim.rng.sample(honest, 2)
        sim.put(publisher, key(f"{number}"), b"v")
        reads.append(sim.get(reader, key(f"{number}"), publisher=publisher.contact.node_id))
    assert sum(read.hops is not None for read in reads) >= 38


def test_sybils_are_nearest_to_their_key_and_to_no_other():
    sim = grown(100)
    honest = list(sim.nodes)
    target = key("wanted")
    sybils = add_sybils(sim, target, 12, subnets=12)
    sim.run()
    nearest = sorted(sim.nodes, key=lambda node: distance(node.contact.node_id, target))[:12]
    assert set(nearest) == set(sybils)
    assert all(node.joined for node in sybils)
    sim.put(honest[0], target, b"v")
    sim.put(honest[1], key("other"), b"v")
    assert sim.get(honest[2], key("other")).hops is not None


def test_many_sybils_of_one_subnet_find_no_place_in_tables():
    sim = grown(100)
    honest = list(sim.nodes)
    sybils = {node.contact for node in add_sybils(sim, key("wanted"), 40, subnets=1)}
    sim.run()
    assert max(sum(entry.contact in sybils for entry in node.table) for node in honest) <= 10


def test_a_flood_is_dropped_and_hinders_nobody():
    sim = grown(60)
    attacker, victim, reader = sim.nodes[10], sim.nodes[20], sim.nodes[30]
    sim.put(victim, key("x"), b"v")
    rate = 10 * HOST_RATE
    flood(attacker, victim, rate=rate, seconds=2)
    sim.run_for(1)
    find = FindNode(transaction=TRANSACTION, client=False, target=key("y"))
    answers = []
    reader.ask(victim.contact, find, lambda contact, reply: answers.append(reply))
    sim.run_for(1)
    assert answers[0] is not None
    assert sim.get(reader, key("x")).hops is not None
    sim.run()
    assert victim.drops.counts["rate"] >= 2 * rate - HOST_BURST - 3 * HOST_RATE
