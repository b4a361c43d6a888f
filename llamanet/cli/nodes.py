"""`llamanet nodes`: the nodes of the swarm that are alive, and how busy they are."""

from typing import Any

import click

from llamanet.cli.listing import as_json_option, print_views
from llamanet.cli.logs import set_up_logging
from llamanet.cli.options import log_settings, swarm_settings


@click.command("nodes")
@swarm_settings
@click.option("--node", metavar="LABEL|ID", help="Only the nodes with this label, or the one with this id.")
@click.option(
    "--health", "with_health", is_flag=True, help="Tell how this program's own part of the DHT is doing, too."
)
@as_json_option
@log_settings("error")
def command(
    node: str | None, with_health: bool, as_json: bool, log_level: str, log_format: str, **membership: Any
) -> None:
    """Show the nodes of the swarm, or a random sample of a large one.

    The health is a line with the number of nodes, estimated, and how well peers are reached; with --json it is all that
    is known, beside the list of nodes.
    """
    set_up_logging(log_level, log_format)
    print_views(
        lambda swarm: swarm.nodes(node=node),
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
        spare=("id", "waiting"),
        membership=membership,
        as_json=as_json,
        with_health=with_health,
    )
