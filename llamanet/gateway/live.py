"""`/live`: the swarm as it changes, as server-sent events, for whoever looks.

Rules:
- Nobody polls while nobody looks. A reader that finds the picture older than its pace has it made anew, and all others
  get that one: a thousand readers cost the swarm what one does.
- A reader is told the whole picture once, and then what changed since it was last told; one that reads slowly is told
  less often, and nothing piles up for it. What happens to requests waits for it in its bounded subscription.
- A reader that goes away is let go at once, and so are all of them when the gateway drains.

Events, each with a JSON object as its data: `picture` (first `"whole": true`), and `request`, of which `kind` says what
happened. Times are seconds on the gateway's clock, of which `now` tells.
"""

import json
from collections.abc import Mapping
from typing import Any

import attrs
import trio
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from llamanet.errors import NotJoined, ungrouped
from llamanet.gateway.events import (
    Event,
    Events,
    RequestAnswered,
    RequestEnded,
    RequestMoved,
    RequestStarted,
    Subscription,
)
from llamanet.gateway.gateway import Asked, Gateway
from llamanet.gateway.picture import Picture, Sighting

LOOK_S = 1.0
"""Between two looks at the nodes."""
ASKED_A_SECOND = 200
"""Nodes asked a second at most; larger swarms are looked at less often."""
MODELS_S = 5.0
"""Between two looks at the models, unless nodes came or left."""
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-accel-buffering", b"no"),
]
KINDS: dict[type[Event], str] = {
    RequestStarted: "started",
    RequestAnswered: "answered",
    RequestMoved: "moved",
    RequestEnded: "ended",
}


class Live:
    """What all readers share."""

    def __init__(self, swarm: Asked) -> None:
        self.picture = Picture()
        self.trouble: str | None = None
        """Why there is no picture, in words."""
        self.next_look_at = 0.0
        self._swarm = swarm
        self._models_at = 0.0
        self._models_number = -1
        self._looking = trio.Lock()

    @property
    def dht_size(self) -> int:
        """About how many nodes the DHT has, those that serve nothing included."""
        return round(self._swarm.statistics.dht.network_size)

    async def refresh(self) -> None:
        """Look, if it is time to, and nobody else does."""
        async with self._looking:
            if trio.current_time() >= self.next_look_at:
                await self._look()

    async def _look(self) -> None:
        try:
            with ungrouped():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._look_at_nodes)
                    if trio.current_time() >= self._models_at or self._models_number != self.picture.number:
                        nursery.start_soon(self._look_at_models)
            self.trouble = None
        except NotJoined as error:
            self.trouble = str(error)
        self.next_look_at = trio.current_time() + max(LOOK_S, len(self.picture.nodes) / ASKED_A_SECOND)

    async def _look_at_nodes(self) -> None:
        self.picture.look(await self._swarm.nodes(), trio.current_time())

    async def _look_at_models(self) -> None:
        number = self.picture.number
        self.picture.models = await self._swarm.models()
        self._models_at, self._models_number = trio.current_time() + MODELS_S, number


@attrs.define
class Reader:
    """What one reader was told, and so what is new to it."""

    _nodes: Mapping[str, Sighting] | None = None
    _models: object = None
    _number: int = 0
    _told_at: float = -1.0

    def news(self, live: Live, now: float) -> dict[str, Any]:
        """The next `picture` event's data."""
        picture = live.picture
        known = self._nodes or {}
        news: dict[str, Any] = {
            "now": now,
            "whole": self._nodes is None,
            "trouble": live.trouble,
            "dht_size": live.dht_size,
            "nodes": [_node(seen) for id, seen in picture.nodes.items() if known.get(id) != seen],
            "left": [id for id in known if id not in picture.nodes],
            "moves": [attrs.asdict(move) for move in picture.moves if move.number > self._number],
            "points": [attrs.astuple(point) for point in picture.points if point.at > self._told_at],
        }
        if picture.models is not self._models:
            news["models"] = [attrs.asdict(model) for model in picture.models]
        self._nodes, self._models, self._number = dict(picture.nodes), picture.models, picture.number
        self._told_at = picture.points[-1].at if picture.points else self._told_at
        return news


def _node(seen: Sighting) -> dict[str, Any]:
    view = seen.view
    return {
        **attrs.asdict(view),
        "tokens_per_second": round(view.tokens_per_second, 1),
        "ttft_s": round(view.ttft_s, 3),
        "rtt": round(view.rtt, 4),
        "load": round(view.load, 3),
        "since": seen.since,
        "silent": seen.missed > 0,
    }


def _request_event(event: Event) -> bytes:
    return _event("request", {"kind": KINDS[type(event)], **attrs.asdict(event)})


def _event(kind: str, data: Mapping[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode()


def routes(gateway: Gateway) -> list[Route]:
    """`/live`."""
    feed = LiveFeed(Live(gateway.swarm), gateway.events, gateway.draining)
    return [Route("/live", feed, methods=["GET"], include_in_schema=False)]


class LiveFeed:
    """The ASGI application of `/live`."""

    def __init__(self, live: Live, events: Events, draining: trio.Event) -> None:
        self._live = live
        self._events = events
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Tell one reader, until it goes away or the gateway drains."""
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        writing = trio.Lock()

        async def write(data: bytes) -> None:
            async with writing:
                await send({"type": "http.response.body", "body": data, "more_body": True})

        async def tell_pictures() -> None:
            reader = Reader()
            while True:
                await self._live.refresh()
                await write(_event("picture", reader.news(self._live, trio.current_time())))
                await trio.sleep_until(self._live.next_look_at)

        async def tell_requests(events: Subscription) -> None:
            async for event in events:
                await write(_request_event(event))

        async def end_with_gateway() -> None:
            await self._draining.wait()
            nursery.cancel_scope.cancel()

        with self._events.subscribe() as events:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tell_pictures)
                nursery.start_soon(tell_requests, events)
                nursery.start_soon(end_with_gateway)
                while (await receive())["type"] != "http.disconnect":
                    pass
                nursery.cancel_scope.cancel()
        if self._draining.is_set():
            await send({"type": "http.response.body", "body": b"", "more_body": False})
