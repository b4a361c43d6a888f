"""What all of a gateway's endpoints share. An endpoint finds it as `request.app.state.gateway`."""

from typing import TypeAlias

import attrs

from llamanet.client.client import SwarmClient
from llamanet.gateway.config import GatewayConfig
from llamanet.gateway.events import Events
from llamanet.swarm import Swarm

Asked: TypeAlias = Swarm | SwarmClient
"""Whom a gateway asks: a member of the swarm, or a node's own client."""


@attrs.define(eq=False, kw_only=True)
class Gateway:
    """A gateway's state."""

    swarm: Asked
    config: GatewayConfig
    events: Events = attrs.field(factory=Events)
