"""The list of models, for many who ask at a time.

To list them costs lookups in the DHT and a datagram to each node of each model. Clients ask for the list when they
start, some before each request, and monitors all the time: within `FRESH_S` they get the same one, and those who ask
while it is made wait for it.
"""

import math

import trio

from llamanet.client.census import ModelView
from llamanet.client.client import SwarmClient
from llamanet.swarm import Swarm

FRESH_S = 1.0


class Listing:
    """The models of `swarm`, as they were at most `FRESH_S` ago."""

    def __init__(self, swarm: Swarm | SwarmClient) -> None:
        self._swarm = swarm
        self._making = trio.Lock()
        self._views: list[ModelView] = []
        self._made_at = -math.inf

    async def listed(self) -> list[ModelView]:
        """The models that can be asked for. Raises `NotJoined`."""
        async with self._making:
            if trio.current_time() - self._made_at > FRESH_S:
                self._views = await self._swarm.models()
                self._made_at = trio.current_time()
            return self._views
