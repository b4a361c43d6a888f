"""`llamanet top`: the swarm as it is now, again and again: its nodes, their load and speed, and how the DHT does.

Rules:
- On a terminal one screen is drawn anew; elsewhere, and with --once, a snapshot is printed and that is all.
- --json prints one object a line for each snapshot.
- `q` or Ctrl-C is how it is left, and no failure.
"""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import attrs
import click

from llamanet.cli import Stopped
from llamanet.cli.listing import output
from llamanet.cli.logs import set_up_logging
from llamanet.cli.options import asking, log_settings, swarm_settings
from llamanet.cli.terminal import harmless

if TYPE_CHECKING:
    import trio
    from rich.console import Console, RenderableType

    from llamanet.client.census import NodeView
    from llamanet.dht.health import Health

NARROW = 110
"""Columns of a terminal that has room for all of a node; with fewer, what changes least is left out."""


@attrs.frozen(kw_only=True)
class Snapshot:
    """The swarm at one time, as this command sees it."""

    nodes: "tuple[NodeView, ...]"
    dht: "Health"

    @property
    def running(self) -> int:
        """Requests that are being answered."""
        return sum(node.running for node in self.nodes)

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return sum(node.waiting for node in self.nodes)

    @property
    def slots(self) -> int:
        """Requests that could be answered at the same time."""
        return sum(node.slots for node in self.nodes)

    @property
    def models(self) -> int:
        """Different models."""
        return len({model for node in self.nodes for model in node.models})


@click.command("top")
@swarm_settings
@click.option("--model", metavar="NAME", show_default="all", help="Only the nodes that serve this model.")
@click.option(
    "--interval", type=click.FloatRange(0.5, 3600), default=2.0, show_default=True, help="Seconds between looks."
)
@click.option("--once", is_flag=True, help="Look once.")
@click.option("--json", "as_json", is_flag=True, help="Print an object a line for each look.")
@log_settings("error")
def command(
    model: str | None, interval: float, once: bool, as_json: bool, log_level: str, log_format: str, **membership: Any
) -> None:
    """Watch the swarm: nodes, load, speed, DHT. q or Ctrl-C leaves."""
    set_up_logging(log_level, log_format)
    # Imported only now, so that --help and a mistaken option are answered at once.
    import trio
    from rich.live import Live

    from llamanet.cli.progress import waiting
    from llamanet.cli.signals import run_until_signalled
    from llamanet.swarm import Swarm

    console = output()
    once = once or not (as_json or sys.stdout.isatty())

    async def look(swarm: Swarm) -> Snapshot:
        return Snapshot(nodes=tuple(await swarm.nodes(model)), dht=swarm.statistics.dht)

    asked = asking(membership)

    async def watch() -> None:
        async with Swarm(**asked) as swarm:
            if once or as_json:
                while True:
                    _print(await look(swarm), console, as_json=as_json)
                    if once:
                        return
                    await trio.sleep(interval)
            with waiting("Asking the swarm"):
                first = _drawn(await look(swarm), console.width)
            live = Live(first, console=console, screen=True, auto_refresh=False, redirect_stderr=False)
            with _keys() as keys, live as screen:
                async with trio.open_nursery() as nursery:
                    if keys is not None:
                        nursery.start_soon(_leave_on_q, keys, nursery.cancel_scope)
                    while True:
                        screen.refresh()
                        await trio.sleep(interval)
                        screen.update(_drawn(await look(swarm), console.width))

    try:
        run_until_signalled(watch)
    except Stopped as stopped:
        if stopped.signal_number != signal.SIGINT:
            raise


@contextlib.contextmanager
def _keys() -> Iterator[int | None]:
    """What each key can be read from as it is pressed; None without a terminal."""
    if not sys.stdin.isatty():
        yield None
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


async def _leave_on_q(keys: int, scope: "trio.CancelScope") -> None:
    import trio

    pressed = b" "
    while pressed and b"q" not in pressed:
        await trio.lowlevel.wait_readable(keys)
        pressed = os.read(keys, 64)
    scope.cancel()


def _print(snapshot: Snapshot, console: "Console", *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(attrs.asdict(snapshot), ensure_ascii=False))
    else:
        console.print(_drawn(snapshot, console.width))


def _drawn(snapshot: Snapshot, width: int) -> "RenderableType":
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", expand=False)
    columns = {name: kind for name, kind in _COLUMNS.items() if width >= NARROW or name not in _LEFT_OUT}
    for name, (justify, cut) in columns.items():
        table.add_column(name, justify=justify, no_wrap=not cut)  # type: ignore[arg-type]
    for node in snapshot.nodes:
        busy = node.load >= 1
        cells = {
            "node": harmless(node.node_id),
            "models": ", ".join(map(harmless, node.models)),
            "running": f"{node.running}/{node.slots}",
            "waiting": str(node.waiting),
            "tokens/s": f"{node.tokens_per_second:.1f}",
            "first token": f"{node.ttft_s:.2f} s",
            "rtt": f"{1000 * node.rtt:.1f} ms",
            "address": node.address,
            "version": node.version,
            "state": "draining" if node.draining else "busy" if busy else "ready",
        }
        style = "yellow" if node.draining else "magenta" if busy else ""
        # As plain text, for a node's label may hold what rich would take for markup.
        table.add_row(*(Text(cells[name], style=style, no_wrap=True, overflow="ellipsis") for name in columns))
    return Group(Text(_summary(snapshot), style="bold"), Text(_dht_line(snapshot.dht), style="dim"), Text(), table)


_COLUMNS = {
    "node": ("left", True),
    "models": ("left", True),
    "running": ("right", False),
    "waiting": ("right", False),
    "tokens/s": ("right", False),
    "first token": ("right", False),
    "rtt": ("right", False),
    "address": ("left", True),
    "version": ("left", False),
    "state": ("left", False),
}
"""By name, the side that a column keeps to, and whether it is cut where there is too little room."""
_LEFT_OUT = {"rtt", "address", "version"}


def _summary(snapshot: Snapshot) -> str:
    return (
        f"{len(snapshot.nodes)} nodes, {snapshot.models} models, "
        f"{snapshot.running} of {snapshot.slots} slots answer, {snapshot.waiting} requests wait"
    )


def _dht_line(dht: "Health") -> str:
    error = f" ± {dht.network_size * dht.network_size_error:.0f}" if dht.network_size_error else ""
    median = dht.rtt_percentiles.get(50)
    parts = [
        f"DHT: about {dht.network_size:.0f}{error} nodes",
        f"{dht.contacts} contacts ({dht.failing_contacts} failing)",
        "no round trip yet" if median is None else f"round trip {1000 * median:.1f} ms",
        f"{dht.lookups_answered} of {dht.lookups} lookups answered",
        f"{sum(dht.drops.values())} datagrams dropped",
    ]
    return ", ".join(parts)
