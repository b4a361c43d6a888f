"""`llamanet gateway`: OpenAI's API and a page in front of a swarm, until SIGINT or SIGTERM, which drain it."""

from typing import Any

import click

from llamanet.cli.http import PORT, http_settings, need_packages
from llamanet.cli.logs import set_up_logging
from llamanet.cli.options import log_settings, setting, swarm_settings, with_local_node


@click.command("gateway")
@http_settings(PORT)
@swarm_settings
@setting("dht_port", type=int, default=0, show_default="any", help="DHT (UDP).")
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
