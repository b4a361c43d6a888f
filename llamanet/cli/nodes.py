"""`llamanet nodes`: the nodes of the swarm that are alive, and how busy they are."""

from typing import Any

import click

from llamanet.cli.listing import as_json_option, print_views
from llamanet.cli.logs import set_up_logging
from llamanet.cli.options import log_settings, swarm_settings


@click.command("nodes")
@swarm_settings
@as_json_option
@log_settings("error")
def command(as_json: bool, log_level: str, log_format: str, **membership: Any) -> None:
    """Show the nodes of the swarm, or a random sample of a large one."""
    set_up_logging(log_level, log_format)
    print_views(
        lambda swarm: swarm.nodes(),
        {
            "node": lambda node: node.node_id,
            "id": lambda node: node.id[:8],
            "address": lambda node: node.address,
            "models": lambda node: ", ".join(node.models),
            "running": lambda node: f"{node.running}/{node.slots}",
            "waiting": lambda node: str(node.waiting),
            "tokens/s": lambda node: f"{node.tokens_per_second:.1f}",
            "state": lambda node: "draining" if node.draining else "serving",
        },
        membership=membership,
        as_json=as_json,
    )
