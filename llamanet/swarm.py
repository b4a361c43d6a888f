"""A swarm as an application sees it: join it, ask it, and serve to it, all in one trio process.

>>> async with Swarm(bootstrap_nodes=["127.0.0.1:8001"]) as swarm:  # doctest: +SKIP
...     reply = await swarm.generate("What is LlamaNet?", max_tokens=64)
...     await swarm.serve("models/other.gguf")
"""

import contextlib
import sys
from collections.abc import AsyncGenerator, Iterable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import attrs
import trio

from llamanet.client.batch import MapResult, Progress, Prompts
from llamanet.client.census import ModelView, NodeView
from llamanet.client.client import Messages, SwarmClient
from llamanet.client.decision import Considered, Decision, Policy, Strategy
from llamanet.client.embedding import EmbeddingReply
from llamanet.client.generation import Stream
from llamanet.client.join import local_addresses
from llamanet.client.reply import Chunk, Hop, Reply
from llamanet.client.statistics import Statistics
from llamanet.client.strategy import STRATEGIES, check_strategy
from llamanet.dht.membership import as_membership
from llamanet.dht.service import Dht, DhtConfig, serve_dht
from llamanet.errors import ungrouped
from llamanet.wire.facts import announced_hosts
from llamanet.wire.identity import Identity
from llamanet.wire.invite import Invite
from llamanet.wire.rpc import Address
from llamanet.wire.state import ModelState

if TYPE_CHECKING:
    from llamanet.node.host import Host, Model

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

__all__ = [
    "Chunk",
    "Considered",
    "Decision",
    "Hop",
    "Messages",
    "ModelView",
    "NodeView",
    "Policy",
    "Reply",
    "Stream",
    "Swarm",
]


class Swarm:
    """A member of a swarm, as an async context manager.

    It only asks, until `serve` makes it a node. Errors of the block come out as they are; leaving the block without
    one drains what is served.
    """

    def __init__(
        self,
        bootstrap_nodes: str | Iterable[str] = (),
        *,
        dht_port: int = 0,
        join: str | None = None,
        swarm_name: str | None = None,
        swarm_key: bytes | str | None = None,
        swarm_key_file: Path | str | None = None,
        min_tps: float = 0.0,
        max_load: float | None = None,
        strategy: Strategy = STRATEGIES[0],
        node_id: str | None = None,
        host: str = "0.0.0.0",
        port: int = 0,
        announce: str | None = None,
        no_tls: bool = False,
        heartbeat_interval: float = 10.0,
        data_dir: Path | None = None,
    ) -> None:
        """Nothing happens before the block is entered.

        Args:
          bootstrap_nodes: `host:port` of nodes to join through, as a list or separated by commas; with none this is a
            swarm of its own.
          dht_port: our UDP port; 0 takes any free one.
          join: an invitation, as `llamanet invite` prints it, instead of or beside `bootstrap_nodes`.
          swarm_name: the swarm's name, if it is not the public one.
          swarm_key: a private swarm's key, 32 bytes or their hexadecimal digits; or `swarm_key_file`, which holds it.
          min_tps: tokens a second of one stream, below which no node will do.
          max_load: requests running and waiting for each slot, above which no node will do.
          strategy: how a request's node is chosen: "soonest", a function of your own (`Policy`), or, to compare with,
            "random", "round_robin" or "least_load".
          node_id, host, port, announce, no_tls, heartbeat_interval: as the flags of `llamanet node`, for `serve`.
          data_dir: where the digests of model files are remembered; default: the platform's place for data.

        Raises `UserError` for a bootstrap peer, an invitation or a key that cannot be one, and for an unknown strategy.
        """
        membership = as_membership(
            bootstrap_nodes, join=join, swarm_name=swarm_name, swarm_key=swarm_key, swarm_key_file=swarm_key_file
        )
        self._config = DhtConfig(
            port=dht_port,
            bootstrap=membership.peers,
            network=membership.network,
            announce=announced_hosts(announce),
            client_mode=True,
        )
        self._min_tps = min_tps
        self._max_load = max_load
        self._strategy = check_strategy(strategy)
        self._node_id = node_id
        self._bind_to = (host, port)
        self._announce = announce
        self._no_tls = no_tls
        self._heartbeat_interval = heartbeat_interval
        self._data_dir = data_dir
        self._identity = Identity.generate()
        self._host: Host | None = None
        self._host_ended = trio.Event()
        self._opening = trio.Lock()
        self._open = False

    async def __aenter__(self) -> "Swarm":
        """Raises `UserError` if `dht_port` is taken. Does not wait for the swarm: requests do."""
        self._running = contextlib.asynccontextmanager(self._run)()
        with ungrouped():
            await self._running.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        try:
            return await self._running.__aexit__(kind, error, traceback)
        except BaseExceptionGroup as group:
            # The nursery wraps the block's own error; whoever wrote the block knows of no nursery.
            if error is not None and group.exceptions == (error,):
                return False
            raise

    async def _run(self) -> AsyncGenerator[None, None]:
        config = attrs.evolve(self._config, hosts=local_addresses())

        async def dht_service(*, task_status: trio.TaskStatus[Dht]) -> None:
            await serve_dht(self._identity, config, live_state=self._live_state, task_status=task_status)

        async with trio.open_nursery() as nursery:
            self._dht: Dht = await nursery.start(dht_service)
            self._nursery = nursery
            self._client = SwarmClient(
                self._dht, nursery, min_tps=self._min_tps, max_load=self._max_load, strategy=self._strategy
            )
            yield
            if self._host is not None and self._open:
                self._host.drain()
                await self._host_ended.wait()
            nursery.cancel_scope.cancel()

    @property
    def dht_port(self) -> int:
        """Our UDP port, which others can join through."""
        return self._dht.port

    # --- asking ------------------------------------------------------------------------------------------------------

    def stream(
        self, prompt: str | None = None, *, messages: Messages | None = None, **options: Any
    ) -> AbstractAsyncContextManager[Stream]:
        """A generation, chunk by chunk; see `SwarmClient.stream` for all `options` and errors."""
        return self._client.stream(prompt, messages=messages, **options)

    async def generate(self, prompt: str | None = None, *, messages: Messages | None = None, **options: Any) -> Reply:
        """A whole generation; takes what `stream` takes, and raises what it raises."""
        return await self._client.generate(prompt, messages=messages, **options)

    def map(
        self,
        prompts: Prompts,
        *,
        concurrency: int | None = None,
        ordered: bool = True,
        journal: Path | str | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> AbstractAsyncContextManager["trio.abc.ReceiveChannel[MapResult]"]:
        """One request for each of `prompts`, over the whole swarm; see `SwarmClient.map`."""
        return self._client.map(
            prompts, concurrency=concurrency, ordered=ordered, journal=journal, progress=progress, **options
        )

    async def embed(
        self, texts: Iterable[str], *, model: str | None = None, digest: bytes | None = None, **options: Any
    ) -> EmbeddingReply:
        """A vector of length 1 for each of `texts`; see `SwarmClient.embed` for all `options` and errors."""
        return await self._client.embed(texts, model=model, digest=digest, **options)

    async def nodes(self, model: str | None = None, *, node: str | None = None) -> list[NodeView]:
        """The nodes that are alive, with their live state; or those that serve `model`, or have the label or id `node`.

        Raises `NotJoined`.
        """
        return await self._client.nodes(model, node=node)

    async def models(self) -> list[ModelView]:
        """The models that can be asked for. Raises `NotJoined`."""
        return await self._client.models()

    @property
    def statistics(self) -> Statistics:
        """How this member is doing: its requests, and its DHT."""
        return self._client.statistics

    async def invite(self) -> Invite:
        """What another machine needs to join this swarm: `encode_invite` makes a line of it. Raises `NotJoined`."""
        return await self._client.invite()

    # --- serving -----------------------------------------------------------------------------------------------------

    async def serve(
        self,
        model: "str | Path | Model",
        *,
        n_ctx: int = 2048,
        n_batch: int = 512,
        n_parallel: int = 4,
        n_threads: int | None = None,
        n_gpu_layers: int = 0,
        main_gpu: int = 0,
        split_mode: str = "layer",
        flash_attn: str = "auto",
        cache_type_k: str = "f16",
        cache_type_v: str = "f16",
        chat_template: str | Path | None = None,
    ) -> None:
        """Serve `model`, as `--model` names one, from this process too; returns once it can be found and asked.

        The first call makes this member a node: it opens the inference port and answers to the DHT. The settings are
        as the flags of `llamanet node`. Raises `ModelFileError` or another `UserError`.
        """
        # Whoever only asks needs neither llama.cpp nor a certificate.
        from llamanet.node.config import NodeConfig
        from llamanet.node.host import Host, Model
        from llamanet.node.loading import llama_settings, open_model
        from llamanet.settings import default_data_dir

        if not isinstance(model, Model):
            settings = llama_settings(
                NodeConfig(
                    model_path=(model,),
                    n_ctx=n_ctx,
                    n_batch=n_batch,
                    n_parallel=n_parallel,
                    n_threads=n_threads,
                    n_gpu_layers=n_gpu_layers,
                    main_gpu=main_gpu,
                    split_mode=split_mode,
                    flash_attn=flash_attn,
                    cache_type_k=cache_type_k,
                    cache_type_v=cache_type_v,
                    chat_template=None if chat_template is None else Path(chat_template),
                )
            )
            model = await open_model(model, settings, self._data_dir or default_data_dir())
        with ungrouped():
            if self._host is None:
                self._host = Host(self._identity, label=self._node_id, tls=not self._no_tls)
            await self._nursery.start(self._host.serve_model, model)
            async with self._opening:
                if not self._open:
                    await self._open_host(self._host)
            await self._host.wait_announced()

    async def _open_host(self, host: "Host") -> None:
        from llamanet.node.service import listen, resolve_host

        name, port = self._bind_to
        listener = await listen(await resolve_host(name), port)

        async def serve_host(*, task_status: trio.TaskStatus[None]) -> None:
            address = Address(*listener.socket.getsockname()[:2])
            try:
                await host.serve(
                    self._dht,
                    [listener],
                    address,
                    announce=self._announce,
                    heartbeat_interval=self._heartbeat_interval,
                    task_status=task_status,
                )
            finally:
                self._host_ended.set()

        self._dht.client_mode = False
        await self._nursery.start(serve_host)
        self._open = True

    def _live_state(self, model: str | None) -> tuple[bool, tuple[ModelState, ...]]:
        return (False, ()) if self._host is None else self._host.live_state(model)
