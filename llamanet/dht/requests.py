"""Requests under way: matching replies, measuring round trips, and noticing silence.

Rules:
- A reply counts only with its transaction, from the address and the key that were asked, and of the right type.
- A request is overdue after the peer's own timeout, srtt + 4·rttvar within 0.25-2 s (RFC 6298's estimator); whoever
  waits goes on then. Until 5 s a late reply still counts.
- What was not sent, because of a limit of ours or because our own system refused, is no silence of the peer's.
- Lookups ask whom others told of, so a liar could point them at anybody: a subnet gets them only as long as it answers.
- One heap of deadlines and one task serve all requests; what is reported goes to a plain callback.
- Whoever would ask somebody else when a reply takes longer than it should is told then (`on_slow`); a cancel scope for
  each such request would cost as much as its datagrams.
"""

import heapq
import math
import os
from collections.abc import Callable
from typing import TypeAlias

import attrs
import trio

from llamanet.dht.guard import Unanswered
from llamanet.errors import BadMessage
from llamanet.wire.envelope import Envelope
from llamanet.wire.identity import PublicKey
from llamanet.wire.rpc import (
    TRANSACTION_BYTES,
    Address,
    Contact,
    DialBack,
    DialedBack,
    FindNode,
    FindValue,
    Nodes,
    Ping,
    Pong,
    Refused,
    Reply,
    Request,
    Store,
    Stored,
    Values,
    contact_at,
    encode_rpc,
)

MIN_RTO_S = 0.25
MIN_HEDGE_S = 0.01
MAX_RTO_S = 2.0
FIRST_RTO_S = 1.0
"""Before anybody was measured (RFC 6298, 2.1)."""
LATE_S = 5.0
MAX_UNDER_WAY = 4096
MEASURED_PEERS = 128
"""As many as the table of a swarm of thousands has contacts; each takes 200 bytes, and an idle node has little else."""
FIND_PAYLOAD_BYTES = 320
"""A FIND request is padded to a datagram of 400 bytes, so that a full one answers it at three times its size.

So is a DIAL_BACK, so that it costs its sender more than all that is sent to it for that."""
_LOOKUPS = frozenset({FindNode, FindValue})
_PADDED = _LOOKUPS | {DialBack}
_reply_types: dict[type[Request], type[Reply]] = {
    Ping: Pong,
    FindNode: Nodes,
    FindValue: Values,
    Store: Stored,
    DialBack: DialedBack,
}


@attrs.frozen
class Outcome:
    """What became of a request: a reply, or (None) that it is overdue; a late reply may still follow that.

    `contact` is who was asked; None for an introduction that nobody answered. What we did not send at all (`tried`)
    says nothing of the peer.
    """

    contact: Contact | None
    reply: Reply | None
    rtt: float
    tried: bool = True


OnOutcome: TypeAlias = Callable[[Outcome], None]
OnAnyOutcome: TypeAlias = Callable[[Outcome, float], None]
"""Takes the time as well, in seconds of trio's clock."""


@attrs.define(eq=False)
class _UnderWay:
    contact: Contact | None
    address: Address
    reply_type: type[Reply]
    sent_at: float
    overdue_at: float
    on_outcome: OnOutcome
    on_slow: Callable[[], None] | None
    datagram: bytes | None
    """Of an introduction, to know it again."""
    overdue: bool = False


@attrs.define
class _Estimate:
    srtt: float
    rttvar: float

    def add(self, rtt: float) -> None:
        self.rttvar += (abs(rtt - self.srtt) - self.rttvar) / 4
        self.srtt += (rtt - self.srtt) / 8

    @property
    def longest(self) -> float:
        return self.srtt + 4 * self.rttvar


class RoundTrips:
    """Round-trip times of the last `MEASURED_PEERS` that answered; a peer never measured gets the mean of all."""

    def __init__(self) -> None:
        self._by_peer: dict[PublicKey, _Estimate] = {}
        self._all: _Estimate | None = None

    def add(self, peer: PublicKey, rtt: float) -> None:
        """A reply of `peer` took `rtt` seconds."""
        if self._all is None:
            self._all = _Estimate(rtt, rtt / 2)
        else:
            self._all.add(rtt)
        estimate = self._by_peer.pop(peer, None)
        if estimate is None:
            estimate = _Estimate(rtt, rtt / 2)
        else:
            estimate.add(rtt)
        self._by_peer[peer] = estimate
        if len(self._by_peer) > MEASURED_PEERS:
            del self._by_peer[next(iter(self._by_peer))]

    def rto(self, peer: PublicKey | None) -> float:
        """Seconds after which a request to `peer` is overdue."""
        estimate = self._by_peer.get(peer, self._all) if peer is not None else self._all
        return min(MAX_RTO_S, max(MIN_RTO_S, estimate.longest)) if estimate else FIRST_RTO_S

    def expected(self, peer: PublicKey) -> float:
        """Seconds within which `peer` answers if all is well: its timeout, without the floor that forgives a stall.

        Whoever asks another as well after this time loses one request if the peer is only slow.
        """
        estimate = self._by_peer.get(peer, self._all)
        return min(MIN_RTO_S, max(MIN_HEDGE_S, estimate.longest)) if estimate else MIN_RTO_S

    @property
    def mean(self) -> float | None:
        """The smoothed round-trip time of all peers, in seconds; None before the first."""
        return self._all.srtt if self._all else None


def new_transaction() -> bytes:
    """8 random bytes that nobody else can guess."""
    return os.urandom(TRANSACTION_BYTES)


class Requests:
    """All requests of one node that may still be answered.

    `on_outcome(outcome, now)` sees every outcome, before the callback of the request itself.
    """

    def __init__(self, envelope: Envelope, send: Callable[[bytes, Address], bool], on_outcome: OnAnyOutcome) -> None:
        self._envelope = envelope
        self._send = send
        self._on_outcome = on_outcome
        self._under_way: dict[bytes, _UnderWay] = {}
        self._introductions: dict[bytes, bytes] = {}
        self._deadlines: list[tuple[float, bytes]] = []
        self._pause = trio.CancelScope()
        """Its deadline is when `watch` goes on."""
        self._unanswered = Unanswered()
        self.round_trips = RoundTrips()
        self.sent = 0

    def ask(
        self,
        contact: Contact,
        request: Request,
        on_outcome: OnOutcome,
        *,
        timeout: float | None = None,
        on_slow: Callable[[], None] | None = None,
    ) -> None:
        """Send `request`, and call `on_outcome` when it is answered or overdue (by `timeout`, else by the peer's RTO).

        If it cannot be sent it is overdue at once, before this returns. `on_slow` is called if the reply takes longer
        than `RoundTrips.expected`.
        """
        padding = FIND_PAYLOAD_BYTES if type(request) in _PADDED else 0
        try:
            datagram = self._envelope.seal(contact.public_key, encode_rpc(request, pad_to=padding))
        except BadMessage:  # a key that was told, and is none
            on_outcome(Outcome(contact, None, 0.0))
            return
        self._start(contact, contact.address, request, datagram, on_outcome, timeout, on_slow)

    def introduce(
        self, address: Address, request: Ping, on_outcome: OnOutcome, *, timeout: float | None = None
    ) -> None:
        """Send a PING to an address whose key is not known; otherwise as `ask`."""
        datagram = self._envelope.seal_introduction(encode_rpc(request))
        self._introductions[datagram] = request.transaction
        self._start(None, address, request, datagram, on_outcome, timeout, None)

    def _start(
        self,
        contact: Contact | None,
        address: Address,
        request: Request,
        datagram: bytes,
        on_outcome: OnOutcome,
        timeout: float | None,
        on_slow: Callable[[], None] | None,
    ) -> None:
        now = trio.current_time()
        if timeout is None:
            timeout = self.round_trips.rto(contact.public_key if contact else None)
        under_way = _UnderWay(
            contact,
            address,
            _reply_types[type(request)],
            now,
            now + timeout,
            on_outcome,
            on_slow,
            None if contact else datagram,
        )
        if (
            len(self._under_way) >= MAX_UNDER_WAY
            or (type(request) in _LOOKUPS and not self._unanswered.admit(address.host, now))
            or not self._send(datagram, address)
        ):
            self._introductions.pop(datagram, None)
            self._overdue(under_way, now, tried=False)
            return
        self.sent += 1
        self._under_way[request.transaction] = under_way
        slow_at = now + self.round_trips.expected(contact.public_key) if contact and on_slow else math.inf
        self._wake_at(min(slow_at, under_way.overdue_at), request.transaction)

    def answered(self, reply: Reply, sender: PublicKey, address: Address, now: float) -> bool:
        """A reply arrived, boxed by `sender`, from `address`. False if we asked no such thing there."""
        under_way = self._under_way.get(reply.transaction)
        if (
            under_way is None
            or under_way.address != address
            or (under_way.contact is not None and under_way.contact.public_key != sender)
            or type(reply) not in (under_way.reply_type, Refused)
        ):
            return False
        self._forget(reply.transaction)
        if under_way.reply_type in (Nodes, Values):
            self._unanswered.note_answer(address.host)
        rtt = now - under_way.sent_at
        contact = under_way.contact or contact_at(sender, address.host, address.port)
        self.round_trips.add(sender, rtt)
        outcome = Outcome(contact, reply, rtt)
        self._on_outcome(outcome, now)
        under_way.on_outcome(outcome)
        return True

    def introduced_at(self, address: Address) -> bool:
        """Whether an introduction of ours to `address` may still be answered."""
        return any(self._under_way[transaction].address == address for transaction in self._introductions.values())

    def own_introduction(self, datagram: bytes) -> Address | None:
        """The address that we introduced ourselves to by this very datagram, which came back to us: it is our own."""
        transaction = self._introductions.get(datagram)
        if transaction is None:
            return None
        under_way = self._forget(transaction)
        if not under_way.overdue:
            self._overdue(under_way, trio.current_time())
        return under_way.address

    async def watch(self) -> None:
        """Report what is slow or overdue, until cancelled."""
        while True:
            with trio.CancelScope(deadline=self._deadlines[0][0] if self._deadlines else math.inf) as self._pause:
                await trio.sleep_forever()
            now = trio.current_time()
            while self._deadlines and self._deadlines[0][0] <= now:
                _, transaction = heapq.heappop(self._deadlines)
                under_way = self._under_way.get(transaction)
                if under_way is not None:
                    self._due(transaction, under_way, now)

    def _due(self, transaction: bytes, under_way: _UnderWay, now: float) -> None:
        """One of the times of a request has come: it is slow, overdue, or too late to count."""
        if now < under_way.overdue_at:
            heapq.heappush(self._deadlines, (under_way.overdue_at, transaction))
            if under_way.on_slow is not None:
                under_way.on_slow()
            return
        late_at = under_way.sent_at + LATE_S
        if under_way.overdue or now >= late_at:
            self._forget(transaction)
        else:
            heapq.heappush(self._deadlines, (late_at, transaction))
        if not under_way.overdue:
            self._overdue(under_way, now)

    def _forget(self, transaction: bytes) -> _UnderWay:
        under_way = self._under_way.pop(transaction)
        if under_way.datagram is not None:
            del self._introductions[under_way.datagram]
        if not self._under_way:
            self._deadlines.clear()
            self._pause.deadline = math.inf
        return under_way

    def _overdue(self, under_way: _UnderWay, now: float, *, tried: bool = True) -> None:
        under_way.overdue = True
        outcome = Outcome(under_way.contact, None, now - under_way.sent_at, tried)
        self._on_outcome(outcome, now)
        under_way.on_outcome(outcome)

    def _wake_at(self, deadline: float, transaction: bytes) -> None:
        heapq.heappush(self._deadlines, (deadline, transaction))
        if len(self._deadlines) > 4 * MAX_UNDER_WAY:  # answered requests leave their deadlines behind
            self._deadlines = [entry for entry in self._deadlines if entry[1] in self._under_way]
            heapq.heapify(self._deadlines)
        if deadline < self._pause.deadline:
            self._pause.deadline = deadline


class Outcomes:
    """Outcomes of a few requests, for the one task that waits for them."""

    def __init__(self) -> None:
        self._arrived: list[Outcome] = []
        self._waiting: trio.lowlevel.Task | None = None
        self._woken = False

    def put(self, outcome: Outcome) -> None:
        """Give as `on_outcome` to requests. Holds at most two outcomes for each of them."""
        self._arrived.append(outcome)
        self.wake()

    def wake(self) -> None:
        """Let the task go on, whether something arrived or not. Give as `on_slow` to requests."""
        self._woken = True
        if self._waiting is not None:
            trio.lowlevel.reschedule(self._waiting)
            self._waiting = None

    async def take(self) -> list[Outcome]:
        """All that arrived since the last time; a checkpoint. Waits until there is something, or `wake` was called."""
        if self._woken:
            await trio.lowlevel.checkpoint()
        else:
            self._waiting = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._stop_waiting)
        arrived, self._arrived = self._arrived, []
        self._woken = False
        return arrived

    def _stop_waiting(self, raise_cancel: Callable[[], object]) -> trio.lowlevel.Abort:
        self._waiting = None
        return trio.lowlevel.Abort.SUCCEEDED
