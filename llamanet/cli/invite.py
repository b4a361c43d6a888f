"""`llamanet invite`: one line with all that another machine needs to join the swarm."""

import json
import sys
from typing import Any

import click

from llamanet.cli.logs import set_up_logging
from llamanet.cli.options import asking, log_settings, swarm_settings


@click.command("invite")
@swarm_settings
@click.option("--qr", is_flag=True, help="Show the line as a QR code too, on standard error.")
@click.option("--json", "as_json", is_flag=True, help="Print an object: the line, and what it holds but for the key.")
@log_settings("error")
def command(qr: bool, as_json: bool, log_level: str, log_format: str, **membership: Any) -> None:
    """Print an invitation to the swarm, which `--join` takes wherever `--bootstrap-nodes` is taken.

    It names some of the nodes that are alive, by their addresses and keys, and the swarm. Without options it asks the
    node on this machine. For a private swarm it holds the swarm's key: then it is a secret.
    """
    set_up_logging(log_level, log_format)
    asked = asking(membership)
    # Imported only now, so that --help and a mistaken option are answered at once.
    from llamanet.cli.progress import waiting
    from llamanet.cli.signals import run_until_signalled
    from llamanet.settings import is_loopback
    from llamanet.swarm import Swarm
    from llamanet.wire.invite import Invite, encode_invite
    from llamanet.wire.rpc import Address

    found: list[Invite] = []

    async def fetch() -> None:
        async with Swarm(**asked) as swarm:
            found.append(await swarm.invite())

    with waiting("Asking the swarm"):
        run_until_signalled(fetch)
    invite = found[0]
    line = encode_invite(invite)
    told = {
        "invite": line,
        "swarm_name": invite.swarm_name,
        "secret": invite.swarm_key is not None,
        "bootstrap_nodes": [f"{peer.public_key.hex()}@{Address(peer.host, peer.port)}" for peer in invite.peers],
    }
    click.echo(json.dumps(told, indent=2, ensure_ascii=False) if as_json else line)
    if qr:
        import qrcode

        code = qrcode.QRCode(border=2)
        code.add_data(line)
        code.print_ascii(out=sys.stderr, invert=True)
    if invite.swarm_key is not None:
        _tell("whoever has this line can join, use and serve the swarm: hand it on as you would a password", "warning")
    if all(map(is_loopback, (peer.host for peer in invite.peers))):
        _tell("only this machine can use this line: its nodes announce loopback addresses (--announce)", "warning")
    _tell("the other machine needs: llamanet node --model FILE --join LINE", "next")


def _tell(message: str, kind: str) -> None:
    click.echo(f"{click.style(f'{kind}:', fg='yellow')} {message}", err=True)
