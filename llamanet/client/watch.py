"""Whether a node that fell silent is alive: asked once, for all the streams that wait for it.

Rules:
- However many streams fall silent with their node, one PING asks for all of them, and they all hear the answer; it
  serves those too who ask within `SHARED_S`, so that many streams at one node cost no more PINGs than one.
- Datagrams get lost: a second PING goes out after half of the time, and the answer to either counts.
- Whoever asks may be cancelled; another of those who wait asks then.
"""

import math

import attrs
import trio

from llamanet.client.probe_budget import ProbeBudget
from llamanet.dht.service import Dht
from llamanet.errors import RpcTimeout
from llamanet.wire.identity import PublicKey
from llamanet.wire.rpc import Contact, Pong

ANSWER_S = 0.4
"""An answer is waited for so long, or so many times the node's round trip."""
ANSWER_ROUND_TRIPS = 6
SHARED_S = 0.25
MAX_WATCHED = 256
"""Nodes whose last answer is remembered."""


@attrs.frozen
class Sign:
    """What a node said when it was asked whether it is alive; `pong` is None if it said nothing."""

    asked_at: float
    at: float
    """When it answered, or was given up."""
    pong: Pong | None


@attrs.define
class _Watched:
    sign: Sign = attrs.field(default=Sign(-math.inf, -math.inf, None))
    asking: trio.Event | None = None
    """Set when the question under way is over."""


class Watch:
    """The nodes that one client's streams wait for. Times are on trio's clock."""

    def __init__(self, dht: Dht, probes: ProbeBudget) -> None:
        self._dht = dht
        self._probes = probes
        self._watched: dict[tuple[PublicKey, str], _Watched] = {}
        """The least recently asked first."""

    async def look(self, contact: Contact, model: str, rtt: float) -> Sign:
        """Whether the node is alive, and how its `model` does; `rtt` is its round-trip time in seconds."""
        key = contact.public_key, model
        watched = self._watched.pop(key, None) or _Watched()
        self._watched[key] = watched
        if len(self._watched) > MAX_WATCHED:
            del self._watched[next(iter(self._watched))]
        fresh = trio.current_time() - SHARED_S
        while watched.sign.at < fresh:
            if watched.asking is not None:
                await watched.asking.wait()
                continue
            watched.asking = over = trio.Event()
            asked_at = trio.current_time()
            try:
                pong = await self._ask(contact, model, max(ANSWER_S, ANSWER_ROUND_TRIPS * rtt))
                watched.sign = Sign(asked_at, trio.current_time(), pong)
            finally:
                watched.asking = None
                over.set()
        return watched.sign

    async def _ask(self, contact: Contact, model: str, timeout: float) -> Pong | None:
        pongs: list[Pong] = []

        async def ask(delay: float) -> None:
            await trio.sleep(delay)
            self._probes.spend(1)
            try:
                pongs.append((await self._dht.ping(contact, model=model, timeout=timeout - delay)).pong)
            except RpcTimeout:
                return
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, 0.0)
            nursery.start_soon(ask, timeout / 2)
        return pongs[0] if pongs else None
