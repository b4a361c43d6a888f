"""What does an idle DHT node cost? A simulated network of 1,000 nodes that do nothing but their upkeep.

Every message is packed, sealed, opened and unpacked as on a network. Traffic is what one node sends and receives,
without the 28 bytes of IP and UDP. CPU time is the process's over virtual time and nodes: all of a node's work but the
system calls of its socket and the switching of its tasks. Memory is what the process grew by for each node; contacts
that several nodes know are one object there, as they are not on machines of their own.
"""

import time

from report import Case, main
from simulated import resident_bytes

from llamanet.testing.simulator import Simulation

WARM_UP_S = 900.0
"""As long as the longest interval of the upkeep."""


def measure(quick: bool) -> list[Case]:
    size, seconds = (100, 300.0) if quick else (1000, 900.0)
    before = resident_bytes()
    sim = Simulation(seed=size, upkeep=True, boxed=True)
    sim.grow(size)
    sim.run_for(WARM_UP_S)
    sent, received = (sum(getattr(node, name) for node in sim.nodes) for name in ("sent_bytes", "received_bytes"))
    asked = sum(node.asked for node in sim.nodes)
    started = time.process_time()
    sim.run_for(seconds)
    cpu = time.process_time() - started
    sent = (sum(node.sent_bytes for node in sim.nodes) - sent) / size / seconds
    received = (sum(node.received_bytes for node in sim.nodes) - received) / size / seconds
    asked = (sum(node.asked for node in sim.nodes) - asked) / size / seconds
    contacts = sum(len(node.table) for node in sim.nodes) / size
    return [
        Case(
            name="memory of an idle node",
            value=(resident_bytes() - before) / size / 1000,
            unit="kB",
            better="lower",
            target=150.0,
            ours=f"{size} nodes, {contacts:.0f} contacts each",
        ),
        Case(
            name="traffic of an idle node",
            value=(sent + received) / 1000,
            unit="kB/s",
            better="lower",
            target=1.0,
            ours=f"{sent:.0f} B/s sent, {received:.0f} B/s received, {asked:.2f} requests/s",
        ),
        Case(
            name="CPU of an idle node",
            value=100 * cpu / size / seconds,
            unit="%",
            better="lower",
            target=0.5,
            ours=f"{cpu:.1f} s for {size} nodes in {seconds:.0f} s",
        ),
    ]


if __name__ == "__main__":
    main(measure)
