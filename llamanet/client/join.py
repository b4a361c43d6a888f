"""What somebody who joins a swarm may say, and in which forms."""

import socket
from collections.abc import Iterable
from pathlib import Path

from llamanet.dht.bootstrap import parse_host_port
from llamanet.dht.keyfile import load_swarm_key
from llamanet.errors import UserError

SWARM_KEY_BYTES = 32


def as_peers(bootstrap_nodes: str | Iterable[str]) -> tuple[str, ...]:
    """`host:port` of each peer, from a list or a text with commas. Raises `UserError` for what is not host:port."""
    given = bootstrap_nodes.split(",") if isinstance(bootstrap_nodes, str) else bootstrap_nodes
    peers = tuple(peer.strip() for peer in given if peer.strip())
    for peer in peers:
        parse_host_port(peer)
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


def local_addresses() -> tuple[str, ...]:
    """The wildcard addresses of the address families that this machine has."""
    if not socket.has_ipv6:
        return ("0.0.0.0",)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("::", 0))
        except OSError:
            return ("0.0.0.0",)
    return ("0.0.0.0", "::")
