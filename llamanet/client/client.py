"""Asking the swarm: the client's face over one `Dht`, for `Swarm` and for the blocking `Client`."""

import json
import math
import secrets
from collections.abc import AsyncIterator, Hashable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

import attrs
import trio

from llamanet.client.affinity import Block, request_blocks
from llamanet.client.attempt import Access
from llamanet.client.batch import Journal, MapResult, Progress, Prompt, Prompts, run_batch
from llamanet.client.budget import WAIT_S, Budget
from llamanet.client.census import ModelView, NodeView, list_invited, list_models, list_nodes
from llamanet.client.choice import Choice
from llamanet.client.connection import ConnectionPool, OpenStream
from llamanet.client.decision import OnChoice, Strategy
from llamanet.client.directory import Directory
from llamanet.client.embedding import Embedder, EmbeddingReply, make_batches
from llamanet.client.generation import Stream
from llamanet.client.hedge import HedgeBudget
from llamanet.client.lobby import Lobby
from llamanet.client.reply import Reply
from llamanet.client.router import Question, Router
from llamanet.client.selection import Wishes
from llamanet.client.statistics import Statistics
from llamanet.client.strategy import STRATEGIES, check_strategy
from llamanet.client.tools import tool_fields, turn_fields
from llamanet.dht.service import Dht
from llamanet.errors import BadMessage, DeadlineExceeded, NotJoined, RequestRefused
from llamanet.wire.codec import from_map_untrusted
from llamanet.wire.identity import PublicKey
from llamanet.wire.inference import (
    CAPABILITY_EMBEDDINGS,
    CAPABILITY_GRAMMAR,
    CAPABILITY_JSON,
    GOES_ON,
    MAX_MESSAGE_BYTES,
    MAX_SEED,
    ChatMessage,
    Generate,
    can_go_on,
    encode_message,
)
from llamanet.wire.invite import Invite
from llamanet.wire.plain import Plain

MAX_CONCURRENCY = 256
"""Requests in flight of one `map` that does not say how many."""
JOIN_S = 5.0
"""How long a request waits for the first answer of a bootstrap peer."""

Messages: TypeAlias = Iterable[ChatMessage | Mapping[str, Any]]
"""A conversation: each turn has a `role` and its `content`, and calls of tools as in OpenAI's API."""


def make_request(
    prompt: str | None, messages: Messages | None, model: str | None, sampling: Mapping[str, Any]
) -> Generate:
    """A request as nodes accept it, with a seed. Raises `RequestRefused` for what they would refuse."""
    if (prompt is None) == (messages is None):
        raise RequestRefused("give exactly one of the two: a prompt, or messages=", "prompt or messages")
    options: dict[str, Plain] = {name: value for name, value in sampling.items() if value is not None}
    tools = [options.pop(name, None) for name in ("tools", "tool_choice", "parallel_tool_calls")]
    goes_on = options.pop("continue_final_message", False)
    if (form := options.pop("response_format", None)) is not None:
        if options.keys() & {"grammar", "json_schema"}:
            raise RequestRefused("give response_format, or a grammar, or a JSON schema, not two", "response_format")
        options.update(_grammar_options(form))
    stop = options.get("stop", [])
    options["stop"] = [stop] if isinstance(stop, str) else list(stop)
    if isinstance(bias := options.get("logit_bias"), Mapping):
        options["logit_bias"] = [[int(token) if str(token).isdecimal() else token, add] for token, add in bias.items()]
    if isinstance(breakers := options.get("dry_sequence_breakers"), tuple):
        options["dry_sequence_breakers"] = list(breakers)
    if isinstance(schema := options.get("json_schema"), Mapping):
        options["json_schema"] = _as_json(schema)
    options.setdefault("seed", secrets.randbelow(MAX_SEED + 1))
    plain: dict[str, Plain] = {"id": 0, "model": model, "prompt": prompt, "sampling": options, **tool_fields(*tools)}
    plain["continue_final_message"] = goes_on
    if prompt is not None and "tools" in plain:
        raise RequestRefused("a prompt takes no tools: give messages=", "tools", "only with messages")
    if messages is not None:
        try:
            plain["messages"] = [turn_fields(turn) for turn in messages]
        except (TypeError, ValueError) as error:
            raise RequestRefused(
                f"{repr(messages)[:100]} is no text, and no list of messages", "messages", "a role and its content each"
            ) from error
        if not plain["messages"]:
            raise RequestRefused("messages= is empty", "messages")
    try:
        request = from_map_untrusted(Generate, plain)
    except BadMessage as error:
        raise RequestRefused(str(error), error.field, error.limit) from error
    if request.continue_final_message and not can_go_on(request.messages):
        raise RequestRefused("there is nothing to go on with", "continue_final_message", GOES_ON)
    size = len(encode_message(request))
    if size > MAX_MESSAGE_BYTES:
        raise RequestRefused(f"a request of {size} bytes; at most {MAX_MESSAGE_BYTES} are accepted")
    return request


def _grammar_options(form: object) -> dict[str, Plain]:
    """The sampling options for `response_format`, which has the form that OpenAI's API gave it."""
    kind = form.get("type") if isinstance(form, Mapping) else None
    if isinstance(form, Mapping):
        if kind == "text":
            return {}
        if kind == "json_object":
            return {"json_schema": _as_json(form.get("schema", {"type": "object"}))}
        if kind == "json_schema" and isinstance(inner := form.get("json_schema"), Mapping) and "schema" in inner:
            return {"json_schema": _as_json(inner["schema"])}
        if kind == "grammar" and isinstance(form.get("grammar"), str):
            return {"grammar": form["grammar"]}
    raise RequestRefused(
        f"response_format {str(form)[:100]} is not known",
        "response_format",
        '{"type": "text"}, {"type": "json_object"}, {"type": "json_schema", "json_schema": {"schema": {...}}} '
        'or {"type": "grammar", "grammar": "root ::= ..."}',
    )


def _as_json(schema: object) -> str:
    try:
        return json.dumps(schema, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestRefused(f"the schema cannot be written as JSON: {error}", "sampling.json_schema") from error


def needed_capabilities(request: Generate) -> tuple[str, ...]:
    """What a node must be able to do for `request`, of `ServiceFacts.capabilities`."""
    sampling = request.sampling
    grammar = (CAPABILITY_GRAMMAR,) if sampling.grammar is not None else ()
    return (*grammar, CAPABILITY_JSON) if sampling.json_schema is not None or request.tools else grammar


def make_budget(*, wait: float, tries: int | None, timeout: float, caller: Hashable) -> Budget:
    """Raises `RequestRefused` for what is no number of seconds or tries."""
    for name, least, value in (("wait", 0, wait), ("tries", 1, tries), ("timeout", 0, timeout)):
        if value is not None and (not isinstance(value, int | float) or not value >= least):
            raise RequestRefused(f"{name} {value!r} will not do", name, f"{least} or more")
    return Budget(wait=wait, tries=tries, timeout=timeout, caller=caller)


class SwarmClient:
    """Generates on whatever node of the swarm will answer soonest. Its connections live in `nursery`.

    `min_tps` (tokens a second of one stream), `max_load` (requests running and waiting, for each slot) and `strategy`
    (one of `STRATEGIES`, or a `Policy`) bind every request that does not say otherwise.
    """

    def __init__(
        self,
        dht: Dht,
        nursery: trio.Nursery,
        *,
        min_tps: float = 0.0,
        max_load: float | None = None,
        strategy: Strategy = STRATEGIES[0],
        open_stream: OpenStream = trio.open_tcp_stream,
        rng: Random | None = None,
    ) -> None:
        self._dht = dht
        self._directory = Directory(dht, nursery)
        self._wishes = Wishes(min_tps=min_tps, max_load=max_load)
        self._strategy = check_strategy(strategy)
        self._nursery = nursery
        self._rng = rng or Random()
        self._router = Router(self._rng)
        self._access = Access(
            dht=dht,
            directory=self._directory,
            pool=ConnectionPool(nursery, open_stream),
            peers=self._router.peers,
            lobby=Lobby(),
            hedges=HedgeBudget(),
            probes=self._router.probes,
            probed=self._router.pool,
            rng=self._rng,
        )

    @asynccontextmanager
    async def stream(self, prompt: str | None = None, **options: Any) -> AsyncIterator[Stream]:
        """A generation, chunk by chunk; takes and raises what `open` does. Leaving the block stops it."""
        stream = await self.open(prompt, **options)
        try:
            yield stream
        finally:
            stream.close()

    async def open(
        self,
        prompt: str | None = None,
        *,
        messages: Messages | None = None,
        model: str | None = None,
        digest: bytes | None = None,
        min_tps: float | None = None,
        max_load: float | None = None,
        strategy: Strategy | None = None,
        min_context: int = 0,
        any_version: bool = False,
        wait: float = WAIT_S,
        tries: int | None = None,
        timeout: float = math.inf,
        caller: Hashable = None,
        on_choice: OnChoice | None = None,
        **sampling: Any,
    ) -> Stream:
        """A generation, to be closed by the caller; the first iteration asks a node.

        Args:
          prompt: continued as it is.
          messages: a conversation to be answered, through the model's chat template. Give one of the two.
          model: its name; None takes any.
          digest: SHA-256 of the model file, if it must be one certain file.
          min_tps: tokens a second of one stream, below which no node will do.
          max_load: requests running and waiting for each slot, above which no node will do for now.
          min_context: tokens of context, prompt and answer together, below which no node will do.
          strategy: how its node is chosen: "soonest" (the default), a function of your own (`Policy`), or, to compare
            with, "random", "round_robin" or "least_load".
          any_version: a stream that loses its node, when no other has its model file, may go on with another file of
            the same name: another quantisation, with the same vocabulary. `Reply.digests` then has more than one.
          wait: seconds to wait for a place before the first token while all nodes are busy; 0 does not wait.
          tries: how many times a node may fail the request before that is an error; by default each node twice.
          timeout: seconds until its end, after which `DeadlineExceeded` is raised. `trio.move_on_after` around the
            iteration does the same without an error; either stops the work at the nodes too.
          caller: requests of one caller share its turns when many wait; by default each is its own.
          on_choice: is called with a `Decision`, why a node is the one, just before each is asked.
          sampling: fields of `llamanet.wire.inference.Sampling`: `max_tokens`, `temperature`, `seed`, `stop`,
            `logprobs`, ... A `logit_bias` may be a mapping of token ids. `response_format`, as in OpenAI's API, asks
            for JSON (`{"type": "json_object"}`), for JSON that follows a schema
            (`{"type": "json_schema", "json_schema": {"schema": {...}}}`), or for what a GBNF grammar allows
            (`{"type": "grammar", "grammar": "root ::= ..."}`).
            `tools`, `tool_choice` and `parallel_tool_calls`, as in OpenAI's API too, offer functions to call, whatever
            the model: `Reply.tool_calls` has the calls that it made, each with arguments that follow their schema.
            `continue_final_message` goes on with the last of `messages`, a turn of the assistant, instead of answering
            it; the reply has only what is new.

        Raises `RequestRefused` for what no node would accept, and `NotJoined`. Iterating raises `NoNodeServes`,
        `SwarmBusy` or `DeadlineExceeded`.
        """
        budget = make_budget(wait=wait, tries=tries, timeout=timeout, caller=caller)
        request = make_request(prompt, messages, model, sampling)
        wishes = attrs.evolve(
            self._wishes,
            n_ctx=min_context,
            capabilities=needed_capabilities(request),
            generates=True,
            model=model,
            digest=digest,
            min_tps=self._wishes.min_tps if min_tps is None else min_tps,
            max_load=self._wishes.max_load if max_load is None else max_load,
        )
        if any_version and digest is not None:
            raise RequestRefused("give digest= or any_version=True, not both", "any_version")
        strategy = self._strategy if strategy is None else check_strategy(strategy)
        make_choice = partial(self._make_choice, blocks=request_blocks(request), strategy=strategy)
        self._access.hedges.earn()
        stream = Stream(
            self._access,
            make_choice,
            request,
            wishes,
            budget=budget,
            any_version=any_version,
            may_hedge=strategy == STRATEGIES[0],
            on_choice=on_choice,
        )
        await self._wait_joined()
        return stream

    def _make_choice(
        self,
        wishes: Wishes,
        prompt_tokens: int,
        failures: Mapping[PublicKey, int],
        max_failures: int,
        *,
        blocks: tuple[Block, ...] = (),
        strategy: Strategy | None = None,
    ) -> Choice:
        strategy = strategy or self._strategy
        question = Question(wishes=wishes, prompt_tokens=prompt_tokens, blocks=blocks, strategy=strategy)
        return Choice(self._dht, self._nursery, self._directory, self._router, question, failures, max_failures)

    async def generate(self, prompt: str | None = None, **options: Any) -> Reply:
        """A whole generation; takes what `stream` takes, and raises what it raises."""
        async with self.stream(prompt, **options) as stream:
            async for _ in stream:
                pass
        return stream.reply()

    @asynccontextmanager
    async def map(
        self,
        prompts: Prompts,
        *,
        concurrency: int | None = None,
        ordered: bool = True,
        journal: Path | str | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> AsyncIterator["trio.abc.ReceiveChannel[MapResult]"]:
        """One request for each of `prompts`, over the whole swarm; leaving the block stops what is left.

        >>> async with swarm.map(prompts, model="m", max_tokens=64) as results:  # doctest: +SKIP
        ...     async for result in results:
        ...         print(result.index, result.text)

        Args:
          prompts: texts, or conversations, each a list of messages; an async iterable of them, too. They are taken one
            by one, and not far ahead of their results.
          concurrency: requests in flight; None takes as many as the nodes that serve the model have slots.
          ordered: give the results in the order of the prompts; False gives them as they are made.
          journal: a file that keeps the replies, each on the disk (fsync) before it is handed on: broken off and called
            again, the batch goes on where it was.
          progress: called with the number of results so far and that of all prompts.
          options: as for `open`; `wait` is without limit unless it is given.

        A prompt that fails is told by its result (`MapResult.error`). Raises what `open` does for the options, and
        `OSError` for a journal that cannot be written.
        """
        if concurrency is None:
            slots = sum(node.slots for node in await self.nodes(options.get("model")))
            concurrency = min(max(1, slots), MAX_CONCURRENCY)
        elif concurrency < 1:
            raise RequestRefused(f"{concurrency} requests in flight are none", "concurrency", "1 or more")
        options.setdefault("wait", math.inf)
        caller = object()
        # What is wrong with the options is told once.
        prompt: Any = {"prompt": "any prompt"}
        if options.get("tools") and "messages" not in options:
            prompt = {"messages": [ChatMessage(role="user", content="any")]}
        (await self.open(**prompt, caller=caller, **options)).close()

        async def ask(prompt: Prompt) -> Reply:
            if isinstance(prompt, str):
                return await self.generate(prompt, caller=caller, **options)
            return await self.generate(messages=prompt, caller=caller, **options)

        kept = None if journal is None else await trio.to_thread.run_sync(Journal, journal, options)
        batch = run_batch(ask, prompts, concurrency=concurrency, ordered=ordered, journal=kept, progress=progress)
        async with batch as results:
            yield results

    async def embed(
        self,
        texts: Iterable[str],
        *,
        model: str | None = None,
        digest: bytes | None = None,
        wait: float = WAIT_S,
        tries: int | None = None,
        timeout: float = math.inf,
        caller: Hashable = None,
    ) -> EmbeddingReply:
        """A vector of length 1 for each of `texts`, pooled as the model says; from one model file all of them.

        `wait`, `tries`, `timeout` and `caller` as for `open`; `wait` is for all texts together.
        Raises `RequestRefused`, `NotJoined`, `NoNodeServes`, `SwarmBusy` or `DeadlineExceeded`.
        """
        batches = make_batches(texts, model)
        budget = make_budget(wait=wait, tries=tries, timeout=timeout, caller=caller)
        wishes = Wishes(model=model, digest=digest, capabilities=(CAPABILITY_EMBEDDINGS,))
        await self._wait_joined()
        with trio.move_on_after(timeout):
            return await Embedder(self._access, self._make_choice, wishes, budget).run(batches)
        raise DeadlineExceeded(timeout)

    async def nodes(self, model: str | None = None, *, node: str | None = None) -> list[NodeView]:
        """The nodes that are alive, or of them those that serve `model`, or that have the label or id `node`.

        Raises `NotJoined`.
        """
        await self._wait_joined()
        return await list_nodes(self._dht, self._directory, model, node)

    async def models(self) -> list[ModelView]:
        """The models that can be asked for. Raises `NotJoined`."""
        await self._wait_joined()
        return await list_models(self._dht, self._directory)

    @property
    def statistics(self) -> Statistics:
        """How this client and its DHT are doing."""
        return Statistics(
            requests=self._access.hedges.requests,
            hedges=self._access.hedges.hedges,
            waiting=self._access.lobby.waiting,
            in_flight=self._access.peers.all_in_flight,
            dht=self._dht.health(),
        )

    async def invite(self) -> Invite:
        """What another machine needs to join this swarm. Raises `NotJoined`, also if no node answers."""
        await self._wait_joined()
        peers = await list_invited(self._dht, self._directory)
        if not peers:
            raise NotJoined(self._dht.config.bootstrap)
        network = self._dht.config.network
        return Invite(swarm_name=network.name, swarm_key=network.swarm_key, peers=tuple(peers))

    async def _wait_joined(self) -> None:
        if not self._dht.joined:
            with trio.move_on_after(JOIN_S):
                await self._dht.wait_joined()
            if not self._dht.joined:
                raise NotJoined(self._dht.config.bootstrap)
