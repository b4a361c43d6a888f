"""From a request to a sequence: render, tokenize, check the limits, and replay what another node already generated.

It may take milliseconds for a long prompt, so it runs beside the engine thread, not in it.
"""

import random

import attrs

from llamanet.errors import RequestRefused
from llamanet.node.backend import Backend
from llamanet.node.chat_template import ChatTemplate
from llamanet.node.detokenize import TextStream
from llamanet.node.grammar import check_grammar, json_schema_grammar
from llamanet.node.sequence import Sequence
from llamanet.wire.inference import MAX_SEED, Failed, Generate, Sampling


def prepare(serial: int, request: Generate, backend: Backend, template: ChatTemplate, now: float) -> Sequence | Failed:
    """The sequence for `request`, or why it is refused.

    A plain prompt may write the model's special tokens; they are parsed in it as in a rendered template.
    """
    if not backend.generates:
        message = "this model only embeds texts; ask another one to generate"
        return _refused(request, "bad_request", message, "model", "a model that generates")
    try:
        text = request.prompt if request.prompt is not None else template.render(request.messages)
        request = attrs.evolve(request, sampling=_checked(request.sampling, request.resume, backend))
    except RequestRefused as error:
        return _refused(request, "bad_request", error.message, error.field, error.limit)
    prompt = backend.tokenize(text)
    field = "messages" if request.prompt is None else "prompt"
    if not prompt:
        return _refused(request, "bad_request", "the prompt is empty", field, "at least one token")
    n_ctx = backend.n_ctx
    if len(prompt) >= n_ctx:
        message = f"the prompt has {len(prompt)} tokens, and the context of {n_ctx} must hold it and an answer"
        return _refused(request, "too_long", message, field, f"{n_ctx - 1} tokens")
    if len(prompt) + len(request.resume) > n_ctx:
        message = (
            f"the prompt has {len(prompt)} tokens and the resumed answer {len(request.resume)}, "
            f"and the context holds {n_ctx}"
        )
        return _refused(request, "too_long", message, "resume", f"{n_ctx - len(prompt)} tokens")
    if any(token >= backend.n_vocab for token in request.resume):
        message = f"token {max(request.resume)} is not in the model's vocabulary"
        return _refused(request, "bad_request", message, "resume", f"ids below {backend.n_vocab}")

    sampling = request.sampling
    sequence = Sequence(
        serial=serial,
        request=request,
        tokens=prompt,
        prompt_tokens=len(prompt),
        limit=min(n_ctx, len(prompt) + sampling.max_tokens) if sampling.max_tokens else n_ctx,
        seed=random.randint(0, MAX_SEED) if sampling.seed is None else sampling.seed,
        text=TextStream(sampling.stop),
        arrived=now,
    )
    for token in request.resume:
        if sequence.reason is not None:
            break
        sequence.append(token, backend)
    return sequence


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
    backend.check_grammar(grammar, resume)
    return attrs.evolve(sampling, grammar=grammar, json_schema=None)


def _refused(request: Generate, code: str, message: str, field: str | None, limit: str | None) -> Failed:
    return Failed(id=request.id, code=code, message=message, field=field, limit=limit)
