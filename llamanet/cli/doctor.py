"""`llamanet doctor`: what is wrong with a node or a client on this machine, why it matters, and what to do."""

import json
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from llamanet.cli.http import HTTP_SETTINGS, missing_packages
from llamanet.cli.node import command as node_command
from llamanet.cli.options import LOCAL_NODE, swarm_settings
from llamanet.errors import UserError

if TYPE_CHECKING:
    from llamanet.doctor.finding import Finding
    from llamanet.doctor.machine import Asked, HttpAsked, Say

INDENT = 8 * " "
"""Before all lines of a finding but the first, which has the level there."""
LOOKED_AT = (
    *("model_path", "host", "port", "dht_port", "announce", "data_dir", "control", "no_tls"),
    *("n_ctx", "n_parallel", "n_gpu_layers", "cache_type_k", "cache_type_v"),
    *("http_port", "http_host", "api_key_file", "no_auth"),
)
"""Settings of `llamanet node` that say what is to be looked at; each is the same option here."""


@click.command("doctor", params=[option for option in node_command.params if option.name in LOOKED_AT])
@swarm_settings
@click.option("--client", is_flag=True, help="Look only at what is needed to ask a swarm, not to be a node of it.")
@click.option("--load", is_flag=True, help="Load the models, weights and all, to see whether llama.cpp does.")
@click.option("--json", "as_json", is_flag=True, help="Print an object with all findings.")
def command(
    bootstrap_nodes: tuple[str, ...],
    join: str | None,
    swarm_name: str | None,
    swarm_key_file: Path | None,
    client: bool,
    load: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Find out what is wrong with a node or a client here, and what to do.

    Give it the settings that the node or the gateway is started with, or set their variables; a node that runs here is
    asked itself. Ports that nobody has are opened for a moment, so that other nodes can see whether they reach them.
    The exit status is 1 if an error is found.
    """
    from llamanet.cli.progress import telling

    membership = {
        "bootstrap_nodes": bootstrap_nodes,
        "join": join,
        "swarm_name": swarm_name,
        "swarm_key_file": swarm_key_file,
    }
    with telling() as say:
        findings = _look(_asked(settings, swarm_key_file, client=client, load=load), membership, settings, say)
    _print(findings, as_json=as_json)
    if any(finding.level == "error" for finding in findings):
        raise click.exceptions.Exit(1)


def _asked(settings: dict[str, Any], swarm_key_file: Path | None, *, client: bool, load: bool) -> "Asked":
    """What is to be looked at. Raises `UserError` for settings that cannot be right."""
    from llamanet.doctor.machine import Asked
    from llamanet.models.memory import Slots
    from llamanet.node.config import NodeConfig
    from llamanet.settings import default_data_dir

    models = settings["model_path"]
    checked = {name: settings[name] for name in LOOKED_AT if name not in (*HTTP_SETTINGS, "model_path")}
    # A node needs a model; a doctor does not.
    config = NodeConfig(**checked, model_path=models, upstream=None if models else "http://localhost")
    return Asked(
        client=client,
        host=config.host,
        port=config.port,
        dht_port=config.dht_port,
        data_dir=config.data_dir or default_data_dir(),
        control=config.control,
        swarm_key_file=swarm_key_file,
        models=models,
        slots=Slots(
            n_ctx=config.n_ctx,
            count=config.n_parallel,
            type_k=config.cache_type_k,
            type_v=config.cache_type_v,
            n_gpu_layers=config.n_gpu_layers,
        ),
        load=load,
        http=_http(settings),
    )


def _http(settings: dict[str, Any]) -> "HttpAsked | None":
    if settings["http_port"] is None and settings["http_host"] == "127.0.0.1" and settings["api_key_file"] is None:
        return None
    from llamanet.doctor.machine import HttpAsked
    from llamanet.gateway.keys import load_keys
    from llamanet.settings import is_loopback

    problem, file = None, settings["api_key_file"]
    if file is not None:
        try:
            load_keys(file)
        except UserError as error:
            problem = str(error)
    return HttpAsked(
        host=settings["http_host"],
        port=settings["http_port"] or 0,
        public=not is_loopback(settings["http_host"]),
        key_file=file,
        no_auth=settings["no_auth"],
        missing=missing_packages(),
        key_problem=problem,
    )


def _look(asked: "Asked", membership_settings: dict[str, Any], settings: dict[str, Any], say: "Say") -> "list[Finding]":
    # Imported only now, so that --help and a mistaken option are answered at once.
    from llamanet.cli.signals import run_until_signalled
    from llamanet.dht.membership import as_membership
    from llamanet.doctor.checks import judge_machine
    from llamanet.doctor.finding import Level
    from llamanet.doctor.machine import look_at_machine
    from llamanet.doctor.outside import judge_surroundings
    from llamanet.doctor.surroundings import Here, look_around
    from llamanet.wire.facts import announced_hosts

    machine = look_at_machine(asked, say)
    findings = judge_machine(machine)
    if any(finding.check == "swarm-key" and finding.level is Level.ERROR for finding in findings):
        return findings
    membership = as_membership(**membership_settings)
    if asked.client and not membership.peers:
        membership = attrs.evolve(membership, peers=LOCAL_NODE)
    here = None
    if not asked.client:
        here = Here(
            node=machine.node,
            host=asked.host,
            port=asked.port,
            dht_port=asked.dht_port,
            stand_in=bool(asked.port and asked.dht_port) and not any(port.problem for port in machine.ports),
            announced=announced_hosts(settings["announce"]),
            tls=not settings["no_tls"],
        )

    async def look() -> None:
        findings.extend(judge_surroundings(await look_around(membership, here, say)))

    run_until_signalled(look)
    return findings


def _print(findings: "Sequence[Finding]", *, as_json: bool) -> None:
    counts = {level: sum(finding.level == level for finding in findings) for level in ("error", "warning", "ok")}
    if as_json:
        told = {
            "errors": counts["error"],
            "warnings": counts["warning"],
            "findings": [attrs.asdict(finding) for finding in findings],
        }
        click.echo(json.dumps(told, indent=2, ensure_ascii=False))
        return
    colours = {"ok": "green", "warning": "yellow", "error": "red"}
    for finding in findings:
        level = finding.level.value
        click.echo(f"{click.style(f'{level:8}', fg=colours[level])}{_folded(finding.what)}")
        for line in (finding.why, f"To do: {finding.do}" if finding.do else ""):
            if line:
                click.echo(f"{INDENT}{_folded(line)}")
    click.echo(f"\n{', '.join(_counted(counts[level], level) for level in ('error', 'warning'))}")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _folded(text: str) -> str:
    """`text` in lines that fit the terminal beside `INDENT`; one line where there is no terminal."""
    if not sys.stdout.isatty():
        return text
    columns = max(40, shutil.get_terminal_size().columns - len(INDENT))
    return f"\n{INDENT}".join(textwrap.wrap(text, columns, break_long_words=False, break_on_hyphens=False))
