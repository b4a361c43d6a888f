"""A simulated node's upkeep: the loops of `dht.upkeep`, with the same pauses and choices, as events."""

from typing import TYPE_CHECKING

from llamanet.dht.upkeep import Exploration, chores, pause_before_chores

if TYPE_CHECKING:
    from llamanet.testing.simulated_node import SimulatedNode


class Upkeep:
    """Pings and refreshing lookups of a node, from `start` until it dies."""

    def __init__(self, node: "SimulatedNode") -> None:
        self._node = node
        self._exploration = Exploration(node.simulation.config.refresh_interval)
        self._called = False
        """Whether something calls for a lookup of the neighbourhood."""
        self._pauses = 0
        self._pausing = False

    def start(self) -> None:
        """Begin; the neighbourhood has just been looked up."""
        self._exploration.looked_up_at = self._node.simulation.now
        self._fill()
        self._pause_chores()

    def explore(self) -> None:
        """The neighbourhood should be looked up soon: there is a new neighbour, who may know of more."""
        self._called = True
        if self._pausing:
            self._end_pause(self._pauses)

    # --- as in `dht.upkeep.keep_fresh` --------------------------------------------------------------------------------

    def _pause_chores(self) -> None:
        sim = self._node.simulation
        sim.after(pause_before_chores(self._node.table, sim.config, sim.now, sim.rng), self._do_chores)

    def _do_chores(self) -> None:
        node, sim = self._node, self._node.simulation
        if not node.alive:
            return
        contact, target = chores(node.table, sim.config, sim.now, sim.rng)
        if contact is not None:
            node.check(contact)
        node.store.expire(sim.wall_now)
        if target is None:
            self._pause_chores()
        else:
            node.find_nodes(target, sim.config.k, lambda _: self._pause_chores())

    # --- as in `dht.upkeep.explore` -----------------------------------------------------------------------------------

    def _pause_exploring(self) -> None:
        sim = self._node.simulation
        self._pausing = True
        self._pauses += 1
        if self._called:
            self._end_pause(self._pauses)
        else:
            sim.after(self._exploration.pause(sim.rng), self._end_pause, self._pauses)

    def _end_pause(self, pause: int) -> None:
        if not self._pausing or pause != self._pauses:
            return
        node, sim = self._node, self._node.simulation
        crowded = len(node.table) > sim.config.k
        at = self._exploration.due_at(called=self._called, crowded=crowded, client=False)
        self._pausing = self._called = False
        sim.after(max(0.0, at - sim.now), self._look_up)

    def _look_up(self) -> None:
        node, sim = self._node, self._node.simulation
        if node.alive:
            self._exploration.looked_up_at = sim.now
            node.find_nodes(node.contact.node_id, sim.config.k, lambda _: self._fill())

    def _fill(self) -> None:
        node, sim = self._node, self._node.simulation
        target = node.table.to_fill(sim.rng)
        if target is None:
            self._pause_exploring()
        elif node.alive:
            node.find_nodes(target, sim.config.k // 2, lambda _: self._fill())
