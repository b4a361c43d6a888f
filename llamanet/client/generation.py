"""One generation, whatever becomes of the nodes that compute it.

Rules:
- A stream is a function of the token ids so far. When its node dies, falls silent or turns bad, the next one gets the
  prompt and the ids that were delivered, and goes on from there: nothing is lost, nothing comes twice.
- It goes on only on the same model file: the digest is that of the first node that delivered a token.
- A node that is silent for longer than its own pace explains is asked by UDP. Dead: move on. Alive: wait, but not for
  ever.
- Before the first token, "busy" everywhere is an error for the caller. Later it is not: a begun stream waits.
- There is no deadline here but the caller's; cancelling cancels the work at the node.
"""

from collections.abc import Callable, Mapping
from random import Random
from typing import NamedTuple

import attrs
import trio

from llamanet.client.choice import Choice
from llamanet.client.connection import Answer, ConnectionPool, Exchange, Peer
from llamanet.client.decision import Decision
from llamanet.client.selection import Candidate, Wishes, estimated_ttft, tokens_in
from llamanet.dht.service import Dht
from llamanet.errors import NodeFailed, RequestRefused, RpcTimeout
from llamanet.wire.identity import PublicKey
from llamanet.wire.inference import Accepted, Failed, Finished, Generate, TokenLogprobs, Tokens, Usage
from llamanet.wire.rpc import Contact

SILENCE_S = 0.75
"""The least silence after which a node is asked whether it is alive..."""
SILENT_GAPS = 4
"""...and so many times its usual time between tokens."""
PING_S = 0.5
PINGS = 2
HANG_S = 30.0
"""A node that is alive and gives no token for so long hangs..."""
HUNG_ESTIMATES = 4
"""...unless so many times its own estimate of the first token is longer: a long prompt, a long queue..."""
HUNG_GAPS = 20
"""...or so many times its usual time between tokens."""
BUSY_PAUSE_S = 2.0
"""The longest that a begun stream waits before it asks busy nodes again."""
MAX_CHOICES = 16
GAP_WEIGHT = 0.2
"""Of the newest time between tokens, in their average."""

MakeChoice = Callable[[Wishes, int, Mapping[PublicKey, int]], Choice]
"""From wishes, the prompt's tokens and each node's failures to where the request may go."""


@attrs.frozen
class Chunk:
    """The next tokens of a stream, and the text that they complete.

    `text` may be empty while a character or a possible stop string is half done.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One for each id, if the request asks for them."""


class Hop(NamedTuple):
    """A node that a request left, and why."""

    node_id: str
    reason: str


@attrs.frozen(kw_only=True)
class Reply:
    """A whole generation."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    """One for each id, if the request asks for them."""
    model: str
    node_id: str
    """The label of the node that finished it."""
    finish_reason: str
    """`stop`, `length`, or `context` (the node's was full)."""
    usage: Usage
    ttft: float | None
    """Seconds until the first token, finding a node included; None if there is no token."""
    tokens_per_second: float
    """From the first token on."""
    generation_time: float
    """Seconds from the request to its last token."""
    hops: tuple[Hop, ...]
    choices: tuple[Decision, ...] = ()
    """Why each node was asked, the last `MAX_CHOICES` of them."""

    @property
    def tokens_generated(self) -> int:
        """As `usage.completion_tokens`."""
        return self.usage.completion_tokens


@attrs.define
class _Asked:
    """A node that is answering, or should be. Times are on trio's clock."""

    candidate: Candidate
    exchange: Exchange
    heard_at: float
    spoke: bool = False
    """It has delivered a token."""

    @property
    def label(self) -> str:
        return self.candidate.service.facts.label


class Stream:
    """An async iterator of `Chunk`. What it tells about itself is final once it is exhausted."""

    def __init__(
        self, dht: Dht, pool: ConnectionPool, make_choice: MakeChoice, request: Generate, wishes: Wishes, rng: Random
    ) -> None:
        """Made by `SwarmClient.stream`; `request` has its seed."""
        self.token_ids: list[int] = []
        """All ids so far."""
        self.node_id: str | None = None
        """The label of the node that answers, or answered last; None before the first is asked."""
        self.model = request.model
        """The model's name; None, if any will do, before the first node is asked."""
        self.hops: tuple[Hop, ...] = ()
        self.choices: tuple[Decision, ...] = ()
        """Why each node was asked, the last `MAX_CHOICES` of them."""
        self.finish_reason: str | None = None
        """`stop`, `length`, or `context` (the node's was full); None before the end."""
        self.usage: Usage | None = None
        self.ttft: float | None = None
        """Seconds from the beginning to the first token, finding a node included."""
        self._dht = dht
        self._pool = pool
        self._make_choice = make_choice
        self._request = request
        self._wishes = wishes
        self._rng = rng
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprobs] = []
        self._failures: dict[PublicKey, int] = {}
        self._choice: Choice | None = None
        self._asked: _Asked | None = None
        self._started_at = self._first_at = self._last_at = trio.current_time()
        self._gap = 0.0
        self._cached_tokens: int | None = None
        self._too_long: RequestRefused | None = None

    @property
    def tokens_per_second(self) -> float:
        """Tokens after the first one, by the time since it; 0.0 while there are none."""
        elapsed = self._last_at - self._first_at
        return (len(self.token_ids) - 1) / elapsed if elapsed > 0 else 0.0

    def __aiter__(self) -> "Stream":
        """The stream itself; it can be read once."""
        return self

    async def __anext__(self) -> Chunk:
        """The next tokens. Only one task may read at a time.

        Raises `NoNodeServes`, `SwarmBusy` (before the first token only), or `RequestRefused`.
        """
        while self.finish_reason is None:
            if self._asked is None:
                self._asked = await self._ask()
                continue
            try:
                chunk = self._take(await self._receive(self._asked), self._asked)
            except NodeFailed as error:
                self._leave(self._asked, error.reason)
                continue
            if chunk is not None:
                return chunk
        raise StopAsyncIteration

    def reply(self) -> Reply:
        """The whole generation, once the stream is exhausted. Raises `ValueError` before."""
        if self.finish_reason is None or self.usage is None:
            raise ValueError("the stream is not exhausted")
        return Reply(
            text="".join(self._texts),
            token_ids=tuple(self.token_ids),
            logprobs=tuple(self._logprobs),
            model=self.model or "",
            node_id=self.node_id or "",
            finish_reason=self.finish_reason,
            usage=self.usage,
            ttft=self.ttft,
            tokens_per_second=self.tokens_per_second,
            generation_time=self._last_at - self._started_at,
            hops=self.hops,
            choices=self.choices,
        )

    def close(self) -> None:
        """Stop the work at the node. May be called again."""
        if self._asked is not None:
            self._asked.exchange.cancel()
            self._asked = None

    # --- a node ------------------------------------------------------------------------------------------------------

    async def _ask(self) -> _Asked | None:
        """Ask the best node that is left; None if it is time to look again."""
        if self._choice is None:
            self._choice = self._make_choice(self._wishes, self._prompt_tokens(), self._failures)
        candidate = await self._choice.next()
        if candidate is None:
            await self._nobody_is_left(self._choice)
            self._choice = None
            return None
        if self._choice.decision is not None:
            self.choices = (*self.choices, self._choice.decision)[-MAX_CHOICES:]
        service, facts = candidate.service, candidate.service.facts
        peer = Peer(
            public_key=service.public_key,
            label=facts.label,
            host=candidate.address.host,
            port=facts.port,
            tls=facts.tls,
        )
        request = attrs.evolve(self._request, model=service.model, digest=facts.digest, resume=tuple(self.token_ids))
        self.node_id, self.model = facts.label, service.model
        return _Asked(candidate, self._pool.submit(peer, request), trio.current_time())

    async def _nobody_is_left(self, choice: Choice) -> None:
        """Wait, if that may help; raise if it will not."""
        if self._too_long is not None and not choice.busy:
            raise self._too_long
        if not (choice.busy and self.token_ids):
            raise await choice.nobody()
        await trio.sleep(min(BUSY_PAUSE_S, *choice.busy.values()) * self._rng.uniform(0.75, 1.25))

    def _leave(self, asked: _Asked, reason: str, *, blame: bool = True) -> None:
        """Give up a node; the next one goes on."""
        key = asked.candidate.service.public_key
        if blame:
            self._failures[key] = self._failures.get(key, 0) + 1
        if asked.spoke:
            self._choice = None  # What was known of the others is as old as this node's first token.
        elif self._choice is not None:
            self._choice.reasons[asked.label] = reason
        self.hops = (*self.hops, Hop(asked.label, reason))
        self.close()

    # --- its answers -------------------------------------------------------------------------------------------------

    async def _receive(self, asked: _Asked) -> Answer:
        """The node's next answer. Raises `NodeFailed` if none will come."""
        while True:
            with trio.move_on_after(max(SILENCE_S, SILENT_GAPS * self._gap)):
                return await asked.exchange.receive()
            await self._check(asked)

    async def _check(self, asked: _Asked) -> None:
        """Raises `NodeFailed` if a silent node is dead, or hangs."""
        candidate = asked.candidate
        contact = Contact(candidate.service.public_key, candidate.address)
        for _ in range(PINGS):
            try:
                pong = (await self._dht.ping(contact, model=candidate.service.model, timeout=PING_S)).pong
            except RpcTimeout:
                continue
            for state in pong.models:
                candidate = asked.candidate = attrs.evolve(candidate, state=state)
            patience = HANG_S
            if not asked.spoke:
                patience = max(patience, HUNG_ESTIMATES * estimated_ttft(candidate, self._prompt_tokens()))
            if trio.current_time() - asked.heard_at > max(patience, HUNG_GAPS * self._gap):
                raise NodeFailed(asked.label, "it hangs: alive, but no token comes")
            return
        if not asked.exchange.ready:
            raise NodeFailed(asked.label, "it fell silent")

    def _take(self, answer: Answer, asked: _Asked) -> Chunk | None:
        """What an answer means for the caller. Raises `NodeFailed` if the node must be left."""
        if isinstance(answer, Tokens):
            return self._take_tokens(answer, asked)
        if isinstance(answer, Accepted):
            asked.heard_at = trio.current_time()
            if self._cached_tokens is None:
                self._cached_tokens = answer.cached_tokens
        elif isinstance(answer, Finished):
            if answer.usage.completion_tokens != len(self.token_ids):
                counted = answer.usage.completion_tokens
                raise NodeFailed(asked.label, f"it counts {counted} tokens where {len(self.token_ids)} came")
            self.usage = attrs.evolve(answer.usage, cached_tokens=self._cached_tokens or 0)
            self.finish_reason = answer.reason
            self.close()
        elif isinstance(answer, Failed):
            self._take_failure(answer, asked)
        return None

    def _take_tokens(self, tokens: Tokens, asked: _Asked) -> Chunk:
        most = self._request.sampling.max_tokens
        if most is not None and len(self.token_ids) + len(tokens.token_ids) > most:
            raise NodeFailed(asked.label, f"it sends more than max_tokens {most}")
        wanted = self._request.sampling.logprobs
        if [told.token for told in tokens.logprobs] != ([] if wanted is None else list(tokens.token_ids)):
            raise NodeFailed(asked.label, "its log-probabilities do not belong to its tokens")
        now = trio.current_time()
        if self.ttft is None:
            self.ttft = now - self._started_at
            self._first_at = now
        elif asked.spoke:
            self._gap += GAP_WEIGHT * ((now - asked.heard_at) / len(tokens.token_ids) - self._gap)
        if not asked.spoke:
            asked.spoke = True
            service = asked.candidate.service
            self._wishes = attrs.evolve(self._wishes, model=service.model, digest=service.facts.digest)
        asked.heard_at = self._last_at = now
        self.token_ids += tokens.token_ids
        self._texts.append(tokens.text)
        self._logprobs += tokens.logprobs
        return Chunk(tokens.text, tokens.token_ids, tokens.logprobs)

    def _take_failure(self, failed: Failed, asked: _Asked) -> None:
        if failed.code == "bad_request" and not self.token_ids:
            self.close()
            raise RequestRefused(failed.message, failed.field, failed.limit)
        if failed.code == "busy" and self._choice is not None:
            self._choice.busy[asked.label] = failed.retry_after or BUSY_PAUSE_S
            self._leave(asked, "busy", blame=False)
        elif failed.code == "slow_reader":
            self._leave(asked, "the reader was too slow", blame=False)
        elif failed.code == "too_long":
            self._too_long = self._too_long or RequestRefused(failed.message, failed.field, failed.limit)
            self._wishes = attrs.evolve(self._wishes, n_ctx=asked.candidate.state.n_ctx + 1)
            self._leave(asked, failed.message)
            self._choice = None
        else:
            raise NodeFailed(asked.label, failed.message)

    def _prompt_tokens(self) -> int:
        """About how many tokens a node must compute before it can give the next one."""
        request = self._request
        characters = len(request.prompt or "") + sum(len(message.content) for message in request.messages)
        return tokens_in(characters) + len(self.token_ids)
