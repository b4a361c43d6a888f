"""How busy and how fast a model on a node is, as PONGs and answers tell it."""

import attrs

from llamanet.wire.codec import integer, number, text, wire_field

MAX_MODEL_NAME = 96


@attrs.frozen(kw_only=True)
class ModelState:
    """The live state of one model on one node.

    `tokens_per_second` is the recent decode rate of one stream; `prefill_tokens_per_second` that of prompts;
    `ttft_s` the time to the first token that a short prompt sent now should expect, in seconds; `n_ctx` in tokens,
    for each slot.
    """

    name: str = wire_field(text(MAX_MODEL_NAME))
    running: int = wire_field(integer(0, 65_535))
    waiting: int = wire_field(integer(0, 65_535))
    slots: int = wire_field(integer(0, 65_535))
    tokens_per_second: float = wire_field(number(0, 1e9))
    prefill_tokens_per_second: float = wire_field(number(0, 1e9))
    ttft_s: float = wire_field(number(0, 1e9))
    n_ctx: int = wire_field(integer(0, 2**40))
