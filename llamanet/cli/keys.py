"""`llamanet keys`: make and show keys. What is secret is written to files of mode 0600, or shown once."""

import json
import os
import secrets
from pathlib import Path

import click

from llamanet.cli.options import setting
from llamanet.errors import UserError

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print an object.")
API_KEY_BYTES = 24


@click.group("keys")
def command() -> None:
    """Make and show keys."""


@command.command("identity")
@setting(
    "data_dir", type=click.Path(path_type=Path), metavar="DIR", help="Where nodes of this machine keep their keys."
)
@setting("dht_port", type=click.IntRange(1, 65_535), default=8001, show_default=True, help="The node's UDP port.")
@as_json_option
def show_identity(data_dir: Path | None, dht_port: int, as_json: bool) -> None:
    """Show who the node on a DHT port is.

    It gets its key now if it has none. The public key is what `--bootstrap-nodes KEY@HOST:PORT` takes.
    """
    from llamanet.dht.keyfile import load_or_create_identity
    from llamanet.settings import default_data_dir
    from llamanet.wire.identity import short_name

    file = (data_dir or default_data_dir()) / f"node-{dht_port}.key"
    identity = load_or_create_identity(file)
    told = {
        "name": short_name(identity.node_id),
        "id": identity.node_id.hex(),
        "public_key": identity.public_key.hex(),
        "file": str(file),
    }
    if as_json:
        click.echo(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(f"{name.replace('_', ' '):10}  {value}" for name, value in told.items()))


@command.command("swarm")
@click.argument("file", type=click.Path(path_type=Path))
def make_swarm_key(file: Path) -> None:
    """Make the key of a private swarm, in FILE.

    It is for `--swarm-key-file` of each node and client.
    """
    from llamanet.wire.envelope import SWARM_KEY_BYTES

    _write_new(file, secrets.token_hex(SWARM_KEY_BYTES))
    click.echo(file)


@command.command("api")
@click.argument("label")
@click.option("--file", type=click.Path(path_type=Path), help="A gateway's --api-key-file, which the key is added to.")
@click.option("--rpm", type=click.IntRange(1), metavar="N", help="Requests a minute, at most.")
@click.option("--tpm", type=click.IntRange(1), metavar="N", help="Tokens a minute, at most.")
@click.option("--concurrent", type=click.IntRange(1), metavar="N", help="Requests at a time, at most.")
@as_json_option
def make_api_key(label: str, file: Path | None, as_json: bool, **limits: int | None) -> None:
    """Make an API key for LABEL, and show it.

    It is shown once, for the file keeps its SHA-256 only. Without --file the line for the file goes to standard error.
    """
    import hashlib

    if not label.isprintable() or set(label) & set(" =#"):
        raise UserError(f"{label!r} cannot be a label: it has no space, = or #")
    key = f"sk-{secrets.token_urlsafe(API_KEY_BYTES)}"
    words = [f"{name}={limit}" for name, limit in limits.items() if limit is not None]
    line = " ".join((label, f"sha256:{hashlib.sha256(key.encode()).hexdigest()}", *words))
    if file is None:
        click.echo(line, err=True)
    else:
        _add_line(file, line, label)
    click.echo(json.dumps({"label": label, "key": key, "line": line}, indent=2) if as_json else key)


def _write_new(file: Path, text: str) -> None:
    """Write a file that only its owner may read. Raises `UserError` if there is one already."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as opened:
            opened.write(f"{text}\n")
    except FileExistsError as error:
        raise UserError(f"{file} exists, and may be in use; name another file, or move it away") from error
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}") from error


def _add_line(file: Path, line: str, label: str) -> None:
    try:
        before = file.read_text(encoding="utf-8") if file.exists() else ""
        if any(words[:1] == [label] for words in map(str.split, before.splitlines())):
            raise UserError(f"{file} has a key for {label!r} already; take that line out first")
        if not before:
            return _write_new(file, line)
        with file.open("a", encoding="utf-8") as opened:
            opened.write(("" if before.endswith("\n") else "\n") + line + "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot add to {file}: {getattr(error, 'strerror', None) or error}") from error
