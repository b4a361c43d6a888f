"""Whether others are reached from outside: a greeting from a port that they have not spoken to, and a TCP connection.

A firewall or a router that translates addresses lets in what answers a datagram that went out. So that a node's peers
answer it proves little; a greeting from a fresh port of a peer is what strangers send.

Rules:
- Only the host that the asker is seen at is dialled, and only with a token that the host has received: nobody makes us
  dial somebody else. The asker chooses the ports, which are its own host's.
- A request has more bytes than the greetings and the reply together, and few are granted (`guard.Dials`).
- Nothing is told but whether TCP connects, and the key of who answers the greeting; no byte goes over the connection.
"""

import socket
from functools import partial

import trio

from llamanet.dht.overlay import Overlay
from llamanet.dht.requests import new_transaction
from llamanet.errors import BadMessage, UserError
from llamanet.wire.envelope import Envelope
from llamanet.wire.identity import PublicKey
from llamanet.wire.rpc import (
    Address,
    Contact,
    DialBack,
    DialedBack,
    Ping,
    Pong,
    decode_rpc_untrusted,
    encode_rpc,
)

DIAL_S = 2.0
"""For an answer to the greeting, and for a TCP connection."""
REPLY_S = DIAL_S + 2.0
"""Until whoever asked gives up."""
AGAIN_S = 0.7
"""After which a greeting that is not answered is sent once more."""


async def serve_dials(overlay: Overlay) -> None:
    """Dial those whose requests were granted, until cancelled."""
    async with trio.open_nursery() as nursery:
        async for request, asker in overlay.to_dial:
            nursery.start_soon(_dial, overlay, request, asker)


async def _dial(overlay: Overlay, request: DialBack, asker: Contact) -> None:
    host = asker.address.host
    answered_by: list[PublicKey] = []
    connected: list[bool] = []

    async def greet(port: int) -> None:
        answered_by.extend(await _greet(overlay, Address(host, port)))

    async def connect(port: int) -> None:
        connected.append(await _connects(Address(host, port)))

    async with trio.open_nursery() as nursery:
        if request.udp_port is not None:
            nursery.start_soon(greet, request.udp_port)
        if request.tcp_port is not None:
            nursery.start_soon(connect, request.tcp_port)
    overlay.reply(
        asker,
        DialedBack(
            transaction=request.transaction,
            observed=asker.address,
            answered_by=answered_by[0] if answered_by else None,
            connected=any(connected),
        ),
    )


async def _greet(overlay: Overlay, address: Address) -> list[PublicKey]:
    """Who answers an introduction from a fresh port of ours, if anybody does."""
    envelope = Envelope(overlay.identity, overlay.config.network)
    # As a client: whoever is greeted need not find out whether that port can be asked, for it is gone soon.
    ping = Ping(transaction=new_transaction(), client=True)
    greeting = envelope.seal_introduction(encode_rpc(ping))
    answered_by: list[PublicKey] = []
    waiting = trio.CancelScope()

    def deliver(datagram: bytes, source: Address) -> None:
        try:
            opened = envelope.open_untrusted(datagram)
            pong = decode_rpc_untrusted(opened.payload)
        except BadMessage:
            return
        ours = isinstance(pong, Pong) and pong.transaction == ping.transaction
        if ours and source == address and not opened.introduction:
            answered_by.append(opened.sender)
            waiting.cancel()

    try:
        transport = overlay.transport.beside()
    except UserError:  # no port is free
        return []
    try:
        with trio.move_on_after(DIAL_S), waiting:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(transport.receive, deliver))
                transport.send(greeting, address)
                await trio.sleep(AGAIN_S)
                transport.send(greeting, address)
    finally:
        transport.close()
    return answered_by[:1]


async def _connects(address: Address) -> bool:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with trio.move_on_after(DIAL_S), trio.socket.socket(family, socket.SOCK_STREAM) as sock:
        try:
            await sock.connect(tuple(address))
        except OSError:
            return False
        return True
    return False
