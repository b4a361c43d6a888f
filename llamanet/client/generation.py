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

import attrs
import trio

from llamanet.client.affinity import request_texts
from llamanet.client.attempt import Access, Attempt
from llamanet.client.budget import BUSY_PAUSE_S, JITTER, Budget, Place, out_of_tries
from llamanet.client.choice import Choice, MakeChoice
from llamanet.client.connection import Answer
from llamanet.client.decision import Decision, OnChoice
from llamanet.client.reply import BUSY, MAX_CHOICES, MAX_HOPS, Chunk, Hop, Reply
from llamanet.client.selection import Wishes, tokens_in
from llamanet.client.transcript import Transcript
from llamanet.errors import DeadlineExceeded, LlamaNetError, NodeFailed, RequestRefused, SwarmBusy
from llamanet.wire.identity import PublicKey
from llamanet.wire.inference import (
    CAPABILITY_TEXT_RESUME,
    Accepted,
    Failed,
    Finished,
    Generate,
    Tokens,
    Usage,
)


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
        self.node_id: str | None = None
        """The label of the node that answers, or answered last; None before the first is asked."""
        self.model = request.model
        """The model's name; None, if any will do, before the first node is asked."""
        self.digests: tuple[str, ...] = ()
        """SHA-256 of the model files that answered, in hexadecimal."""
        self.choices: tuple[Decision, ...] = ()
        """Why each node was asked, the last `MAX_CHOICES` of them."""
        self._access = access
        self._make_choice = make_choice
        self._request = request
        self._wishes = wishes
        self._any_version = any_version
        self._budget = budget
        self._place = Place(access, wishes, budget)
        self._on_choice = on_choice
        self._hops: deque[Hop] = deque(maxlen=MAX_HOPS)
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
        now = trio.current_time()
        self._deadline = now + budget.timeout
        self._transcript = Transcript(request, now)
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
    def token_ids(self) -> list[int]:
        """All ids so far."""
        return self._transcript.token_ids

    @property
    def finish_reason(self) -> str | None:
        """`stop`, `tool_calls`, `length`, or `context` (the node's was full); None before the end."""
        return self._transcript.finish_reason

    @property
    def usage(self) -> Usage | None:
        """Tokens counted; None before the end."""
        return self._transcript.usage

    @property
    def ttft(self) -> float | None:
        """Seconds from the beginning to the first token, finding a node included."""
        return self._transcript.ttft

    @property
    def tokens_per_second(self) -> float:
        """Tokens after the first one, by the time since it; 0.0 while there are none."""
        return self._transcript.tokens_per_second

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
        said = self._transcript
        if said.finish_reason is None or said.usage is None:
            raise ValueError("the stream is not exhausted")
        return Reply(
            text=said.text,
            token_ids=tuple(said.token_ids),
            logprobs=tuple(said.logprobs),
            model=self.model or "",
            node_id=self.node_id or "",
            finish_reason=said.finish_reason,
            usage=said.usage,
            timings=said.timings,
            ttft=said.ttft,
            tokens_per_second=said.tokens_per_second,
            generation_time=said.elapsed,
            hops=self.hops,
            digests=self.digests,
            choices=self.choices,
            tool_calls=said.tool_calls,
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
            self._request, resume=tuple(self.token_ids), resume_text=self._transcript.said if by_text else None
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
            rest = self._transcript.finish(answer, attempt)
            self.close()
            return rest
        elif isinstance(answer, Failed):
            self._take_failure(answer, attempt)
        return None

    def _take_tokens(self, tokens: Tokens, attempt: Attempt) -> Chunk:
        first = self.ttft is None
        chunk = self._transcript.take(tokens, attempt)
        if first and self._choice is not None:
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
        return chunk

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
