"""The models that a process serves, on any `Dht`: loaded and unloaded, put to sleep and woken, announced and withdrawn.

Rules:
- A model leaves in this order: it takes no new requests, its record is withdrawn, its streams end, its memory is freed.
- While anybody holds the host (the operator, the owner's own work) it takes no new requests and announces nothing, and
  what runs goes on. When the last one lets go, all is announced again.
- Whoever still asks for what has left is told "draining", which clients take no offence at: they ask elsewhere.
"""

import logging
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import attrs
import trio

from llamanet._version import __version__
from llamanet.dht.service import Dht
from llamanet.errors import LlamaNetError, UserError, ungrouped
from llamanet.node.announcer import Announcement, Announcer
from llamanet.node.backend import Backend
from llamanet.node.endpoint import Endpoint
from llamanet.node.engine import Engine, EngineConfig, serve_engine
from llamanet.node.sleeper import Sleeper
from llamanet.node.tls import server_tls
from llamanet.node.worker import ThreadWorker, Worker
from llamanet.wire.facts import NodeFacts, ServiceFacts
from llamanet.wire.identity import Identity, short_name
from llamanet.wire.rpc import Address
from llamanet.wire.state import ModelState

if TYPE_CHECKING:
    from llamanet.node.upstream import UpstreamEngine

log = logging.getLogger(__name__)

DRAIN_S = 30.0
"""How long running requests may go on after their node, or their model, was told to leave."""


@attrs.frozen(kw_only=True)
class Model:
    """A model that a host can serve: its name, its file's SHA-256, and what loads it (in a thread)."""

    name: str
    digest: bytes
    make_backend: Callable[[], Backend]
    source: str = ""
    """The path of its file, for people."""


@attrs.define(eq=False)
class _Residence:
    """A model from when it is to be loaded until it is gone."""

    model: Model
    news: trio.Event = attrs.field(factory=trio.Event)
    """It is idle, wanted again, or to leave."""
    leave_by: float | None = None
    """Until when its streams may go on once it is to leave, on trio's clock; None: it is to stay."""
    gone: trio.Event = attrs.field(factory=trio.Event)


class Host:
    """The models that this process serves, and the endpoint in front of them."""

    def __init__(
        self,
        identity: Identity,
        *,
        label: str | None = None,
        tls: bool = True,
        make_worker: Callable[[], Worker] = ThreadWorker,
        max_waiting: int = 64,
        idle_unload: float = math.inf,
    ) -> None:
        """`label` None takes the short form of the id; `max_waiting` bounds each model's queue.

        A model that nobody asked for in `idle_unload` seconds is unloaded, and loaded again when somebody does.
        """
        self.label = label or short_name(identity.node_id)
        self.endpoint = Endpoint(self.label, server_tls(identity) if tls else None)
        self.told_to_leave = trio.Event()
        """Set by `drain`, for good."""
        self._tls = tls
        self._make_worker = make_worker
        self._max_waiting = max_waiting
        self._idle_unload = idle_unload
        self._residences: dict[str, _Residence] = {}
        self._offered: dict[str, str] = {}
        self._holds: dict[str, None] = {}
        self._announcer: Announcer | None = None
        self._announcing = trio.CancelScope()
        self._released = trio.Event()

    def live_state(self, model: str | None) -> tuple[bool, tuple[ModelState, ...]]:
        """What the DHT answers to a PING: whether we drain, and the state of `model`, or of all (None)."""
        served = self.endpoint.served()
        chosen = [entry for name, entry in served.items() if model in (None, name)]
        return self.endpoint.draining, tuple(entry.state() for entry in chosen)

    # --- models ------------------------------------------------------------------------------------------------------

    def sources(self) -> dict[str, str]:
        """By name, where each model that is served, or is being loaded, comes from."""
        return {name: residence.model.source for name, residence in self._residences.items()} | self._offered

    async def serve_model(self, model: Model, *, task_status: trio.TaskStatus[Engine]) -> None:
        """Load a model and serve it until cancelled, or until `unload`. Raises `ModelFileError` if it does not load."""
        if model.name in self.sources():
            raise UserError(f"two models are named {model.name!r}; rename one of the files")
        residence = self._residences[model.name] = _Residence(model)
        try:
            await self._stay(residence, task_status)
        finally:
            del self._residences[model.name]
            self._refresh()
            residence.gone.set()

    def offer(self, engine: "UpstreamEngine", source: str) -> None:
        """Serve a model of the server `source`, until `take_back`. Raises `UserError` for a name that is taken."""
        if engine.name in self.sources():
            raise UserError(f"two models are named {engine.name!r}; leave one of them out")
        self._offered[engine.name] = source
        self.endpoint.engines[engine.name] = engine
        self.endpoint.withdrawn.discard(engine.name)
        self._refresh()

    def take_back(self, name: str) -> None:
        """Take no new requests for a model that was offered; those that run go on."""
        del self._offered[name]
        del self.endpoint.engines[name]
        self.endpoint.withdrawn.add(name)
        self._refresh()

    async def unload(self, name: str, *, timeout: float = DRAIN_S) -> None:
        """Take a model back, and return when its memory is free; its streams may go on for `timeout` seconds.

        Raises `UserError` if there is no such model. Cancelling it only ends the waiting.
        """
        residence = self._residences.get(name)
        if name in self._offered:
            raise UserError(f"{name!r} is on the server {self._offered[name]}: unload it there")
        if residence is None:
            raise UserError(f"the node has no model {name!r}; it has {', '.join(self._residences) or 'none'}")
        residence.leave_by = trio.current_time() + timeout
        residence.news.set()
        await residence.gone.wait()

    async def _stay(self, residence: _Residence, task_status: trio.TaskStatus[Engine]) -> None:
        """Serve a model, loaded or asleep, until it is to leave."""
        name, endpoint = residence.model.name, self.endpoint
        try:
            with ungrouped():
                await self._serve_loaded(residence, task_status)
                while residence.leave_by is None:
                    await residence.news.wait()
                    if residence.leave_by is None:
                        await self._serve_loaded(residence, trio.TASK_STATUS_IGNORED)
        except LlamaNetError as error:
            if name not in endpoint.sleeping:
                raise
            log.error("Withdrew %s, for it cannot be loaded again: %s", name, error)
        finally:
            if sleeper := endpoint.sleeping.pop(name, None):
                endpoint.withdrawn.add(name)
                sleeper.end()

    async def _serve_loaded(self, residence: _Residence, task_status: trio.TaskStatus[Engine]) -> None:
        """Load a model and serve it until it is to leave, or until nobody asks for it and it is put to sleep."""
        model, endpoint = residence.model, self.endpoint

        async def serve(*, task_status: trio.TaskStatus[Engine]) -> None:
            await serve_engine(
                model.name,
                model.digest,
                model.make_backend,
                EngineConfig(node_id=self.label, max_waiting=self._max_waiting),
                make_worker=self._make_worker,
                task_status=task_status,
            )

        async with trio.open_nursery() as nursery:
            started = trio.current_time()
            log.info("Loading %s", model.name)
            engine: Engine = await nursery.start(serve)
            load_s = trio.current_time() - started
            log.info("Loaded %s in %.1f s: %d slots of %d tokens", model.name, load_s, engine.slots, engine.n_ctx)
            endpoint.engines[model.name] = engine
            endpoint.withdrawn.discard(model.name)
            if sleeper := endpoint.sleeping.pop(model.name, None):
                sleeper.end()
            self._refresh()
            try:
                task_status.started(engine)
                while residence.leave_by is None:
                    residence.news = trio.Event()
                    nursery.start_soon(self._watch_idle, residence, engine)
                    await residence.news.wait()
                    if self._is_idle(engine):
                        break
            finally:
                del endpoint.engines[model.name]
            if residence.leave_by is None:
                log.info("Unloading %s until somebody asks for it", model.name)
                residence.news = trio.Event()
                endpoint.sleeping[model.name] = Sleeper(engine, load_s, residence.news.set)
            else:
                log.info("Unloading %s", model.name)
                endpoint.withdrawn.add(model.name)
                self._refresh()
                with trio.move_on_at(residence.leave_by):
                    await engine.wait_idle()
            nursery.cancel_scope.cancel()

    def _is_idle(self, engine: Engine) -> bool:
        since = engine.idle_since
        return since is not None and trio.current_time() >= since + self._idle_unload

    async def _watch_idle(self, residence: _Residence, engine: Engine) -> None:
        """Tell when nobody has asked for a model for long enough."""
        while True:
            due = await engine.wait_idle() + self._idle_unload
            if trio.current_time() >= due:
                break
            await trio.sleep_until(due)
        residence.news.set()

    # --- the swarm ---------------------------------------------------------------------------------------------------

    async def serve(
        self,
        dht: Dht,
        listeners: Sequence[trio.abc.Listener[trio.abc.Stream]],
        address: Address,
        *,
        announce: str | None = None,
        heartbeat_interval: float = 10.0,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Answer on `listeners`, bound to `address`, and announce the models on `dht`, until cancelled or drained."""

        def describe(hosts: tuple[str, ...]) -> Announcement:
            return self._describe(hosts, address.port, dht.port)

        self._announcer = Announcer(
            dht, describe, announce=announce, bound_host=address.host, heartbeat_interval=heartbeat_interval
        )
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.endpoint.serve, listeners)
                task_status.started()
                while not self.leaving:
                    self._announcing = trio.CancelScope()
                    if not self._holds:
                        with self._announcing:
                            await self._announcer.serve()
                        await self._announcer.withdraw()
                    else:
                        await self._released.wait()
                with trio.move_on_after(DRAIN_S):
                    await self.endpoint.wait_idle()
                await self.endpoint.close()
                nursery.cancel_scope.cancel()
        finally:
            self._announcer = None

    async def wait_announced(self) -> None:
        """Return when all that is served is published. Only while `serve` runs and nobody holds the host."""
        if self._announcer is not None:
            await self._announcer.wait_settled()

    def drain(self) -> None:
        """Take no new requests, withdraw what was announced, and end `serve` when what runs has finished."""
        self.told_to_leave.set()
        self._update()

    @property
    def serving(self) -> bool:
        """Whether `serve` runs: before it models are loaded, and nobody can ask."""
        return self._announcer is not None

    @property
    def leaving(self) -> bool:
        """Whether `drain` was called."""
        return self.told_to_leave.is_set()

    @property
    def held_by(self) -> tuple[str, ...]:
        """Who holds the host, if anybody does."""
        return tuple(self._holds)

    def hold(self, holder: str) -> None:
        """Take no new requests and withdraw what was announced, until `release` by the same `holder`."""
        if holder not in self._holds:
            log.info("The %s wants no new requests: draining", holder)
        self._holds[holder] = None
        self._update()

    def release(self, holder: str) -> None:
        """Take requests and announce again, if nobody else holds the host. May be called without `hold`."""
        if holder in self._holds:
            log.info("The %s lets go%s", holder, "" if len(self._holds) > 1 else ": taking requests again")
        self._holds.pop(holder, None)
        self._update()

    def _update(self) -> None:
        self.endpoint.draining = self.leaving or bool(self._holds)
        if self.endpoint.draining:
            self._announcing.cancel()
        if self.leaving or not self._holds:
            self._released.set()
        elif self._released.is_set():
            self._released = trio.Event()

    def _refresh(self) -> None:
        if self._announcer is not None:
            self._announcer.refresh()

    def _describe(self, hosts: tuple[str, ...], port: int, dht_port: int) -> Announcement:
        served = self.endpoint.served()
        states = [entry.state() for entry in served.values()]
        node = NodeFacts(
            hosts=hosts,
            port=port,
            dht_port=dht_port,
            tls=self._tls,
            label=self.label,
            models=tuple(state.name for state in states[:16]),
            model_count=len(states),
            version=__version__,
            running=sum(state.running for state in states),
            waiting=sum(state.waiting for state in states),
            slots=sum(state.slots for state in states),
            tokens_per_second=max((state.tokens_per_second for state in states), default=0.0),
            draining=self.endpoint.draining,
        )
        services = tuple(
            (
                entry.name,
                ServiceFacts(
                    hosts=hosts,
                    port=port,
                    dht_port=dht_port,
                    tls=self._tls,
                    label=self.label,
                    digest=entry.digest,
                    n_ctx=entry.n_ctx,
                    slots=entry.slots,
                    version=__version__,
                    capabilities=entry.capabilities,
                ),
            )
            for entry in served.values()
        )
        return Announcement(node=node, services=services)
