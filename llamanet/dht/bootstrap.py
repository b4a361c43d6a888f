"""Getting into the swarm, and back into it: one task for each bootstrap peer, one for the contacts of the last run.

Rules:
- A peer that does not answer is tried again for ever: while we are alone soon (0.2 s growing to 2 s), later at leisure.
- Bootstrap peers outside our table are greeted now and then even when all is well: that is how islands merge.
- Names are resolved anew at each attempt. A bad name, or an address of our own, is no reason to stop.
"""

import json
import logging
import math
import os
import socket
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import trio

from llamanet.errors import BadMessage, UserError
from llamanet.wire.codec import unpack_json_untrusted
from llamanet.wire.identity import KEY_BYTES, PublicKey
from llamanet.wire.rpc import Address, Contact, pack_host

if TYPE_CHECKING:
    from llamanet.dht.service import Dht

FIRST_RETRY_S = 0.2
ALONE_RETRY_S = 2.0
JOINED_RETRY_S = 30.0
RESOLVE_S = 5.0
MAX_SAVED_CONTACTS = 64

logger = logging.getLogger(__name__)


def parse_host_port(text: str) -> tuple[str, int]:
    """("host", port) of "host:port", "1.2.3.4:port" or "[::1]:port". Raises `UserError` in one line."""
    host, colon, port = text.strip().rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise UserError(f"{text!r} is not host:port; write an IPv6 address in brackets: [::1]:8001")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
        raise UserError(f"{text!r} is not host:port with a port from 1 to 65535")
    return host, int(port)


async def resolve(host: str, port: int) -> list[Address]:
    """The addresses of a host, IPv4 and IPv6. Raises `OSError` (a `socket.gaierror`) if there is none."""
    found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    addresses = [Address(str(entry[4][0]), port) for entry in found if entry[0] in (socket.AF_INET, socket.AF_INET6)]
    return [address for address in dict.fromkeys(addresses) if "%" not in address.host]


async def keep_in_touch(dht: "Dht", peer: str, rng: Random) -> None:
    """Greet the bootstrap peer `peer` ("host:port") until it is in our table, and again whenever it is not; for ever."""
    host, port = parse_host_port(peer)
    pause, failures, told = FIRST_RETRY_S, 0, ""
    while True:
        try:
            reason = await _greet(dht, host, port)
        except (OSError, UnicodeError) as error:  # a name that does not resolve; IDNA refuses some with UnicodeError
            reason = f"cannot resolve {host}: {getattr(error, 'strerror', None) or error}"
        if reason is None:
            if failures:
                logger.info("bootstrap peer %s is back", peer)
            pause, failures, told = FIRST_RETRY_S, 0, ""
        elif not dht.joined:
            failures += 1
            if reason != told or failures & (failures - 1) == 0:  # the 1st, 2nd, 4th, 8th...
                logger.warning("bootstrap peer down, retrying: %s: %s", peer, reason)
                told = reason
        joined = dht.joined
        longest = JOINED_RETRY_S if joined else ALONE_RETRY_S
        with trio.move_on_after(min(pause, longest) * rng.uniform(0.75, 1.25)):
            await dht.wait_lost() if joined else await trio.sleep(math.inf)
        pause = FIRST_RETRY_S if joined and not dht.joined else min(2 * pause, longest)


async def _greet(dht: "Dht", host: str, port: int) -> str | None:
    """None if a peer at `host` is in our table or answers (or is ourselves); else why not."""
    addresses: list[Address] = []
    with trio.move_on_after(RESOLVE_S):
        addresses = await resolve(host, port)
    if not addresses:
        return f"cannot resolve {host}: no answer from the name service"
    if any(dht.knows(address) for address in addresses):
        return None
    if await dht.greet(addresses):
        return None
    if any(dht.is_own(address) for address in addresses):
        return None
    return f"no answer from {', '.join(map(str, addresses))}"


async def return_to(dht: "Dht", contacts: tuple[Contact, ...], rng: Random) -> None:
    """Ask the contacts of the last run whenever we are alone."""
    pause = FIRST_RETRY_S
    while True:
        if not dht.has_contacts:
            await dht.check_all(contacts)
        if dht.has_contacts:
            pause = FIRST_RETRY_S
            await dht.wait_lost()
        else:
            await trio.sleep(pause * rng.uniform(0.75, 1.25))
            pause = min(2 * pause, JOINED_RETRY_S)


def save_contacts(path: Path, contacts: tuple[Contact, ...]) -> None:
    """Write contacts for the next run, all or nothing. A failure is logged: the next run then bootstraps as a first one."""
    entries = [[contact.public_key.hex(), contact.address.host, contact.address.port] for contact in contacts]
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(entries[:MAX_SAVED_CONTACTS]))
        draft.replace(path)
    except OSError as error:
        logger.warning("cannot save contacts to %s: %s", path, error.strerror)


def load_contacts(path: Path) -> tuple[Contact, ...]:
    """The contacts of the last run; none, and a line in the log, if the file cannot be understood."""
    try:
        entries = unpack_json_untrusted(path.read_text())
        contacts = []
        for key, host, port in entries[:MAX_SAVED_CONTACTS]:
            pack_host(host)
            public_key = bytes.fromhex(key)
            if len(public_key) == KEY_BYTES and type(port) is int and 0 < port < 65_536:
                contacts.append(Contact(PublicKey(public_key), Address(host, port)))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, TypeError, KeyError, BadMessage) as error:
        logger.warning("cannot use the saved contacts in %s: %s", path, error)
        return ()
    return tuple(contacts)
