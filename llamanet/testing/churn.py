"""Coming and going in a simulation: each node stays for a random time and leaves without a word, and another comes.

Session lengths are exponential, as seen from any one moment of it a session has no memory; measured swarms have many
short sessions and a long tail (Stutzbach & Rejaie 2006), so with the same median the exponential is the harder case.
"""

import math
from collections.abc import Collection

from llamanet.testing.simulated_node import SimulatedNode
from llamanet.testing.simulator import Simulation


class Churn:
    """Keeps a simulation, which must have upkeep, at its size while its nodes come and go. Who leaves by
    `Simulation.leave` is not replaced.

    Args:
      sim: where; its nodes are in the middle of their sessions.
      median_session: in seconds.
      staying: nodes that do not leave.
    """

    def __init__(self, sim: Simulation, *, median_session: float, staying: Collection[SimulatedNode] = ()) -> None:
        self.left = 0
        """How many nodes have left."""
        self._sim = sim
        self._rate = math.log(2) / median_session
        for node in sim.nodes:
            if node not in staying:
                self._leave_later(node)

    def _leave_later(self, node: SimulatedNode) -> None:
        self._sim.after(self._sim.rng.expovariate(self._rate), self._replace, node)

    def _replace(self, node: SimulatedNode) -> None:
        """`node` leaves, unless it has left by itself, and one as reachable as it joins through a live one."""
        sim = self._sim
        if sim.at(node.contact.address) is not node:
            return
        sim.leave(node)
        self.left += 1
        newcomer = sim.start(reachable=node.reachable)
        newcomer.join(sim.random_peer(newcomer))
        self._leave_later(newcomer)
