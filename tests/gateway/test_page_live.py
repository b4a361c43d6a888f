"""`/live`: what its readers are told, what they cost, and how they end."""

import json

import attrs
import pytest
import trio

from llamanet.errors import NotJoined
from llamanet.gateway.events import Events, RequestAnswered, RequestEnded, RequestMoved, RequestStarted
from llamanet.gateway.live import LOOK_S, MODELS_S, Live, LiveFeed
from llamanet.gateway.picture import GONE_AFTER, HISTORY_S, MAX_MOVES, SAMPLE, SAMPLE_GONE_AFTER, Picture
from llamanet.swarm import ModelView, NodeView
from llamanet.testing.cluster import Cluster


def node(name, **more):
    facts = {
        "node_id": name,
        "id": name.encode().hex(),
        "models": ("alpha",),
        "address": "192.0.2.1:8000",
        "running": 0,
        "waiting": 0,
        "slots": 4,
        "load": 0.0,
        "tokens_per_second": 10.0,
        "ttft_s": 0.1,
        "draining": False,
        "tls": True,
        "version": "1",
        "rtt": 0.001,
    }
    return NodeView(**facts | more)


MODEL = ModelView(name="alpha", digests=("00",), nodes=1, slots=4, running=0, waiting=0, n_ctx=2048)


@attrs.define
class FakeSwarm:
    """Tells what it is given, and counts how often it is asked."""

    found: list = attrs.field(factory=list)
    takes_s: float = 0.0
    error: Exception | None = None
    looks: int = 0
    model_looks: int = 0

    @property
    def statistics(self):
        return self

    @property
    def dht(self):
        return self

    network_size = 7.2

    async def nodes(self):
        self.looks += 1
        await trio.sleep(self.takes_s)
        if self.error:
            raise self.error
        return list(self.found)

    async def models(self):
        self.model_looks += 1
        await trio.sleep(self.takes_s)
        return [MODEL]


class Reading:
    """One reader of a feed; `held` makes it slow."""

    def __init__(self, feed, *, method="GET"):
        self.feed = feed
        self.method = method
        self.sent = []
        self.left = trio.Event()
        self.room = trio.Event()
        self.room.set()
        self.ended = False

    async def run(self):
        await self.feed({"type": "http", "method": self.method}, self.receive, self.send)
        self.ended = True

    async def receive(self):
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        await self.room.wait()
        self.sent.append(message)

    @property
    def events(self):
        body = b"".join(message.get("body", b"") for message in self.sent).decode()
        return [
            (lines[0].removeprefix("event: "), json.loads(lines[1].removeprefix("data: ")))
            for lines in (part.split("\n") for part in body.split("\n\n") if part)
        ]

    def data(self, kind):
        return [data for name, data in self.events if name == kind]


@pytest.fixture
def swarm():
    return FakeSwarm([node("a"), node("b")])


@pytest.fixture
def events():
    return Events()


@pytest.fixture
def draining():
    return trio.Event()


@pytest.fixture
def feed(swarm, events, draining):
    return LiveFeed(Live(swarm), events, draining)


# --- the picture -----------------------------------------------------------------------------------------------------


def moves(picture):
    return [(move.kind, move.label) for move in picture.moves]


def test_who_is_there_first_has_not_joined_and_one_lost_datagram_is_no_departure():
    picture = Picture()
    picture.look([node("a")], 0.0)
    picture.look([node("b")], 1.0)
    assert moves(picture) == [("joined", "b")]
    assert picture.nodes[node("a").id].missed == 1
    picture.look([node("a"), node("b")], 2.0)
    assert (moves(picture), picture.nodes[node("a").id].missed) == ([("joined", "b")], 0)
    for second in range(GONE_AFTER):
        picture.look([node("b")], 3.0 + second)
    assert moves(picture) == [("joined", "b"), ("left", "a")]
    assert [seen.since for seen in picture.nodes.values()] == [1.0]


def test_of_a_sample_nobody_is_gone_because_the_next_sample_lacks_him():
    picture = Picture()
    crowd = [node(f"n{number}") for number in range(SAMPLE + 1)]
    picture.look(crowd, 0.0)
    for second in range(1, SAMPLE_GONE_AFTER):
        picture.look(crowd[1:], float(second))
    assert moves(picture) == []
    picture.look(crowd[1:], float(SAMPLE_GONE_AFTER))
    assert moves(picture) == [("left", "n0")]


def test_what_is_computed_is_what_streams_run_times_what_one_gets():
    picture = Picture()
    picture.look([node("a", running=3), node("b", running=9, waiting=5, tokens_per_second=2.0), node("c")], 0.0)
    [point] = picture.points
    assert (point.tokens_per_second, point.running, point.waiting) == (3 * 10 + 4 * 2, 12, 5)


def test_a_picture_is_bounded():
    picture = Picture()
    for second in range(2 * int(HISTORY_S)):
        picture.look([node(f"n{second}")], float(second))
    assert len(picture.nodes) == GONE_AFTER
    assert len(picture.moves) == MAX_MOVES
    assert len(picture.points) == HISTORY_S + 1


# --- the feed --------------------------------------------------------------------------------------------------------


async def test_a_reader_gets_all_and_then_what_changed(autojump_clock, nursery, swarm, feed):
    reading = Reading(feed)
    nursery.start_soon(reading.run)
    await trio.sleep(0.5)
    [first] = reading.data("picture")
    assert (first["whole"], first["trouble"], first["dht_size"], first["moves"]) == (True, None, 7, [])
    assert [(told["node_id"], told["since"], told["silent"]) for told in first["nodes"]] == [
        ("a", 0.0, False),
        ("b", 0.0, False),
    ]
    assert first["points"] == [[0.0, 0.0, 0, 0]]
    assert [model["name"] for model in first["models"]] == ["alpha"]

    swarm.found = [node("a", running=1), node("b"), node("c")]
    await trio.sleep(LOOK_S)
    second = reading.data("picture")[1]
    assert (second["whole"], [told["node_id"] for told in second["nodes"]]) == (False, ["a", "c"])
    assert second["moves"] == [{"number": 1, "kind": "joined", "id": node("c").id, "label": "c"}]
    assert second["points"] == [[LOOK_S, 10.0, 1, 0]]
    assert "models" not in second

    swarm.found = [node("a", running=1), node("b")]
    await trio.sleep(2 * LOOK_S)
    assert reading.data("picture")[2]["nodes"][0]["silent"]
    assert reading.data("picture")[3]["left"] == [node("c").id]
    reading.left.set()


async def test_what_happens_to_requests_is_told_at_once(autojump_clock, nursery, events, feed):
    reading = Reading(feed)
    nursery.start_soon(reading.run)
    await trio.sleep(0.5)
    about = {"request_id": "r", "model": "alpha"}
    events.publish(RequestStarted(**about, at=0.5))
    events.publish(RequestAnswered(**about, node_id="a", ttft=0.1))
    events.publish(RequestMoved(**about, from_node="a", to_node="b", reason="it fell silent"))
    events.publish(RequestEnded(**about, node_id="b", tokens=3, seconds=1.0, status=200))
    await trio.sleep(0.01)
    told = reading.data("request")
    assert [event["kind"] for event in told] == ["started", "answered", "moved", "ended"]
    assert told[2] == {"kind": "moved", **about, "from_node": "a", "to_node": "b", "reason": "it fell silent"}
    reading.left.set()


async def test_nobody_asks_the_swarm_while_nobody_reads_and_many_readers_cost_what_one_does(
    autojump_clock, nursery, swarm, feed
):
    await trio.sleep(100)
    assert swarm.looks == 0
    readings = [Reading(feed) for _ in range(100)]
    for reading in readings:
        nursery.start_soon(reading.run)
    await trio.sleep(10.5 * LOOK_S)
    assert (swarm.looks, swarm.model_looks) == (11, 1 + 10.5 * LOOK_S // MODELS_S)
    assert {len(reading.data("picture")) for reading in readings} == {11}
    for reading in readings:
        reading.left.set()
    await trio.sleep(100)
    assert swarm.looks == 11
    assert all(reading.ended for reading in readings)


async def test_who_looks_may_leave_and_another_one_looks(autojump_clock, nursery, swarm, feed):
    swarm.takes_s = 0.5
    first, second = Reading(feed), Reading(feed)
    nursery.start_soon(first.run)
    await trio.sleep(0.1)
    nursery.start_soon(second.run)
    await trio.sleep(0.1)
    first.left.set()
    await trio.sleep(0.6)
    assert (first.ended, first.events) == (True, [])
    assert len(second.data("picture")) == 1
    second.left.set()


async def test_nothing_piles_up_for_a_slow_reader(autojump_clock, nursery, swarm, feed):
    reading = Reading(feed)
    nursery.start_soon(reading.run)
    await trio.sleep(0.5)
    reading.room = trio.Event()
    for number in range(50):
        swarm.found = [node("a", running=number % 4), node(f"n{number}")]
        await trio.sleep(LOOK_S)
    before = len(reading.data("picture"))
    reading.room.set()
    await trio.sleep(2.5 * LOOK_S)
    late = reading.data("picture")[before:]
    assert len(late) <= 5
    shown = {}
    for news in reading.data("picture"):
        shown.update({told["id"]: told["node_id"] for told in news["nodes"]})
        for id in news["left"]:
            del shown[id]
    assert sorted(shown.values()) == ["a", "n49"]
    reading.left.set()


async def test_large_swarms_are_looked_at_less_often(autojump_clock, nursery, swarm, feed):
    swarm.found = [node(f"n{number}") for number in range(1000)]
    reading = Reading(feed)
    nursery.start_soon(reading.run)
    await trio.sleep(20.5)
    assert swarm.looks == 5
    reading.left.set()


async def test_trouble_is_told_and_passes(autojump_clock, nursery, swarm, feed):
    swarm.error = NotJoined(("192.0.2.1:8001",))
    reading = Reading(feed)
    nursery.start_soon(reading.run)
    await trio.sleep(0.5)
    swarm.error = None
    await trio.sleep(LOOK_S)
    troubled, good = reading.data("picture")
    assert "192.0.2.1:8001" in troubled["trouble"]
    assert (good["trouble"], len(good["nodes"])) == (None, 2)
    reading.left.set()


async def test_readers_end_when_the_gateway_drains(autojump_clock, nursery, draining, feed):
    reading = Reading(feed)
    nursery.start_soon(reading.run)
    await trio.sleep(0.5)
    draining.set()
    await trio.sleep(0.01)
    assert reading.ended
    assert reading.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_cancelling_leaves_nothing_behind(autojump_clock, events, feed):
    with trio.move_on_after(2.5) as scope:
        await Reading(feed).run()
    assert scope.cancelled_caught
    assert not events._subscriptions


async def test_head_has_no_body(autojump_clock, swarm, feed):
    reading = Reading(feed, method="HEAD")
    await reading.run()
    assert (reading.sent[0]["status"], reading.events, swarm.looks) == (200, [], 0)


async def test_a_real_swarm(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(2)
    client = await cluster.start_client()
    reading = Reading(LiveFeed(Live(client), Events(), trio.Event()))
    nursery.start_soon(reading.run)
    await trio.sleep(3)
    assert [told["node_id"] for told in reading.data("picture")[0]["nodes"]] == ["node-0", "node-1"]
    cluster.kill("node-0")
    await cluster.start_node("node-2")
    await trio.sleep(8)
    told = [(move["kind"], move["label"]) for news in reading.data("picture") for move in news["moves"]]
    assert sorted(told) == [("joined", "node-2"), ("left", "node-0")]
    assert round(reading.data("picture")[-1]["dht_size"]) >= 2
    reading.left.set()
