"""What all of a gateway's endpoints share. An endpoint finds it as `request.app.state.gateway`."""

from collections.abc import Callable
from typing import TypeAlias

import attrs
import trio

from llamanet.client.client import SwarmClient
from llamanet.gateway.config import GatewayConfig
from llamanet.gateway.events import Events
from llamanet.gateway.keys import Keys, load_keys
from llamanet.gateway.listing import Listing
from llamanet.gateway.metrics import Metrics
from llamanet.swarm import Swarm
from llamanet.wire.inference import ModelStatus

Asked: TypeAlias = Swarm | SwarmClient
"""Whom a gateway asks: a member of the swarm, or a node's own client."""


@attrs.define(eq=False, kw_only=True)
class Gateway:
    """A gateway's state. Raises `UserError` for an API key file that is none."""

    swarm: Asked
    config: GatewayConfig
    engines: Callable[[], tuple[ModelStatus, ...]] = tuple
    """The models that this very process serves, for `/metrics`."""
    events: Events = attrs.field(factory=Events)
    draining: trio.Event = attrs.field(factory=trio.Event)
    """Set once the gateway was told to stop: what has no end of its own ends then."""
    keys: Keys | None = attrs.field(init=False)
    """None: none is needed."""
    metrics: Metrics = attrs.field(init=False)
    models: Listing = attrs.field(init=False)

    @keys.default
    def _keys(self) -> Keys | None:
        path = self.config.api_key_file
        return None if path is None else Keys(load_keys(path))

    @models.default
    def _models(self) -> Listing:
        return Listing(self.swarm)

    @metrics.default
    def _metrics(self) -> Metrics:
        metrics = Metrics(lambda: self.swarm.statistics, lambda: self.engines())
        self.events.listeners.append(metrics.heard)
        return metrics
