"""`llamanet models`: what the swarm serves."""

from pathlib import Path

import click

from llamanet.cli.listing import as_json_option, print_views
from llamanet.cli.logs import set_up_logging
from llamanet.cli.options import bootstrap_nodes, log_settings, swarm_key_file


@click.command("models")
@bootstrap_nodes(required=True)
@as_json_option
@swarm_key_file
@log_settings("error")
def command(
    bootstrap_nodes: tuple[str, ...], as_json: bool, swarm_key_file: Path | None, log_level: str, log_format: str
) -> None:
    """Show the models that the swarm serves."""
    set_up_logging(log_level, log_format)
    print_views(
        lambda swarm: swarm.models(),
        {
            "model": lambda model: model.name,
            "nodes": lambda model: str(model.nodes),
            "running": lambda model: f"{model.running}/{model.slots}",
            "waiting": lambda model: str(model.waiting),
            "context": lambda model: str(model.n_ctx),
            "sha-256": lambda model: ", ".join(digest[:12] for digest in model.digests),
        },
        bootstrap_nodes=bootstrap_nodes,
        swarm_key_file=swarm_key_file,
        as_json=as_json,
    )
