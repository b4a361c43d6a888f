"""Asking an engine, and all that it answered."""

from collections.abc import Callable
from typing import Any

import attrs
import trio

from llamanet.node.engine import Engine, EngineConfig, serve_engine
from llamanet.node.llama import LlamaBackend, LlamaConfig
from llamanet.wire.inference import Accepted, Failed, Finished, Generate, Sampling, TokenLogprobs, Tokens

STORY = "Once upon a time"


@attrs.define
class Reply:
    tokens: list[int] = attrs.field(factory=list)
    text: str = ""
    logprobs: list[TokenLogprobs] = attrs.field(factory=list)
    last: Finished | Failed | None = None

    @property
    def finished(self) -> Finished:
        assert isinstance(self.last, Finished), self.last
        return self.last

    @property
    def failed(self) -> Failed:
        assert isinstance(self.last, Failed), self.last
        return self.last


async def ask(
    engine: Engine, prompt: str | None = STORY, *, resume: tuple[int, ...] = (), messages: Any = (), **sampling: Any
) -> Reply:
    """Greedy and 16 tokens long, unless `sampling` says otherwise."""
    options = {"temperature": 0.0, "max_tokens": 16, **sampling}
    request = Generate(id=1, prompt=prompt, messages=messages, resume=resume, sampling=Sampling(**options))
    reply = Reply()
    generation = engine.submit(request)
    try:
        async for message in generation:
            if isinstance(message, Tokens):
                reply.tokens += message.token_ids
                reply.text += message.text
                reply.logprobs += message.logprobs
            elif not isinstance(message, Accepted):
                reply.last = message
    finally:
        generation.cancel()
    return reply


async def finished(engine: Engine, *args: Any, **options: Any) -> Reply:
    """A reply that must end well."""
    reply = await ask(engine, *args, **options)
    assert reply.finished
    return reply


async def serve(
    nursery: trio.Nursery, config: LlamaConfig, make: Callable[[LlamaConfig], LlamaBackend] = LlamaBackend
) -> Engine:
    """An engine on a model of llama.cpp, until `nursery` is cancelled."""
    engine: Engine = await nursery.start(serve_engine, "model", bytes(32), lambda: make(config), EngineConfig())
    return engine
