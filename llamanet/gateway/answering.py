"""Answers of generated text, whole or as events, in the form of the endpoint that was asked."""

import secrets
import time
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any, Protocol

from starlette.requests import Request
from starlette.types import ASGIApp

from llamanet.gateway.asking import Asking
from llamanet.gateway.bodies import GenerationBody
from llamanet.gateway.openai import to_json
from llamanet.gateway.options import Question
from llamanet.gateway.reading import state_of, while_read
from llamanet.gateway.responses import json_response
from llamanet.gateway.sse import DONE, Buffer, EventResponse, event
from llamanet.swarm import Chunk, Reply, Stream

_MARK = "\0"
"""Stands for a text; nothing that follows it in an event looks like it."""


class Form(Protocol):
    """How an endpoint tells choices; every method returns entries of `choices`."""

    prefix: str
    """Of the answer's id."""
    whole_object: str
    chunk_object: str

    def begin(self, index: int) -> dict[str, Any] | None:
        """Before the first chunk of any choice."""

    def chunk(self, index: int, chunk: Chunk) -> dict[str, Any] | None:
        """A chunk; None if there is nothing to tell in it."""

    def end(self, index: int, finish_reason: str) -> dict[str, Any]:
        """After the last chunk."""

    def whole(self, index: int, reply: Reply, finish_reason: str) -> dict[str, Any]:
        """A choice that is not streamed."""


async def answer(request: Request, body: GenerationBody, question: Question, form: Form) -> ASGIApp:
    """The answer to `question`; a whole one is generated now, a streamed one when it is sent.

    Raises `ApiError`, and what iterating over `Swarm.stream` does.
    """
    client = request.client
    asking = Asking(
        gateway=request.app.state.gateway,
        request_id=state_of(request, "request_id") or f"req_{secrets.token_hex(16)}",
        question=question,
        caller=state_of(request, "caller") or (client and client.host),
    )
    told = {"id": form.prefix + secrets.token_hex(12), "created": int(time.time())}
    if body.stream:
        counts = body.stream_options is not None and bool(body.stream_options.include_usage)
        return EventResponse(partial(_produce, asking, form, told, counts), asking.headers)

    async def pass_over(index: int, stream: Stream, chunk: Chunk) -> None:
        """The stream itself keeps what it told."""

    async def pass_end(index: int, stream: Stream) -> None:
        """As above."""

    await while_read(request.receive, partial(asking.run, pass_over, pass_end))
    choices = []
    for index in range(question.choices):
        reply = asking.streams[index].reply()
        choices.append(form.whole(index, reply, _reason(reply.finish_reason)))
    value = {
        **_head(told, form.whole_object, asking),
        "choices": choices,
        "usage": asking.usage(),
    }
    return json_response(value, headers=asking.headers())


async def _produce(asking: Asking, form: Form, told: Mapping[str, Any], counts: bool, buffer: Buffer) -> None:
    begun = False
    usage = {"usage": None} if counts else {}

    def told_of(choice: dict[str, Any]) -> bytes:
        return event({**_head(told, form.chunk_object, asking), "choices": [choice], **usage})

    text_events = _TextEvents(lambda index, text: told_of(form.chunk(index, Chunk(text, ())) or {}))

    async def begin() -> None:
        nonlocal begun
        begun = True
        # All at once: the helpers of OpenAI's client, for one, gather choices only if they meet them in order.
        for index in range(asking.question.choices):
            if (choice := form.begin(index)) is not None:
                await buffer.put(told_of(choice))

    async def take(index: int, stream: Stream, chunk: Chunk) -> None:
        if not begun:
            await begin()
        if chunk.text and not chunk.tool_calls and not asking.question.logprobs:
            await buffer.put(text_events.event(index, chunk.text, (asking.model(), asking.fingerprint())))
        elif (choice := form.chunk(index, chunk)) is not None:
            await buffer.put(told_of(choice))

    async def end(index: int, stream: Stream) -> None:
        if not begun:
            await begin()
        await buffer.put(told_of(form.end(index, _reason(stream.finish_reason or "stop"))))

    await asking.run(take, end)
    if counts:
        await buffer.put(event({**_head(told, form.chunk_object, asking), "choices": [], "usage": asking.usage()}))
    await buffer.put(DONE)


class _TextEvents:
    """Events that differ in their text only: what is around it is made once for each choice."""

    def __init__(self, make: Callable[[int, str], bytes]) -> None:
        """`make` makes the whole event for a choice and its text."""
        self._make = make
        self._around: dict[int, tuple[bytes, bytes]] = {}
        self._head: Hashable = None

    def event(self, index: int, text: str, head: Hashable) -> bytes:
        """The event; `head` is what else in it may change."""
        if head != self._head:
            self._around.clear()
            self._head = head
        if index not in self._around:
            before, _, after = self._make(index, _MARK).rpartition(to_json(_MARK))
            self._around[index] = before, after
        before, after = self._around[index]
        return before + to_json(text) + after


def _head(told: Mapping[str, Any], kind: str, asking: Asking) -> dict[str, Any]:
    return {**told, "object": kind, "model": asking.model(), "system_fingerprint": asking.fingerprint()}


def _reason(finish_reason: str) -> str:
    """OpenAI knows no context that is full."""
    return "length" if finish_reason == "context" else finish_reason
