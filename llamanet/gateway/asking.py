"""One HTTP request as one or several generations of the swarm, told to `Events` as they go.

Rules:
- `take` gets each chunk of each choice, and waiting in it holds the choice back: so a slow reader pauses the node.
- The generations end together: one that fails, or the caller's cancellation, stops all of them at their nodes.
- Whatever happens, `RequestEnded` is the last that is told.
"""

from collections.abc import Awaitable, Callable, Hashable, Mapping
from typing import Any, TypeAlias
from urllib.parse import quote

import attrs
import trio

from llamanet.errors import LlamaNetError, ungrouped
from llamanet.gateway.events import RequestAnswered, RequestEnded, RequestMoved, RequestStarted
from llamanet.gateway.gateway import Gateway
from llamanet.gateway.openai import READER_LEFT, api_error
from llamanet.gateway.options import Question
from llamanet.swarm import Chunk, Stream

Take: TypeAlias = Callable[[int, Stream, Chunk], Awaitable[None]]
"""Called with the choice's index, its stream, and what came."""


@attrs.define(eq=False, kw_only=True)
class Asking:
    """What becomes of a `Question`."""

    gateway: Gateway
    request_id: str
    question: Question
    caller: Hashable
    streams: dict[int, Stream] = attrs.field(factory=dict)
    """Of each choice, once it has begun."""
    first: Stream | None = None
    """The one that spoke first."""

    async def run(self, take: Take, end: Callable[[int, Stream], Awaitable[None]]) -> None:
        """Give all chunks to `take`, and each choice that is complete to `end`.

        Raises what iterating over `Swarm.stream` does.
        """
        started = trio.current_time()
        tell = self.gateway.events.publish
        tell(RequestStarted(request_id=self.request_id, model=self.question.model, at=started))
        status = READER_LEFT
        try:
            if self.question.choices == 1:
                await self._choose(0, take, end)
            else:
                with ungrouped():
                    async with trio.open_nursery() as nursery:
                        for index in range(self.question.choices):
                            nursery.start_soon(self._choose, index, take, end)
            status = 200
        except LlamaNetError as error:
            status = api_error(error).status
            raise
        finally:
            counted = self.usage()
            told = self.first or self.streams.get(0)
            tell(
                RequestEnded(
                    request_id=self.request_id,
                    model=self.question.model if told is None else told.model,
                    node_id=None if told is None else told.node_id,
                    tokens=sum(len(stream.token_ids) for stream in self.streams.values()),
                    seconds=trio.current_time() - started,
                    status=status,
                    prompt_tokens=counted["prompt_tokens"],
                    cached_tokens=counted["prompt_tokens_details"]["cached_tokens"],
                )
            )

    async def _choose(self, index: int, take: Take, end: Callable[[int, Stream], Awaitable[None]]) -> None:
        moves, before, gap = 0, 0.0, None
        async with self.gateway.swarm.stream(**self.question.choice(index), caller=self.caller) as stream:
            self.streams[index] = stream
            try:
                async for chunk in stream:
                    now = trio.current_time()
                    if self.first is None:
                        self._answered(stream)
                    if gap is None:
                        gap = self.gateway.metrics.gap(stream.model)
                    else:
                        gap(now - before)
                    before = now
                    if len(stream.hops) > moves:
                        moves = self._tell_moves(stream, moves)
                    await take(index, stream, chunk)
            finally:
                self._tell_moves(stream, moves)
            await end(index, stream)

    def _answered(self, stream: Stream) -> None:
        self.first = stream
        self.gateway.events.publish(
            RequestAnswered(
                request_id=self.request_id, model=stream.model, node_id=stream.node_id or "", ttft=stream.ttft or 0.0
            )
        )

    def _tell_moves(self, stream: Stream, told: int) -> int:
        hops = stream.hops
        for place in range(told, len(hops)):
            last = place == len(hops) - 1
            to_node = stream.node_id if last else hops[place + 1].node_id
            self.gateway.events.publish(
                RequestMoved(
                    request_id=self.request_id,
                    model=stream.model,
                    from_node=hops[place].node_id,
                    to_node=None if last and to_node == hops[place].node_id else to_node,
                    reason=hops[place].reason,
                )
            )
        return len(hops)

    def usage(self) -> dict[str, Any]:
        """OpenAI's `usage`: a prompt counts once, however many answers it has."""
        each = {index: stream.usage for index, stream in self.streams.items() if stream.usage is not None}
        # Of each prompt the first answer: those that follow find it in the cache.
        prompts = {index // self.question.n: each[index] for index in sorted(each, reverse=True)}
        prompt_tokens = sum(usage.prompt_tokens for usage in prompts.values())
        completion_tokens = sum(usage.completion_tokens for usage in each.values())
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in prompts.values())},
        }

    def model(self) -> str:
        """The name of the model that answers."""
        return (self.first and self.first.model) or self.question.model or ""

    def fingerprint(self) -> str | None:
        """Of the model file that answers."""
        return f"fp_{self.first.digests[-1][:12]}" if self.first and self.first.digests else None

    def headers(self) -> Mapping[str, str]:
        """Which node answers, and how many were left on the way; of several choices, the one that spoke first."""
        if self.first is None or self.first.node_id is None:
            return {}
        return node_headers(self.first.node_id, len(self.first.hops))


def node_headers(node_id: str, hops: int) -> dict[str, str]:
    """Which node answers, its label percent-encoded where a header cannot say it, and how many were left before."""
    return {"x-llamanet-node": quote(node_id, safe=" !\"#$&'()*+,/:;<=>?@[]^`{|}~"), "x-llamanet-hops": str(hops)}
