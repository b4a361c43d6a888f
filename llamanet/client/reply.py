"""What a generation gives: chunks while it goes on, and at its end a reply, which tells where it has been."""

from typing import NamedTuple

import attrs

from llamanet.client.decision import Decision
from llamanet.client.tool_calls import ToolCallDelta
from llamanet.wire.inference import Timings, TokenLogprobs, Usage
from llamanet.wire.tools import ToolCall

MAX_CHOICES = 16
MAX_HOPS = 64
BUSY = "busy"
"""The reason of a hop from a node whose queue was full; all others are faults."""


@attrs.frozen
class Chunk:
    """The next tokens of a stream, and the text that they complete.

    `text` may be empty while a character, a possible stop string or a possible call is half done. What was held back
    for a call that did not come is in a last chunk without tokens.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One for each id, if the request asks for them."""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    """What came of calls of the request's tools."""


class Hop(NamedTuple):
    """A node that a request left, and why."""

    node_id: str
    reason: str


@attrs.frozen(kw_only=True)
class Reply:
    """A whole generation."""

    text: str
    """Without the calls in it, if the request has tools."""
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    """One for each id, if the request asks for them."""
    model: str
    node_id: str
    """The label of the node that finished it."""
    finish_reason: str
    """`stop`, `tool_calls`, `length`, or `context` (the node's was full)."""
    usage: Usage
    timings: Timings
    """Where the node that finished it spent its time."""
    ttft: float | None
    """Seconds until the first token, finding a node included; None if there is no token."""
    tokens_per_second: float
    """From the first token on."""
    generation_time: float
    """Seconds from the request to its last token."""
    hops: tuple[Hop, ...]
    """The nodes that it left, the last `MAX_HOPS` of them."""
    digests: tuple[str, ...] = ()
    """SHA-256 of the model file, in hexadecimal; of each file in turn, if `any_version` let there be several."""
    choices: tuple[Decision, ...] = ()
    """Why each node was asked, the last `MAX_CHOICES` of them."""
    tool_calls: tuple[ToolCall, ...] = ()
    """The calls of the request's tools. Unless it ended with `tool_calls`, the last may be cut off."""

    @property
    def tokens_generated(self) -> int:
        """As `usage.completion_tokens`."""
        return self.usage.completion_tokens
