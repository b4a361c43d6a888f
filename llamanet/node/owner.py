"""The owner first: a node steps back while other programs keep its machine busy.

Rules:
- What counts is what all other processes compute: the processors' busy time less our own, as a share of all processors.
- It takes `BUSY_S` above `HIGH` to step back, and `IDLE_S` below `LOW` to come back, so that neither a page that loads
  nor a pause for thought makes a node come and go.
"""

import logging
import os
import time
from pathlib import Path

import attrs
import trio

from llamanet.node.host import Host

log = logging.getLogger(__name__)

HIGH, LOW = 0.5, 0.25
"""Shares of all processors."""
BUSY_S, IDLE_S = 5.0, 30.0
LOOK_S = 1.0
"""Between two looks at the load."""
OWNER = "owner"
"""Who holds the host."""
_JIFFIES = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


@attrs.define
class OwnerPolicy:
    """Whether the owner has the machine. Pure: told of the load now and then, at a time that never goes back."""

    busy: bool = False
    _since: float | None = attrs.field(default=None, init=False)
    """Since when the load has spoken against what `busy` says."""

    def observe(self, load: float, now: float) -> bool:
        """Note that others took the share `load` of the machine up to `now` (in seconds); returns `busy`."""
        against = load < LOW if self.busy else load > HIGH
        if not against:
            self._since = None
        elif self._since is None:
            self._since = now
        elif now - self._since >= (IDLE_S if self.busy else BUSY_S):
            self.busy, self._since = not self.busy, None
        return self.busy


class LoadMeter:
    """Which share of the machine other processes take, from one look to the next."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        """`proc` is where the system tells; where it does not, the load average is taken."""
        self._stat = proc / "stat"
        self._cores = os.cpu_count() or 1
        self._last = self._look()

    def others(self) -> float:
        """The share since the last call, 0 to 1; of a load average, of about the last minute."""
        then, busy_then, own_then = self._last
        at, busy, own = self._last = self._look()
        seconds = at - then
        if seconds <= 0:
            return 0.0
        ours = own - own_then
        if busy is None or busy_then is None:
            return _share(os.getloadavg()[0] - ours / seconds, self._cores)
        return _share((busy - busy_then - ours) / seconds, self._cores)

    def _look(self) -> tuple[float, float | None, float]:
        """Now, the seconds that all processors were busy, and those of them that were ours."""
        try:
            # cpu user nice system idle iowait irq softirq ... (proc_stat(5))
            numbers = [int(number) for number in self._stat.read_text().split("\n", 1)[0].split()[1:]]
            busy: float | None = (sum(numbers[:3]) + sum(numbers[5:7])) / _JIFFIES
        except (OSError, ValueError):
            busy = None
        times = os.times()
        return time.monotonic(), busy, times.user + times.system


def _share(processors: float, cores: int) -> float:
    return max(0.0, min(1.0, processors / cores))


async def put_owner_first(host: Host, meter: LoadMeter) -> None:
    """Hold `host` while the owner has the machine; until cancelled."""
    policy = OwnerPolicy()
    while True:
        await trio.sleep(LOOK_S)
        load, before = meter.others(), policy.busy
        busy = policy.observe(load, trio.current_time())
        if busy and not before:
            log.info("Other programs take %.0f %% of the machine", 100 * load)
            host.hold(OWNER)
        elif before and not busy:
            host.release(OWNER)
