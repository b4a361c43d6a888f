"""`llamanet control`: tell a node that runs on this machine to load, unload, drain or resume, or ask how it is."""

import json
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from llamanet.cli.listing import print_table
from llamanet.cli.options import ModelSource, setting
from llamanet.errors import LlamaNetError, UserError

F = TypeVar("F", bound=Callable[..., Any])
Answer = dict[str, Any]


def which_node(function: F) -> F:
    """The options that every subcommand takes."""
    options = (
        setting(
            "control",
            type=click.Path(path_type=Path),
            metavar="PATH",
            show_default="in the data directory, by the DHT port",
            help="The node's control socket.",
        ),
        setting("data_dir", type=click.Path(path_type=Path), metavar="DIR", help="The node's --data-dir."),
        setting("dht_port", type=int, default=8001, show_default=True, help="The node's --dht-port."),
        click.option("--json", "as_json", is_flag=True, help="Print the node's whole answer."),
    )
    for add in reversed(options):
        function = add(function)
    return function


@click.group("control")
def command() -> None:
    """Tell a node on this machine what to do."""


@command.command("status")
@which_node
@click.option("--ready", is_flag=True, help="End with status 1 while the node starts: until it has loaded its models.")
def status(as_json: bool, ready: bool, **node: Any) -> None:
    """Show what the node serves, and how busy it is."""
    answer = _perform({"do": "status"}, **node)
    if as_json:
        _print_json(answer)
    else:
        _print_status(answer)
    if ready and not answer["serving"]:
        raise click.exceptions.Exit(1)


def _print_status(answer: Answer) -> None:
    state = "serving" if answer["serving"] else "starting"
    if answer["held_by"]:
        state = f"drained ({', '.join(answer['held_by'])})"
    click.echo(f"{answer['node_id']}: {state}, {answer['requests']} requests, process {answer['pid']}")
    print_table(
        {
            "model": lambda model: model["name"],
            "state": lambda model: model["state"],
            "running": lambda model: f"{model['running']}/{model['slots']}" if "slots" in model else "-",
            "waiting": lambda model: str(model.get("waiting", "-")),
            "context": lambda model: str(model.get("n_ctx", "-")),
            "file": lambda model: model["source"],
        },
        answer["models"],
        spare=("context", "waiting"),
    )


@command.command("load")
@click.argument("model", type=ModelSource())
@which_node
def load(model: str, as_json: bool, **node: Any) -> None:
    """Serve MODEL too.

    It is a file, `hf:owner/repo[@revision][:file-or-quant]`, or the name of a pulled model. Ctrl-C gives it up.
    """
    # A path means the same to the node, which may have been started elsewhere.
    path = Path(model)
    answer = _perform({"do": "load", "model": str(path.resolve()) if path.exists() else model}, **node)
    _print(answer, as_json, f"{answer['name']} is served, after {answer['seconds']:.1f} s")


@command.command("unload")
@click.argument("name")
@click.option("--timeout", type=float, default=30.0, show_default=True, help="Seconds for its streams to end.")
@which_node
def unload(name: str, timeout: float, as_json: bool, **node: Any) -> None:
    """Serve the model NAME no more, once its streams have ended."""
    answer = _perform({"do": "unload", "model": name, "timeout": timeout}, **node)
    _print(answer, as_json, f"{name} is unloaded")


@command.command("drain")
@click.option("--no-wait", is_flag=True, help="Do not wait for running requests.")
@which_node
def drain(no_wait: bool, as_json: bool, **node: Any) -> None:
    """Take no new requests, and wait until those that run have finished. The process lives; Ctrl-C ends the waiting."""
    answer = _perform({"do": "drain", "wait": not no_wait}, **node)
    _print(answer, as_json, f"the node is drained; {answer['requests']} requests run")


@command.command("resume")
@which_node
def resume(as_json: bool, **node: Any) -> None:
    """Take requests again after `drain`."""
    answer = _perform({"do": "resume"}, **node)
    held = f", but held by the {', '.join(answer['held_by'])}" if answer["held_by"] else ""
    _print(answer, as_json, f"the node takes requests again{held}")


def _print(answer: Answer, as_json: bool, line: str) -> None:
    if as_json:
        _print_json(answer)
    else:
        click.echo(line)


def _print_json(answer: Answer) -> None:
    click.echo(json.dumps(answer, indent=2, ensure_ascii=False))


def _perform(request: Mapping[str, Any], *, control: Path | None, data_dir: Path | None, dht_port: int) -> Answer:
    """The node's answer. Raises `UserError` if no node can be reached, and `LlamaNetError` if it refuses."""
    from llamanet.cli.progress import progress_bars
    from llamanet.settings import default_control_path, default_data_dir

    path = control or default_control_path(data_dir or default_data_dir(), dht_port)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock, progress_bars() as report:
        try:
            sock.connect(str(path))
            sock.sendall(json.dumps(request, ensure_ascii=False).encode() + b"\n")
            for line in sock.makefile("rb"):
                message = json.loads(line)
                if "error" in message:
                    raise UserError(message["error"]) if message["status"] == 2 else LlamaNetError(message["error"])
                if "ok" in message:
                    answer: Answer = message["ok"]
                    return answer
                report(*message["progress"].values())
        except OSError as error:
            raise UserError(
                f"no node answers on {path} ({error.strerror}); give its --dht-port and --data-dir, or --control"
            ) from error
    raise LlamaNetError(f"the node on {path} ended before it answered")
