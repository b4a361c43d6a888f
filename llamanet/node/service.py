"""A node: engines, endpoint and announcer on one DHT, from start to drained end.

`Host` is what serves models, on any `Dht`; `serve_node` is a whole node with its own identity and ports, and `run_node`
one that SIGINT and SIGTERM drain.
"""

import contextlib
import errno
import logging
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import platformdirs
import trio

from llamanet._version import __version__
from llamanet.dht.config import DhtConfig
from llamanet.dht.keyfile import hold_identity
from llamanet.dht.membership import as_membership
from llamanet.dht.service import Dht, serve_dht
from llamanet.dht.transport import UdpTransport
from llamanet.errors import UserError, ungrouped
from llamanet.node.announcer import Announcement, Announcer
from llamanet.node.backend import Backend
from llamanet.node.chat_template import load_chat_template
from llamanet.node.config import LlamaSettings, NodeConfig
from llamanet.node.endpoint import Endpoint
from llamanet.node.engine import Engine, EngineConfig, serve_engine
from llamanet.node.gguf import check_model_file, check_model_layout, file_digest, model_name
from llamanet.node.tls import server_tls
from llamanet.node.worker import ThreadWorker, Worker
from llamanet.settings import setting_name
from llamanet.wire.facts import NodeFacts, ServiceFacts, announced_hosts
from llamanet.wire.identity import Identity, short_name
from llamanet.wire.inference import MAX_MODEL_NAME
from llamanet.wire.rpc import Address, ModelState

log = logging.getLogger(__name__)

DRAIN_S = 30.0
"""How long running requests may go on after a node was told to leave."""
BACKLOG = 128


@attrs.frozen(kw_only=True)
class Model:
    """A model that a host can serve: its name, its file's SHA-256, and what loads it (in a thread)."""

    name: str
    digest: bytes
    make_backend: Callable[[], Backend]


def llama_settings(config: NodeConfig) -> LlamaSettings:
    """The part of a node's settings that concerns llama.cpp. Raises `UserError` for a chat template that is none."""
    return LlamaSettings(
        n_ctx=config.n_ctx,
        n_batch=config.n_batch,
        n_parallel=config.n_parallel,
        n_threads=config.n_threads,
        n_gpu_layers=config.n_gpu_layers,
        main_gpu=config.main_gpu,
        split_mode=config.split_mode,
        flash_attn=config.flash_attn,
        cache_type_k=config.cache_type_k,
        cache_type_v=config.cache_type_v,
        chat_template=load_chat_template(config.chat_template) if config.chat_template else None,
    )


def default_data_dir() -> Path:
    """Where keys, contacts and digests are kept unless the user says otherwise."""
    return platformdirs.user_data_path("llamanet")


async def open_model(path: Path, settings: LlamaSettings, data_dir: Path) -> Model:
    """A GGUF file as a `Model`. Raises `ModelFileError` if it cannot be one."""
    check_model_file(path)
    name = model_name(path)
    if not 1 <= len(name) <= MAX_MODEL_NAME or "," in name:
        raise UserError(
            f"{path}: a model's file name must have 1 to {MAX_MODEL_NAME} characters and no comma; rename it"
        )
    digest = await trio.to_thread.run_sync(file_digest, path, data_dir / "digests.json")

    def make_backend() -> Backend:
        # llama.cpp's library takes a while to load, and a process that only asks never needs it.
        from llamanet.node.llama import LlamaBackend, LlamaConfig

        return LlamaBackend(LlamaConfig(model_path=path, **attrs.asdict(settings)))

    return Model(name=name, digest=digest, make_backend=make_backend)


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
    ) -> None:
        """`label` None takes the short form of the id; `max_waiting` bounds each model's queue."""
        self.label = label or short_name(identity.node_id)
        self.endpoint = Endpoint(self.label, server_tls(identity) if tls else None)
        self._tls = tls
        self._make_worker = make_worker
        self._max_waiting = max_waiting
        self._announcer: Announcer | None = None
        self._announcing = trio.CancelScope()

    def live_state(self, model: str | None) -> tuple[bool, tuple[ModelState, ...]]:
        """What the DHT answers to a PING: whether we drain, and the state of `model`, or of all (None)."""
        engines = self.endpoint.engines
        chosen = engines.values() if model is None else filter(None, [engines.get(model)])
        return self.endpoint.draining, tuple(engine.state() for engine in chosen)

    async def serve_model(self, model: Model, *, task_status: trio.TaskStatus[Engine]) -> None:
        """Load a model and serve it until cancelled. Raises `ModelFileError` if it does not load."""
        engines = self.endpoint.engines
        if model.name in engines:
            raise UserError(f"two models are named {model.name!r}; rename one of the files")
        async with trio.open_nursery() as nursery:
            config = EngineConfig(node_id=self.label, max_waiting=self._max_waiting)
            started = trio.current_time()
            log.info("Loading %s", model.name)

            async def serve(*, task_status: trio.TaskStatus[Engine]) -> None:
                await serve_engine(
                    model.name,
                    model.digest,
                    model.make_backend,
                    config,
                    make_worker=self._make_worker,
                    task_status=task_status,
                )

            engine: Engine = await nursery.start(serve)
            engines[model.name] = engine
            seconds = trio.current_time() - started
            log.info("Loaded %s in %.1f s: %d slots of %d tokens", model.name, seconds, engine.slots, engine.n_ctx)
            self._refresh()
            try:
                task_status.started(engine)
                await trio.sleep_forever()
            finally:
                del engines[model.name]
                self._refresh()

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
                with self._announcing:
                    await self._announcer.serve()
                await self._announcer.withdraw()
                with trio.move_on_after(DRAIN_S):
                    await self.endpoint.wait_idle()
                await self.endpoint.close()
                nursery.cancel_scope.cancel()
        finally:
            self._announcer = None

    async def wait_announced(self) -> None:
        """Return when all that is served is published. Only while `serve` runs."""
        if self._announcer is not None:
            await self._announcer.wait_settled()

    def drain(self) -> None:
        """Take no new requests, withdraw what was announced, and end `serve` when what runs has finished."""
        self.endpoint.draining = True
        self._announcing.cancel()

    def _refresh(self) -> None:
        if self._announcer is not None:
            self._announcer.refresh()

    def _describe(self, hosts: tuple[str, ...], port: int, dht_port: int) -> Announcement:
        states = [engine.state() for engine in self.endpoint.engines.values()]
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
                engine.name,
                ServiceFacts(
                    hosts=hosts,
                    port=port,
                    dht_port=dht_port,
                    tls=self._tls,
                    label=self.label,
                    digest=engine.digest,
                    n_ctx=engine.n_ctx,
                    slots=engine.slots,
                    version=__version__,
                    capabilities=engine.capabilities,
                ),
            )
            for engine in self.endpoint.engines.values()
        )
        return Announcement(node=node, services=services)


@attrs.frozen
class Node:
    """A running node."""

    host: Host
    dht: Dht
    port: int
    """Inference, TCP."""


async def serve_node(config: NodeConfig, *, task_status: trio.TaskStatus[Node] = trio.TASK_STATUS_IGNORED) -> None:
    """Run a node until cancelled, or until `node.host.drain()` has done its work.

    Both ports are bound before the models are loaded, so that a taken one is told at once, and answer only after.
    Raises `UserError` in one line for what the user can mend; for the model files first.
    """
    with ungrouped(), contextlib.ExitStack() as held:
        await _serve_node(config, held, task_status)


async def _serve_node(config: NodeConfig, held: contextlib.ExitStack, task_status: trio.TaskStatus[Node]) -> None:
    data_dir = config.data_dir or default_data_dir()
    membership = as_membership(
        config.bootstrap_nodes,
        join=config.join,
        swarm_name=config.swarm_name,
        swarm_key_file=config.swarm_key_file,
    )
    for path in config.model_path:
        check_model_file(path)
        check_model_layout(path)
    # A fresh port each time means a fresh node each time.
    fixed = config.dht_port != 0
    key_file = data_dir / f"node-{config.dht_port}.key"
    identity = held.enter_context(hold_identity(key_file)) if fixed else Identity.generate()
    host = Host(identity, label=config.node_id, tls=not config.no_tls)
    settings = llama_settings(config)
    bind_to = await resolve_host(config.host)
    dht_config = DhtConfig(
        # A TCP socket on :: takes both families (below); of UDP sockets each takes one.
        hosts=("0.0.0.0", "::") if bind_to == "::" else (bind_to,),
        port=config.dht_port,
        bootstrap=membership.peers,
        network=membership.network,
        announce=announced_hosts(config.announce),
        contacts_path=data_dir / f"contacts-{config.dht_port}" if fixed else None,
    )
    sock = held.enter_context(await bind(bind_to, config.port))
    try:
        transport = UdpTransport.bind(dht_config.hosts, config.dht_port)
    except UserError as error:
        raise UserError(f"{error} ({setting_name('dht_port')})") from error
    held.callback(transport.close)
    async with trio.open_nursery() as nursery:
        for path in config.model_path:
            await nursery.start(host.serve_model, await open_model(path, settings, data_dir))
        sock.listen(BACKLOG)
        listener = trio.SocketListener(sock)
        address = Address(*sock.getsockname()[:2])

        async def dht_service(*, task_status: trio.TaskStatus[Dht]) -> None:
            await serve_dht(
                identity, dht_config, live_state=host.live_state, transport=transport, task_status=task_status
            )

        dht: Dht = await nursery.start(dht_service)
        log.info(
            "Node %s (%s) serves %s on %s:%d (TCP, %s), DHT on port %d (UDP)",
            host.label,
            identity.node_id.hex(),
            ", ".join(host.endpoint.engines),
            config.host,
            address.port,
            "plain" if config.no_tls else "TLS",
            dht.port,
        )
        task_status.started(Node(host, dht, address.port))
        await host.serve(
            dht, [listener], address, announce=config.announce, heartbeat_interval=config.heartbeat_interval
        )
        log.info("Node %s has left the swarm", host.label)
        nursery.cancel_scope.cancel()


async def run_node(config: NodeConfig) -> None:
    """Run a node until SIGINT or SIGTERM drains it; a second signal, or one before it is up, stops it at once."""
    nodes: list[Node] = []

    async def serve() -> None:
        async with trio.open_nursery() as inner:
            nodes.append(await inner.start(serve_node, config))
        nursery.cancel_scope.cancel()

    with ungrouped(), trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            async for number in signals:
                if not nodes or nodes[0].host.endpoint.draining:
                    nursery.cancel_scope.cancel()
                else:
                    log.info("%s: draining (again to stop at once)", signal.Signals(number).name)
                    nodes[0].host.drain()


async def resolve_host(host: str, setting: str = "host") -> str:
    """The IP address to bind for `host`, the value of `setting`. Raises `UserError`."""
    try:
        found = await trio.socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise UserError(f"{setting_name(setting)}: {host!r} is not known ({error.strerror})") from error
    return str(found[0][4][0])


async def bind(host: str, port: int, settings: tuple[str, str] = ("host", "port")) -> trio.socket.SocketType:
    """A TCP socket that has its address, and does not listen yet. Raises `UserError` that names the `settings`."""
    sock = trio.socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if host == "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        await sock.bind((host, port))
    except OSError as error:
        sock.close()
        why = "the port is taken" if error.errno == errno.EADDRINUSE else error.strerror
        setting = settings[error.errno in (errno.EADDRINUSE, errno.EACCES)]
        raise UserError(f"cannot listen on TCP {Address(host, port)}: {why} ({setting_name(setting)})") from error
    return sock


async def listen(host: str, port: int) -> trio.SocketListener:
    """A listening TCP socket. Raises `UserError`."""
    sock = await bind(host, port)
    sock.listen(BACKLOG)
    return trio.SocketListener(sock)
