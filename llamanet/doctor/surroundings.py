"""Looking at the network: who answers at the bootstrap peers' addresses, what time peers have, and who reaches us.

Rules:
- The doctor joins as a client with a fresh key, so nobody puts it into a table. It asks few, and once.
- Where a node is to run and none does, the doctor listens on its ports meanwhile, and hears whether peers reach them.
- What only a stranger can find out is asked of peers: they dial back (`dht/dial_back.py`).
"""

import contextlib
import socket
from collections.abc import AsyncGenerator, Iterable

import attrs
import trio

from llamanet.client.join import local_addresses
from llamanet.client.tls import client_tls, ed25519_key_untrusted
from llamanet.dht.address import AddressVotes
from llamanet.dht.bootstrap import RESOLVE_S, parse_peer, resolve
from llamanet.dht.distance import scope_of
from llamanet.dht.membership import Membership
from llamanet.dht.requests import new_transaction
from llamanet.dht.service import Dht, DhtConfig, serve_dht
from llamanet.doctor.facts import BootstrapPeer, Clock, Dial, Reached, RunningNode, Surroundings
from llamanet.doctor.machine import Say
from llamanet.errors import BadMessage, RpcRefused, RpcTimeout
from llamanet.wire.envelope import MAX_DATAGRAM_BYTES, Envelope, Network
from llamanet.wire.facts import decode_node_facts_untrusted, key_of, node_key_name
from llamanet.wire.identity import Identity, PublicKey, node_id_of
from llamanet.wire.rpc import Address, Contact, Ping, Pong, decode_rpc_untrusted, encode_rpc

GREET_S = 2.0
"""For a peer to answer a greeting, which is repeated meanwhile."""
AGAIN_S = 0.6
CONNECT_S = 3.0
JOIN_S = 5.0
ASKED = 8
"""Peers that are asked for the time."""
DIALLERS = 3
"""Peers that are asked to dial back."""
USUAL_PORT = 8000


@attrs.frozen(kw_only=True)
class Here:
    """What of this machine is to be reached."""

    node: RunningNode | None
    host: str
    """The address that the ports are opened on."""
    port: int
    dht_port: int
    stand_in: bool
    """Whether the doctor may open the ports itself, for nobody has them."""
    announced: tuple[str, ...]
    """Hosts that others are to be told; none: what the node that runs here tells them."""
    tls: bool


@attrs.frozen
class _Heard:
    """What came of a greeting."""

    sender: PublicKey | None = None
    ahead: float | None = None
    observed: str | None = None
    closed: bool = False


async def look_around(membership: Membership, here: Here | None, say: Say) -> Surroundings:
    """The facts. `here` is None for a client. Takes some seconds; raises nothing for what the network does."""
    own_id = here.node.id if here and here.node else None
    say("Greeting the bootstrap peers")
    peers: list[BootstrapPeer] = []
    clocks: list[Clock] = []

    async def look_at(peer: str) -> None:
        facts, clock = await _look_at_peer(peer, membership.network, own_id)
        peers.append(facts)
        clocks.extend(clock)

    async with trio.open_nursery() as nursery:
        for peer in membership.peers:
            nursery.start_soon(look_at, peer)
    order = {peer: place for place, peer in enumerate(membership.peers)}
    peers.sort(key=lambda peer: order[peer.peer])
    bootstrap = [peer.peer for peer in peers if peer.answered]
    if here and here.node:
        bootstrap.append(f"127.0.0.1:{here.node.dht_port}")
    facts = Surroundings(peers=tuple(peers), clocks=tuple(clocks), private=membership.network.swarm_key is not None)
    if not bootstrap:
        return attrs.evolve(facts, announced=here.announced if here else ())
    say("Joining the swarm")
    config = DhtConfig(
        hosts=local_addresses(), bootstrap=tuple(bootstrap), network=membership.network, client_mode=True
    )
    async with trio.open_nursery() as nursery:
        dht: Dht = await nursery.start(serve_dht, Identity.generate(), config)
        with trio.move_on_after(JOIN_S):
            await dht.wait_joined()
            await dht.find_nodes(dht.identity.node_id)
        facts = attrs.evolve(facts, node_silent=own_id is not None and not dht.joined)
        facts = await _ask_around(dht, facts, here, say)
        nursery.cancel_scope.cancel()
    return facts


async def _ask_around(dht: Dht, facts: Surroundings, here: Here | None, say: Say) -> Surroundings:
    own_id = here.node.id if here and here.node else None
    others = [contact for contact in dht.contacts() if contact.node_id.hex() != own_id]
    # Who is farther away knows more of how we look from outside.
    others.sort(key=lambda contact: -(scope_of(contact.address.host) or 0))
    votes = AddressVotes()
    clocks = {clock.peer: clock for clock in facts.clocks}

    async def ask(contact: Contact) -> None:
        with contextlib.suppress(RpcTimeout):
            pinged = await dht.ping(contact)
            votes.add(contact.address.host, pinged.pong.observed.host)
            if pinged.pong.clock:
                ahead = _ahead(pinged.pong, dht.config.wall_clock(), pinged.rtt)
                clocks[str(contact.address)] = Clock(peer=str(contact.address), ahead=ahead)

    say("Asking peers for the time, and for our address")
    async with trio.open_nursery() as nursery:
        for contact in others[:ASKED]:
            nursery.start_soon(ask, contact)
    facts = attrs.evolve(facts, clocks=tuple(clocks.values()), contacts=len(others), observed=votes.ranked())
    if here is None:
        return facts
    say("Asking peers to dial back")
    async with _stand_in(here) as (present, heard):
        udp_port = here.node.dht_port if here.node else here.dht_port
        tcp_port = here.node.port if here.node else here.port
        dials: list[Dial] = []
        if present:
            async with trio.open_nursery() as nursery:
                for contact in others[:DIALLERS]:
                    nursery.start_soon(_dial, dht, contact, udp_port, tcp_port, own_id, heard, dials)
        told = await _told(dht, own_id) if own_id else ()
        announced = here.announced or told
        say("Connecting to where others are told to connect")
        reached: list[Reached] = []
        targets = announced or votes.ranked()[:1]
        if present:
            async with trio.open_nursery() as nursery:
                for host in targets:
                    nursery.start_soon(_reach, host, tcp_port, own_id, here.tls, reached)
    return attrs.evolve(
        facts,
        dials=tuple(dials),
        dialable=present and bool(others),
        announced=announced,
        announced_instead=told if set(told) != set(announced) else (),
        observed_instead=votes.instead_of(await _addresses(announced)),
        reached=tuple(reached),
    )


# --- bootstrap peers --------------------------------------------------------------------------------------------------


async def _look_at_peer(peer: str, network: Network, own_id: str | None) -> tuple[BootstrapPeer, tuple[Clock, ...]]:
    key, host, port = parse_peer(peer)
    addresses: list[Address] = []
    try:
        with trio.move_on_after(RESOLVE_S):
            addresses = await resolve(host, port)
    except (OSError, UnicodeError) as error:
        return BootstrapPeer(peer=peer, unresolved=str(getattr(error, "strerror", None) or error)), ()
    if not addresses:
        return BootstrapPeer(peer=peer, unresolved="no answer from the name service"), ()
    heard = [await greet(address, network) for address in addresses]
    found = next(((address, one) for address, one in zip(addresses, heard, strict=True) if one.sender), None)
    if found is not None:
        address, one = found
        ours = one.sender is not None and node_id_of(one.sender).hex() == own_id
        told = () if ours or one.ahead is None else (Clock(peer=str(address), ahead=one.ahead),)
        another = key is not None and one.sender != key
        return BootstrapPeer(peer=peer, answered=True, ours=ours, another=another), told
    closed = all(one.closed for one in heard)
    open_swarm, tcp_port = False, None
    if not closed:
        if network.swarm_key is not None:
            public = Network(name=network.name)
            open_swarm = any([(await greet(address, public)).sender is not None for address in addresses])
        tcp_port = await _find_endpoint(addresses, port)
    return BootstrapPeer(peer=peer, closed=closed, open_swarm=open_swarm, tcp_port=tcp_port), ()


async def greet(address: Address, network: Network) -> _Heard:
    """Introduce ourselves to `address` from a fresh port, and wait for whoever answers.

    The socket is connected, so that the system tells if that machine says that the port is closed.
    """
    envelope = Envelope(Identity.generate(), network)
    ping = Ping(transaction=new_transaction(), client=True)
    greeting = envelope.seal_introduction(encode_rpc(ping))
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with trio.socket.socket(family, socket.SOCK_DGRAM) as sock, trio.move_on_after(GREET_S):
        try:
            await sock.connect(tuple(address))
            while True:
                await sock.send(greeting)
                with trio.move_on_after(AGAIN_S):
                    while True:
                        heard = _heard_untrusted(envelope, ping, await sock.recv(MAX_DATAGRAM_BYTES + 1))
                        if heard is not None:
                            return heard
        except ConnectionRefusedError:
            return _Heard(closed=True)
        except OSError:  # no route, a local firewall
            return _Heard()
    return _Heard()


def _heard_untrusted(envelope: Envelope, ping: Ping, datagram: bytes) -> _Heard | None:
    try:
        opened = envelope.open_untrusted(datagram)
        pong = decode_rpc_untrusted(opened.payload)
    except BadMessage:
        return None
    if opened.introduction or not isinstance(pong, Pong) or pong.transaction != ping.transaction:
        return None
    ahead = _ahead(pong, DhtConfig().wall_clock(), 0.0) if pong.clock else None
    return _Heard(opened.sender, ahead, pong.observed.host)


def _ahead(pong: Pong, now: float, rtt: float) -> float:
    # A clock of whole seconds is half a second behind on average.
    return pong.clock + 0.5 - (now - rtt / 2)


async def _find_endpoint(addresses: Iterable[Address], dht_port: int) -> int | None:
    """A TCP port at which a node's endpoint answers there, of those that are usual."""
    for address in addresses:
        for port in dict.fromkeys((dht_port - 1, USUAL_PORT)):
            if port and isinstance(await _key_at(address.host, port), bytes):
                return port
    return None


# --- from outside -----------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _stand_in(here: Here) -> AsyncGenerator[tuple[bool, set[bytes]], None]:
    """Whether somebody is there to be reached, and, if that is ourselves, whose greetings arrive (their keys)."""
    heard: set[bytes] = set()
    if here.node is not None or not here.stand_in:
        yield here.node is not None, heard
        return
    family = socket.AF_INET6 if ":" in here.host else socket.AF_INET
    with (
        trio.socket.socket(family, socket.SOCK_DGRAM) as udp,
        trio.socket.socket(family, socket.SOCK_STREAM) as tcp,
    ):
        try:
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            await udp.bind((here.host, here.dht_port))
            await tcp.bind((here.host, here.port))
        except OSError:  # taken since we looked
            yield False, heard
            return
        tcp.listen()

        async def listen() -> None:
            while True:
                datagram, _ = await udp.recvfrom(MAX_DATAGRAM_BYTES + 1)
                heard.add(datagram[8:40])

        async def accept() -> None:
            while True:
                stream, _ = await tcp.accept()
                stream.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            nursery.start_soon(accept)
            yield True, heard
            nursery.cancel_scope.cancel()


async def _dial(
    dht: Dht,
    contact: Contact,
    udp_port: int,
    tcp_port: int,
    own_id: str | None,
    heard: set[bytes],
    dials: list[Dial],
) -> None:
    try:
        told = await dht.dial_back(contact, udp_port=udp_port, tcp_port=tcp_port)
    except (RpcTimeout, RpcRefused):
        return
    if own_id is None:
        udp = contact.public_key in heard
    else:
        udp = told.answered_by is not None and node_id_of(PublicKey(told.answered_by)).hex() == own_id
    dials.append(Dial(peer=str(contact.address), host=told.observed.host, udp=udp, tcp=told.connected))


async def _told(dht: Dht, own_id: str) -> tuple[str, ...]:
    """The hosts that our node's own record tells."""
    for record in await dht.get(key_of(node_key_name(own_id)), limit=4):
        if record.publisher.hex() == own_id:
            with contextlib.suppress(BadMessage):
                return decode_node_facts_untrusted(record.value).hosts
    return ()


async def _addresses(hosts: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for host in hosts:
        with contextlib.suppress(OSError, UnicodeError), trio.move_on_after(RESOLVE_S):
            found |= {address.host for address in await resolve(host, 1)}
    return found


async def _reach(host: str, port: int, own_id: str | None, tls: bool, reached: list[Reached]) -> None:
    if own_id is None or not tls:
        problem = await _connect(host, port)
        reached.append(Reached(host=host, port=port, problem=problem))
        return
    key = await _key_at(host, port)
    if isinstance(key, str):
        reached.append(Reached(host=host, port=port, problem=key))
    else:
        reached.append(Reached(host=host, port=port, another=node_id_of(key).hex() != own_id))


async def _connect(host: str, port: int) -> str | None:
    """Why there is no TCP connection; None if there is one."""
    try:
        with trio.fail_after(CONNECT_S):
            stream = await trio.open_tcp_stream(host, port)
    except OSError as error:
        return _why(error)
    except trio.TooSlowError:
        return f"no answer within {CONNECT_S:.0f} s"
    await trio.aclose_forcefully(stream)
    return None


async def _key_at(host: str, port: int) -> PublicKey | str:
    """The public key of the node whose endpoint answers there, or why none does."""
    try:
        with trio.fail_after(CONNECT_S):
            stream = await trio.open_tcp_stream(host, port)
            tls = trio.SSLStream(stream, client_tls())
            try:
                await tls.do_handshake()
                return ed25519_key_untrusted(tls.getpeercert(binary_form=True) or b"")
            finally:
                await trio.aclose_forcefully(stream)
    except OSError as error:
        return _why(error)
    except trio.TooSlowError:
        return f"no answer within {CONNECT_S:.0f} s"
    except (trio.BrokenResourceError, BadMessage):
        return "what answers there speaks no TLS of a node"


def _why(error: OSError) -> str:
    # Of the attempts at several addresses trio tells in the cause.
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    return cause.strerror or str(cause)
