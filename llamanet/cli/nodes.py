"""`llamanet nodes`: the nodes of the swarm that are alive, and how busy they are."""

from pathlib import Path

import click

from llamanet.cli.listing import as_json_option, print_views
from llamanet.cli.logs import set_up_logging
from llamanet.cli.options import bootstrap_nodes, log_settings, swarm_key_file


@click.command("nodes")
@bootstrap_nodes(required=True)
@as_json_option
@swarm_key_file
@log_settings("error")
def command(
    bootstrap_nodes: tuple[str, ...], as_json: bool, swarm_key_file: Path | None, log_level: str, log_format: str
) -> None:
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
        bootstrap_nodes=bootstrap_nodes,
        swarm_key_file=swarm_key_file,
        as_json=as_json,
    )
