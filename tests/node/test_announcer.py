import itertools
import logging
from random import Random

import attrs
import pytest
import trio
import trio.testing

from llamanet.dht import shards as shards_module
from llamanet.dht.publishing import OWN_SOURCE
from llamanet.dht.service import DhtConfig, serve_dht
from llamanet.dht.storage import RecordStore, Refusal, Rejected
from llamanet.node import announcer as announcer_module
from llamanet.node.announcer import Announcement, Announcer, local_hosts
from llamanet.testing.network import MemoryNetwork
from llamanet.wire.facts import (
    NodeFacts,
    ServiceFacts,
    decode_node_facts_untrusted,
    decode_service_facts_untrusted,
    key_of,
    model_key_name,
)
from llamanet.wire.identity import Identity
from llamanet.wire.record import MAX_RECORD_BYTES, encode_record

EPOCH = 1_900_000_000.0


class Member:
    """A DHT node with an announcer, whose facts the test sets."""

    def __init__(self, dht, host, **options):
        self.dht = dht
        self.models = ["alpha"]
        self.running = 0
        self.announcer = Announcer(
            dht,
            self.describe,
            **{"announce": None, "bound_host": host, "heartbeat_interval": 10.0, "rng": Random(1), **options},
        )

    def describe(self, hosts):
        place = {"hosts": hosts, "port": 8000, "dht_port": 8001, "tls": True, "label": "node-a", "version": "1"}
        node = NodeFacts(
            **place, models=tuple(self.models), model_count=len(self.models), running=self.running, slots=4
        )
        service = ServiceFacts(**place, digest=bytes(32), n_ctx=2048, slots=4)
        return Announcement(node=node, services=tuple((model, service) for model in self.models))


@attrs.define
class Swarm:
    nursery: trio.Nursery
    network: MemoryNetwork = attrs.field(factory=lambda: MemoryNetwork(seed=1))
    count: int = 0

    async def join(self, **options):
        self.count += 1
        bootstrap = ("10.0.0.1:8001",) if self.count > 1 else ()
        config = DhtConfig(
            **{
                "bootstrap": bootstrap,
                "wall_clock": lambda: EPOCH + trio.current_time(),
                "seed": self.count,
                **options,
            }
        )
        transport = self.network.transport(f"10.0.0.{self.count}", 8001)

        async def run(task_status):
            await serve_dht(
                Identity.from_seed(bytes([self.count]) * 32), config, transport=transport, task_status=task_status
            )

        return await self.nursery.start(run)


@pytest.fixture
async def swarm(nursery):
    return Swarm(nursery)


async def nodes_under(dht, name):
    return [decode_node_facts_untrusted(record.value) for record in await dht.get(key_of(name))]


async def services_under(dht, name):
    return [decode_service_facts_untrusted(record.value) for record in await dht.get(key_of(name))]


async def test_it_publishes_under_all_keys_and_is_found_by_others(autojump_clock, nursery, swarm, caplog):
    caplog.set_level(logging.INFO)
    first, second = await swarm.join(), await swarm.join()
    await second.wait_joined()
    member = Member(first, "10.0.0.1")
    nursery.start_soon(member.announcer.serve)
    await member.announcer.wait_settled()
    names = ["all_nodes", "model:alpha", f"node:{first.identity.node_id.hex()}", "node:node-a"]
    for name in names:
        if name.startswith("model:"):
            [service] = await services_under(second, name)
            assert (service.hosts, service.digest, service.n_ctx) == (("10.0.0.1",), bytes(32), 2048)
        else:
            [node] = await nodes_under(second, name)
            assert (node.label, node.models, node.slots) == ("node-a", ("alpha",), 4)
    [line] = [record.getMessage() for record in caplog.records if "Published node info" in record.getMessage()]
    assert all(name in line for name in names)


async def test_load_is_told_at_each_heartbeat_under_the_nodes_own_keys_only(autojump_clock, nursery, swarm, caplog):
    caplog.set_level(logging.INFO)
    dht = await swarm.join()
    member = Member(dht, "10.0.0.1")
    nursery.start_soon(member.announcer.serve)
    await member.announcer.wait_settled()
    member.running = 3
    await trio.sleep(11.5)
    assert [facts.running for facts in await nodes_under(dht, "node:node-a")] == [3]
    assert [facts.running for facts in await nodes_under(dht, f"node:{dht.identity.node_id.hex()}")] == [3]
    assert [facts.running for facts in await nodes_under(dht, "all_nodes")] == [0]
    await trio.sleep(600)
    assert len(await services_under(dht, "model:alpha")) == 1
    assert len([record for record in caplog.records if "Published" in record.getMessage()]) == 1


async def test_an_idle_node_tells_little_and_never_vanishes(autojump_clock, nursery, swarm):
    first = await swarm.join()
    for _ in range(29):
        await swarm.join()
    await trio.sleep(60)
    member = Member(first, "10.0.0.1")
    nursery.start_soon(member.announcer.serve)
    await member.announcer.wait_settled()
    await trio.sleep(60)
    before = first.health()
    for _ in range(12):
        await trio.sleep(50)
        assert len(await nodes_under(first, "node:node-a")) == 1
    sent = first.health().requests_sent - before.requests_sent
    reads = 12 * 12
    upkeep = 600 / 5 + 60
    heartbeats = 2 * announcer_module.HEARTBEAT_HOLDERS * 600 / 18
    shared = 4 * 8 * (600 / 108 + 1) + 4 * 20 * 3
    assert sent < reads + upkeep + heartbeats + shared


async def test_what_changed_is_told_at_the_next_heartbeat_and_nothing_twice(
    autojump_clock, nursery, swarm, monkeypatch
):
    dht = await swarm.join()
    await swarm.join()
    await trio.sleep(5)
    renewed = []
    renew = dht.renew

    async def watched(key, value, **options):
        if key == key_of("node:node-a"):
            renewed.append((trio.current_time(), decode_node_facts_untrusted(value).running))
        return await renew(key, value, **options)

    monkeypatch.setattr(dht, "renew", watched)
    member = Member(dht, "10.0.0.1")
    nursery.start_soon(member.announcer.serve)
    await member.announcer.wait_settled()
    await trio.sleep(100)
    times = [at for at, _ in renewed]
    assert len(times) >= 4
    assert all(18 <= later - earlier <= 22.1 for earlier, later in itertools.pairwise(times))
    for running in (1, 2, 3):
        member.running = running
        await trio.sleep(11.01)
        assert renewed[-1][1] == running


@pytest.mark.parametrize("off", [-600.0, 600.0])
async def test_a_clock_that_is_off_is_said_once_and_nothing_is_said_to_be_published(
    autojump_clock, nursery, swarm, caplog, off
):
    caplog.set_level(logging.INFO)
    await swarm.join()
    await swarm.join()
    dht = await swarm.join(wall_clock=lambda: EPOCH + off + trio.current_time())
    await dht.wait_joined()
    await trio.sleep(5)
    member = Member(dht, "10.0.0.3")
    nursery.start_soon(member.announcer.serve)
    await trio.sleep(400)
    [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "clock" in line
    assert "model:alpha" in line
    assert not any("Published" in record.getMessage() for record in caplog.records)


async def test_keys_beyond_what_peers_keep_of_one_node_are_said_once(
    autojump_clock, nursery, swarm, caplog, monkeypatch
):
    caplog.set_level(logging.INFO)
    refusal = Refusal.KEYS
    put = RecordStore.put

    def cramped(self, record, encoded, source, now, **options):
        if source != OWN_SOURCE and record.key == key_of("model:alpha"):
            return Rejected(refusal)
        return put(self, record, encoded, source, now, **options)

    monkeypatch.setattr(RecordStore, "put", cramped)
    await swarm.join()
    dht = await swarm.join()
    await dht.wait_joined()
    await trio.sleep(5)
    nursery.start_soon(Member(dht, "10.0.0.2").announcer.serve)
    await trio.sleep(400)
    [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert refusal in line
    assert "model:alpha" in line
    assert "all_nodes" not in line
    [told] = [record.getMessage() for record in caplog.records if "Published" in record.getMessage()]
    assert "model:alpha" not in told
    assert "all_nodes" in told


async def test_what_is_not_told_again_expires(autojump_clock, nursery, swarm):
    dht = await swarm.join()
    member = Member(dht, "10.0.0.1")
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as inner:
            inner.start_soon(member.announcer.serve)
            await member.announcer.wait_settled()
            scope.cancel()
    assert len(await nodes_under(dht, "node:node-a")) == 1
    await trio.sleep(31)
    assert await nodes_under(dht, "node:node-a") == []
    assert len(await services_under(dht, "model:alpha")) == 1
    await trio.sleep(270)
    assert await services_under(dht, "model:alpha") == []


async def test_a_change_is_told_at_once_and_what_is_gone_is_withdrawn(autojump_clock, nursery, swarm):
    first, second = await swarm.join(), await swarm.join()
    await second.wait_joined()
    member = Member(first, "10.0.0.1")
    nursery.start_soon(member.announcer.serve)
    await member.announcer.wait_settled()
    member.models = ["beta"]
    member.announcer.refresh()
    await member.announcer.wait_settled()
    assert trio.current_time() < 5
    assert await services_under(second, "model:alpha") == []
    assert len(await services_under(second, "model:beta")) == 1


async def test_withdrawing_takes_everything_back(autojump_clock, nursery, swarm):
    first, second = await swarm.join(), await swarm.join()
    await second.wait_joined()
    member = Member(first, "10.0.0.1")
    async with trio.open_nursery() as inner:
        inner.start_soon(member.announcer.serve)
        await member.announcer.wait_settled()
        inner.cancel_scope.cancel()
    await member.announcer.withdraw()
    for name in ("all_nodes", "model:alpha", "node:node-a", f"node:{first.identity.node_id.hex()}"):
        assert await second.get(key_of(name)) == []
        assert await first.get(key_of(name)) == []


async def test_withdrawing_does_not_wait_for_the_dead(autojump_clock, nursery, swarm):
    first, second = await swarm.join(), await swarm.join()
    await second.wait_joined()
    member = Member(first, "10.0.0.1")
    async with trio.open_nursery() as inner:
        inner.start_soon(member.announcer.serve)
        await member.announcer.wait_settled()
        inner.cancel_scope.cancel()
    swarm.network.loss = 1.0
    start = trio.current_time()
    await member.announcer.withdraw()
    assert trio.current_time() - start <= announcer_module.WITHDRAW_S


async def test_of_a_model_with_many_nodes_each_is_in_two_shards_until_it_leaves(
    autojump_clock, nursery, swarm, monkeypatch
):
    monkeypatch.setattr(shards_module, "SPLIT_ABOVE", 1)
    dhts = [await swarm.join() for _ in range(4)]
    members = [Member(dht, "10.0.0.1") for dht in dhts]
    reader = await swarm.join()
    async with trio.open_nursery() as inner:
        for member in members:
            inner.start_soon(member.announcer.serve)
        await trio.sleep(200)
        inner.cancel_scope.cancel()

    async def publishers(name):
        return {record.publisher for record in await reader.get(key_of(name))}

    everybody = {dht.identity.node_id for dht in dhts}
    for depth in (1, 2):
        for prefix in range(2**depth):
            inside = {node_id for node_id in everybody if node_id[0] >> (8 - depth) == prefix}
            assert await publishers(f"model:alpha/{prefix:0{depth}b}") == inside
    assert await publishers("all_nodes/0") == set()
    gone = members[0]
    await gone.announcer.withdraw()
    gone_id = gone.dht.identity.node_id
    for name in ("model:alpha", f"model:alpha/{gone_id[0] >> 7:b}", f"model:alpha/{gone_id[0] >> 6:02b}"):
        assert gone_id not in await publishers(name)


async def test_who_came_before_a_crowd_is_in_its_shards_soon(autojump_clock, nursery, swarm, monkeypatch):
    monkeypatch.setattr(shards_module, "SPLIT_ABOVE", 1)
    dhts = [await swarm.join() for _ in range(4)]
    await trio.sleep(10)
    early, *crowd = [Member(dht, "10.0.0.1") for dht in dhts]
    nursery.start_soon(early.announcer.serve)
    await early.announcer.wait_settled()
    for member in crowd:
        nursery.start_soon(member.announcer.serve)
    await trio.sleep(12)
    first = early.dht.identity.node_id
    for shard in (f"model:alpha/{first[0] >> 7:b}", f"model:alpha/{first[0] >> 6:02b}"):
        assert first in {record.publisher for record in await dhts[1].get(key_of(shard))}


async def test_what_is_not_new_is_told_ever_more_rarely(autojump_clock, nursery, swarm, monkeypatch):
    dht = await swarm.join()
    await swarm.join()
    await trio.sleep(5)
    told = []
    renew = dht.renew

    async def watched(key, value, **options):
        if key == key_of("model:alpha"):
            told.append(trio.current_time())
        return await renew(key, value, **options)

    monkeypatch.setattr(dht, "renew", watched)
    nursery.start_soon(Member(dht, "10.0.0.1").announcer.serve)
    start = trio.current_time()
    await trio.sleep(1200)
    assert told[0] - start < 12
    assert 4 <= len([at for at in told if at - start < 200]) <= 6
    settled = [at for at in told if at - start > 200]
    assert all(107 <= later - earlier <= 144 for earlier, later in itertools.pairwise(settled))
    assert len(settled) >= 7


async def test_a_shard_that_is_left_expires_and_one_of_a_model_that_is_gone_is_withdrawn(
    autojump_clock, nursery, swarm, monkeypatch
):
    monkeypatch.setattr(shards_module, "SPLIT_ABOVE", 1)
    first, second = await swarm.join(), await swarm.join()
    await second.wait_joined()
    members = [Member(dht, "10.0.0.1") for dht in (first, second)]
    for member in members:
        nursery.start_soon(member.announcer.serve)
    await trio.sleep(150)
    shard = key_of(f"model:alpha/{first.identity.node_id[0] >> 7:b}")
    assert first.identity.node_id in {record.publisher for record in await second.get(shard)}
    monkeypatch.setattr(shards_module, "SPLIT_ABOVE", 256)
    await trio.sleep(140)
    assert first.identity.node_id in {record.publisher for record in await second.get(shard)}
    await trio.sleep(300)
    assert await second.get(shard) == []
    monkeypatch.setattr(shards_module, "SPLIT_ABOVE", 1)
    await trio.sleep(150)
    members[0].models = ["beta"]
    members[0].announcer.refresh()
    await trio.sleep(2)
    assert first.identity.node_id not in {record.publisher for record in await second.get(shard)}


async def test_newcomers_to_a_small_swarm_get_its_records(autojump_clock, nursery, swarm):
    dht = await swarm.join()
    member = Member(dht, "10.0.0.1")
    nursery.start_soon(member.announcer.serve)
    await trio.sleep(30)
    for _ in range(3):
        joined = await swarm.join()
        await joined.wait_joined()
        await trio.sleep(2.5)
        assert joined._store.records >= 4


@pytest.mark.parametrize(
    ("options", "hosts"),
    [
        ({}, ("10.0.0.1",)),
        ({"announce": "node.example.org"}, ("node.example.org",)),
        ({"bound_host": "192.0.2.7"}, ("10.0.0.1",)),
    ],
)
async def test_hosts_are_as_told_or_as_observed(autojump_clock, nursery, swarm, options, hosts):
    first, second = await swarm.join(), await swarm.join()
    await second.wait_joined()
    await trio.sleep(2)
    assert Member(first, "10.0.0.1", **options).announcer.hosts() == hosts


async def test_hosts_before_anybody_has_observed_them(autojump_clock, nursery, swarm):
    alone = await swarm.join()
    assert Member(alone, "192.0.2.7").announcer.hosts() == ("192.0.2.7",)


def test_a_wildcard_becomes_an_address():
    for host in ("0.0.0.0", "::"):
        [told] = local_hosts(host)
        assert told not in ("0.0.0.0", "::", "")


async def test_a_node_may_be_announced_at_several_addresses(autojump_clock, nursery):
    """Of both families, say; what does not fit the record is left out from the end."""
    swarm = Swarm(nursery)
    dht = await swarm.join()
    member = Member(dht, "10.0.0.1", announce="192.0.2.7, 2001:db8::7, node.example.org")
    assert member.announcer.hosts() == ("192.0.2.7", "2001:db8::7", "node.example.org")
    nursery.start_soon(member.announcer.serve)
    await trio.sleep(1)
    [record] = await dht.get(key_of(model_key_name("alpha")))
    assert decode_service_facts_untrusted(record.value).hosts == member.announcer.hosts()
    assert len(encode_record(record)) <= MAX_RECORD_BYTES
