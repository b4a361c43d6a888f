"""Options: each setting is a flag and a variable of the same name; an empty variable is an unset one."""

import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from llamanet.cli.logs import FORMATS, LEVELS
from llamanet.client.strategy import STRATEGIES
from llamanet.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])


def setting(name: str, **attributes: Any) -> Callable[[F], F]:
    """The option `--a-b`, also read from `A_B`, for the parameter `a_b`. `attributes` are click's."""
    return click.option(f"--{name.replace('_', '-')}", name, envvar=name.upper(), show_envvar=True, **attributes)


STRATEGY: dict[str, Any] = {
    "type": click.Choice(STRATEGIES),
    "default": STRATEGIES[0],
    "show_default": True,
    "help": "How a request's node is chosen; all but the first are there to compare it with.",
}
"""Of the setting `strategy`, wherever it is."""


class Listed(click.types.StringParamType):
    """A text of which a variable holds several, separated by commas."""

    envvar_list_splitter = ","


class ModelSource(Listed):
    """What a user calls a model: a path, which shells complete, or a name."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """What tells the shell to look for files."""
        return [CompletionItem(incomplete, type="file")]


LOCAL_NODE = ("127.0.0.1:8001",)
"""Where a node on this machine is found, unless it was told another `--dht-port`."""


def _peers(context: click.Context, option: click.Parameter, value: str) -> tuple[str, ...]:
    peers = tuple(filter(None, map(str.strip, value.split(","))))
    if peers:
        # Imported only now: trio takes a tenth of a second.
        from llamanet.dht.bootstrap import parse_peer

        for peer in peers:
            try:
                parse_peer(peer)
            except UserError as error:
                raise click.BadParameter(str(error), context, option) from error
    return peers


def swarm_settings(function: F) -> F:
    """The options that say which swarm is meant, by the names of `as_membership`'s arguments."""
    settings = (
        setting(
            "bootstrap_nodes",
            default="",
            callback=_peers,
            metavar="HOST:PORT,...",
            help="DHT addresses (UDP) of nodes to join the swarm through.",
        ),
        setting("join", metavar="INVITE", help="The line that `llamanet invite` printed on a node of the swarm."),
        setting(
            "swarm_name", metavar="NAME", show_default="llamanet", help="The name of another swarm than the usual one."
        ),
        setting(
            "swarm_key_file",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="The key of a private swarm: 32 bytes in hexadecimal.",
        ),
    )
    for add in reversed(settings):
        function = add(function)
    return function


def with_local_node(membership: Mapping[str, Any]) -> dict[str, Any]:
    """What `swarm_settings` gave, for a command that only asks: told of no node, it asks the one on this machine."""
    if membership["bootstrap_nodes"] or membership["join"]:
        return dict(membership)
    return {**membership, "bootstrap_nodes": LOCAL_NODE}


def asking(membership: Mapping[str, Any]) -> dict[str, Any]:
    """As `with_local_node`, for a command that does not wait for a node: raises `UserError` if none runs here."""
    chosen = with_local_node(membership)
    if chosen["bootstrap_nodes"] is LOCAL_NODE and _is_closed(LOCAL_NODE[0]):
        raise UserError(
            f"no node runs on this machine (nobody listens on UDP {LOCAL_NODE[0]}); start one (llamanet node), or name "
            "one by --join or --bootstrap-nodes"
        )
    return chosen


def _is_closed(address: str) -> bool:
    """Whether this machine says at once that nobody listens on this UDP port of its own."""
    host, _, port = address.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        try:
            sock.connect((host, int(port)))
            sock.send(b"")
            sock.recv(1)
        except ConnectionRefusedError:
            return True
        except OSError:  # nothing has come, so somebody may be there
            return False
    return False


def log_settings(level: str) -> Callable[[F], F]:
    """`--log-level`, which is `level` unless the user says otherwise, and `--log-format`."""
    log_level = setting("log_level", type=click.Choice(LEVELS, case_sensitive=False), default=level, show_default=True)
    log_format = setting("log_format", type=click.Choice(FORMATS), default="text", show_default=True)
    return lambda function: log_level(log_format(function))
