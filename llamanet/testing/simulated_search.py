"""A simulated node's lookups: what `dht.search` does with tasks, as events."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from llamanet.dht.distance import usable
from llamanet.dht.lookup import Lookup
from llamanet.testing.mail import OnReply
from llamanet.wire.rpc import Contact, Nodes, Reply, Request, Values

if TYPE_CHECKING:
    from llamanet.testing.simulated_node import SimulatedNode


class SimulatedSearch:
    """A lookup under way: overdue requests free their places, late answers count. `ended` may be set to stop it."""

    def __init__(
        self, node: "SimulatedNode", lookup: Lookup, request: Request, on_reply: OnReply, on_end: Callable[[], None]
    ) -> None:
        self.ended = False
        self._node = node
        self._lookup = lookup
        self._request = request
        self._on_reply = on_reply
        self._on_end = on_end
        self._waiting: set[Contact] = set()

    def step(self) -> None:
        """Ask whom the lookup names."""
        node, lookup = self._node, self._lookup
        while (contact := lookup.next()) is not None:
            if lookup.narrow:
                node.simulation.after(node.round_trips.expected(contact.public_key), self._widen, contact)
            self._waiting.add(contact)
            node.ask(contact, self._request, self._take)
        if lookup.finished:
            self.ended = True
            self._on_end()

    def _widen(self, slow: Contact) -> None:
        if slow in self._waiting and self._lookup.narrow and not self.ended:
            self._lookup.widen()
            self.step()

    def _take(self, contact: Contact, reply: Reply | None) -> None:
        if self.ended:
            return
        self._waiting.discard(contact)
        if isinstance(reply, Nodes | Values):
            self._lookup.answered(contact, usable(reply.contacts, contact.address.host))
        else:
            self._lookup.overdue(contact)
        self._on_reply(contact, reply)
        if not self.ended:
            self.step()
