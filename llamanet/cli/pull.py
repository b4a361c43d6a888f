"""`llamanet pull`: get a model from the Hugging Face hub, or go on getting it."""

from pathlib import Path

import click

from llamanet.cli.logs import set_up_logging
from llamanet.cli.options import log_settings, setting
from llamanet.errors import UserError


@click.command("pull")
@click.argument("model")
@setting(
    "data_dir", type=click.Path(path_type=Path), metavar="DIR", help="Where SHA-256 of model files are remembered."
)
@log_settings("info")
def command(model: str, data_dir: Path | None, log_level: str, log_format: str) -> None:
    """Get MODEL, which is hf:owner/repo, hf:owner/repo:Q4_K_M or hf:owner/repo:FILE.

    hf:owner/repo@REVISION (a branch, a tag, or a commit's full hash) is another version than the newest. What
    broke off is gone on with, and of what is here already a newer version is got. The path of the file is printed.
    Files go into the cache that all tools of the hub share (HF_HOME), by their token (hf auth login, or HF_TOKEN).
    """
    set_up_logging(log_level, log_format)
    # Imported only now, so that --help and a mistaken option are answered at once.
    from llamanet.cli.progress import progress_bars
    from llamanet.models.library import newest_model
    from llamanet.models.source import HubSource, parse_source
    from llamanet.settings import default_data_dir

    source = parse_source(model)
    if not isinstance(source, HubSource):
        meant = f"hf:{model}" if model.count("/") == 1 and not model.endswith(".gguf") else "hf:owner/repo"
        raise UserError(f"{model} is in no repository of the hub; write {meant}")
    with progress_bars() as report:
        path = newest_model(source, (data_dir or default_data_dir()) / "digests.json", report)
    click.echo(path)
