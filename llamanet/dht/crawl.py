"""Walking the whole overlay: whoever anybody tells of is asked who it is, and whom it knows.

Rules:
- A node that answers is asked for contacts twice: for those nearest to itself, as few others tell of its neighbours,
  and for those nearest to a random id, which ties together what neighbourhoods alone would leave apart.
- It is polite: at most `rate` requests a second, and few under way at once. It is bounded, whatever liars tell of.
- An answer beats silence: of a node that was told at several addresses, one that answers counts.
- Clients are told of by nobody, so nobody can count them.
"""

import math
from collections.abc import Callable, Iterable
from random import Random

import attrs
import trio

from llamanet.dht.distance import ID_BITS
from llamanet.dht.service import Dht
from llamanet.errors import RpcTimeout
from llamanet.wire.identity import NodeId
from llamanet.wire.rpc import Contact

RATE = 200.0
AT_ONCE = 64
MAX_CONTACTS = 100_000
TRIES = 2
"""Datagrams get lost: who is silent is asked once more."""


@attrs.frozen(kw_only=True)
class CrawledNode:
    """A node that somebody told of. Who did not answer has no version, round trip or models."""

    id: str
    """In hexadecimal."""
    address: str
    """Of its DHT port, host:port."""
    answers: bool
    version: str = ""
    draining: bool = False
    models: tuple[str, ...] = ()
    """As many as fit a PONG."""
    rtt: float | None = None
    """Seconds."""


@attrs.frozen(kw_only=True)
class Crawl:
    """What a walk found, beside what our own neighbourhood lets us expect."""

    nodes: tuple[CrawledNode, ...]
    """Those that answer first, by id."""
    estimated_size: float
    """Of the network, from the distances of our neighbours (`Health.network_size`)."""
    estimate_error: float
    """The standard error of that, as a share of it."""
    requests: int
    elapsed_s: float

    @property
    def answering(self) -> int:
        """How many nodes answered."""
        return sum(node.answers for node in self.nodes)

    @property
    def versions(self) -> dict[str, int]:
        """How many of the nodes that answered run each version, the most frequent first."""
        counts: dict[str, int] = {}
        for node in self.nodes:
            if node.answers:
                counts[node.version] = counts.get(node.version, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


async def crawl(
    dht: Dht,
    *,
    rate: float = RATE,
    on_progress: Callable[[int, int], None] = lambda asked, known: None,
    rng: Random | None = None,
) -> Crawl:
    """Walk the overlay from the contacts of `dht`, which has joined.

    Args:
      rate: requests a second at most.
      on_progress: called with the number of contacts asked, and known, after each one.
      rng: of the random ids.
    """
    start = trio.current_time()
    walk = _Walk(dht, rate, on_progress, rng or Random())
    walk.hear_of(await dht.find_nodes(dht.identity.node_id))
    walk.hear_of(dht.contacts())
    if walk.waiting:
        async with trio.open_nursery() as nursery:
            for _ in range(AT_ONCE):
                nursery.start_soon(walk.work)
    health = dht.health()
    return Crawl(
        nodes=tuple(sorted(walk.found.values(), key=lambda node: (not node.answers, node.id))),
        estimated_size=health.network_size,
        estimate_error=health.network_size_error,
        requests=walk.requests,
        elapsed_s=trio.current_time() - start,
    )


class _Walk:
    def __init__(self, dht: Dht, rate: float, on_progress: Callable[[int, int], None], rng: Random) -> None:
        self._dht = dht
        self._spacing = 1 / rate
        self._on_progress = on_progress
        self._rng = rng
        self._known: set[Contact] = set()
        self._queue, self._contacts = trio.open_memory_channel[Contact](MAX_CONTACTS)
        self._next_at = -math.inf
        self.waiting = 0
        """Contacts known and not asked yet, or under way."""
        self.found: dict[NodeId, CrawledNode] = {}
        self.requests = 0

    def hear_of(self, contacts: Iterable[Contact]) -> None:
        for contact in contacts:
            ours = contact.node_id == self._dht.identity.node_id
            if not ours and contact not in self._known and len(self._known) < MAX_CONTACTS:
                self._known.add(contact)
                self.waiting += 1
                self._queue.send_nowait(contact)

    async def work(self) -> None:
        """Visit contacts until none is left, here or with another worker."""
        async for contact in self._contacts:
            await self._visit(contact)
            self.waiting -= 1
            self._on_progress(len(self._known) - self.waiting, len(self._known))
            if not self.waiting:
                self._queue.close()

    async def _visit(self, contact: Contact) -> None:
        node = CrawledNode(id=contact.node_id.hex(), address=str(contact.address), answers=False)
        for _ in range(TRIES):
            await self._pause()
            try:
                pinged = await self._dht.ping(contact)
            except RpcTimeout:
                continue
            node = attrs.evolve(
                node,
                answers=True,
                version=pinged.pong.version,
                draining=pinged.pong.draining,
                models=tuple(state.name for state in pinged.pong.models),
                rtt=pinged.rtt,
            )
            break
        known = self.found.get(contact.node_id)
        if known is None or not known.answers:
            self.found[contact.node_id] = node
        if not node.answers:
            return
        for target in (contact.node_id, self._rng.getrandbits(ID_BITS).to_bytes(ID_BITS // 8, "big")):
            await self._pause()
            try:
                self.hear_of(await self._dht.contacts_of(contact, target))
            except RpcTimeout:
                continue

    async def _pause(self) -> None:
        self.requests += 1
        self._next_at = max(self._next_at + self._spacing, trio.current_time())
        await trio.sleep_until(self._next_at)
