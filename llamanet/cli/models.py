"""`llamanet models`: what the swarm serves."""

from typing import Any

import click

from llamanet.cli.listing import as_json_option, print_views
from llamanet.cli.logs import set_up_logging
from llamanet.cli.options import log_settings, swarm_settings


@click.command("models")
@swarm_settings
@as_json_option
@log_settings("error")
def command(as_json: bool, log_level: str, log_format: str, **membership: Any) -> None:
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
        membership=membership,
        as_json=as_json,
    )
