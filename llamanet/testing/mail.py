"""One request of a simulation, from its sending to its answer: three events at most, and mostly two.

What can be known at once is not made an event: a message that is lost has no arrival, and a request whose answer comes
in time is never overdue.

Rules:
- A request is overdue after the asker's own timeout for that peer; until `LATE_S` its late answer still counts.
- Behind a NAT a node hears only from addresses that it sent something to within `NAT_S`.
- Where messages are boxed, each that arrives was packed, sealed, opened and unpacked, and its bytes counted.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from llamanet.dht.requests import FIND_PAYLOAD_BYTES, LATE_S
from llamanet.wire.rpc import Contact, FindNode, FindValue, Reply, Request, decode_rpc_untrusted, encode_rpc

if TYPE_CHECKING:
    from llamanet.testing.simulated_node import SimulatedNode

NAT_S = 30.0
"""How long a NAT lets in what comes from an address that its node sent something to: many forget UDP so soon, though
RFC 4787, section 4.3, asks for two minutes."""

OnReply: TypeAlias = Callable[[Contact, Reply | None], None]


class Mail:
    """A request of `asker` to `contact`. `on_reply(contact, None)` says that it is overdue."""

    __slots__ = ("_answered", "_asker", "_contact", "_deadline", "_on_reply", "_request", "_sent_at", "_timed")

    def __init__(self, asker: "SimulatedNode", contact: Contact, request: Request, on_reply: OnReply) -> None:
        self._asker = asker
        self._contact = contact
        self._request = request
        self._on_reply = on_reply
        self._sent_at = asker.simulation.now
        self._deadline = self._sent_at + asker.round_trips.rto(contact.public_key)
        self._answered = False
        self._timed = False

    def send(self) -> None:
        """Put the request on its way."""
        sim, asker = self._asker.simulation, self._asker
        asker.note_sent(self._contact.address)
        receiver = sim.at(self._contact.address)
        if receiver is None or sim.lost():
            self._time()
            return
        travel = asker.delay + receiver.delay
        if self._sent_at + 2 * travel > self._deadline:
            self._time()
        sim.after(travel, self._arrive, receiver, travel)

    def _time(self) -> None:
        """It will be overdue, or may be."""
        if not self._timed:
            self._timed = True
            sim = self._asker.simulation
            sim.after(self._deadline - sim.now, self._overdue)

    def _arrive(self, receiver: "SimulatedNode", travel: float) -> None:
        sim, asker = receiver.simulation, self._asker
        reply: Reply | None = None
        if receiver.alive and receiver.lets_in(asker.contact.address):
            request = self._request
            if sim.boxed:
                padding = FIND_PAYLOAD_BYTES if isinstance(request, FindNode | FindValue) else 0
                request = _box(asker, receiver, request, padding)  # type: ignore[assignment]
            reply = receiver.receive(request, asker.contact, self._contact.public_key)
        if reply is not None:
            receiver.note_sent(asker.contact.address)
        if reply is None or sim.lost():
            self._time()
        elif sim.now + travel <= self._sent_at + LATE_S:
            sim.after(travel, self._answer, receiver, reply)

    def _answer(self, receiver: "SimulatedNode", reply: Reply) -> None:
        asker = self._asker
        if asker.alive:
            self._answered = True
            if asker.simulation.boxed:
                reply = _box(receiver, asker, reply, 0)  # type: ignore[assignment]
            asker.note_answer(self._contact, asker.simulation.now - self._sent_at)
            self._on_reply(self._contact, reply)

    def _overdue(self) -> None:
        if self._asker.alive and not self._answered:
            self._asker.note_overdue(self._contact)
            self._on_reply(self._contact, None)


def _box(sender: "SimulatedNode", receiver: "SimulatedNode", message: Request | Reply, pad_to: int) -> Request | Reply:
    datagram = sender.envelope.seal(receiver.contact.public_key, encode_rpc(message, pad_to=pad_to))
    sender.sent_bytes += len(datagram)
    receiver.received_bytes += len(datagram)
    receiver.envelope.check_header_untrusted(datagram)
    # The key of the contact, as in `Overlay.deliver`, for what is kept under it.
    sender_key = sender.contact.public_key
    return decode_rpc_untrusted(receiver.envelope.open_checked_untrusted(datagram, sender_key, introduction=False))
