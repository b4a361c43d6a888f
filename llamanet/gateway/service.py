"""A gateway as a service: hypercorn's trio worker before the application, from a bound port to a drained end.

Rules:
- A connection that fails in whatever way ends alone.
- Draining: no new connections; requests that run may finish within `DRAIN_S`, then their connections are cut.
- A reader that takes nothing for `STALL_S` loses its connection, for what waits for it is held in memory.
"""

import gc
import logging
import signal
import socket
import ssl
from collections.abc import Callable
from functools import partial

import attrs
import trio
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llamanet.errors import UserError, ungrouped
from llamanet.gateway.app import SERVICES, build_app
from llamanet.gateway.config import GatewayConfig
from llamanet.gateway.connection import Connection
from llamanet.gateway.gateway import Asked, Gateway
from llamanet.gateway.limits import MAX_HEADER_BYTES
from llamanet.node.service import bind, resolve_host
from llamanet.settings import setting_name
from llamanet.swarm import Swarm
from llamanet.wire.inference import ModelStatus
from llamanet.wire.rpc import Address

log = logging.getLogger(__name__)

DRAIN_S = 30.0
"""How long running requests may go on after the gateway was told to stop."""
STALL_S = 60
KEEP_ALIVE_S = 75.0
"""How long a connection may be idle; longer than clients keep theirs, so that it is they who close it."""
BACKLOG = 1024
GC_THRESHOLDS = (2_000, 20, 10)
"""At least 400,000 containers more before a full search: what some 1,500 requests hold, or 60 MB."""


@attrs.define(eq=False)
class Server:
    """A gateway that serves."""

    gateway: Gateway
    url: str
    stop: trio.Event
    """Set it to drain."""


async def bind_http(config: GatewayConfig) -> trio.socket.SocketType:
    """The socket that a gateway will listen on. Raises `UserError`."""
    address = await resolve_host(config.http_host, "http_host")
    return await bind(address, config.http_port, ("http_host", "http_port"))


async def serve_gateway(
    swarm: Asked,
    config: GatewayConfig,
    *,
    bound: trio.socket.SocketType | None = None,
    engines: Callable[[], tuple[ModelStatus, ...]] = tuple,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `swarm` over HTTP until cancelled, or until `stop` of the started `Server` has drained it.

    `bound` comes from `bind_http`, for who wants to know early whether the port is free. `engines` tells of the models
    that this very process serves. Raises `UserError` in one line for what the user can mend.
    """
    context = _tls_context(config)
    with bound or await bind_http(config) as sock:
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # Connections inherit it. Elsewhere than on Linux a stalled reader is kept until it goes, or we do.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * STALL_S)
        sock.listen(BACKLOG)
        host, port = sock.getsockname()[:2]
        gateway = Gateway(swarm=swarm, config=config, engines=engines)
        server = Server(gateway, f"{'https' if context else 'http'}://{Address(host, port)}", gateway.draining)
        app = build_app(gateway)
        async with trio.open_nursery() as nursery:
            for service in SERVICES:
                nursery.start_soon(service, gateway)
            log.info("The gateway serves %s", server.url)
            task_status.started(server)
            await _serve(app, trio.SocketListener(sock), context, server.stop)
            nursery.cancel_scope.cancel()


async def _serve(app: ASGIApp, listener: trio.SocketListener, tls: ssl.SSLContext | None, stop: trio.Event) -> None:
    app = discard_rest(app)
    config = Config()
    config.keep_alive_timeout = KEEP_ALIVE_S
    config.include_server_header = False
    config.errorlog = log
    config.h11_max_incomplete_size = config.h2_max_header_list_size = MAX_HEADER_BYTES
    worker = WorkerContext(None)
    live: set[trio.SocketStream] = set()

    async def serve_connection(stream: trio.SocketStream) -> None:
        live.add(stream)
        try:
            secured = trio.SSLStream(stream, tls, server_side=True, https_compatible=True) if tls else stream
            await Connection(app, config, worker, secured)
        except Exception as error:
            # Strangers' bytes go through code that is not ours. What comes out of it must not end the gateway, and with
            # it everybody else's streams. Cancellation is no `Exception`.
            log.warning("A connection failed", exc_info=error)
        finally:
            live.discard(stream)

    async def cut(connections: trio.Nursery) -> None:
        try:
            await stop.wait()
            await trio.sleep(DRAIN_S)
        finally:
            # hypercorn shields what it sends: cancelling alone would wait for a reader that stalls.
            for stream in live:
                stream.socket.close()
        connections.cancel_scope.cancel()

    async with trio.open_nursery() as cutter:
        async with trio.open_nursery() as connections:
            cutter.start_soon(cut, connections)
            async with trio.open_nursery() as accepting:
                accepting.start_soon(
                    partial(trio.serve_listeners, serve_connection, [listener], handler_nursery=connections)
                )
                await stop.wait()
                accepting.cancel_scope.cancel()
            await worker.terminated.set()  # Idle connections close.
        cutter.cancel_scope.cancel()


def discard_rest(app: ASGIApp) -> ASGIApp:
    """Read on while an answer to a body that was not read whole is sent.

    hypercorn holds ten pieces of a body, and with them full it would neither send the end of the answer nor notice that
    the reader leaves.
    """

    async def discarding(scope: Scope, receive: Receive, send: Send) -> None:
        unread = scope["type"] == "http"

        async def receive_noted() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def discard() -> None:
            while unread:
                await receive_noted()

        async def send_and_discard(message: Message) -> None:
            if not unread or message["type"] != "http.response.body" or message.get("more_body", False):
                await send(message)
                return
            async with trio.open_nursery() as nursery:
                nursery.start_soon(discard)
                await send(message)
                nursery.cancel_scope.cancel()

        await app(scope, receive_noted, send_and_discard)

    return discarding


async def run_gateway(config: GatewayConfig) -> None:
    """Join the swarm and serve it until SIGINT or SIGTERM drains the gateway; a second signal stops it at once."""
    servers: list[Server] = []

    async def serve() -> None:
        async with (
            Swarm(
                config.bootstrap_nodes,
                join=config.join,
                swarm_name=config.swarm_name,
                dht_port=config.dht_port,
                swarm_key_file=config.swarm_key_file,
                min_tps=config.min_tps,
                max_load=config.max_load,
                strategy=config.strategy,
            ) as swarm,
            trio.open_nursery() as inner,
        ):
            server: Server = await inner.start(serve_gateway, swarm, config)
            servers.append(server)
            _spare_collections()
        nursery.cancel_scope.cancel()

    with ungrouped(), trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            async for number in signals:
                if not servers or servers[0].stop.is_set():
                    nursery.cancel_scope.cancel()
                else:
                    log.info("%s: draining (again to stop at once)", signal.Signals(number).name)
                    servers[0].stop.set()


def _spare_collections() -> None:
    """Let Python look for unreachable cycles in few objects, and seldom.

    With hundreds of streams a full search takes a tenth of a second, in which no token moves; while streams begin there
    were several a second. What this process is made of is reachable for ever, and most of what a request leaves behind
    has no cycles.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def _tls_context(config: GatewayConfig) -> ssl.SSLContext | None:
    if config.http_tls_cert is None or config.http_tls_key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(config.http_tls_cert, config.http_tls_key)
    except (OSError, ssl.SSLError) as error:
        names = f"{setting_name('http_tls_cert')} and {setting_name('http_tls_key')}"
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{names}: {config.http_tls_cert} and {config.http_tls_key} are no certificate and its key ({reason})"
        ) from error
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context
