"""`llamanet models`: what the swarm serves, or what was pulled to this machine."""

import json
from pathlib import Path
from typing import Any

import click

from llamanet.cli.listing import as_json_option, print_table, print_views
from llamanet.cli.logs import set_up_logging
from llamanet.cli.options import log_settings, setting, swarm_settings


@click.command("models")
@swarm_settings
@as_json_option
@log_settings("error")
@click.option("--local", is_flag=True, help="Show the models that were pulled to this machine, and ask no swarm.")
@setting(
    "data_dir", type=click.Path(path_type=Path), metavar="DIR", help="Where SHA-256 of model files are remembered."
)
def command(
    as_json: bool, log_level: str, log_format: str, local: bool, data_dir: Path | None, **membership: Any
) -> None:
    """Show the models that the swarm serves."""
    set_up_logging(log_level, log_format)
    if local:
        _print_local(data_dir, as_json=as_json)
        return
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
        spare=("sha-256", "waiting"),
        membership=membership,
        as_json=as_json,
    )


def _print_local(data_dir: Path | None, *, as_json: bool) -> None:
    from llamanet.models.digest import known_digest
    from llamanet.models.library import local_models
    from llamanet.models.progress import size_text
    from llamanet.models.source import HubSource
    from llamanet.settings import default_data_dir

    digests = (data_dir or default_data_dir()) / "digests.json"
    rows = []
    for model in local_models():
        digest = known_digest(model.files, digests)
        rows.append(
            {
                "name": model.name,
                "repo": model.repo,
                "revision": model.revision,
                "quant": model.quant,
                "bytes": model.size,
                "digest": digest.hex() if digest else None,
                "files": [str(file) for file in model.files],
            }
        )
    if as_json:
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    print_table(
        {
            "model": lambda row: row["name"],
            "size": lambda row: size_text(row["bytes"]),
            "quant": lambda row: row["quant"] or "-",
            "from": lambda row: str(HubSource(row["repo"], revision=row["revision"])),
            "sha-256": lambda row: (row["digest"] or "-")[:12],
            "file": lambda row: row["files"][0],
        },
        rows,
        spare=("file", "sha-256"),
    )
    if not rows:
        click.echo("no model was pulled yet; get one by: llamanet pull hf:owner/repo", err=True)
