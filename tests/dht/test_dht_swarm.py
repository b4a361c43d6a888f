"""Whole nodes over the in-memory network, under a virtual clock."""

import logging
from collections import Counter

import attrs
import pytest
import trio
from swarms import EPOCH, Attacker, Swarm, closest_nodes, identity, key

from llamanet.dht import requests
from llamanet.dht.bootstrap import JOINED_RETRY_S
from llamanet.dht.distance import common_prefix_bits, number_of
from llamanet.dht.handlers import Handlers
from llamanet.dht.overlay import Overlay
from llamanet.dht.publishing import TOKEN_REUSE_S
from llamanet.dht.service import DhtConfig, serve_dht
from llamanet.errors import RpcTimeout, UserError
from llamanet.testing.network import MemoryNetwork
from llamanet.wire.envelope import MAX_DATAGRAM_BYTES, Network
from llamanet.wire.rpc import Address, Contact, FindNode, FindValue, Nodes, Ping, Pong, Refused, encode_rpc
from llamanet.wire.state import ModelState


def contact_of(swarm, dht):
    return Contact(dht.identity.public_key, swarm.addresses[dht])


def ids(contacts):
    return {peer.node_id for peer in contacts}


def everybody_but(dht, nodes):
    return {node.identity.node_id for node in nodes if node is not dht}


# --- joining ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 0, 1), (1, 0, 2)])
async def test_three_nodes_started_in_any_order_see_each_other_within_five_seconds(autojump_clock, nursery, order):
    swarm = Swarm(nursery)
    bootstrap = Address("10.1.0.0", 8001)
    nodes = []
    for number in order:
        nodes.append(await swarm.start(number, bootstrap=[bootstrap] if number else []))
        await trio.sleep(1.7)
    await trio.sleep(5 - 1.7)
    for node in nodes:
        assert ids(node.contacts()) == everybody_but(node, nodes)


async def test_a_bootstrap_peer_that_comes_hours_later_is_found(autojump_clock, nursery, caplog):
    caplog.set_level(logging.INFO)
    swarm = Swarm(nursery)
    late = Address("10.1.0.99", 8001)
    node = await swarm.start(1, bootstrap=[late])
    assert not node.joined
    await trio.sleep(3 * 3600)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings[0] == f"bootstrap peer down, retrying: {late}: no answer from {late}"
    assert len(warnings) < 16
    await swarm.start(99)
    with trio.fail_after(3):
        await node.wait_joined()


async def test_joining_takes_one_round_trip(autojump_clock, nursery):
    swarm = Swarm(nursery, MemoryNetwork(seed=1, delay=(0.01, 0.01)))
    first = await swarm.start(0)
    before = trio.current_time()
    client = await swarm.start(1, bootstrap=[first], client_mode=True)
    await client.wait_joined()
    assert trio.current_time() - before == pytest.approx(0.02)


async def test_a_node_with_no_bootstrap_peer_is_its_own_swarm(autojump_clock, nursery):
    alone = await Swarm(nursery).start(0)
    assert alone.joined
    await alone.wait_joined()
    assert await alone.find_nodes(key("x")) == []
    assert (await alone.publish(key("x"), b"v", lifetime=60)).stored == 1
    assert [record.value for record in await alone.get(key("x"))] == [b"v"]


async def test_a_node_that_is_its_own_bootstrap_peer_is_its_own_swarm(autojump_clock, nursery, caplog):
    swarm = Swarm(nursery)
    node = await swarm.start(0, bootstrap=[Address("10.1.0.0", 8001)])
    with trio.fail_after(2):
        await node.wait_joined()
    await trio.sleep(60)
    assert caplog.records == []
    other = await swarm.start(1, bootstrap=[node])
    await other.wait_joined()


async def test_a_bad_name_among_the_bootstrap_peers_hurts_nothing(autojump_clock, nursery, monkeypatch, caplog):
    class Resolver(trio.abc.HostnameResolver):
        async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):
            if host == b"good.example":
                return [(2, 2, 17, "", ("10.1.0.0", port)), (10, 2, 17, "", ("fd00::1", port, 0, 0))]
            raise OSError(-2, "Name or service not known")

        async def getnameinfo(self, sockaddr, flags):
            raise AssertionError

    trio.socket.set_custom_hostname_resolver(Resolver())
    swarm = Swarm(nursery)
    await swarm.start(0)
    peers = ["bad.example:1", "10.9.9.9:1", "x" * 70 + ".example:1", "good.example:8001"]
    node = await swarm.start(1, bootstrap=peers)
    with trio.fail_after(2):
        await node.wait_joined()
    lost = await swarm.start(2, bootstrap=["bad.example:1"])
    await trio.sleep(60)
    assert not lost.joined
    assert "bad.example:1: cannot resolve bad.example: Name or service not known" in caplog.text


@pytest.mark.parametrize("peer", ["nonsense", "host:0", "host:65536", ":8001", "::1:8001", "host:x", "host:-1"])
async def test_a_bootstrap_peer_that_is_no_address_is_said_at_once(peer):
    with pytest.raises(UserError, match="host:port"):
        await serve_dht(identity(1), DhtConfig(bootstrap=(peer,)), transport=MemoryNetwork().transport("10.0.0.1", 1))


async def test_new_nodes_join_through_any_survivor(autojump_clock, nursery):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(5)
    await nodes[1].publish(key("x"), b"v", lifetime=600)
    swarm.kill(nodes[0])
    survivors = nodes[1:]
    await trio.sleep(60)
    for node in survivors:
        assert ids(node.contacts()) == everybody_but(node, survivors)
    newcomer = await swarm.start(77, bootstrap=[survivors[2]])
    await newcomer.wait_joined()
    assert [record.value for record in await newcomer.get(key("x"))] == [b"v"]
    await trio.sleep(5)
    assert ids(newcomer.contacts()) == everybody_but(newcomer, survivors)


async def test_a_node_whose_contacts_all_died_joins_again_when_they_return(autojump_clock, nursery):
    swarm = Swarm(nursery)
    first, second = await swarm.start_many(2)
    swarm.kill(first)
    await trio.sleep(90)
    assert not second.joined
    woken = trio.Event()

    async def watch():
        await second.wait_peers_changed()
        woken.set()

    nursery.start_soon(watch)
    await trio.testing.wait_all_tasks_blocked()
    await swarm.start(50, address=swarm.addresses[first])  # the same address, another identity
    with trio.fail_after(4):
        await second.wait_joined()
        await woken.wait()


async def test_islands_that_name_each_other_merge(autojump_clock, nursery):
    network = MemoryNetwork(seed=2, delay=(0.005, 0.02))
    swarm = Swarm(nursery, network)
    a, b = Address("10.1.0.0", 8001), Address("10.1.0.1", 8001)
    network.partition([a, Address("10.1.0.2", 8001)], [b, Address("10.1.0.3", 8001)])
    peers = ([a, b], [a, b], [a], [b])
    nodes = [await swarm.start(number, bootstrap=peers[number]) for number in range(4)]
    await trio.sleep(3600)
    assert ids(nodes[0].contacts()) == {nodes[2].identity.node_id}
    network.heal()
    await trio.sleep(60)
    for node in nodes:
        assert ids(node.contacts()) == everybody_but(node, nodes)


async def test_a_bootstrap_peer_with_no_place_in_our_table_is_greeted_at_leisure(autojump_clock, nursery, monkeypatch):
    swarm = Swarm(nursery)
    peer = await swarm.start(0)
    node = await swarm.start(1, bootstrap=[peer])
    await node.wait_joined()
    monkeypatch.setattr(node._overlay, "knows", lambda address: False)
    greeted = []
    introduce = node._overlay.requests.introduce

    def count(address, *arguments, **options):
        greeted.append(trio.current_time())
        introduce(address, *arguments, **options)

    monkeypatch.setattr(node._overlay.requests, "introduce", count)
    await trio.sleep(120)
    settled = len(greeted)
    await trio.sleep(600)
    assert 600 / (1.25 * JOINED_RETRY_S) - 1 <= len(greeted) - settled <= 600 / (0.75 * JOINED_RETRY_S) + 1


async def test_a_crowd_that_joins_is_not_looked_up_for_each_comer(autojump_clock, nursery):
    swarm = Swarm(nursery, MemoryNetwork(seed=1, delay=(0.001, 0.002)))
    first = await swarm.start(0)
    for number in range(1, 20):
        await swarm.start(number, bootstrap=[first])
        await trio.sleep(0.1)
    assert len(first.contacts()) == 19
    assert first.health().lookups <= 3


async def test_a_restart_rejoins_without_its_bootstrap_peers(autojump_clock, nursery, tmp_path):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(4)
    path = tmp_path / "deep" / "contacts.json"
    node = await swarm.start(9, bootstrap=[nodes[0]], contacts_path=path)
    await node.wait_joined()
    await trio.sleep(5)
    swarm.kill(node)
    swarm.kill(nodes[0])
    await trio.sleep(1)
    again = await swarm.start(9, contacts_path=path, bootstrap=[nodes[0]])
    with trio.fail_after(2):
        await again.wait_joined()
        await trio.sleep(1)
    assert ids(again.contacts()) == everybody_but(again, nodes[1:])


async def test_contacts_are_saved_soon_and_then_now_and_then(autojump_clock, nursery, tmp_path):
    """For whoever is killed has no time to save them."""
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(3)
    path = tmp_path / "contacts.json"
    await swarm.start(9, bootstrap=[nodes[0]], contacts_path=path)
    await trio.sleep(10)
    assert all(node.identity.public_key.hex() in path.read_text() for node in nodes)
    path.unlink()
    await trio.sleep(40)
    assert not path.exists()
    await trio.sleep(30)
    assert path.exists()


async def test_a_node_cut_off_after_its_bootstrap_peer_died_comes_back(autojump_clock, nursery):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(6)
    swarm.kill(nodes[0])
    await trio.sleep(60)
    alone, *others = nodes[1:]
    swarm.network.partition([swarm.addresses[alone]], [swarm.addresses[node] for node in others])
    await trio.sleep(600)
    assert alone.contacts() == ()
    swarm.network.heal()
    with trio.fail_after(60):
        while ids(alone.contacts()) != everybody_but(alone, nodes[1:]):
            await alone.wait_peers_changed()


async def test_too_many_requests_of_our_own_are_not_blamed_on_peers(autojump_clock, nursery, monkeypatch):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(6)
    known = ids(nodes[1].contacts())
    monkeypatch.setattr(requests, "MAX_UNDER_WAY", 0)
    await trio.sleep(300)
    assert ids(nodes[1].contacts()) == known
    assert nodes[1].health().failing_contacts == 0


async def test_what_our_own_system_would_not_send_is_not_blamed_on_peers(autojump_clock, nursery, monkeypatch):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(6)
    node = nodes[1]
    known, measured = ids(node.contacts()), node._overlay.requests.round_trips.mean
    overdue = node.health().overdue
    with monkeypatch.context() as patch:
        patch.setattr(node._overlay.transport, "send", lambda datagram, address: False)
        await trio.sleep(300)
        assert await node.find_nodes(key("x")) == []
    assert ids(node.contacts()) == known
    health = node.health()
    assert (health.failing_contacts, health.overdue, health.mean_rtt) == (0, overdue, measured)
    assert health.unsent > 20
    with trio.fail_after(1):
        assert len(await node.find_nodes(key("x"))) == 5


async def test_a_contact_that_our_own_system_sends_nothing_to_leaves_while_others_answer(
    autojump_clock, nursery, monkeypatch
):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(6)
    node, lost = nodes[1], nodes[3]
    real_send = node._overlay.transport.send

    def send(datagram, address):
        return address != swarm.addresses[lost] and real_send(datagram, address)

    with monkeypatch.context() as patch:
        patch.setattr(node._overlay.transport, "send", send)
        await trio.sleep(300)
        assert ids(node.contacts()) == everybody_but(node, nodes) - {lost.identity.node_id}
    await trio.sleep(120)
    assert ids(node.contacts()) == everybody_but(node, nodes), "it is back"


async def test_our_own_limits_do_not_keep_a_contact_from_being_checked(autojump_clock, nursery, monkeypatch):
    """A liar that has us use up what a subnet gets of lookup requests must not hide that its honest node is gone."""
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(6)
    node, dead = nodes[1], nodes[3]
    monkeypatch.setattr(node._overlay.requests._unanswered, "admit", lambda host, now: False)
    swarm.kill(dead)
    for _ in range(50):
        await node.find_nodes(dead.identity.node_id)
        await trio.sleep(1)
    assert ids(node.contacts()) == everybody_but(node, nodes) - {dead.identity.node_id}


async def test_a_late_reply_still_counts_while_its_lookup_goes_on(autojump_clock, nursery, monkeypatch):
    swarm = Swarm(nursery)
    delays = {}

    def send(datagram, source, target):
        if target in swarm.network._transports:
            at = trio.current_time() + delays.get(source, 0.01)
            swarm.network._transports[target].arrive(at, datagram, source)

    monkeypatch.setattr(swarm.network, "send", send)
    reader = await swarm.start(0)
    late = await swarm.start(1, bootstrap=[reader])
    far = await swarm.start(2, bootstrap=[reader], address=Address("10.1.0.2", 8001))
    delays[swarm.addresses[far]] = 0.8
    await trio.sleep(300)
    assert ids(reader.contacts()) == everybody_but(reader, [late, far])
    assert 0.8 < reader._overlay.requests.round_trips.rto(far.identity.public_key) < 2
    delays[swarm.addresses[late]] = 0.5
    overdue = reader.health().overdue
    start = trio.current_time()
    assert set(await reader.find_nodes(key("x"))) == {contact_of(swarm, late), contact_of(swarm, far)}
    assert reader.health().overdue == overdue + 1
    assert trio.current_time() - start < 1.5
    assert reader.health().failing_contacts == 0


async def test_contacts_of_the_last_run_are_asked_again_after_all_were_lost(autojump_clock, nursery, tmp_path):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(2)
    path = tmp_path / "contacts.json"
    node = await swarm.start(9, bootstrap=[nodes[0]], contacts_path=path)
    await trio.sleep(5)
    swarm.kill(node)
    await trio.sleep(1)
    again = await swarm.start(9, contacts_path=path)
    await trio.sleep(5)
    assert len(again.contacts()) == 2
    for other in nodes:
        swarm.network.pause(swarm.addresses[other])
    await trio.sleep(120)
    assert again.contacts() == ()
    for other in nodes:
        swarm.network.resume(swarm.addresses[other])
    await trio.sleep(60)
    assert ids(again.contacts()) == everybody_but(again, nodes)


@pytest.mark.parametrize("content", ["", "{", "[1]", '[["00","10.0.0.1",1]]', '[["zz","1",1]]', '{"a":1}', "[[1,2,3]]"])
async def test_spoilt_saved_contacts_are_no_obstacle(autojump_clock, nursery, tmp_path, content):
    path = tmp_path / "contacts.json"
    path.write_text(content)
    node = await Swarm(nursery).start(0, contacts_path=path)
    assert node.joined


# --- clients ----------------------------------------------------------------------------------------------------------


async def test_clients_ask_and_are_never_in_a_table_until_they_serve(autojump_clock, nursery):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(3)
    client = await swarm.start(9, bootstrap=[nodes[0]], client_mode=True)
    await client.wait_joined()
    await trio.sleep(30)
    published = await client.publish(key("x"), b"from a client", lifetime=60)
    assert (published.stored, published.asked) == (3, 3)
    assert [record.value for record in await client.get(key("x"))] == [b"from a client"]
    assert ids(client.contacts()) == everybody_but(client, nodes)
    for node in nodes:
        assert client.identity.node_id not in ids(node.contacts())
    with pytest.raises(RpcTimeout):
        await nodes[0].introduce(swarm.addresses[client])
    client.client_mode = False
    await trio.sleep(2)
    for node in nodes:
        assert client.identity.node_id in ids(node.contacts())


# --- records ----------------------------------------------------------------------------------------------------------


async def test_records_live_at_the_nearest_nodes_and_anybody_finds_them(autojump_clock, nursery):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(40)
    published = await nodes[3].publish(key("x"), b"v", lifetime=600)
    assert (published.stored, published.asked) == (8, 8)
    holders = [node for node in nodes if node.health().stored_records]
    assert set(holders) == set(closest_nodes(nodes, key("x"), 8))
    for node in (nodes[0], nodes[20], nodes[39]):
        assert await node.get(key("x")) == [published.record]
    found = await nodes[5].find_nodes(key("y"))
    others = [node for node in nodes if node is not nodes[5]]
    assert [peer.node_id for peer in found] == [node.identity.node_id for node in closest_nodes(others, key("y"), 16)]


async def test_a_record_is_renewed_where_it_is_without_looking_for_its_holders(autojump_clock, nursery):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(40)
    publisher = closest_nodes(nodes, key("x"), 40)[-1]
    await publisher.publish(key("x"), b"v", lifetime=600)
    before = publisher.health()
    renewed = await publisher.renew(key("x"), b"w", lifetime=600, most=3)
    assert (renewed.stored, renewed.asked, renewed.elsewhere) == (3, 3, 3)
    after = publisher.health()
    assert (after.requests_sent - before.requests_sent, after.lookups) == (3, before.lookups)
    assert [record.value for record in await nodes[2].get(key("x"))] == [b"w"]
    nearest = closest_nodes(nodes, key("x"), 1)[0]
    swarm.network.pause(swarm.addresses[nearest])
    renewed = await publisher.renew(key("x"), b"y", lifetime=600, most=3)
    assert renewed.stored == 8, "looked up again, for one of them did not store it"
    await trio.sleep(TOKEN_REUSE_S + 1)
    lookups = publisher.health().lookups
    assert (await publisher.renew(key("x"), b"z", lifetime=600, most=3)).stored == 8
    assert publisher.health().lookups > lookups, "the tokens are too old"


async def test_who_keeps_its_own_record_renews_it_there_too(autojump_clock, nursery):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(5)
    await nodes[1].publish(key("x"), b"v", lifetime=600)
    renewed = await nodes[1].renew(key("x"), b"w", lifetime=600, most=8)
    assert (renewed.stored, renewed.asked, renewed.elsewhere) == (5, 5, 4)
    assert [record.value for record in await nodes[1].get(key("x"), copies=True)] == [b"w"]


async def test_many_publishers_of_one_key_are_all_found(autojump_clock, nursery):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(40)
    for number, node in enumerate(nodes):
        await node.publish(key("hot"), b"%d" % number + b"." * 200, lifetime=600)
    everybody = {node.identity.node_id for node in nodes}
    ranked = closest_nodes(nodes, key("hot"), 40)
    for node in (ranked[0], ranked[39]):  # one that holds the key, and one that does not
        assert {record.publisher for record in await node.get(key("hot"))} == everybody
        assert len(await node.get(key("hot"), limit=5)) == 5
        async with node.find(key("hot"), limit=10) as records:
            streamed = [record async for record in records]
        assert len({record.publisher for record in streamed}) == len(streamed) == 10


async def test_one_holder_tells_all_that_it_has(autojump_clock, nursery):
    swarm = Swarm(nursery)
    holder = await swarm.start(0)
    for number in range(100, 160):
        publisher = await swarm.start(number, bootstrap=[holder], client_mode=True)
        await publisher.wait_joined()
        await publisher.publish(key("hot"), b"." * 200, lifetime=600)
    assert len(await publisher.get(key("hot"))) == 60


async def test_a_stream_of_records_can_be_left_early(autojump_clock, nursery):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(10)
    for node in nodes:
        await node.publish(key("hot"), b"." * 200, lifetime=600)
    async with nodes[1].find(key("hot")) as records:
        async for _ in records:
            break
    with trio.move_on_after(0.001):
        await nodes[1].get(key("hot"))
    assert len(await nodes[1].get(key("hot"))) == 10


async def test_records_expire_by_the_wall_clock_and_leave_the_stores(autojump_clock, nursery):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(5)
    await nodes[0].publish(key("x"), b"v", lifetime=60)
    await trio.sleep(58)
    assert len(await nodes[1].get(key("x"))) == 1
    await trio.sleep(3)
    assert await nodes[1].get(key("x")) == []
    await nodes[0].publish(key("never read"), b"v", lifetime=60)
    await trio.sleep(59)
    assert [node.health().stored_records for node in nodes] == [1] * 5
    await trio.sleep(8)
    assert [node.health().stored_records for node in nodes] == [0] * 5


async def test_a_newer_record_replaces_and_a_withdrawal_removes(autojump_clock, nursery):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(5)
    for value in (b"1", b"2", b"3"):
        await nodes[0].publish(key("x"), value, lifetime=600)
    assert [record.value for record in await nodes[4].get(key("x"))] == [b"3"]
    await nodes[0].withdraw(key("x"))
    assert await nodes[4].get(key("x")) == []
    async with nodes[3].find(key("x")) as records:
        assert [record async for record in records] == []
    await nodes[0].publish(key("x"), b"4", lifetime=600)
    assert [record.value for record in await nodes[4].get(key("x"))] == [b"4"]


async def test_a_withdrawal_that_some_storers_missed_still_counts(autojump_clock, nursery):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(6)
    await nodes[0].publish(key("x"), b"v", lifetime=600)
    missing = [swarm.addresses[node] for node in nodes[1:4]]
    for address in missing:
        swarm.network.pause(address)
    await nodes[0].withdraw(key("x"))
    for address in missing:
        swarm.network.resume(address)
    assert await nodes[1].get(key("x")) == []
    assert await nodes[5].get(key("x")) == []


async def test_a_publisher_whose_clock_was_ahead_catches_up_with_itself(autojump_clock, nursery):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(4)
    ahead = await swarm.start(9, bootstrap=[nodes[0]])
    await ahead.wait_joined()
    ahead.config = attrs.evolve(ahead.config, wall_clock=lambda: EPOCH + trio.current_time() + 50)
    await ahead.publish(key("x"), b"old", lifetime=600)
    swarm.kill(ahead)
    again = await swarm.start(9, bootstrap=[nodes[0]], address=Address("10.1.0.9", 9001))
    await again.wait_joined()
    published = await again.publish(key("x"), b"new", lifetime=600)
    assert published.stored == 5
    assert [record.value for record in await nodes[1].get(key("x"))] == [b"new"]


async def test_too_large_a_value_is_a_plain_error(autojump_clock, nursery):
    alone = await Swarm(nursery).start(0)
    with pytest.raises(ValueError, match="400"):
        await alone.publish(key("x"), bytes(400), lifetime=60)


# --- bad networks -----------------------------------------------------------------------------------------------------


async def test_loss_delay_and_duplicates_are_survived(autojump_clock, nursery):
    swarm = Swarm(nursery, MemoryNetwork(seed=11, loss=0.1, delay=(0.01, 0.1), duplicate=0.1))
    nodes = await swarm.start_many(20)
    await trio.sleep(30)
    found = 0
    for number, node in enumerate(nodes):
        await node.publish(key(f"{number}"), b"v", lifetime=600)
        found += len(await nodes[number - 1].get(key(f"{number}")))
    assert found == 20


async def test_dead_peers_do_not_hold_up_reads_and_writes(autojump_clock, nursery):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(40)
    await nodes[0].publish(key("x"), b"v", lifetime=600)
    for node in closest_nodes(nodes, key("x"), 12)[::3]:
        if node is not nodes[0]:
            swarm.network.pause(swarm.addresses[node])
    before = trio.current_time()
    async with nodes[0].find(key("x")) as records:
        async for _ in records:
            break
    assert trio.current_time() - before < 0.3
    assert len(await nodes[1].get(key("x"))) == 1
    published = await nodes[2].publish(key("x"), b"w", lifetime=600)
    assert published.stored == 8, "the next nearest take the place of the dead"
    assert trio.current_time() - before < 4


async def test_a_partition_heals(autojump_clock, nursery):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(10)
    left = [swarm.addresses[node] for node in nodes[:5]]
    right = [swarm.addresses[node] for node in nodes[5:]]
    swarm.network.partition(left, right)
    await trio.sleep(120)
    assert ids(nodes[7].contacts()) == everybody_but(nodes[7], nodes[5:])
    swarm.network.heal()
    await trio.sleep(60)
    await nodes[7].publish(key("x"), b"v", lifetime=600)
    assert len(await nodes[1].get(key("x"))) == 1
    await trio.sleep(600)
    assert all(ids(node.contacts()) == everybody_but(node, nodes) for node in nodes)


async def test_ping_gives_up_on_a_silent_peer(autojump_clock, nursery):
    swarm = Swarm(nursery, MemoryNetwork(seed=7, loss=1.0))
    alice = await swarm.start(0)
    before = trio.current_time()
    with pytest.raises(RpcTimeout):
        await alice.ping(Contact(identity(5).public_key, Address("10.1.0.5", 8001)), timeout=1.5)
    with pytest.raises(RpcTimeout):
        await alice.introduce(Address("10.1.0.5", 8001), timeout=0.5)
    assert trio.current_time() - before == 2.0


async def test_ping_tells_round_trip_and_live_state(autojump_clock, nursery):
    state = ModelState(
        name="m",
        running=3,
        waiting=0,
        slots=4,
        tokens_per_second=9.0,
        prefill_tokens_per_second=90.0,
        ttft_s=0.25,
        n_ctx=64,
    )
    swarm = Swarm(nursery, MemoryNetwork(seed=7, delay=(0.01, 0.01)))
    asked = []

    def live_state(model):
        asked.append(model)
        return True, (state,)

    bob = await swarm.start(1, live_state=live_state)
    alice = await swarm.start(0)
    bob_contact = await alice.introduce(swarm.addresses[bob])
    assert bob_contact == contact_of(swarm, bob)
    asked.clear()
    pinged = await alice.ping(bob_contact, model="m")
    assert (pinged.rtt, pinged.pong.models, pinged.pong.draining) == (pytest.approx(0.02), (state,), True)
    assert asked == ["m"]
    assert alice.observed_hosts() == ("10.1.0.0",)


# --- attacks ----------------------------------------------------------------------------------------------------------


async def test_garbage_is_counted_and_never_answered(autojump_clock, nursery):
    swarm = Swarm(nursery)
    victim = await swarm.start(0)
    attacker = Attacker(swarm)
    outsider = Attacker(swarm, "10.6.6.7", network=Network("other"))
    ping = Ping(transaction=bytes(8), client=True)
    good = attacker.seal(victim, ping)
    for datagram in (
        b"",
        b"x" * 1200,
        b"x" * 1201,
        good[:-1],
        good[:60],
        good[:-1] + bytes([good[-1] ^ 1]),
        outsider.seal(victim, ping),
        attacker.envelope.seal(victim.identity.public_key, b"\xc1"),
        attacker.envelope.seal(victim.identity.public_key, b""),
        attacker.envelope.seal_introduction(
            encode_rpc(FindNode(transaction=bytes(8), client=True, target=bytes(32)), pad_to=300)
        ),
        attacker.seal(victim, Pong(transaction=bytes(8), observed=attacker.address)),
    ):
        attacker.send(swarm, victim, datagram)
    await trio.sleep(1)
    assert attacker.received == outsider.received == []
    drops = victim.health().drops
    assert (drops["header"], drops["box"], drops["message"], drops["unasked"]) == (5, 2, 3, 1)
    attacker.send(swarm, victim, good)
    await trio.sleep(1)
    assert len(attacker.received) == 1


async def test_an_address_that_has_not_proved_itself_gets_three_times_its_bytes_at_most(autojump_clock, nursery):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(25)
    victim_of_flood = Address("10.7.7.7", 7)
    bystander = swarm.network.transport(victim_of_flood.host, victim_of_flood.port)
    got = []
    nursery.start_soon(bystander.receive, lambda datagram, source: got.append(len(datagram)))
    attacker = Attacker(swarm)
    for pad_to in (0, 100, 200, 320, 1000):
        for client in (True, False):
            request = FindNode(transaction=bytes(8), client=client, target=bytes(32))
            datagram = attacker.seal(nodes[0], request, pad_to)
            got.clear()
            attacker.send(swarm, nodes[0], datagram, source=victim_of_flood)
            await trio.sleep(10)
            assert sum(got) <= 3 * len(datagram)
            assert sum(got) <= MAX_DATAGRAM_BYTES + 96


async def test_a_forged_introduction_is_not_answered_at_length_even_to_a_known_address(autojump_clock, nursery):
    def live_state(model):
        state = ModelState(
            name="m" * 90,
            running=3,
            waiting=0,
            slots=4,
            tokens_per_second=9.0,
            prefill_tokens_per_second=90.0,
            ttft_s=0.25,
            n_ctx=64,
        )
        return False, (state,) * 9

    swarm = Swarm(nursery)
    nodes = await swarm.start_many(2, live_state=live_state)
    forged = nodes[1]._overlay._envelope.seal_introduction(encode_rpc(Ping(transaction=bytes(8), client=False)))
    sent = swarm.network.sent_bytes
    swarm.network.send(forged, swarm.addresses[nodes[1]], swarm.addresses[nodes[0]])
    await trio.sleep(0.1)
    assert len(forged) < swarm.network.sent_bytes - sent <= 4 * len(forged)


async def test_a_spoofed_source_never_enters_a_table(autojump_clock, nursery):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(3)
    attacker = Attacker(swarm)
    for number in range(50):
        request = FindNode(transaction=bytes(8), client=False, target=bytes(32))
        attacker.send(swarm, nodes[0], attacker.seal(nodes[0], request, 320), Address(f"10.8.0.{number}", 8))
        await trio.sleep(0.01)
        assert attacker.identity.node_id not in ids(nodes[0].contacts())
    await trio.sleep(20)
    assert attacker.identity.node_id not in ids(nodes[0].contacts())
    assert ids(nodes[0].contacts()) == everybody_but(nodes[0], nodes)


async def test_nobody_takes_over_the_id_of_another(autojump_clock, nursery):
    """A replayed introduction from another address makes its sender look as if it moved; it has not."""
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(3)
    victim = nodes[1]
    thief = Attacker(swarm)
    replayed = victim._overlay._envelope.seal_introduction(encode_rpc(Ping(transaction=bytes(8), client=False)))
    thief.send(swarm, nodes[0], replayed)
    for _ in range(100):
        await trio.sleep(0.1)
        assert contact_of(swarm, victim) in nodes[0].contacts()


async def test_lying_contacts_cost_time_and_nothing_else(autojump_clock, nursery):
    """A node that answers every lookup with contacts that do not exist."""
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(20)
    liar = nodes[4]

    invented = tuple(Contact(identity(number).public_key, Address("10.5.5.5", number)) for number in range(1000, 1016))

    def lie(request, asker, *, now, wall_now, room):
        if isinstance(request, FindNode):
            return Nodes(
                transaction=request.transaction,
                observed=asker.address,
                token=bytes(8),
                contacts=invented,
            )
        return honest(request, asker, now=now, wall_now=wall_now, room=room)

    honest = liar._overlay._handlers.answer
    liar._overlay._handlers = type(
        "Liar", (), {"answer": staticmethod(lie), "has_token": liar._overlay._handlers.has_token}
    )()
    for number in range(10):
        others = [node for node in nodes if node is not nodes[1]]
        found = await nodes[1].find_nodes(key(f"{number}"))
        expected = [node.identity.node_id for node in closest_nodes(others, key(f"{number}"), 16)]
        assert [peer.node_id for peer in found] == expected
    assert ids(nodes[1].contacts()) <= everybody_but(nodes[1], nodes)


# --- leaving ----------------------------------------------------------------------------------------------------------


async def test_cancellation_leaves_nothing_behind(autojump_clock):
    network = MemoryNetwork(seed=1, delay=(0.01, 0.02))
    before = trio.lowlevel.current_statistics().tasks_living
    async with trio.open_nursery() as nursery:
        swarm = Swarm(nursery, network)
        nodes = await swarm.start_many(5)
        for node in nodes:
            nursery.start_soon(node.find_nodes, key("x"))
            nursery.start_soon(node.get, key("x"))
            nursery.start_soon(node.wait_peers_changed)
        await trio.sleep(0.005)
        nursery.cancel_scope.cancel()
    assert trio.lowlevel.current_statistics().tasks_living == before
    assert network._transports == {}


async def test_a_stopped_node_answers_its_callers(autojump_clock, nursery):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(3)
    swarm.kill(nodes[1])
    await trio.sleep(0.1)
    with trio.fail_after(60):
        assert (await nodes[0].publish(key("x"), b"v", lifetime=60)).stored == 2


async def test_a_read_near_a_holder_asks_one_node_and_more_only_if_that_is_silent(autojump_clock, nursery, monkeypatch):
    swarm = Swarm(nursery, MemoryNetwork(seed=1, delay=(0.02, 0.02)))
    nodes = await swarm.start_many(20)
    reader = nodes[3]
    name = next(name for name in map(str, range(100)) if reader not in closest_nodes(nodes, key(name), 12))
    await nodes[1].publish(key(name), b"v", lifetime=600)
    asked = []
    ask = reader._overlay.requests.ask

    def count(contact, request, *arguments, **options):
        if isinstance(request, FindValue):  # our upkeep may check a newcomer meanwhile, or look somebody up
            asked.append(contact)
        ask(contact, request, *arguments, **options)

    monkeypatch.setattr(reader._overlay.requests, "ask", count)
    start = trio.current_time()
    assert len(await reader.get(key(name), limit=1)) == 1
    assert len(asked) == 1
    assert trio.current_time() - start == pytest.approx(0.04)
    swarm.network.pause(swarm.addresses[closest_nodes(nodes, key(name), 1)[0]])
    start = trio.current_time()
    assert len(await reader.get(key(name), limit=1)) == 1
    assert trio.current_time() - start < 0.15, "sooner than the least timeout"


# --- disjoint paths ---------------------------------------------------------------------------------------------------


async def test_stores_and_reads_by_disjoint_paths_find_what_one_path_finds(autojump_clock, nursery, monkeypatch):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(40)
    lookup, taken = Overlay.lookup, []

    def watched(self, target, *args, **options):
        started = lookup(self, target, *args, **options)
        if target == key("x"):
            taken.append(started.paths)
        return started

    monkeypatch.setattr(Overlay, "lookup", watched)
    published = await nodes[3].publish(key("x"), b"v", lifetime=600, disjoint_paths=4)
    assert published.stored == published.asked >= 8
    holders = {node for node in nodes if node.health().stored_records}
    assert set(closest_nodes([node for node in nodes if node is not nodes[3]], key("x"), 7)) <= holders
    assert len(holders) <= 20
    assert [record.value for record in await nodes[30].get(key("x"), disjoint_paths=4)] == [b"v"]
    async with nodes[20].find(key("x"), disjoint_paths=2) as records:
        assert [record.value async for record in records] == [b"v"]
    found = ids(await nodes[5].find_nodes(key("x"), disjoint_paths=3))
    others = [node for node in nodes if node is not nodes[5]]
    assert {node.identity.node_id for node in closest_nodes(others, key("x"), 16)} <= found
    assert taken == [4, 4, 2, 3]


async def test_a_read_by_disjoint_paths_is_not_cut_short_by_one_of_them(autojump_clock, nursery):
    """Who holds nothing but its own records under a key would end a read that stops at the first ones."""
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(20)
    for node in nodes[:10]:
        await node.publish(key("hot"), b"." * 200, lifetime=600)
    reader = closest_nodes(nodes, key("hot"), 20)[-1]
    before = reader.health().requests_sent
    assert len(await reader.get(key("hot"), limit=2)) == 2
    one = reader.health().requests_sent - before
    several = await reader.get(key("hot"), limit=2, disjoint_paths=3)
    assert len(several) > 2
    assert one < reader.health().requests_sent - before - one


async def test_whoever_has_joined_knows_somebody_everywhere(autojump_clock, nursery):
    """A key in a part of the id space where a node knows nobody would be stored, and sought, in the wrong places."""
    nodes = await Swarm(nursery).start_many(60, k=8, liveness_interval=3600.0)
    for node in nodes:
        others = [other.identity.node_id for other in nodes if other is not node]
        sizes = node.health().bucket_sizes
        shared = Counter(min(common_prefix_bits(number_of(node.identity.node_id), number_of(o)), 63) for o in others)
        for bits, size in enumerate(sizes[:-1]):
            assert size >= min(1, shared[bits])


# --- health -----------------------------------------------------------------------------------------------------------


async def test_health_tells_how_lookups_fare_how_far_peers_are_and_how_many(autojump_clock, nursery):
    swarm = Swarm(nursery, MemoryNetwork(seed=1, delay=(0.01, 0.02)))
    nodes = await swarm.start_many(40)
    node = nodes[7]
    health = node.health()
    assert health.network_size_error == pytest.approx(0.27, abs=0.01)
    assert abs(health.network_size - 40) < 3 * 0.27 * 40
    assert 0.02 <= health.rtt_percentiles[50] <= health.rtt_percentiles[90] <= health.rtt_percentiles[99] <= 0.04
    assert sum(health.bucket_sizes) == health.contacts > 16
    assert health.lookups == health.lookups_answered > 0
    await nodes[3].publish(key("x"), b"v", lifetime=600)
    before = node.health()
    reads = 0
    for name in ("x", "nothing"):
        reads += 1
        await node.get(key(name))
    assert node.health().lookups - before.lookups == node.health().lookups_answered - before.lookups_answered <= reads
    for other in nodes:
        if other is not node:
            swarm.network.pause(swarm.addresses[other])
    await node.get(key("nobody answers"))
    assert node.health().lookups - node.health().lookups_answered == 1


async def test_a_swarm_of_one_bucket_is_counted_exactly(autojump_clock, nursery):
    nodes = await Swarm(nursery).start_many(3)
    health = nodes[0].health()
    assert (health.network_size, health.network_size_error, health.observed) == (3, 0, {"10.1.0.0": 2})
    alone = await Swarm(nursery, MemoryNetwork()).start(5)
    assert (alone.health().rtt_percentiles, alone.health().mean_rtt) == ({}, None)


async def test_refusals_are_counted_by_known_reasons_only(autojump_clock, nursery, monkeypatch):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(3)
    reasons = iter(["time", *map(str, range(100))])

    def refuse(self, request, asker, now, wall_now):
        return Refused(transaction=request.transaction, observed=asker.address, reason=next(reasons))

    monkeypatch.setattr(Handlers, "_stored", refuse)
    for _ in range(20):
        await nodes[1].publish(key("x"), b"v", lifetime=600)
    assert {reason: count for reason, count in nodes[1].health().refused.items() if count} == {"time": 1, "other": 39}
    assert not any("refused" in name for name in nodes[1]._overlay.counts)
