"""From a request to a sequence: render, tokenize, check the limits, and replay what another node already generated.

Rules:
- It may take milliseconds for a long prompt, so it runs beside the engine thread, not in it.
- What is cheap to check is checked first: sizes before anything is tokenized, tokens before a grammar follows them.
- Whatever goes wrong in one request is that request's answer, and nobody else hears of it.
"""

import logging
import random
from collections.abc import Callable
from typing import TypeVar

import attrs

from llamanet.errors import RequestRefused
from llamanet.node.backend import Backend
from llamanet.node.chat_template import ChatTemplate
from llamanet.node.detokenize import TextStream
from llamanet.node.grammar import check_grammar, json_schema_grammar
from llamanet.node.sequence import Sequence
from llamanet.node.tool_grammar import tools_grammar
from llamanet.wire.inference import MAX_SEED, Embed, Failed, Generate, Sampling
from llamanet.wire.tools import CallFormat

T = TypeVar("T")
log = logging.getLogger(__name__)


@attrs.define
class _TooLong(RequestRefused):
    """What does not fit this node's context may fit that of another."""


def prepare(serial: int, request: Generate, backend: Backend, template: ChatTemplate, now: float) -> Sequence | Failed:
    """The sequence for `request`, or why it is refused.

    A plain prompt may write the model's special tokens; they are parsed in it as in a rendered template.
    """
    return _contained(request, lambda: _prepare(serial, request, backend, template, now))


def prepare_texts(request: Embed, backend: Backend) -> list[list[int]] | Failed:
    """The texts of `request` as tokens, or why they are refused."""
    return _contained(request, lambda: _prepare_texts(request, backend))


def _contained(request: Generate | Embed, work: Callable[[], T]) -> T | Failed:
    try:
        return work()
    except RequestRefused as error:
        code = "too_long" if isinstance(error, _TooLong) else "bad_request"
        # A template or a schema may have put anything into it, lone surrogates too.
        message = error.message[:1_000].encode(errors="backslashreplace").decode()
        return Failed(id=request.id, code=code, message=message, field=error.field, limit=error.limit)
    except Exception as error:
        # Strangers' templates, schemas and texts go through code that is not ours. Whatever comes out of it must not
        # end the node, and with it the streams of all others. Cancellation is no `Exception`.
        log.error("A request could not be prepared", exc_info=error)
        message = f"the request could not be prepared ({type(error).__name__})"
        return Failed(id=request.id, code="internal", message=message)


def _prepare_texts(request: Embed, backend: Backend) -> list[list[int]]:
    if not backend.n_embd:
        raise RequestRefused("this model gives no embeddings", "model", "a model with embeddings")
    for number, text in enumerate(request.texts):
        _check_size(text, backend.n_batch, backend, f"texts[{number}]")
    return [backend.tokenize(text, whole=True) for text in request.texts]


def _prepare(serial: int, request: Generate, backend: Backend, template: ChatTemplate, now: float) -> Sequence:
    if not backend.generates:
        raise RequestRefused(
            "this model only embeds texts; ask another one to generate", "model", "a model that generates"
        )
    style, sampling = None, request.sampling
    if request.tools:
        style = template.call_style
        sampling = attrs.evolve(sampling, grammar=tools_grammar(request, style), json_schema=None)
    if request.prompt is not None:
        text, field = request.prompt, "prompt"
    elif request.continue_final_message:
        *before, begun = request.messages
        text, field = template.render(before, request.tools) + begun.content, "messages"
    else:
        text, field = template.render(request.messages, request.tools), "messages"
    n_ctx = backend.n_ctx
    _check_size(text, n_ctx, backend, field)
    if len(request.resume) >= n_ctx:
        message = f"the resumed answer has {len(request.resume)} tokens, and the context holds {n_ctx}"
        raise _TooLong(message, "resume", f"{n_ctx - 1} tokens")
    if any(token >= backend.n_vocab for token in request.resume):
        message = f"token {max(request.resume)} is not in the model's vocabulary"
        raise RequestRefused(message, "resume", f"ids below {backend.n_vocab}")
    prompt = backend.tokenize(text)
    if not prompt:
        raise RequestRefused("the prompt is empty", field, "at least one token")
    if len(prompt) >= n_ctx:
        message = f"the prompt has {len(prompt)} tokens, and the context of {n_ctx} must hold it and an answer"
        raise _TooLong(message, field, f"{n_ctx - 1} tokens")
    if len(prompt) + len(request.resume) > n_ctx:
        message = (
            f"the prompt has {len(prompt)} tokens and the resumed answer {len(request.resume)}, "
            f"and the context holds {n_ctx}"
        )
        raise _TooLong(message, "resume", f"{n_ctx - len(prompt)} tokens")
    sampling = _checked(sampling, request.resume, backend)
    backend.ready(sampling)
    request = attrs.evolve(request, sampling=sampling)
    sequence = Sequence(
        serial=serial,
        request=request,
        tokens=prompt,
        prompt_tokens=len(prompt),
        limit=min(n_ctx, len(prompt) + sampling.max_tokens) if sampling.max_tokens else n_ctx,
        seed=random.randint(0, MAX_SEED) if sampling.seed is None else sampling.seed,
        text=TextStream(sampling.stop),
        arrived=now,
        tool_format=None if style is None else style.name,
        shown={} if style is None else _markers(style.form, backend),
    )
    for token in request.resume:
        if sequence.reason is not None:
            break
        sequence.append(token, backend)
    return sequence


def _markers(form: CallFormat, backend: Backend) -> dict[int, bytes]:
    """The special tokens that calls are written with; they are part of the text, as no other special token is."""
    nothing = len(backend.tokenize(""))
    markers = {}
    for word in {form.marker, *form.between.split(), *form.end.split()}:
        tokens = backend.tokenize(word)[nothing:]
        if len(tokens) == 1 and not backend.piece(tokens[0]):
            markers[tokens[0]] = word.encode()
    return markers


def _checked(sampling: Sampling, resume: tuple[int, ...], backend: Backend) -> Sampling:
    """The same sampling with a JSON schema turned into a grammar. Raises `RequestRefused` for what does not agree."""
    if sampling.max_tokens is not None and sampling.min_tokens > sampling.max_tokens:
        raise RequestRefused(
            f"min_tokens {sampling.min_tokens} is above max_tokens {sampling.max_tokens}",
            field="sampling.min_tokens",
            limit=f"at most {sampling.max_tokens}",
        )
    for token, _ in sampling.logit_bias:
        if token >= backend.n_vocab:
            raise RequestRefused(
                f"token {token} is not in the model's vocabulary",
                field="sampling.logit_bias",
                limit=f"ids below {backend.n_vocab}",
            )
    if sampling.grammar is None and sampling.json_schema is None:
        return sampling
    if sampling.grammar is not None and sampling.json_schema is not None:
        raise RequestRefused("give a grammar or a JSON schema, not both", field="sampling.json_schema")
    if sampling.min_tokens or sampling.ignore_eos:
        # Where a grammar is at its end there is nothing else to draw.
        field = "sampling.min_tokens" if sampling.min_tokens else "sampling.ignore_eos"
        raise RequestRefused("a grammar says itself where the text ends", field=field, limit="none with a grammar")
    if sampling.json_schema is None:
        grammar = sampling.grammar or ""
        check_grammar(grammar)
    else:
        grammar = json_schema_grammar(sampling.json_schema)
        _size(grammar, "sampling.json_schema")
    backend.check_grammar(grammar, resume)
    return attrs.evolve(sampling, grammar=grammar, json_schema=None)


def _check_size(text: str, most: int, backend: Backend, field: str) -> None:
    """Refuse a text that cannot have as few as `most` tokens: to find out how many it has may take seconds."""
    size = _size(text, field)
    if size > most * backend.piece_bytes:
        message = f"the text has {size} bytes, and {most} tokens hold at most {most * backend.piece_bytes}"
        raise _TooLong(message, field, f"{most} tokens")


def _size(text: str, field: str) -> int:
    """Bytes of `text`. JSON and templates can make strings that have none."""
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise RequestRefused("the text has a lone surrogate, which is no character", field, "Unicode text") from error
