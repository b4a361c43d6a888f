"""How a name with many publishers is split, and read again."""

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from swarms import Swarm

from llamanet.dht import publishers as publishers_module
from llamanet.dht import shards as shards_module
from llamanet.dht.members import everyone, sample
from llamanet.dht.service import Dht
from llamanet.dht.shards import (
    MAX_DEPTH,
    READ_ABOVE,
    SPLIT_ABOVE,
    Crowd,
    publish_depth,
    read_depth,
    shard_name,
    shard_names,
)
from llamanet.dht.storage import MAX_PUBLISHERS_PER_KEY
from llamanet.wire.facts import key_of
from llamanet.wire.identity import NodeId

PUBLISHER = NodeId(bytes([0b1011_0110]) + bytes(31))


def test_a_small_name_has_no_shards():
    for publishers in (0, 1, SPLIT_ABOVE):
        assert shard_names("model:m", PUBLISHER, publishers) == ()
        assert read_depth(publishers) == 0


@pytest.mark.parametrize(
    ("publishers", "names"),
    [
        (257, ("model:m/1",)),
        (512, ("model:m/1",)),
        (513, ("model:m/10", "model:m/1")),
        (10_000, ("model:m/101101", "model:m/10110")),
        (2**31, ("model:m/101101100000", "model:m/10110110000")),
    ],
)
def test_a_publisher_is_in_two_depths(publishers, names):
    assert shard_names("model:m", PUBLISHER, publishers) == names


@given(st.integers(0, 2**31))
def test_shards_are_as_large_as_they_may_be(publishers):
    depth = publish_depth(publishers)
    assert publishers <= SPLIT_ABOVE << depth or depth == MAX_DEPTH
    assert depth == 0 or publishers > SPLIT_ABOVE << (depth - 1)
    depth = read_depth(publishers)
    assert publishers <= READ_ABOVE << depth or depth == MAX_DEPTH
    assert READ_ABOVE < MAX_PUBLISHERS_PER_KEY


@given(st.integers(0, 500_000), st.floats(0.72, 1.39), st.floats(0.72, 1.39), st.binary(min_size=32, max_size=32))
def test_a_reader_looks_where_every_publisher_is_whatever_each_of_them_believes(true, of_publisher, of_reader, node_id):
    """As long as neither is wrong by more than 28 % down or 39 % up, and one of the two is right."""
    for told, read in ((int(true * of_publisher), true), (true, int(true * of_reader))):
        depth = read_depth(read)
        if depth:
            prefix = int.from_bytes(node_id, "big") >> (256 - depth)
            assert shard_name("model:m", prefix, depth) in shard_names("model:m", NodeId(node_id), told)


def test_a_few_liars_do_not_move_the_count():
    crowd = Crowd()
    assert (crowd.publishers, crowd.is_surely_split) == (0, False)
    crowd.told += [2**31, 100, 2**31, 101, 99]
    assert crowd.publishers == 101
    assert not crowd.is_surely_split
    assert Crowd([9000, 10_000]).is_surely_split is False
    assert Crowd([9000, 10_000, 11_000]).is_surely_split


# --- over the network -------------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """Names that are split above 8 publishers, so that a few dozen make 8 shards."""
    monkeypatch.setattr(shards_module, "SPLIT_ABOVE", 8)
    monkeypatch.setattr(shards_module, "READ_ABOVE", 11)


async def publish(dht: Dht, name: str) -> None:
    published = await dht.publish(key_of(name), b"v" * 100, lifetime=600)
    for shard in shard_names(name, dht.identity.node_id, published.publishers):
        await dht.publish(key_of(shard), b"v" * 100, lifetime=600)


async def test_a_sample_of_a_large_name_comes_from_its_shards(autojump_clock, nursery, small):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(60)
    for _ in range(2):
        for node in nodes:
            await publish(node, "model:m")
    assert (await nodes[0].publish(key_of("model:m"), b"", lifetime=600)).publishers == 60
    everybody = {node.identity.node_id for node in nodes}
    assert {record.publisher for record in await sample(nodes[1], "model:m", 200)} == everybody
    assert {record.publisher for record in await everyone(nodes[3], "model:m", 200)} == everybody
    assert len(await everyone(nodes[3], "model:m", 20)) == 20
    few = await sample(nodes[2], "model:m", 16)
    assert len({record.publisher for record in few}) == 16


async def test_a_small_name_costs_what_a_key_costs(autojump_clock, nursery):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(30)
    for node in nodes[:5]:
        await publish(node, "model:m")
    requests = []
    for read in (lambda: nodes[9].get(key_of("model:m"), limit=64), lambda: sample(nodes[9], "model:m", 64)):
        before = nodes[9].health().requests_sent
        assert len(await read()) == 5
        requests.append(nodes[9].health().requests_sent - before)
        await trio.sleep(1)
    assert requests[1] <= requests[0] + 2


async def test_a_name_that_nobody_publishes_is_known_to_be_empty_in_one_lookup(autojump_clock, nursery):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(30)
    start = trio.current_time()
    assert await sample(nodes[9], "model:none", 64) == []
    assert trio.current_time() - start < 0.25


async def test_holders_who_say_that_there_are_millions_cost_a_reader_nothing_but_time(
    autojump_clock, nursery, monkeypatch
):
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(20)
    for node in nodes[:6]:
        await publish(node, "model:m")
    monkeypatch.setattr(publishers_module.Publishers, "estimate", 2**30)
    found = await sample(nodes[12], "model:m", 6)
    assert {record.publisher for record in found} <= {node.identity.node_id for node in nodes[:6]}
    assert found
