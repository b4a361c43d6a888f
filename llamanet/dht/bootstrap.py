"""Getting into the swarm, and back into it: one task for each bootstrap peer, one for the contacts that we had.

Rules:
- A peer that does not answer is tried again for ever: while we are alone soon (0.2 s growing to 2 s), later at leisure.
- Bootstrap peers outside our table are greeted now and then even when all is well: that is how islands merge.
- Names are resolved anew at each attempt. A bad name, or an address of our own, is no reason to stop.
"""

import json
import logging
import os
import socket
from pathlib import Path
from random import Random

import trio

from llamanet.dht.overlay import Overlay
from llamanet.errors import BadMessage, UserError
from llamanet.wire.identity import KEY_BYTES, PublicKey
from llamanet.wire.plain import unpack_json_untrusted
from llamanet.wire.rpc import Address, Contact, pack_host

FIRST_RETRY_S = 0.2
ALONE_RETRY_S = 2.0
JOINED_RETRY_S = 30.0
RESOLVE_S = 5.0
QUIET_FAILURES = 1
"""A first greeting may be early or lost; that is no news."""
MAX_SAVED_CONTACTS = 64

logger = logging.getLogger(__name__)


def parse_host_port(text: str) -> tuple[str, int]:
    """("host", port) of "host:port", "1.2.3.4:port" or "[::1]:port". Raises `UserError` in one line."""
    host, colon, port = text.strip().rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif any(character.isspace() or character in "/@" for character in host):
        raise UserError(f"{text!r} is not host:port; give a host name or an address, and nothing around it")
    elif ":" in host:
        raise UserError(f"{text!r} is not host:port; write an IPv6 address in brackets: [::1]:8001")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
        raise UserError(f"{text!r} is not host:port with a port from 1 to 65535")
    return host, int(port)


def parse_peer(text: str) -> tuple[PublicKey | None, str, int]:
    """(None, "host", port) of "host:port", (key, "host", port) of "KEY@host:port". Raises `UserError` in one line."""
    key_text, at, address = text.strip().rpartition("@")
    host, port = parse_host_port(address)
    if not at:
        return None, host, port
    try:
        key = bytes.fromhex(key_text)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise UserError(f"{text!r} is not KEY@host:port; a key has {2 * KEY_BYTES} hexadecimal digits")
    return PublicKey(key), host, port


async def resolve(host: str, port: int) -> list[Address]:
    """The addresses of a host, IPv4 and IPv6. Raises `OSError` (a `socket.gaierror`) if there is none."""
    found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    addresses = [Address(str(entry[4][0]), port) for entry in found if entry[0] in (socket.AF_INET, socket.AF_INET6)]
    return [address for address in dict.fromkeys(addresses) if "%" not in address.host]


async def keep_in_touch(overlay: Overlay, peer: str, rng: Random) -> None:
    """Greet the bootstrap peer `peer` ("host:port", perhaps with its key) while it is not in our table; for ever."""
    key, host, port = parse_peer(peer)
    pause, failures, told = FIRST_RETRY_S, 0, ""
    while True:
        alone = not overlay.has_contacts
        started = trio.current_time()
        wait = pause * rng.uniform(0.75, 1.25)
        reason = await _greet(overlay, peer, key, host, port, timeout=wait if alone else None)
        if reason is None:
            if failures > QUIET_FAILURES:
                logger.info("bootstrap peer %s is back", peer)
            failures, told = 0, ""
        elif not overlay.joined:
            failures += 1
            # Once with each new reason, and then ever more rarely: the 2nd time, the 4th, the 8th...
            if failures > QUIET_FAILURES and (reason != told or failures & (failures - 1) == 0):
                logger.warning("bootstrap peer down, retrying: %s: %s", peer, reason)
                told = reason
        with trio.move_on_at(started + wait):
            if overlay.has_contacts:
                await overlay.wait_lost()
            else:
                await trio.sleep_forever()
        if overlay.has_contacts:
            pause = min(2 * pause, JOINED_RETRY_S)
        else:
            pause = min(2 * pause, ALONE_RETRY_S) if alone else FIRST_RETRY_S


async def _greet(
    overlay: Overlay, peer: str, key: PublicKey | None, host: str, port: int, timeout: float | None
) -> str | None:
    """None if a peer at `host` is in our table or answers (or is ourselves); else why not."""
    addresses: list[Address] = []
    try:
        with trio.move_on_after(RESOLVE_S):
            addresses = await resolve(host, port)
    except (OSError, UnicodeError) as error:  # no such name, no name service; or a name that IDNA does not allow
        return f"cannot resolve {host}: {getattr(error, 'strerror', None) or error}"
    if not addresses:
        return f"cannot resolve {host}: no answer from the name service"
    if any(overlay.knows(address) for address in addresses):
        return None
    if key is not None:
        answered = await overlay.check_all([Contact(key, address) for address in addresses], timeout=timeout)
    else:
        answered = await overlay.greet(addresses, timeout=timeout)
    if answered:
        return None
    if key == overlay.identity.public_key or any(overlay.is_own(address) for address in addresses):
        overlay.note_own_name(peer)
        return None
    return f"no answer from {', '.join(map(str, addresses))}"


async def return_to(overlay: Overlay, saved: tuple[Contact, ...], rng: Random) -> None:
    """Ask the contacts that we lost, and those of the last run, whenever we are alone; for ever."""
    pause = FIRST_RETRY_S
    while True:
        contacts = dict.fromkeys((*overlay.lost, *saved))
        if overlay.has_contacts:
            pause = FIRST_RETRY_S
            await overlay.wait_lost()
        elif contacts:
            await overlay.check_all(contacts)
            if not overlay.has_contacts:
                await trio.sleep(pause * rng.uniform(0.75, 1.25))
                pause = min(2 * pause, JOINED_RETRY_S)
        else:
            await overlay.wait_contacts_changed()


def save_contacts(path: Path, contacts: tuple[Contact, ...]) -> None:
    """Write contacts for the next run, all or nothing. A failure is only logged: the next run then bootstraps anew."""
    entries = [
        [contact.public_key.hex(), contact.address.host, contact.address.port]
        for contact in contacts[:MAX_SAVED_CONTACTS]
    ]
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(entries))
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
