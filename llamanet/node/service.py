"""A node: a host of models on a DHT of its own, from start to drained end.

`serve_node` is a whole node with its own identity and ports, and `run_node` one that SIGINT and SIGTERM drain.
"""

import contextlib
import errno
import logging
import math
import signal
import socket
from collections.abc import Awaitable, Callable

import attrs
import trio

from llamanet.dht.config import DhtConfig
from llamanet.dht.keyfile import hold_identity
from llamanet.dht.membership import as_membership
from llamanet.dht.service import Dht, serve_dht
from llamanet.dht.transport import UdpTransport
from llamanet.errors import UserError, ungrouped
from llamanet.models.progress import LogReport, Report
from llamanet.node.config import NodeConfig
from llamanet.node.control import Control, control_socket, fits_a_socket, serve_control
from llamanet.node.engine import Engine
from llamanet.node.host import Host
from llamanet.node.loading import check_model, llama_settings, open_model
from llamanet.node.owner import LoadMeter, put_owner_first
from llamanet.settings import default_control_path, default_data_dir, setting_name
from llamanet.wire.facts import announced_hosts
from llamanet.wire.identity import Identity
from llamanet.wire.rpc import Address

log = logging.getLogger(__name__)

BACKLOG = 128


@attrs.frozen
class Node:
    """A running node."""

    host: Host
    dht: Dht
    port: int
    """Inference, TCP."""


Beside = Callable[[Node], Awaitable[None]]
"""What else a node's process does. It ends in its own time once `node.host.told_to_leave` is set."""


async def serve_node(
    config: NodeConfig,
    report: Report | None = None,
    beside: Beside | None = None,
    *,
    task_status: trio.TaskStatus[Node] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a node until cancelled, or until `node.host.drain()` has done its work.

    `report` is told how far pulling, hashing and loading are; None: the log is. `beside` runs as long as the node does.

    Both ports are bound before the models are loaded, so that a taken one is told at once, and answer only after.
    Raises `UserError` in one line for what the user can mend; for the model files first.
    """
    with ungrouped(), contextlib.ExitStack() as held:
        await _serve_node(config, report or LogReport(), beside, held, task_status)


async def _serve_node(
    config: NodeConfig,
    report: Report,
    beside: Beside | None,
    held: contextlib.ExitStack,
    task_status: trio.TaskStatus[Node],
) -> None:
    data_dir = config.data_dir or default_data_dir()
    membership = as_membership(
        config.bootstrap_nodes,
        join=config.join,
        swarm_name=config.swarm_name,
        swarm_key_file=config.swarm_key_file,
    )
    for source in config.model_path:
        check_model(source)
    # A fresh port each time means a fresh node each time.
    fixed = config.dht_port != 0
    key_file = data_dir / f"node-{config.dht_port}.key"
    identity = held.enter_context(hold_identity(key_file)) if fixed else Identity.generate()
    host = Host(identity, label=config.node_id, tls=not config.no_tls, idle_unload=config.idle_unload or math.inf)
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
    default_control = default_control_path(data_dir, config.dht_port)
    control_path = config.control or (default_control if fixed and fits_a_socket(default_control) else None)
    control = held.enter_context(control_socket(control_path)) if control_path else None
    async with trio.open_nursery() as nursery:

        async def load(source: str, report: Report) -> Engine:
            engine: Engine = await nursery.start(host.serve_model, await open_model(source, settings, data_dir, report))
            return engine

        if control is not None:
            # Before the models are loaded, so that it tells how that goes.
            about = {
                "id": identity.node_id.hex(),
                "port": sock.getsockname()[1],
                "dht_port": transport.addresses[0].port,
            }
            nursery.start_soon(serve_control, control, Control(host, load, about))
        for source in config.model_path:
            await load(str(source), report)
        if config.upstream is not None:
            await _start_upstream(config, config.upstream, host, nursery)
        sock.listen(BACKLOG)
        listener = trio.SocketListener(sock)
        address = Address(*sock.getsockname()[:2])

        async def dht_service(*, task_status: trio.TaskStatus[Dht]) -> None:
            await serve_dht(
                identity, dht_config, live_state=host.live_state, transport=transport, task_status=task_status
            )

        dht: Dht = await nursery.start(dht_service)
        log.info(
            "Node %s (%s) serves %s on %s (TCP, %s), DHT on port %d (UDP)",
            host.label,
            identity.node_id.hex(),
            ", ".join(host.endpoint.engines),
            Address(config.host, address.port),
            "plain" if config.no_tls else "TLS",
            dht.port,
        )
        if config.owner_first:
            nursery.start_soon(put_owner_first, host, LoadMeter())
        node = Node(host, dht, address.port)
        async with trio.open_nursery() as company:
            if beside is not None:
                company.start_soon(beside, node)
            task_status.started(node)
            await host.serve(
                dht, [listener], address, announce=config.announce, heartbeat_interval=config.heartbeat_interval
            )
        log.info("Node %s has left the swarm", host.label)
        nursery.cancel_scope.cancel()


async def _start_upstream(config: NodeConfig, url: str, host: Host, nursery: trio.Nursery) -> None:
    # Most nodes have models of their own, and need no HTTP.
    from llamanet.node.upstreams import UpstreamSettings, serve_upstream

    settings = UpstreamSettings(
        url=url,
        api_key=config.upstream_api_key,
        models=config.upstream_model,
        n_ctx=config.n_ctx,
        slots=config.n_parallel,
    )

    async def serve(*, task_status: trio.TaskStatus[tuple[str, ...]]) -> None:
        await serve_upstream(host, settings, task_status=task_status)

    names = await nursery.start(serve)
    log.info("Offering %s from %s", ", ".join(names), url)


async def run_node(config: NodeConfig, report: Report | None = None, beside: Beside | None = None) -> None:
    """Run a node until SIGINT or SIGTERM drains it; a second signal, or one before it is up, stops it at once.

    `report` and `beside` are as in `serve_node`.
    """
    nodes: list[Node] = []

    async def serve() -> None:
        async with trio.open_nursery() as inner:
            nodes.append(await inner.start(serve_node, config, report, beside))
        nursery.cancel_scope.cancel()

    with ungrouped(), trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            async for number in signals:
                if not nodes or nodes[0].host.leaving:
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
