"""Running a command in trio so that a signal ends it in order: what it holds is closed, then it exits."""

import signal
from collections.abc import Awaitable, Callable

import trio

from llamanet.cli import Stopped
from llamanet.errors import LlamaNetError


def run_until_signalled(command: Callable[[], Awaitable[None]]) -> None:
    """Run `command` to its end, or until SIGINT, SIGTERM or SIGHUP, which cancels it.

    Raises what `command` raised, never wrapped in a group, or `Stopped` after a signal.
    """
    failure = trio.run(_supervise, command)
    if failure is not None:
        raise failure


async def _supervise(command: Callable[[], Awaitable[None]]) -> Exception | None:
    failure: Exception | None = None

    async def watch() -> None:
        nonlocal failure
        async for number in signals:
            failure = Stopped(number)
            nursery.cancel_scope.cancel()

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            try:
                await command()
            except (LlamaNetError, BrokenPipeError) as error:
                failure = error
            nursery.cancel_scope.cancel()
    return failure
