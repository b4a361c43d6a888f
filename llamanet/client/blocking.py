"""The client for scripts and for asyncio programs: it blocks, and needs no trio around it.

Rules:
- The swarm's work runs under trio in one background thread. `Client` is only a door to it, for any thread.
- An interrupted call (Ctrl-C) stops its work at the node. So do closing, and the end of the program without closing.
- `close()` closes at once; its result may be awaited, for programs that write `await client.close()`.
"""

import concurrent.futures
import itertools
import threading
import weakref
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import attrs
import outcome
import trio

from llamanet.client.batch import MapResult, Prompt, Prompts
from llamanet.client.census import ModelView, NodeView
from llamanet.client.client import Messages, SwarmClient
from llamanet.client.decision import Decision, Strategy
from llamanet.client.embedding import EmbeddingReply
from llamanet.client.generation import Stream
from llamanet.client.join import local_addresses
from llamanet.client.reply import Chunk, Hop, Reply
from llamanet.client.strategy import STRATEGIES, check_strategy
from llamanet.dht.membership import as_membership
from llamanet.dht.service import Dht, DhtConfig, serve_dht
from llamanet.dht.transport import UdpTransport
from llamanet.errors import ClientClosed, UserError
from llamanet.wire.identity import Identity
from llamanet.wire.inference import Usage

T = TypeVar("T")

CLOSE_S = 5.0
"""The longest that closing waits for the background thread."""
MAX_PROMPTS_AHEAD = 256
"""Taken of an iterator, and not asked yet."""
PROMPTS_AT_ONCE = 16
"""Handed to the background thread together."""


class Client:
    """Asks a swarm, and blocks until it has the answer. Any thread may use it, several at once."""

    def __init__(
        self,
        bootstrap_nodes: str | Iterable[str] = (),
        model: str | None = None,
        min_tps: float = 0.0,
        max_load: float | None = None,
        dht_port: int = 0,
        *,
        strategy: Strategy = STRATEGIES[0],
        join: str | None = None,
        swarm_name: str | None = None,
        swarm_key: bytes | str | None = None,
        swarm_key_file: Path | str | None = None,
    ) -> None:
        """Begins to join; requests wait until that is done.

        Args:
          bootstrap_nodes: `host:port` of nodes to join through, as a list or separated by commas.
          model: the model that requests ask for unless they name another; None takes any.
          min_tps: tokens a second of one stream, below which no node will do.
          max_load: requests running and waiting for each slot, above which no node will do.
          strategy: how a request's node is chosen: "soonest", a function of your own (`Policy`), or, to compare with,
            "random", "round_robin" or "least_load".
          dht_port: our UDP port; if it is taken, or 0, any free one.
          join: an invitation, as `llamanet invite` prints it, instead of or beside `bootstrap_nodes`.
          swarm_name: the swarm's name, if it is not the public one.
          swarm_key: a private swarm's key, 32 bytes or their hexadecimal digits; or `swarm_key_file`, which holds it.

        Raises `UserError` for a bootstrap peer, an invitation or a key that cannot be one, and for an unknown strategy.
        """
        membership = as_membership(
            bootstrap_nodes, join=join, swarm_name=swarm_name, swarm_key=swarm_key, swarm_key_file=swarm_key_file
        )
        config = DhtConfig(
            port=dht_port,
            bootstrap=membership.peers,
            network=membership.network,
            client_mode=True,
        )
        self._model = model
        self._thread = _SwarmThread(
            config, partial(SwarmClient, min_tps=min_tps, max_load=max_load, strategy=check_strategy(strategy))
        )
        # Not a method of ours: this must not keep us alive. It also runs when the program ends.
        self._finalizer = weakref.finalize(self, self._thread.stop)

    def generate(self, prompt: str | None = None, *, messages: Messages | None = None, **options: Any) -> Reply:
        """A whole generation; `options` as in `SwarmClient.open`: `model`, `max_tokens`, `temperature`, `seed`, ...

        Raises `NoNodeServes`, `SwarmBusy`, `DeadlineExceeded`, `RequestRefused`, `NotJoined`, or `ClientClosed`.
        """
        options.setdefault("model", self._model)
        return self._thread.call(lambda swarm: swarm.generate(prompt, messages=messages, **options))

    def stream(
        self, prompt: str | None = None, *, messages: Messages | None = None, **options: Any
    ) -> "BlockingStream":
        """A generation, chunk by chunk: an iterator, and a context manager that stops it. Otherwise as `generate`."""
        options.setdefault("model", self._model)
        stream = self._thread.call(lambda swarm: swarm.open(prompt, messages=messages, **options))
        return BlockingStream(self._thread, stream)

    def map(self, prompts: Iterable[Prompt], **options: Any) -> "BlockingMap":
        """One request for each of `prompts`, over the whole swarm: an iterator of `MapResult`, and a context manager
        that stops what is left. `options` are those of `SwarmClient.map`: `concurrency`, `ordered`, `journal`, ...
        """
        options.setdefault("model", self._model)
        return BlockingMap(self._thread, prompts, options)

    def embed(self, texts: Iterable[str], **options: Any) -> EmbeddingReply:
        """A vector for each of `texts`; `options` as in `SwarmClient.embed`. Raises what `generate` raises."""
        options.setdefault("model", self._model)
        return self._thread.call(lambda swarm: swarm.embed(texts, **options))

    def nodes(self, model: str | None = None) -> list[NodeView]:
        """The nodes that are alive, or those that serve `model`."""
        return self._thread.call(lambda swarm: swarm.nodes(model))

    def models(self) -> list[ModelView]:
        """The models that can be asked for."""
        return self._thread.call(lambda swarm: swarm.models())

    def close(self) -> "Closed":
        """Leave the swarm; what is still running ends with `ClientClosed`. May be called again."""
        self._finalizer()
        return Closed()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Closed:
    """What `Client.close` returns: it is done; awaiting it, under any event loop, does nothing."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()


class BlockingStream:
    """An iterator of `Chunk`. What it tells about itself is final once it is exhausted."""

    def __init__(self, thread: "_SwarmThread", stream: Stream) -> None:
        """Made by `Client.stream`."""
        self._thread = thread
        self._stream = stream
        self._finalizer = weakref.finalize(self, thread.post, stream.close)

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        """The next tokens. Raises what `Client.generate` raises."""
        chunk = self._thread.call(lambda swarm: _next(self._stream))
        if chunk is None:
            raise StopIteration
        return chunk

    def close(self) -> None:
        """Stop the work at the node."""
        self._finalizer()

    def __enter__(self) -> "BlockingStream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def node_id(self) -> str | None:
        """The label of the node that answers, or answered last; None before the first is asked."""
        return self._stream.node_id

    @property
    def model(self) -> str | None:
        """The model's name; None, if any will do, before the first node is asked."""
        return self._stream.model

    @property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 of the model files that answered, in hexadecimal."""
        return self._stream.digests

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All ids so far."""
        return tuple(self._stream.token_ids)

    @property
    def choices(self) -> tuple[Decision, ...]:
        """Why each node was asked, the last ones."""
        return self._stream.choices

    @property
    def ttft(self) -> float | None:
        """Seconds from the beginning to the first token, finding a node included."""
        return self._stream.ttft

    @property
    def tokens_per_second(self) -> float:
        """Tokens after the first one, by the time since it; 0.0 while there are none."""
        return self._stream.tokens_per_second

    @property
    def finish_reason(self) -> str | None:
        """`stop`, `tool_calls`, `length`, or `context` (the node's was full); None before the end."""
        return self._stream.finish_reason

    @property
    def usage(self) -> Usage | None:
        """Tokens counted; None before the end."""
        return self._stream.usage

    @property
    def hops(self) -> tuple[Hop, ...]:
        """The nodes that the request left, and why."""
        return self._stream.hops

    def reply(self) -> Reply:
        """The whole generation, once the stream is exhausted. Raises `ValueError` before."""
        return self._stream.reply()


class BlockingMap:
    """An iterator of `MapResult`; only one thread may read at a time.

    That thread takes the prompts too, at most `MAX_PROMPTS_AHEAD` ahead of their requests.
    """

    def __init__(self, thread: "_SwarmThread", prompts: Iterable[Prompt], options: dict[str, Any]) -> None:
        """Made by `Client.map`."""
        self._thread = thread
        self._left: Iterator[Prompt] | None = None
        """The prompts that are not taken; None: none is left to be taken here."""
        source: Prompts = prompts
        if not isinstance(prompts, Sequence):
            self._left = iter(prompts)
            self._waiting, source = trio.open_memory_channel[Prompt](MAX_PROMPTS_AHEAD)
        send, self._receive = trio.open_memory_channel[MapResult](0)
        self._ended: concurrent.futures.Future[outcome.Maybe[None]] = concurrent.futures.Future()
        self._finalizer = weakref.finalize(self, thread.post, self._receive.close)
        arguments = (thread, source, options, send, self._ended)
        threading.Thread(target=_run_map, args=arguments, name="llamanet-map", daemon=True).start()

    def __iter__(self) -> Iterator[MapResult]:
        return self

    def __next__(self) -> MapResult:
        """The next result. Raises what `SwarmClient.map` raises, and `ClientClosed`."""
        self._take_prompts()
        result = self._thread.call(lambda swarm: _receive(self._receive))
        if result is None:
            ended = self._ended.result()
            raise ended.error if isinstance(ended, outcome.Error) else StopIteration
        return result

    def _take_prompts(self) -> None:
        """Have prompts wait for their turn. They are taken in the reader's thread, where what gives them may belong."""
        while self._left is not None:
            room = min(PROMPTS_AT_ONCE, MAX_PROMPTS_AHEAD - self._waiting.statistics().current_buffer_used)
            if not room:
                return
            batch = list(itertools.islice(self._left, room))
            self._thread.call(partial(_put, self._waiting, batch, len(batch) < room))
            if len(batch) < room:
                self._left = None

    def close(self) -> None:
        """Stop what is left."""
        self._left = None
        self._finalizer()

    def __enter__(self) -> "BlockingMap":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _run_map(
    thread: "_SwarmThread",
    prompts: Prompts,
    options: dict[str, Any],
    send: "trio.MemorySendChannel[MapResult]",
    ended: "concurrent.futures.Future[outcome.Maybe[None]]",
) -> None:
    """Run a batch to its end, in a thread of its own; what it raises goes to `ended`."""

    async def run(swarm: SwarmClient) -> None:
        try:
            async with swarm.map(prompts, **options) as results:
                async for result in results:
                    await send.send(result)
        except trio.BrokenResourceError:
            return  # Nobody reads any more.

    ended.set_result(outcome.capture(thread.call, run))
    thread.post(send.close)


async def _put(channel: "trio.MemorySendChannel[Prompt]", prompts: list[Prompt], last: bool, _: SwarmClient) -> None:
    for prompt in prompts:
        channel.send_nowait(prompt)
    if last:
        channel.close()


async def _receive(channel: "trio.MemoryReceiveChannel[MapResult]") -> MapResult | None:
    try:
        return await channel.receive()
    except (trio.EndOfChannel, trio.ClosedResourceError):
        return None


async def _next(stream: Stream) -> Chunk | None:
    async for chunk in stream:
        return chunk
    return None


@attrs.frozen
class _Inside:
    """What other threads need of the background thread."""

    token: trio.lowlevel.TrioToken
    swarm: SwarmClient
    stop: trio.Event
    calls: dict[trio.CancelScope, trio.Event] = attrs.field(factory=dict)
    """What runs for other threads; the event is set when it has ended."""


class _SwarmThread:
    """A thread in which trio runs a `SwarmClient`."""

    def __init__(self, config: DhtConfig, make_client: Callable[[Dht, trio.Nursery], SwarmClient]) -> None:
        self._config = config
        self._make_client = make_client
        self._started: concurrent.futures.Future[_Inside] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, name="llamanet", daemon=True)
        self._thread.start()
        self._inside = self._started.result()

    def call(self, function: Callable[[SwarmClient], Awaitable[T]]) -> T:
        """Run `function` in the thread, and wait for its result."""
        scope = trio.CancelScope()

        async def run() -> T:
            inside, ended = self._inside, trio.Event()
            if inside.stop.is_set():
                raise ClientClosed
            inside.calls[scope] = ended
            try:
                with scope:
                    return await function(inside.swarm)
                raise ClientClosed
            finally:
                del inside.calls[scope]
                ended.set()

        try:
            return trio.from_thread.run(run, trio_token=self._inside.token)
        except KeyboardInterrupt:
            self.post(scope.cancel)
            raise
        except trio.RunFinishedError as error:
            raise ClientClosed from error

    def post(self, function: Callable[[], object]) -> None:
        """Have the thread call `function`, if it still runs, without waiting for that."""
        try:
            self._inside.token.run_sync_soon(function)
        except trio.RunFinishedError:
            return

    def stop(self) -> None:
        """End the thread."""
        self.post(self._inside.stop.set)
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except UserError as error:
            self._started.set_exception(error)
        finally:
            if not self._started.done():
                self._started.set_exception(ClientClosed())

    async def _main(self) -> None:
        hosts = local_addresses()
        try:
            transport = UdpTransport.bind(hosts, self._config.port)
        except UserError:
            transport = UdpTransport.bind(hosts, 0)
        async with trio.open_nursery() as nursery:
            serve = partial(serve_dht, Identity.generate(), self._config, transport=transport)
            dht: Dht = await nursery.start(serve)
            stop = trio.Event()
            inside = _Inside(trio.lowlevel.current_trio_token(), self._make_client(dht, nursery), stop)
            self._started.set_result(inside)
            await stop.wait()
            for scope, ended in list(inside.calls.items()):
                scope.cancel()
                await ended.wait()
            nursery.cancel_scope.cancel()
