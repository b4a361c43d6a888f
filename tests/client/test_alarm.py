import math

import pytest
import trio
from trio.lowlevel import ParkingLot

from llamanet.client.alarm import Alarm


@pytest.fixture
async def alarm(nursery):
    alarm = Alarm()
    nursery.start_soon(alarm.run)
    return alarm


async def test_each_wait_ends_at_its_own_limit(autojump_clock, alarm):
    woken = []

    async def wait(seconds):
        await alarm.park(ParkingLot(), trio.current_time() + seconds)
        woken.append((seconds, trio.current_time() - start))

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        for seconds in (3.0, 1.0, 2.0, 1.0, 0.0):
            nursery.start_soon(wait, seconds)
    assert woken == [(0.0, 0.0), (1.0, 1.0), (1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]


async def test_who_is_woken_may_wait_longer_or_shorter(autojump_clock, alarm):
    lot, start = ParkingLot(), trio.current_time()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def wake():
            await trio.sleep(0.5)
            lot.unpark()

        await alarm.park(lot, start + 1)
    assert trio.current_time() == start + 0.5
    await alarm.park(lot, start + 10)
    assert trio.current_time() == start + 10
    await alarm.park(lot, start + 12)
    await alarm.park(lot, start + 12.25)
    assert trio.current_time() == start + 12.25


async def test_a_wait_without_a_limit(autojump_clock, alarm):
    with trio.move_on_after(1000) as given:
        await alarm.park(ParkingLot(), math.inf)
    assert given.cancelled_caught


async def test_a_cancelled_wait_leaves_nothing(autojump_clock, alarm):
    lot = ParkingLot()
    with trio.move_on_after(1):
        await alarm.park(lot, trio.current_time() + 2)
    assert not alarm._limits
    assert not lot.statistics().tasks_waiting
