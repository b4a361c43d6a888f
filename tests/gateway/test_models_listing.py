"""The list of models: made once for those who ask together, and not for long."""

import pytest
import trio

from llamanet.errors import NotJoined
from llamanet.gateway.listing import FRESH_S, Listing


class Swarm:
    def __init__(self):
        self.asked = 0
        self.joined = True

    async def models(self):
        self.asked += 1
        asked = self.asked
        await trio.sleep(1)
        if not self.joined:
            raise NotJoined(())
        return [asked]


async def test_who_asks_together_gets_the_same(autojump_clock, nursery):
    swarm = Swarm()
    listing, got = Listing(swarm), []

    async def ask():
        got.append(await listing.listed())

    with trio.move_on_after(0.5):
        await listing.listed()  # Who makes it may leave; another one makes it then.
    for _ in range(10):
        nursery.start_soon(ask)
    await trio.sleep(1 + FRESH_S)
    assert got == [[2]] * 10
    await trio.sleep(0.01)
    assert await listing.listed() == [3]


async def test_a_failure_is_not_kept(autojump_clock):
    swarm = Swarm()
    listing = Listing(swarm)
    swarm.joined = False
    with pytest.raises(NotJoined):
        await listing.listed()
    swarm.joined = True
    assert await listing.listed() == [2]
