"""What somebody who joins a swarm may say, and in which forms: the peers to join through, and which swarm it is.

A peer is `host:port`, or `KEY@host:port` with its public key in hexadecimal: then nobody else will do.
"""

from collections.abc import Iterable
from pathlib import Path

import attrs

from llamanet.dht.bootstrap import parse_peer
from llamanet.dht.keyfile import load_swarm_key
from llamanet.errors import BadMessage, UserError
from llamanet.wire.envelope import MAX_NETWORK_NAME_BYTES, SWARM_KEY_BYTES, Network
from llamanet.wire.invite import decode_invite_untrusted
from llamanet.wire.rpc import Address


@attrs.frozen
class Membership:
    """The swarm, and the peers to join it through, each in the form that `parse_peer` reads."""

    peers: tuple[str, ...]
    network: Network


def as_membership(
    bootstrap_nodes: str | Iterable[str] = (),
    *,
    join: str | None = None,
    swarm_name: str | None = None,
    swarm_key: bytes | str | None = None,
    swarm_key_file: Path | str | None = None,
) -> Membership:
    """Which swarm is meant, from settings as users give them.

    An invitation (`join`) names the swarm, its key and some peers; `bootstrap_nodes` may add more of those. Raises
    `UserError` in one line for settings that cannot be right, or that disagree.
    """
    peers = as_peers(bootstrap_nodes)
    key = as_swarm_key(swarm_key, swarm_key_file)
    if swarm_name is not None and not 0 < len(swarm_name.encode()) <= MAX_NETWORK_NAME_BYTES:
        raise UserError(f"the swarm's name {swarm_name!r} must have 1 to {MAX_NETWORK_NAME_BYTES} bytes (--swarm-name)")
    if join is None:
        return Membership(peers, Network(name=swarm_name or Network().name, swarm_key=key))
    try:
        invite = decode_invite_untrusted(join)
    except BadMessage as error:
        raise UserError(f"{error} (--join); paste the whole line that `llamanet invite` printed") from error
    if key not in (None, invite.swarm_key) or swarm_name not in (None, invite.swarm_name):
        raise UserError("the invitation (--join) is to another swarm than --swarm-name and --swarm-key-file say")
    invited = (f"{peer.public_key.hex()}@{Address(peer.host, peer.port)}" for peer in invite.peers)
    return Membership(tuple(dict.fromkeys((*peers, *as_peers(invited)))), invite.network)


def as_peers(bootstrap_nodes: str | Iterable[str]) -> tuple[str, ...]:
    """Each peer, from a list or a text with commas. Raises `UserError` for what is no peer."""
    given = bootstrap_nodes.split(",") if isinstance(bootstrap_nodes, str) else bootstrap_nodes
    peers = tuple(peer.strip() for peer in given if peer.strip())
    for peer in peers:
        parse_peer(peer)
    return peers


def as_swarm_key(key: bytes | str | None, file: Path | str | None) -> bytes | None:
    """A private swarm's key, from its 32 bytes, their hexadecimal digits, or a file. Raises `UserError`."""
    if key is None:
        return None if file is None else load_swarm_key(Path(file))
    try:
        key = bytes.fromhex(key) if isinstance(key, str) else key
    except ValueError:
        key = b""
    if len(key) != SWARM_KEY_BYTES:
        raise UserError(f"swarm_key must be {SWARM_KEY_BYTES} bytes, or {2 * SWARM_KEY_BYTES} hexadecimal digits")
    return key
