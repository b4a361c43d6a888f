"""`llamanet crawl`: the whole overlay, node by node: how many there are, of which versions, and who answers."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
import click

from llamanet.cli.logs import set_up_logging
from llamanet.cli.options import asking, log_settings, swarm_settings

if TYPE_CHECKING:
    from llamanet.dht.crawl import Crawl

JOIN_S = 5.0
PROGRESS_S = 1.0


@click.command("crawl")
@swarm_settings
@click.option("--rate", type=click.FloatRange(1, 1000), default=200.0, show_default=True, help="Requests a second.")
@click.option("--json", "as_json", is_flag=True, help="Print an object with every node.")
@log_settings("error")
def command(rate: float, as_json: bool, log_level: str, log_format: str, **membership: Any) -> None:
    """Walk the DHT and count its nodes.

    Every node is asked for its version and for the nodes that it knows, at a bounded rate. Programs that only ask are
    known to nobody, and not counted.
    """
    set_up_logging(log_level, log_format)
    # Imported only now, so that --help and a mistaken option are answered at once.
    from llamanet.cli.signals import run_until_signalled

    asked = asking(membership)
    found: list[Crawl] = []

    async def fetch() -> None:
        found.append(await _crawl(asked, rate))

    run_until_signalled(fetch)
    click.echo(_as_json(found[0]) if as_json else _as_text(found[0]))


async def _crawl(asked: Mapping[str, Any], rate: float) -> "Crawl":
    import trio

    from llamanet.cli.progress import waiting
    from llamanet.client.join import local_addresses
    from llamanet.dht.crawl import crawl
    from llamanet.dht.membership import as_membership
    from llamanet.dht.service import Dht, DhtConfig, serve_dht
    from llamanet.errors import NotJoined
    from llamanet.wire.identity import Identity

    membership = as_membership(**asked)
    config = DhtConfig(
        hosts=local_addresses(), bootstrap=membership.peers, network=membership.network, client_mode=True
    )
    told_at = trio.current_time()

    def show_progress(asked: int, known: int) -> None:
        nonlocal told_at
        if trio.current_time() - told_at >= PROGRESS_S:
            told_at = trio.current_time()
            click.echo(f"{asked} of {known} known nodes asked", err=True)

    async with trio.open_nursery() as nursery:
        dht: Dht = await nursery.start(serve_dht, Identity.generate(), config)
        with waiting("Joining the swarm"), trio.move_on_after(JOIN_S):
            await dht.wait_joined()
        if not dht.joined:
            raise NotJoined(membership.peers)
        result = await crawl(dht, rate=rate, on_progress=show_progress)
        nursery.cancel_scope.cancel()
    return result


def _as_json(found: "Crawl") -> str:
    summary = {
        "counted": len(found.nodes),
        "answering": found.answering,
        "silent": len(found.nodes) - found.answering,
        "versions": found.versions,
    }
    return json.dumps(summary | attrs.asdict(found), indent=2, ensure_ascii=False)


def _as_text(found: "Crawl") -> str:
    count, answering = len(found.nodes), found.answering
    versions = ", ".join(f"{version or 'unknown'} ({number})" for version, number in found.versions.items())
    error = f" ± {found.estimate_error * found.estimated_size:.0f}" if found.estimate_error else ""
    return "\n".join(
        (
            f"nodes      {count}: {answering} answer, {count - answering} are silent",
            f"versions   {versions or 'none'}",
            f"estimate   {found.estimated_size:.0f}{error} nodes, from the distances of neighbours",
            f"asked      {found.requests} requests in {found.elapsed_s:.1f} s",
        )
    )
