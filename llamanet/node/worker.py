"""What drives an engine's steps: a worker thread in a node, a trio task in tests (`testing/backend.py`)."""

import queue
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import trio

from llamanet.node.core import Command, EngineCore, Event

T = TypeVar("T")
Deliver = Callable[[list[Event]], None]


class Worker(Protocol):
    """Drives one engine. All methods are called from trio."""

    def clock(self) -> float:
        """Seconds; what the engine measures by."""

    def own(self, function: Callable[[], T]) -> Awaitable[T]:
        """Run something where the steps run, while none does: loading, measuring, closing."""

    def call(self, function: Callable[[], T]) -> Awaitable[T]:
        """Run something that may take a while, beside the steps."""

    def send(self, command: Command) -> None:
        """Have the engine carry out `command` before its next step."""

    async def drive(self, core: EngineCore, deliver: Deliver) -> None:
        """Step until cancelled; `deliver` is called in trio with each step's events."""

    def stop(self) -> None:
        """Give up what the worker holds. It cannot be used afterwards."""


class ThreadWorker:
    """One thread loads the model and steps; trio hears of each step once.

    All that computes stays in that thread: every thread that calls into OpenMP gets a team of helpers of its own, and
    with more helpers than cores GCC's runtime puts them to sleep at each operation, at a third of the speed.

    The hop to trio is made when the next batch is ready to be decoded: llama.cpp lets go of the interpreter's lock
    while it computes, and trio has it for itself meanwhile. With nothing to do the thread blocks.
    """

    def __init__(self) -> None:
        self._inbox: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        # Requests in preparation, first come first served: more threads would only take more memory, and the
        # interpreter from the engine.
        self._calls = trio.CapacityLimiter(2)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")

    def clock(self) -> float:
        """The system's finest clock."""
        return time.perf_counter()

    async def own(self, function: Callable[[], T]) -> T:
        """Run `function` in the engine's thread, to its end."""
        # A limiter of its own: an engine lives as long as its node, and must not use up the threads of others.
        limiter = trio.CapacityLimiter(1)
        return await trio.to_thread.run_sync(lambda: self._thread.submit(function).result(), limiter=limiter)

    async def call(self, function: Callable[[], T]) -> T:
        """Run `function` in a thread of trio's, when fewer than two others run."""
        return await trio.to_thread.run_sync(function, limiter=self._calls)

    def send(self, command: Command) -> None:
        """Put `command` into the inbox, waking the thread if it waits."""
        self._inbox.put(command)

    async def drive(self, core: EngineCore, deliver: Deliver) -> None:
        """Step in the engine's thread. Cancelling stops it after the step that it is in."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._join, core, deliver)
            try:
                await trio.sleep_forever()
            finally:
                self._inbox.put(None)

    def stop(self) -> None:
        """End the thread, which has nothing to do any more."""
        self._thread.shutdown()

    async def _join(self, core: EngineCore, deliver: Deliver) -> None:
        token = trio.lowlevel.current_trio_token()
        with trio.CancelScope(shield=True):
            await self.own(lambda: self._step(core, lambda events: token.run_sync_soon(deliver, events)))

    def _step(self, core: EngineCore, post: Deliver) -> None:
        idle = False
        while (commands := self._take(core, wait=idle)) is not None:
            core.execute(commands)
            step = core.plan()
            if events := core.take_events():
                post(events)
            idle = not step.parts
            if not idle:
                core.compute(step)

    def _take(self, core: EngineCore, *, wait: bool) -> list[Command] | None:
        """The commands that came in; None to stop. Waits for one, or for `core.wake_at`, if there is nothing to do."""
        commands = []
        try:
            if wait:
                wake_at = core.wake_at()
                timeout = None if wake_at is None else max(0.0, wake_at - core.clock())
                if (command := self._inbox.get(timeout=timeout)) is None:
                    return None
                commands.append(command)
            while (command := self._inbox.get_nowait()) is not None:
                commands.append(command)
        except queue.Empty:
            return commands
        return None
