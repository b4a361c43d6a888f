"""A node that serves HTTP too: the gateway beside it, over the node's own DHT."""

from functools import partial

import trio

from llamanet.client.client import SwarmClient
from llamanet.gateway.config import GatewayConfig
from llamanet.gateway.service import Server, bind_http, serve_gateway
from llamanet.models.progress import Report
from llamanet.node.config import NodeConfig
from llamanet.node.service import Node, run_node
from llamanet.wire.inference import ModelStatus, Status


async def run_node_with_http(config: NodeConfig, report: Report, http: GatewayConfig) -> None:
    """As `run_node`; both drain together. Raises `UserError`, also if the port of HTTP is taken, before all else."""
    with await bind_http(http) as bound:
        await run_node(config, report, partial(_serve_http, http, bound))


async def _serve_http(config: GatewayConfig, bound: trio.socket.SocketType, node: Node) -> None:
    def engines() -> tuple[ModelStatus, ...]:
        return node.host.endpoint.status(Status(id=0)).models

    async with trio.open_nursery() as nursery:
        client = SwarmClient(
            node.dht,
            nursery,
            min_tps=config.min_tps,
            max_load=config.max_load,
            strategy=config.strategy,
        )
        async with trio.open_nursery() as serving:
            server: Server = await serving.start(partial(serve_gateway, client, config, bound=bound, engines=engines))
            await node.host.told_to_leave.wait()
            server.stop.set()
        nursery.cancel_scope.cancel()
