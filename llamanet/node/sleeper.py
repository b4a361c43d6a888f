"""A model that was unloaded while nobody asked for it. It is announced as before, and loaded for the next request."""

from collections.abc import Callable

import attrs
import trio

from llamanet.node.engine import Engine
from llamanet.wire.state import ModelState


class Sleeper:
    """What stands in for an `Engine` meanwhile."""

    def __init__(self, engine: Engine, load_s: float, on_wanted: Callable[[], None]) -> None:
        """`load_s` is how long loading took, in seconds; `on_wanted` is called when somebody asks for the model."""
        self.name = engine.name
        self.digest = engine.digest
        self.n_ctx = engine.n_ctx
        self.slots = engine.slots
        self.capabilities = engine.capabilities
        self._state = engine.state()
        self._load_s = load_s
        self._on_wanted = on_wanted
        self._wanted_at: float | None = None
        self._waiting = 0
        self._over = trio.Event()

    def state(self) -> ModelState:
        """As the engine's was, with the time that loading still takes before the first token."""
        loaded_s = 0.0 if self._wanted_at is None else trio.current_time() - self._wanted_at
        ttft_s = self._state.ttft_s + max(0.0, self._load_s - loaded_s)
        return attrs.evolve(self._state, running=0, waiting=self._waiting, ttft_s=ttft_s)

    async def wake(self) -> None:
        """Have the model loaded; return when it is, or when that has failed."""
        if self._wanted_at is None:
            self._wanted_at = trio.current_time()
            self._on_wanted()
        self._waiting += 1
        try:
            await self._over.wait()
        finally:
            self._waiting -= 1

    def end(self) -> None:
        """Let those go on who wait: the model is loaded, or gone."""
        self._over.set()
