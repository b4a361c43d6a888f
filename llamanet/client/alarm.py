"""Limits in time for many waits, of which hardly any is reached.

A cancel scope for each wait costs more than the rest of what a client does with a token. Here one task sleeps until the
earliest limit. The next wait of the same task, with a later limit, costs nothing before the earlier one is over.
"""

import math

import trio


class Alarm:
    """Wakes who waits for too long. Times are on trio's clock."""

    def __init__(self) -> None:
        """`run` must run beside those that wait."""
        self._limits: dict[trio.lowlevel.ParkingLot, float] = {}
        self._rings_at = math.inf
        self._sleep = trio.CancelScope()

    async def park(self, lot: trio.lowlevel.ParkingLot, until: float) -> None:
        """Park in `lot`, where nobody else does, until it is unparked, or until `until`."""
        self._limits[lot] = until
        if until < self._rings_at:
            self._rings_at = self._sleep.deadline = until
        try:
            await lot.park()
        finally:
            del self._limits[lot]

    async def run(self) -> None:
        """Wake those whose limits are reached, for ever."""
        while True:
            with trio.CancelScope(deadline=self._rings_at) as self._sleep:
                await trio.sleep_forever()
            now = trio.current_time()
            for lot, limit in self._limits.items():
                if limit <= now:
                    lot.unpark_all()
            self._rings_at = min((limit for limit in self._limits.values() if limit > now), default=math.inf)
