"""The broadcast of what happens: exact for listeners, bounded for subscribers, and nobody is left behind."""

import trio
import trio.testing

from llamanet.gateway.events import Events, RequestStarted


def started(number):
    return RequestStarted(request_id=f"req-{number}", model="m", at=float(number))


async def test_each_subscriber_reads_all_events_in_its_own_time(autojump_clock):
    events, heard = Events(), []

    async def read(pause):
        with events.subscribe() as subscription:
            seen = []
            async for event in subscription:
                await trio.sleep(pause)
                seen.append(event)
                if len(seen) == 3:
                    heard.append(seen)
                    return

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, 0)
        nursery.start_soon(read, 5)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(3):
            events.publish(started(number))
    assert heard == [[started(0), started(1), started(2)]] * 2


async def test_a_late_reader_misses_the_oldest_and_can_tell(autojump_clock):
    events = Events()
    with events.subscribe(buffered=2) as subscription:
        for number in range(5):
            events.publish(started(number))
        assert subscription.missed == 3
        assert [await subscription.__anext__() for _ in range(2)] == [started(3), started(4)]


async def test_cancelling_a_reader_loses_nothing(autojump_clock):
    events = Events()
    with events.subscribe() as subscription:
        with trio.move_on_after(1):
            await subscription.__anext__()
        events.publish(started(1))
        with trio.CancelScope() as scope:
            scope.cancel()
            await subscription.__anext__()
        assert await subscription.__anext__() == started(1)


async def test_who_left_is_told_no_more():
    events = Events()
    with events.subscribe() as subscription:
        pass
    events.publish(started(1))
    assert subscription.missed == 0
    assert not events._subscriptions


def test_listeners_are_told_at_once():
    events, heard = Events(), []
    events.listeners.append(heard.append)
    events.publish(started(1))
    assert heard == [started(1)]
