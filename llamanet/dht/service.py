"""The DHT as a service: one UDP port, one routing table, one store, and the tasks that keep them.

`serve_dht` owns everything and runs until cancelled; `Dht` is the face that it hands out: ping, find, publish.
"""

import contextlib
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from random import Random

import attrs
import trio

from llamanet._version import __version__
from llamanet.dht.bootstrap import keep_in_touch, load_contacts, parse_peer, return_to
from llamanet.dht.config import DhtConfig
from llamanet.dht.dial_back import REPLY_S, serve_dials
from llamanet.dht.distance import usable
from llamanet.dht.handlers import LiveState
from llamanet.dht.health import Health, percentiles
from llamanet.dht.overlay import Overlay
from llamanet.dht.publishing import Published, Publisher
from llamanet.dht.requests import Outcomes, new_transaction
from llamanet.dht.search import RecordVerifier, read
from llamanet.dht.shards import Crowd
from llamanet.dht.storage import RecordStore
from llamanet.dht.transport import Transport, UdpTransport
from llamanet.dht.upkeep import explore, keep_fresh, save_good_contacts, watch_address
from llamanet.errors import RpcRefused, RpcTimeout
from llamanet.wire.identity import Identity, PublicKey
from llamanet.wire.record import Record
from llamanet.wire.rpc import Address, Contact, DialBack, DialedBack, FindNode, Nodes, Pong, Refused

__all__ = ["Dht", "DhtConfig", "Health", "LiveState", "Pinged", "Published", "serve_dht"]


@attrs.frozen
class Pinged:
    """A peer's answer to a PING, and the round-trip time in seconds."""

    rtt: float
    pong: Pong


class Dht:
    """One node of the DHT, or one client of it; made by `serve_dht`."""

    def __init__(self, overlay: Overlay, store: RecordStore, live_state: LiveState | None) -> None:
        self.identity = overlay.identity
        self.config = overlay.config
        self.network = overlay.config.network
        self.rng = overlay.rng
        self._overlay = overlay
        self._store = store
        self._live_state = live_state
        self._verifier = RecordVerifier(self.network)
        self._publisher = Publisher(overlay, store, self._verifier)

    # --- state --------------------------------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """The UDP port that is really bound."""
        return self._overlay.transport.addresses[0].port

    @property
    def client_mode(self) -> bool:
        """Whether we only ask. May be set at any time: a client that starts to serve becomes a full member."""
        return self._overlay.client_mode

    @client_mode.setter
    def client_mode(self, value: bool) -> None:
        self._overlay.client_mode = value

    @property
    def joined(self) -> bool:
        """Whether some peer has answered and is there still; a node with no bootstrap peer but itself is joined."""
        return self._overlay.joined

    async def wait_joined(self) -> None:
        """Return once we are joined: as soon as the first peer has answered."""
        while not self.joined:
            await self._overlay.wait_contacts_changed()

    async def wait_peers_changed(self) -> None:
        """Return when a new contact enters the table; so also on the first join, and on each join after being alone."""
        await self._overlay.wait_contacts_changed()

    def contacts(self) -> tuple[Contact, ...]:
        """All contacts in the table."""
        return tuple(entry.contact for entry in self._overlay.table)

    def observed_hosts(self) -> tuple[str, ...]:
        """Our addresses as peers see them, the one that most peers tell first."""
        return self._overlay.votes.ranked()

    def health(self) -> Health:
        """How we are doing."""
        overlay, counts = self._overlay, self._overlay.counts
        return Health(
            joined=self.joined,
            client_mode=self.client_mode,
            contacts=len(overlay.table),
            failing_contacts=sum(1 for entry in overlay.table if entry.failures),
            bucket_sizes=overlay.table.bucket_sizes,
            stored_records=self._store.records,
            stored_bytes=self._store.bytes,
            lookups=counts["lookups"],
            lookups_answered=counts["lookups_answered"],
            requests_sent=overlay.requests.sent,
            requests_served=counts["served"],
            overdue=counts["overdue"],
            unsent=counts["unsent"],
            network_size=overlay.table.network_size + (not self.client_mode),
            network_size_error=overlay.table.network_size_error,
            mean_rtt=overlay.requests.round_trips.mean,
            rtt_percentiles=percentiles(overlay.recent_round_trips),
            announced=self.config.announce,
            observed=dict(overlay.votes.counted()),
            observed_instead=overlay.observed_instead,
            drops=dict(overlay.drops.counts),
            refused=dict(self._publisher.refused),
        )

    # --- asking -------------------------------------------------------------------------------------------------------

    async def ping(self, contact: Contact, *, model: str | None = None, timeout: float = 2.0) -> Pinged:
        """Round-trip time and live state of `contact`: of `model`, or of as many models as fit.

        We answer ourselves without a datagram. Raises `RpcTimeout` if nothing arrives within `timeout` seconds.
        """
        if contact.public_key == self.identity.public_key:
            await trio.lowlevel.checkpoint()
            return Pinged(0.0, self._own_pong(model, contact.address))
        outcomes = Outcomes()
        self._overlay.requests.ask(contact, self._overlay.ping_request(model), outcomes.put, timeout=timeout)
        outcome = (await outcomes.take())[0]
        if not isinstance(outcome.reply, Pong):
            raise RpcTimeout(str(contact), timeout)
        return Pinged(outcome.rtt, outcome.reply)

    def _own_pong(self, model: str | None, address: Address) -> Pong:
        draining, states = self._live_state(model) if self._live_state else (False, ())
        transaction = new_transaction()
        return Pong(
            transaction=transaction,
            observed=address,
            draining=draining,
            version=__version__,
            models=states,
            clock=int(self.config.wall_clock()),
        )

    async def introduce(self, address: Address, *, timeout: float = 2.0) -> Contact:
        """Whoever answers at `address`, whose key is not known yet.

        Raises `RpcTimeout` if nothing arrives within `timeout` seconds.
        """
        outcomes = Outcomes()
        self._overlay.requests.introduce(address, self._overlay.ping_request(), outcomes.put, timeout=timeout)
        contact = (await outcomes.take())[0].contact
        if contact is None:
            raise RpcTimeout(str(address), timeout)
        return contact

    async def find_nodes(self, target: bytes, *, disjoint_paths: int = 1) -> list[Contact]:
        """The k nodes nearest to `target` that answered, nearest first, without ourselves.

        With several `disjoint_paths`, which share no contact, up to k from each: liars on one do not hide what another
        finds, at the price of more requests (S/Kademlia, section 4.3).
        """
        return list(await self._overlay.find_nodes(target, self.config.k, paths=disjoint_paths))

    async def contacts_of(self, contact: Contact, target: bytes) -> tuple[Contact, ...]:
        """What `contact` alone tells of the nodes nearest to `target`. Raises `RpcTimeout` if it does not answer."""
        nodes = await self._nodes_from(contact, target)
        return tuple(usable(nodes.contacts, contact.address.host))

    async def _nodes_from(self, contact: Contact, target: bytes) -> Nodes:
        outcomes = Outcomes()
        request = FindNode(transaction=new_transaction(), client=self.client_mode, target=target)
        self._overlay.requests.ask(contact, request, outcomes.put)
        outcome = (await outcomes.take())[0]
        if not isinstance(outcome.reply, Nodes):
            raise RpcTimeout(str(contact), outcome.rtt)
        return outcome.reply

    async def dial_back(
        self, contact: Contact, *, udp_port: int | None = None, tcp_port: int | None = None
    ) -> DialedBack:
        """Have `contact` find out whether these ports of our host, as it sees us, are reached by who is new to us.

        Takes up to some 2 seconds. Raises `RpcRefused` if `contact` is asked for too much of that, and `RpcTimeout` if
        it does not answer, or does not know how.
        """
        token = (await self._nodes_from(contact, self.identity.node_id)).token
        request = DialBack(
            transaction=new_transaction(),
            client=self.client_mode,
            token=token,
            udp_port=udp_port,
            tcp_port=tcp_port,
        )
        outcomes = Outcomes()
        self._overlay.requests.ask(contact, request, outcomes.put, timeout=REPLY_S)
        outcome = (await outcomes.take())[0]
        if isinstance(outcome.reply, Refused):
            raise RpcRefused(str(contact), outcome.reply.reason)
        if not isinstance(outcome.reply, DialedBack):
            raise RpcTimeout(str(contact), REPLY_S)
        return outcome.reply

    def find(
        self, key: bytes, *, limit: int = 64, disjoint_paths: int = 1
    ) -> AbstractAsyncContextManager[AsyncGenerator[Record, None]]:
        """Verified current records under `key` as they come: `async with dht.find(key) as records: async for ...`.

        Ends after `limit` publishers, or when all holders have told what they have. A publisher comes again if a newer
        record of it turns up. With several `disjoint_paths` (as in `find_nodes`) it ends only when all have ended, and
        `limit` bounds what each holder is asked for.
        """
        return contextlib.aclosing(self._current(key, limit, disjoint_paths))

    async def get(
        self,
        key: bytes,
        *,
        limit: int = 64,
        crowd: Crowd | None = None,
        disjoint_paths: int = 1,
        copies: bool = False,
    ) -> list[Record]:
        """The newest current record of up to `limit` publishers under `key`; `disjoint_paths` are as in `find`.

        What holders say of the number of publishers is added to `crowd`; once that is sure that the key is split, a few
        records are enough (`dht.members` reads the rest). With `copies` the word of the first node that has any records
        is enough, which spares the holders of a key that many read often: those may be copies, up to a minute old, and
        a publisher may be missing.
        """
        newest: dict[PublicKey, Record] = {}
        async with contextlib.aclosing(self._read(key, limit, disjoint_paths, crowd, copies)) as records:
            async for record in records:
                newest[record.public_key] = record
        return [record for record in newest.values() if record.lifetime]

    async def _current(self, key: bytes, limit: int, paths: int) -> AsyncGenerator[Record, None]:
        async with contextlib.aclosing(self._read(key, limit, paths)) as records:
            async for record in records:
                if record.lifetime:
                    yield record

    def _read(
        self, key: bytes, limit: int, paths: int, crowd: Crowd | None = None, copies: bool = False
    ) -> AsyncGenerator[Record, None]:
        self._overlay.table.looked_up(key, trio.current_time())
        own = self._store.records_of(key, self.config.wall_clock())
        self._overlay.rng.shuffle(own)  # so that a limited read is a fair sample of a key with many publishers
        if crowd is not None and own:
            crowd.told.append(self._store.publishers_of(key))
        return read(
            key,
            limit=limit,
            own=own,
            lookup=self._overlay.lookup(key, self.config.replicas, paths=paths),
            requests=self._overlay.requests,
            verifier=self._verifier,
            client=self.client_mode,
            wall_clock=self.config.wall_clock,
            rng=self._overlay.rng,
            counts=self._overlay.counts,
            on_bad_record=lambda: self._overlay.drops.count("message"),
            crowd=crowd,
            copies=copies,
        )

    # --- publishing ---------------------------------------------------------------------------------------------------

    async def publish(self, key: bytes, value: bytes, *, lifetime: int, disjoint_paths: int = 1) -> Published:
        """Store `value` under `key` in our name at the nearest nodes, ourselves included if we are one of them.

        `lifetime` is in seconds, at most 30 minutes. Raises `ValueError` if the record would be over 400 bytes.
        Does not wait for nodes that are slower than their own timeouts; those count as not stored. With several
        `disjoint_paths` (as in `find_nodes`) the nearest nodes of each path are asked to store.
        """
        return await self._publisher.publish(key, value, lifetime=lifetime, disjoint_paths=disjoint_paths)

    async def renew(self, key: bytes, value: bytes, *, lifetime: int, most: int) -> Published:
        """As `publish`, at up to `most` of the nodes that stored what we published there last, without looking them up.

        That costs a tenth of a lookup. If one of them does not store it, or none is known whose write token is surely
        still good, this is `publish`. Nodes that came nearer to the key meanwhile are not asked.
        """
        return await self._publisher.renew(key, value, lifetime=lifetime, most=most)

    async def withdraw(self, key: bytes) -> None:
        """Publish that we have nothing under `key` any more."""
        await self.publish(key, b"", lifetime=0)


async def serve_dht(
    identity: Identity,
    config: DhtConfig,
    *,
    live_state: LiveState | None = None,
    transport: Transport | None = None,
    task_status: trio.TaskStatus[Dht] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a DHT node until cancelled; `task_status.started` gives its `Dht`, before it has joined.

    Args:
      identity: who we are.
      config: how to run.
      live_state: what PING is answered with.
      transport: what to send and receive by; default: UDP on `config.hosts` and `config.port`.

    Raises `UserError` in one line for a port that is taken, and for a bootstrap peer that is not host:port.
    """
    for peer in config.bootstrap:
        parse_peer(peer)
    if transport is None:
        transport = UdpTransport.bind(config.hosts, config.port)
    rng = Random(config.seed)
    store = RecordStore()
    overlay = Overlay(identity, config, transport, store, live_state, rng)
    saved = load_contacts(config.contacts_path) if config.contacts_path else ()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.receive, overlay.deliver)
            nursery.start_soon(overlay.requests.watch)
            nursery.start_soon(serve_dials, overlay)
            nursery.start_soon(explore, overlay, rng)
            nursery.start_soon(keep_fresh, overlay, store, rng)
            if config.announce:
                nursery.start_soon(watch_address, overlay)
            for peer in config.bootstrap:
                nursery.start_soon(keep_in_touch, overlay, peer, rng)
            nursery.start_soon(return_to, overlay, saved, rng)
            task_status.started(Dht(overlay, store, live_state))
    finally:
        transport.close()
        save_good_contacts(overlay)
