"""Embeddings from the swarm: a list of texts in, a vector for each out, whatever becomes of the nodes.

Rules:
- Texts go out in batches of `MAX_TEXTS`, one after the other; a batch that a node fails is asked of the next one.
- All vectors come from one model file: the digest is that of the first node that answered.
- A node that is silent is asked by UDP; dead, or with a batch of texts that does not end (`client/attempt.py`), it is
  left.
- While all nodes are busy, the call waits as a stream does, and as long (`client/budget.py`).
"""

import struct
from collections import deque
from collections.abc import Iterable
from typing import Any

import attrs
import trio

from llamanet.client.attempt import Access, Attempt
from llamanet.client.budget import BUSY_PAUSE_S, Budget, Place, out_of_tries
from llamanet.client.choice import Choice, MakeChoice
from llamanet.client.reply import BUSY, MAX_HOPS, Hop
from llamanet.client.selection import Candidate, Wishes, tokens_in
from llamanet.errors import BadMessage, NodeFailed, RequestRefused, SwarmBusy
from llamanet.wire.codec import from_map_untrusted
from llamanet.wire.identity import PublicKey
from llamanet.wire.inference import MAX_MESSAGE_BYTES, MAX_TEXTS, Embed, Embeddings, Failed, encode_message


@attrs.frozen(kw_only=True)
class EmbeddingReply:
    """The vectors of a list of texts, in its order; each has length 1."""

    vectors: tuple[tuple[float, ...], ...]
    model: str
    prompt_tokens: int
    node_id: str
    """The label of the node that answered last."""
    hops: tuple[Hop, ...]


def make_batches(texts: Iterable[str], model: str | None) -> list[Embed]:
    """Requests as nodes accept them. Raises `RequestRefused` for what they would refuse."""
    if isinstance(texts, str):
        raise RequestRefused("texts is one text; give a list", "texts")
    every = list(texts)
    if not every:
        raise RequestRefused("texts is empty", "texts", "at least one text")
    batches = []
    for start in range(0, len(every), MAX_TEXTS):
        plain: dict[str, Any] = {"id": 0, "model": model, "texts": every[start : start + MAX_TEXTS]}
        try:
            batch = from_map_untrusted(Embed, plain)
        except BadMessage as error:
            raise RequestRefused(str(error), error.field, error.limit) from error
        size = len(encode_message(batch))
        if size > MAX_MESSAGE_BYTES:
            raise RequestRefused(f"{MAX_TEXTS} texts of {size} bytes", "texts", f"{MAX_MESSAGE_BYTES} bytes")
        batches.append(batch)
    return batches


class Embedder:
    """One call of `SwarmClient.embed`."""

    def __init__(self, access: Access, make_choice: MakeChoice, wishes: Wishes, budget: Budget) -> None:
        self._access = access
        self._make_choice = make_choice
        self._wishes = wishes
        self._budget = budget
        self._place = Place(access, wishes, budget)
        self._failures: dict[PublicKey, int] = {}
        self._failed = 0
        self._hops: deque[Hop] = deque(maxlen=MAX_HOPS)

    async def run(self, batches: list[Embed]) -> EmbeddingReply:
        """Raises `RequestRefused`, `NoNodeServes` or `SwarmBusy`."""
        try:
            return await self._run(batches)
        finally:
            self._place.leave()

    async def _run(self, batches: list[Embed]) -> EmbeddingReply:
        vectors: list[tuple[float, ...]] = []
        prompt_tokens = 0
        for batch in batches:
            candidate, answer = await self._batch(batch)
            vectors += [struct.unpack(f"<{len(vector) // 4}f", vector) for vector in answer.vectors]
            prompt_tokens += answer.prompt_tokens
            facts = candidate.service.facts
            self._wishes = attrs.evolve(self._wishes, model=candidate.service.model, digest=facts.digest)
        return EmbeddingReply(
            vectors=tuple(vectors),
            model=candidate.service.model,
            prompt_tokens=prompt_tokens,
            node_id=facts.label,
            hops=tuple(self._hops),
        )

    async def _batch(self, batch: Embed) -> tuple[Candidate, Embeddings]:
        prompt_tokens = tokens_in(sum(map(len, batch.texts)))
        choice: Choice | None = None
        await self._place.go()
        self._access.probes.earn()
        while True:
            if self._budget.is_spent(self._failed):
                raise out_of_tries(self._wishes.model, self._failures, self._hops, self._budget)
            choice = choice or self._make_choice(self._wishes, prompt_tokens, self._failures, self._budget.max_failures)
            candidate = await choice.next()
            if candidate is None:
                error = await choice.nobody()
                if not isinstance(error, SwarmBusy):
                    raise error
                await self._place.wait(error)
                await self._place.go()
                choice = None
                continue
            label = candidate.service.facts.label
            if pause := self._access.peers.busy_for_s(candidate.service.node_id, trio.current_time()):
                choice.busy[label] = pause
                continue
            try:
                answer = await self._ask(candidate, batch, prompt_tokens)
            except NodeFailed as error:
                key = candidate.service.public_key
                self._failures[key] = self._failures.get(key, 0) + 1
                self._failed += 1
                choice.reasons[label] = error.reason
                self._hops.append(Hop(label, error.reason))
                continue
            if isinstance(answer, Embeddings):
                return candidate, answer
            choice.busy[label] = answer.retry_after or BUSY_PAUSE_S
            self._hops.append(Hop(label, BUSY))

    async def _ask(self, candidate: Candidate, batch: Embed, prompt_tokens: int) -> Embeddings | Failed:
        """The vectors, or that the node is busy. Raises `NodeFailed`, and `RequestRefused`."""
        attempt = Attempt(self._access, candidate, batch, prompt_tokens)
        try:
            answer = await attempt.receive()
            if isinstance(answer, Failed):
                if answer.code in ("bad_request", "too_long"):
                    raise RequestRefused(answer.message, answer.field, answer.limit)
                if answer.code != "busy":
                    raise NodeFailed(attempt.label, answer.message)
                attempt.busy(answer.retry_after or BUSY_PAUSE_S)
                return answer
            if not isinstance(answer, Embeddings):
                raise NodeFailed(attempt.label, "it answered something else")
            sizes = {len(vector) for vector in answer.vectors}
            if len(answer.vectors) != len(batch.texts) or len(sizes) != 1 or sizes.pop() % 4:
                raise NodeFailed(attempt.label, "its vectors do not belong to the texts")
            return answer
        except NodeFailed:
            attempt.fail()
            raise
        finally:
            attempt.finish()
