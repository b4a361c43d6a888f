"""Printing what a swarm holds: a table for people, a list of objects for machines."""

import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import click

from llamanet.cli.options import asking
from llamanet.cli.terminal import harmless

if TYPE_CHECKING:
    from rich.console import Console

    from llamanet.dht.health import Health
    from llamanet.swarm import Swarm

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")
GAP = 2
"""Columns of the terminal between those of a table."""
WIDE = 1000
"""Columns of what is no terminal: nothing is cut there."""


def print_views(
    look: "Callable[[Swarm], Awaitable[Sequence[Any]]]",
    columns: Mapping[str, Callable[[Any], str]],
    *,
    membership: Mapping[str, Any],
    as_json: bool,
    with_health: bool = False,
    spare: Sequence[str] = (),
) -> None:
    """Print what `look` finds: with `as_json` all that it tells of each thing, else the `columns` of a table.

    `spare` is as in `print_table`. `membership` is what `swarm_settings` gave. `with_health` adds how our own part of
    the DHT is doing: a line, or an object beside the list.
    """
    asked = asking(membership)
    # Imported only now, so that --help and a mistaken option are answered at once.
    from llamanet.cli.progress import waiting
    from llamanet.cli.signals import run_until_signalled
    from llamanet.swarm import Swarm

    health: list[Health] = []
    views: list[Any] = []

    async def fetch() -> None:
        async with Swarm(**asked) as swarm:
            views.extend(await look(swarm))
            health.append(swarm.statistics.dht)

    with waiting("Asking the swarm"):
        run_until_signalled(fetch)
    if as_json:
        listed = [attrs.asdict(view) for view in views]
        told = {"nodes": listed, "health": attrs.asdict(health[0])} if with_health else listed
        click.echo(json.dumps(told, indent=2, ensure_ascii=False))
        return
    print_table(columns, views, spare=spare)
    if with_health:
        click.echo(f"\n{health[0].summary}")


def print_table(
    columns: Mapping[str, Callable[[Any], str]], views: Sequence[Any], *, spare: Sequence[str] = ()
) -> None:
    """Print a row for each of `views`; `columns` say what each column tells of one.

    Where the terminal is too narrow, columns are left out in the order of `spare`; what still does not fit is folded.
    """
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    console = output()
    cells = {header: [harmless(tell(view)) for view in views] for header, tell in columns.items()}
    for header in spare:
        if sum(max(map(cell_len, (name, *told))) + GAP for name, told in cells.items()) - GAP > console.width:
            del cells[header]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in cells:
        table.add_column(header, overflow="fold", min_width=len(header))
    # As plain text, for a node's label may hold what rich would take for markup.
    for row in zip(*cells.values(), strict=True):
        table.add_row(*map(Text, row))
    console.print(table)


def output() -> "Console":
    """Standard output for rich: as wide as the terminal, or as wide as anything where there is none."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDE)
