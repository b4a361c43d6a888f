"""How many threads to compute with: one a physical core that this process may run on.

Two threads of one core share its arithmetic units, which a decode keeps busy already; more threads only wait longer
for each other at the end of every operation.
"""

import os
import sys
from pathlib import Path


def physical_cores() -> int:
    """Physical cores that this process may use; half a guess where the system does not tell."""
    if sys.platform != "linux":
        return max(1, (os.cpu_count() or 1))
    cores = set()
    for cpu in os.sched_getaffinity(0):
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(topology.read_text())
        except OSError:
            cores.add(str(cpu))
    return len(cores)
