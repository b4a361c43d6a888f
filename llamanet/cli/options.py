"""Options: each setting is a flag and a variable of the same name; an empty variable is an unset one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from llamanet.cli.logs import FORMATS, LEVELS
from llamanet.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])


def setting(name: str, **attributes: Any) -> Callable[[F], F]:
    """The option `--a-b`, also read from `A_B`, for the parameter `a_b`. `attributes` are click's."""
    return click.option(f"--{name.replace('_', '-')}", name, envvar=name.upper(), show_envvar=True, **attributes)


def _peers(context: click.Context, option: click.Parameter, value: str) -> tuple[str, ...]:
    peers = tuple(filter(None, map(str.strip, value.split(","))))
    if peers:
        # Imported only now: trio takes a tenth of a second.
        from llamanet.dht.bootstrap import parse_host_port

        for peer in peers:
            try:
                parse_host_port(peer)
            except UserError as error:
                raise click.BadParameter(str(error), context, option) from error
    return peers


def bootstrap_nodes(*, required: bool) -> Callable[[F], F]:
    """`--bootstrap-nodes`; a node can do without, for it may be the first one."""
    need: dict[str, Any] = {"required": True} if required else {"default": ""}
    return setting(
        "bootstrap_nodes",
        **need,
        callback=_peers,
        metavar="HOST:PORT,...",
        help="DHT addresses (UDP) of nodes to join the swarm through.",
    )


swarm_key_file = setting(
    "swarm_key_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The key of a private swarm: 32 bytes in hexadecimal.",
)


def log_settings(level: str) -> Callable[[F], F]:
    """`--log-level`, which is `level` unless the user says otherwise, and `--log-format`."""
    log_level = setting("log_level", type=click.Choice(LEVELS, case_sensitive=False), default=level, show_default=True)
    log_format = setting("log_format", type=click.Choice(FORMATS), default="text", show_default=True)
    return lambda function: log_level(log_format(function))
