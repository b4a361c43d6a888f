"""`/health`: the gateway lives. `/ready`: it has joined, and some node serves a model; 503 with the reason if not.

Anybody may ask, so the swarm is asked at most once in `FRESH_S`, however many do.
"""

import attrs
import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llamanet.errors import NotJoined
from llamanet.gateway.gateway import Gateway
from llamanet.gateway.responses import json_response

FRESH_S = 2.0
PATIENCE_S = 5.0
"""The swarm has so long to say what it serves."""


@attrs.define
class Readiness:
    """What was last found."""

    gateway: Gateway
    _reason: str | None = None
    _models: int = 0
    _found_at: float | None = None
    _looking: trio.Lock = attrs.field(factory=trio.Lock)

    async def look(self) -> tuple[str | None, int]:
        """Why we are not ready, or None; and how many models are served."""
        async with self._looking:
            now = trio.current_time()
            if self._found_at is None or now - self._found_at >= FRESH_S:
                self._reason, self._models = await self._find()
                self._found_at = trio.current_time()
            return self._reason, self._models

    async def _find(self) -> tuple[str | None, int]:
        swarm = self.gateway.swarm
        if not swarm.statistics.dht.joined:
            return "not joined to any swarm", 0
        try:
            with trio.fail_after(PATIENCE_S):
                models = len(await swarm.models())
        except NotJoined as error:
            return str(error), 0
        except trio.TooSlowError:
            return f"the swarm did not say within {PATIENCE_S:g} s what it serves", 0
        return (None if models else "no node serves a model"), models


def routes(gateway: Gateway) -> list[Route]:
    """The two routes."""
    readiness = Readiness(gateway)

    async def health(request: Request) -> Response:
        return json_response({"status": "ok"})

    async def ready(request: Request) -> Response:
        reason, models = await readiness.look()
        if reason is not None:
            return json_response({"status": "unavailable", "reason": reason}, 503, {"retry-after": "2"})
        return json_response({"status": "ready", "models": models})

    return [Route("/health", health, methods=["GET"]), Route("/ready", ready, methods=["GET"])]
