"""From a request to a sequence: render, tokenize, check the limits, and replay what another node already generated.

It may take milliseconds for a long prompt, so it runs beside the engine thread, not in it.
"""

import random

from llamanet.errors import RequestRefused
from llamanet.node.backend import Backend
from llamanet.node.chat_template import ChatTemplate
from llamanet.node.detokenize import TextStream
from llamanet.node.sequence import Sequence
from llamanet.wire.inference import MAX_SEED, Failed, Generate


def prepare(serial: int, request: Generate, backend: Backend, template: ChatTemplate, now: float) -> Sequence | Failed:
    """The sequence for `request`, or why it is refused.

    A plain prompt may write the model's special tokens; they are parsed in it as in a rendered template.
    """
    try:
        text = request.prompt if request.prompt is not None else template.render(request.messages)
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


def _refused(request: Generate, code: str, message: str, field: str | None, limit: str | None) -> Failed:
    return Failed(id=request.id, code=code, message=message, field=field, limit=limit)
