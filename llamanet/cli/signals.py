"""Running a command in trio so that a signal ends it in order: what it holds is closed, then it exits."""

import signal
from collections.abc import Awaitable, Callable

import trio

from llamanet.cli import Stopped
from llamanet.errors import ungrouped


def run_until_signalled(command: Callable[[], Awaitable[None]]) -> None:
    """Run `command` to its end, or until SIGINT, SIGTERM or SIGHUP, which cancels it and raises `Stopped`."""
    trio.run(_run, command)


async def _run(command: Callable[[], Awaitable[None]]) -> None:
    async def watch() -> None:
        async for number in signals:
            raise Stopped(number)

    with ungrouped(), trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await command()
            nursery.cancel_scope.cancel()
