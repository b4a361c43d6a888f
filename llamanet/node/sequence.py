"""One generation on the engine: its tokens, how far they are computed, and where it ends.

Rules:
- `tokens` is the prompt, then what was generated (elsewhere, for a resumed stream, then here). `computed` of them are
  in the slot's memory. All that is computed before the end belongs to `tokens`, so the memory is a prefix of it.
- A generation ends at the model's end token or a stop string ("stop"), at `max_tokens` ("length"), or where the context
  is full ("context"); the token that ends it belongs to it. Held text is given out with the last token, so that text is
  a function of ids alone.
"""

from collections.abc import Mapping

import attrs

from llamanet.node.backend import Backend
from llamanet.node.detokenize import TextStream
from llamanet.wire.inference import Generate, Timings, Usage

RESUME_CHUNK = 32
"""Tokens of a resumed answer computed in one step: exact below 64, and half of that is hardly slower."""


@attrs.define(kw_only=True, eq=False)
class Sequence:
    """A request on its way through the engine. Times are in seconds on the engine's clock."""

    serial: int
    request: Generate
    tokens: list[int]
    prompt_tokens: int
    limit: int
    """The length of `tokens` at which the generation ends with "length" or "context"."""
    seed: int
    text: TextStream
    arrived: float
    tool_format: str | None = None
    """As in `Accepted`."""
    shown: Mapping[int, bytes] = attrs.field(factory=dict, repr=False)
    """Special tokens that add to the text, and what."""
    reason: str | None = None
    """Why the generation is over; None while it goes on."""

    slot: int | None = None
    computed: int = 0
    cached: int = 0
    """Prompt tokens that were found in memory and not computed; before it has a slot, how many could be."""
    taken: int = 0
    """Generated tokens that the reader has taken. Written by the reader's thread, read by the engine's."""
    paused_at: float | None = None
    """Since when the reader lags too far behind for this sequence to be computed."""
    admitted: float | None = None
    awaited: "tuple[Sequence, int] | None" = attrs.field(default=None, repr=False)
    """A running sequence whose prompt begins alike, and for how many tokens: they are copied once it computed them."""
    drew_first: float | None = None
    drew_last: float | None = None

    @property
    def pending(self) -> int:
        """Tokens that must be computed before the next can be drawn."""
        return len(self.tokens) - self.computed

    @property
    def computable(self) -> int:
        """How many of the pending tokens the next step may hold.

        A resumed sequence is computed in the pieces of an undisturbed one: its prompt by itself, and then the tokens
        that were generated, in short chunks. llama.cpp's attention rounds otherwise from 64 tokens on, and a draw that
        is not greedy would soon take another turn than on the first node.
        """
        if self.computed < self.prompt_tokens:
            return self.prompt_tokens - self.computed
        return min(self.pending, RESUME_CHUNK)

    @property
    def generated(self) -> int:
        """Tokens generated so far, the resumed ones included."""
        return len(self.tokens) - self.prompt_tokens

    @property
    def drawn(self) -> int:
        """Tokens generated here."""
        return len(self.tokens) - self.prompt_tokens - len(self.request.resume)

    def append(self, token: int, backend: Backend) -> str:
        """Take a generated token; the text that it makes certain. Sets `reason` if it is the last one."""
        self.tokens.append(token)
        if backend.is_end(token):
            self.reason = "stop"
            return self.text.flush()
        text = self.text.feed(self.shown.get(token) or backend.piece(token))
        if self.text.stopped:
            self.reason = "stop"
        elif len(self.tokens) >= self.limit:
            self.reason = "length" if self.generated == self.request.sampling.max_tokens else "context"
            text += self.text.flush()
        return text

    def usage(self) -> Usage:
        """The tokens counted so far."""
        return Usage(prompt_tokens=self.prompt_tokens, completion_tokens=self.generated, cached_tokens=self.cached)

    def timings(self, now: float) -> Timings:
        """Where the time went: in the queue, until the first token, and from there on."""
        admitted = now if self.admitted is None else self.admitted
        first = now if self.drew_first is None else self.drew_first
        last = first if self.drew_last is None else self.drew_last
        return Timings(
            queue_s=max(0.0, admitted - self.arrived),
            prefill_s=max(0.0, first - admitted),
            decode_s=max(0.0, last - first),
        )
