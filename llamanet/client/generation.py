"""One generation, whatever becomes of the nodes that compute it.

Rules:
- A stream is a function of the token ids so far. When its node dies, hangs or turns bad (`client/attempt.py`), the next
  one gets the prompt and the ids that were delivered, and goes on from there: nothing is lost, nothing comes twice.
- It goes on only on the same model file: the digest is that of the first node that delivered a token. With
  `any_version`, and when that file is nowhere else, any file by the model's name will do, and the reply says so.
- A first token that is later than usual is asked of a second node too (`client/hedge.py`); the first to speak wins.
- Before the first token, "busy" everywhere is waited out for a while (`client/budget.py`), and then an error. A node
  that said when to come back is not asked before, by any request. A begun stream goes on waiting.
- There is no other deadline than the caller's: `trio.move_on_after` around a stream, or its own `timeout`. Cancelling
  cancels the work at the nodes.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import attrs
import trio

from llamanet.client.affinity import request_texts
from llamanet.client.attempt import Access, Attempt
from llamanet.client.budget import BUSY_PAUSE_S, JITTER, Budget, Place
from llamanet.client.choice import Choice
from llamanet.client.connection import Answer
from llamanet.client.decision import Decision
from llamanet.client.selection import Wishes, tokens_in
from llamanet.client.tool_calls import CallReader, Parsed, ToolCallDelta
from llamanet.errors import DeadlineExceeded, LlamaNetError, NodeFailed, NoNodeServes, RequestRefused, SwarmBusy
from llamanet.wire.identity import PublicKey
from llamanet.wire.inference import (
    CAPABILITY_TEXT_RESUME,
    Accepted,
    Failed,
    Finished,
    Generate,
    Timings,
    TokenLogprobs,
    Tokens,
    Usage,
)
from llamanet.wire.tools import FORMATS, ToolCall

MAX_CHOICES = 16
MAX_HOPS = 64

MakeChoice = Callable[[Wishes, int, Mapping[PublicKey, int], int], Choice]
"""From wishes, the prompt's tokens, each node's failures and how many it may have to where the request may go."""
OnChoice = Callable[[Decision], object]
"""Is told why each node is asked, just before it is."""


@attrs.frozen
class Chunk:
    """The next tokens of a stream, and the text that they complete.

    `text` may be empty while a character, a possible stop string or a possible call is half done. What was held back
    for a call that did not come is in a last chunk without tokens.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One for each id, if the request asks for them."""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    """What came of calls of the request's tools."""


BUSY = "busy"
"""The reason of a hop from a node whose queue was full; all others are faults."""


class Hop(NamedTuple):
    """A node that a request left, and why."""

    node_id: str
    reason: str


@attrs.frozen(kw_only=True)
class Reply:
    """A whole generation."""

    text: str
    """Without the calls in it, if the request has tools."""
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    """One for each id, if the request asks for them."""
    model: str
    node_id: str
    """The label of the node that finished it."""
    finish_reason: str
    """`stop`, `tool_calls`, `length`, or `context` (the node's was full)."""
    usage: Usage
    timings: Timings
    """Where the node that finished it spent its time."""
    ttft: float | None
    """Seconds until the first token, finding a node included; None if there is no token."""
    tokens_per_second: float
    """From the first token on."""
    generation_time: float
    """Seconds from the request to its last token."""
    hops: tuple[Hop, ...]
    """The nodes that it left, the last `MAX_HOPS` of them."""
    digests: tuple[str, ...] = ()
    """SHA-256 of the model file, in hexadecimal; of each file in turn, if `any_version` let there be several."""
    choices: tuple[Decision, ...] = ()
    """Why each node was asked, the last `MAX_CHOICES` of them."""
    tool_calls: tuple[ToolCall, ...] = ()
    """The calls of the request's tools. Unless it ended with `tool_calls`, the last may be cut off."""

    @property
    def tokens_generated(self) -> int:
        """As `usage.completion_tokens`."""
        return self.usage.completion_tokens


def out_of_tries(
    model: str | None, failures: Mapping[PublicKey, int], hops: Iterable[Hop], budget: Budget
) -> NoNodeServes:
    """The error of a request that failed as often as it may."""
    reasons = (f"{hop.node_id}: {hop.reason}" for hop in hops if hop.reason != BUSY)
    served = () if model is None else (model,)
    return NoNodeServes(model, len(failures), served, (*reasons, f"tries={budget.tries} was given"))


class Stream:
    """An async iterator of `Chunk`. What it tells about itself is final once it is exhausted."""

    def __init__(
        self,
        access: Access,
        make_choice: MakeChoice,
        request: Generate,
        wishes: Wishes,
        *,
        budget: Budget,
        any_version: bool = False,
        may_hedge: bool = True,
        on_choice: OnChoice | None = None,
    ) -> None:
        """Made by `SwarmClient.open`; `request` has its seed."""
        self.token_ids: list[int] = []
        """All ids so far."""
        self.node_id: str | None = None
        """The label of the node that answers, or answered last; None before the first is asked."""
        self.model = request.model
        """The model's name; None, if any will do, before the first node is asked."""
        self.digests: tuple[str, ...] = ()
        """SHA-256 of the model files that answered, in hexadecimal."""
        self.choices: tuple[Decision, ...] = ()
        """Why each node was asked, the last `MAX_CHOICES` of them."""
        self.finish_reason: str | None = None
        """`stop`, `tool_calls`, `length`, or `context` (the node's was full); None before the end."""
        self.usage: Usage | None = None
        self.ttft: float | None = None
        """Seconds from the beginning to the first token, finding a node included."""
        self._access = access
        self._make_choice = make_choice
        self._request = request
        self._wishes = wishes
        self._any_version = any_version
        self._budget = budget
        self._place = Place(access, wishes, budget)
        self._on_choice = on_choice
        self._hops: deque[Hop] = deque(maxlen=MAX_HOPS)
        self._texts: list[str] = []
        self._said: list[str] = []
        """As nodes wrote it: with the calls of tools, which `_texts` lacks."""
        self._logprobs: list[TokenLogprobs] = []
        self._tool_format: str | None = None
        self._calls: CallReader | None = None
        self._failures: dict[PublicKey, int] = {}
        self._failed = 0
        """How often a node failed."""
        self._looked = False
        """For a node, once at least."""
        self._choice: Choice | None = None
        self._attempt: Attempt | None = None
        self._hedged = not may_hedge
        self._won: tuple[Attempt, Answer] | None = None
        """What the first of two nodes said."""
        self._started_at = self._first_at = self._last_at = trio.current_time()
        self._deadline = self._started_at + budget.timeout
        self._cached_tokens: int | None = None
        self._timings = Timings()
        self._too_long: RequestRefused | None = None

    @property
    def hops(self) -> tuple[Hop, ...]:
        """The nodes that it left, and why; the last `MAX_HOPS` of them."""
        return tuple(self._hops)

    @property
    def accepted_at(self) -> float | None:
        """When the node that answers now took the request, on trio's clock; None if it did not yet, or none answers."""
        return self._attempt.accepted_at if self._attempt else None

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

        Raises `NoNodeServes`, `SwarmBusy` (before the first token only), `RequestRefused`, or `DeadlineExceeded`.
        """
        try:
            if self._deadline == math.inf:
                return await self._next()
            with trio.CancelScope(deadline=self._deadline):
                return await self._next()
            raise DeadlineExceeded(self._budget.timeout, len(self.token_ids))
        except LlamaNetError:
            self.close()
            raise
        finally:
            self._place.taken()

    async def _next(self) -> Chunk:
        while self.finish_reason is None:
            if self._attempt is None:
                self._attempt = await self._ask()
                continue
            heard = self._take_won() or await self._next_answer(self._attempt)
            if heard is not None and (chunk := self._judge(*heard)) is not None:
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
            timings=self._timings,
            ttft=self.ttft,
            tokens_per_second=self.tokens_per_second,
            generation_time=self._last_at - self._started_at,
            hops=self.hops,
            digests=self.digests,
            choices=self.choices,
            tool_calls=self._calls.calls if self._calls else (),
        )

    def close(self) -> None:
        """Stop the work at the node. May be called again."""
        self._place.leave()
        if self._attempt is not None:
            self._attempt.finish()
            self._attempt = None

    # --- a node ------------------------------------------------------------------------------------------------------

    async def _ask(self) -> Attempt | None:
        """Ask the best node that is left; None if it is time to look again."""
        if self._choice is None:
            if self._budget.is_spent(self._failed):
                raise out_of_tries(self._wishes.model, self._failures, self._hops, self._budget)
            await self._place.go()
            if not self._looked:
                # Not before: what is not spent at once is not saved up.
                self._access.probes.earn()
                self._looked = True
            self._choice = self._make_choice(
                self._wishes, self._prompt_tokens(), self._failures, self._budget.max_failures
            )
        attempt = await self._ask_next(self._choice)
        if attempt is None:
            await self._nobody_is_left(self._choice)
            self._choice = None
            return None
        self.node_id, self.model = attempt.label, attempt.candidate.service.model
        return attempt

    async def _ask_next(self, choice: Choice) -> Attempt | None:
        while (candidate := await choice.next()) is not None:
            service = candidate.service
            pause = self._access.peers.busy_for_s(service.node_id, trio.current_time())
            if self.token_ids or not pause:
                break
            choice.busy[service.facts.label] = pause
        if candidate is None:
            return None
        if choice.decision is not None:
            self.choices = (*self.choices, choice.decision)[-MAX_CHOICES:]
            if self._on_choice is not None:
                self._on_choice(choice.decision)
        by_text = self.token_ids and CAPABILITY_TEXT_RESUME in candidate.service.facts.capabilities
        request = attrs.evolve(
            self._request, resume=tuple(self.token_ids), resume_text="".join(self._said) if by_text else None
        )
        return Attempt(self._access, candidate, request, self._prompt_tokens())

    async def _nobody_is_left(self, choice: Choice) -> None:
        """Wait, if that may help; raise if it will not."""
        if self._too_long is not None and not choice.busy:
            raise self._too_long
        rng = self._access.rng
        if choice.busy and self.token_ids:
            await trio.sleep(min(BUSY_PAUSE_S, *choice.busy.values()) * rng.uniform(*JITTER))
            return
        error = await choice.nobody()
        if not isinstance(error, SwarmBusy):
            raise error
        await self._place.wait(error)

    def _leave(self, attempt: Attempt, reason: str) -> None:
        """Give up a node; the next one goes on. Whether it is to blame was said before."""
        attempt.finish()
        if attempt.spoke:
            self._choice = None  # What was known of the others is as old as this node's first token.
        elif self._choice is not None:
            self._choice.reasons[attempt.label] = reason
        self._hops.append(Hop(attempt.label, reason))
        if attempt is self._attempt:
            self._attempt = None

    def _blame(self, attempt: Attempt, reason: str) -> None:
        """Leave a node that failed."""
        key = attempt.candidate.service.public_key
        self._failures[key] = self._failures.get(key, 0) + 1
        self._failed += 1
        attempt.fail()
        self._leave(attempt, reason)
        if self._budget.is_spent(self._failed):
            self._choice = None

    # --- its answers -------------------------------------------------------------------------------------------------

    async def _next_answer(self, attempt: Attempt) -> tuple[Attempt, Answer] | None:
        """The next answer, and the node that gave it; None if there is none, for the node was left."""
        hedge_at = None if attempt.spoke or self._hedged or self.token_ids else attempt.hedge_at
        try:
            if hedge_at is None:
                return attempt, await attempt.receive()
            with trio.move_on_at(hedge_at):
                return attempt, await attempt.receive()
        except NodeFailed as error:
            self._blame(attempt, error.reason)
            return None
        self._hedged = True
        if self._choice is not None and self._access.hedges.spend():
            await self._race(attempt, self._choice)
        return None

    async def _race(self, first: Attempt, choice: Choice) -> None:
        """Ask a second node. The first of them to speak is the one that answers; the other one is cancelled."""
        rivals = [first]

        async def listen(attempt: Attempt) -> None:
            try:
                answer = await attempt.receive()
                while isinstance(answer, Accepted):
                    self._place.taken()
                    answer = await attempt.receive()
                if isinstance(answer, Failed) and answer.code != "bad_request" and len(rivals) > 1:
                    self._take_failure(answer, attempt)
                    rivals.remove(attempt)
                    return
            except NodeFailed as error:
                self._blame(attempt, error.reason)
                rivals.remove(attempt)
                return
            if self._won is None:
                self._won = attempt, answer
                nursery.cancel_scope.cancel()

        async def start_second() -> None:
            second = await self._ask_next(choice)
            if second is not None:
                rivals.append(second)
                await listen(second)

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listen, first)
                nursery.start_soon(start_second)
        finally:
            # Also when cancelled: what was said is not lost, and nobody goes on unheard.
            winner = self._won[0] if self._won else first
            for rival in rivals:
                if rival not in (first, winner):
                    rival.finish()
            if winner is not first:
                if first in rivals:
                    self._leave(first, "another node spoke sooner")
                self._attempt = winner
                self.node_id, self.model = winner.label, winner.candidate.service.model

    def _take_won(self) -> tuple[Attempt, Answer] | None:
        won, self._won = self._won, None
        return won

    def _judge(self, attempt: Attempt, answer: Answer) -> Chunk | None:
        """What an answer means for the caller; the node is left if it must be."""
        try:
            return self._take(answer, attempt)
        except NodeFailed as error:
            self._blame(attempt, error.reason)
            return None

    def _take(self, answer: Answer, attempt: Attempt) -> Chunk | None:
        """Raises `NodeFailed` if the node must be left."""
        if isinstance(answer, Tokens):
            return self._take_tokens(answer, attempt)
        if isinstance(answer, Accepted):
            self._place.taken()
        elif isinstance(answer, Finished):
            if answer.usage.completion_tokens != len(self.token_ids):
                counted = answer.usage.completion_tokens
                raise NodeFailed(attempt.label, f"it counts {counted} tokens where {len(self.token_ids)} came")
            cached = attempt.cached_tokens if self._cached_tokens is None else self._cached_tokens
            self.usage = attrs.evolve(answer.usage, cached_tokens=cached)
            self._timings = answer.timings
            self.finish_reason = answer.reason
            self.close()
            return self._finish_calls(self._calls) if self._calls else None
        elif isinstance(answer, Failed):
            self._take_failure(answer, attempt)
        return None

    def _take_tokens(self, tokens: Tokens, attempt: Attempt) -> Chunk:
        most = self._request.sampling.max_tokens
        if most is not None and len(self.token_ids) + len(tokens.token_ids) > most:
            raise NodeFailed(attempt.label, f"it sends more than max_tokens {most}")
        told = tuple(chance.token for chance in tokens.logprobs) if tokens.logprobs else ()
        if told != (() if self._request.sampling.logprobs is None else tokens.token_ids):
            raise NodeFailed(attempt.label, "its log-probabilities do not belong to its tokens")
        calls = self._calls_by(attempt)
        self._last_at = now = attempt.heard_at
        if self.ttft is None:
            self.ttft = now - self._started_at
            self._first_at = now
            self._cached_tokens = attempt.cached_tokens
            if self._choice is not None:
                self._choice.spoke(attempt.candidate)
        service = attempt.candidate.service
        if service.facts.digest not in (self._wishes.digest, self._wishes.preferred) or self._wishes.model is None:
            file = service.facts.digest
            self._wishes = (
                attrs.evolve(self._wishes, model=service.model, preferred=file)
                if self._any_version
                else attrs.evolve(self._wishes, model=service.model, digest=file)
            )
        digest = service.facts.digest.hex()
        if not self.digests or self.digests[-1] != digest:
            self.digests = (*self.digests, digest)
        needed = self._wishes.capabilities
        if CAPABILITY_TEXT_RESUME in service.facts.capabilities and CAPABILITY_TEXT_RESUME not in needed:
            # Its ids are worth nothing to a node that has the model itself.
            self._wishes = attrs.evolve(self._wishes, capabilities=(*needed, CAPABILITY_TEXT_RESUME))
        self.token_ids += tokens.token_ids
        self._said.append(tokens.text)
        self._logprobs += tokens.logprobs
        text, deltas = calls.feed(tokens.text) if calls else Parsed(tokens.text)
        self._texts.append(text)
        return Chunk(text, tokens.token_ids, tokens.logprobs, deltas)

    def _calls_by(self, attempt: Attempt) -> CallReader | None:
        """What reads the calls out of a node's text, if there may be any. Raises `NodeFailed`."""
        if not self._request.tools:
            return None
        if self._calls is None and (form := FORMATS.get(attempt.tool_format or "")):
            self._calls, self._tool_format = CallReader(form), attempt.tool_format
        if self._calls is None or attempt.tool_format != self._tool_format:
            expected = self._tool_format or ", ".join(FORMATS)
            raise NodeFailed(attempt.label, f"it writes calls as {attempt.tool_format!r}, and not as {expected}")
        return self._calls

    def _finish_calls(self, calls: CallReader) -> Chunk | None:
        text = calls.finish().text
        self._texts.append(text)
        if self.finish_reason == "stop" and calls.whole:
            self.finish_reason = "tool_calls"
        return Chunk(text, ()) if text else None

    def _take_failure(self, failed: Failed, attempt: Attempt) -> None:
        if failed.code == "bad_request" and not self.token_ids:
            attempt.finish()
            raise RequestRefused(failed.message, failed.field, failed.limit)
        if failed.code == "busy" and self._choice is not None:
            pause = failed.retry_after or BUSY_PAUSE_S
            self._choice.busy[attempt.label] = pause
            attempt.busy(pause)
            self._leave(attempt, BUSY)
        elif failed.code == "slow_reader":
            self._leave(attempt, "the reader was too slow")
        elif failed.code == "draining":
            self._failures[attempt.candidate.service.public_key] = 1
            self._leave(attempt, failed.message)
        elif failed.code == "too_long":
            self._too_long = self._too_long or RequestRefused(failed.message, failed.field, failed.limit)
            self._wishes = attrs.evolve(self._wishes, n_ctx=attempt.candidate.state.n_ctx + 1)
            self._leave(attempt, failed.message)
            self._choice = None
        else:
            raise NodeFailed(attempt.label, failed.message)

    def _prompt_tokens(self) -> int:
        """About how many tokens a node must compute before it can give the next one."""
        request = self._request
        characters = sum(map(len, request_texts(request)))
        return tokens_in(characters) + len(self.token_ids)
