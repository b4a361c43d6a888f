"""`llamanet gateway`: OpenAI's API and a page in front of a swarm, until SIGINT or SIGTERM, which drain it."""

from typing import Any

import click

from llamanet.cli.http import PORT, http_settings, need_packages
from llamanet.cli.logs import set_up_logging
from llamanet.cli.options import log_settings, setting, swarm_settings, with_local_node
from llamanet.client.strategy import STRATEGIES


@click.command("gateway")
@http_settings(PORT)
@swarm_settings
@setting("dht_port", type=int, default=0, show_default="any", help="DHT (UDP).")
@setting("min_tps", type=float, default=0.0, help="Ask no node that is slower for one stream, in tokens a second.")
@setting("max_load", type=float, help="Ask no node with more requests a slot.")
@setting(
    "strategy",
    type=click.Choice(STRATEGIES),
    default=STRATEGIES[0],
    show_default=True,
    help="How a request's node is chosen; all but the first are there to compare it with.",
)
@log_settings("info")
def command(**settings: Any) -> None:
    """Serve OpenAI's API, and a page to look at, in front of the swarm.

    Told of no node, it asks the one on this machine. Without API keys it serves this machine only.
    """
    need_packages()
    # Imported only now, so that --help and a mistaken option are answered at once.
    import trio

    from llamanet.gateway.config import GatewayConfig
    from llamanet.gateway.service import run_gateway

    config = GatewayConfig(**with_local_node(settings))
    set_up_logging(config.log_level, config.log_format)
    trio.run(run_gateway, config)
