"""What one generation has said so far, whichever nodes said it: counted, put together, and read for calls.

Rules:
- What does not belong to what came before, or to what was asked for, is the node's fault, and nothing of it is taken.
- A prompt, and how much of it was remembered, is that of the first node that spoke; what follows is counted once.
"""

import attrs

from llamanet.client.attempt import Attempt
from llamanet.client.reply import Chunk
from llamanet.client.tool_calls import CallReader, Parsed
from llamanet.errors import NodeFailed
from llamanet.wire.inference import Finished, Generate, Timings, TokenLogprobs, Tokens, Usage
from llamanet.wire.tools import FORMATS, ToolCall


class Transcript:
    """The answer to `request`, which was asked for at `started_at`. Times are on trio's clock."""

    def __init__(self, request: Generate, started_at: float) -> None:
        self.token_ids: list[int] = []
        """All ids so far."""
        self.logprobs: list[TokenLogprobs] = []
        self.finish_reason: str | None = None
        """As in `Reply`; None before the end."""
        self.usage: Usage | None = None
        self.timings = Timings()
        self.ttft: float | None = None
        self._request = request
        self._started_at = self._first_at = self._last_at = started_at
        self._texts: list[str] = []
        self._said: list[str] = []
        """As nodes wrote it: with the calls of tools, which `_texts` lacks."""
        self._cached_tokens: int | None = None
        self._tool_format: str | None = None
        self._calls: CallReader | None = None

    @property
    def text(self) -> str:
        """Without the calls in it."""
        return "".join(self._texts)

    @property
    def said(self) -> str:
        """As nodes wrote it."""
        return "".join(self._said)

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """Those so far."""
        return self._calls.calls if self._calls else ()

    @property
    def elapsed(self) -> float:
        """Seconds until the last token."""
        return self._last_at - self._started_at

    @property
    def tokens_per_second(self) -> float:
        """Tokens after the first one, by the time since it; 0.0 while there are none."""
        elapsed = self._last_at - self._first_at
        return (len(self.token_ids) - 1) / elapsed if elapsed > 0 else 0.0

    def take(self, tokens: Tokens, attempt: Attempt) -> Chunk:
        """The next tokens, which came from `attempt`. Raises `NodeFailed`."""
        most = self._request.sampling.max_tokens
        if most is not None and len(self.token_ids) + len(tokens.token_ids) > most:
            raise NodeFailed(attempt.label, f"it sends more than max_tokens {most}")
        told = tuple(chance.token for chance in tokens.logprobs) if tokens.logprobs else ()
        if told != (() if self._request.sampling.logprobs is None else tokens.token_ids):
            raise NodeFailed(attempt.label, "its log-probabilities do not belong to its tokens")
        calls = self._calls_by(attempt)
        self._last_at = now = attempt.heard_at
        if self.ttft is None:
            self.ttft = now - self._started_at
            self._first_at = now
            self._cached_tokens = attempt.cached_tokens
        self.token_ids += tokens.token_ids
        self._said.append(tokens.text)
        self.logprobs += tokens.logprobs
        text, deltas = calls.feed(tokens.text) if calls else Parsed(tokens.text)
        self._texts.append(text)
        return Chunk(text, tokens.token_ids, tokens.logprobs, deltas)

    def finish(self, finished: Finished, attempt: Attempt) -> Chunk | None:
        """The end, which came from `attempt`; the text that was held back for a call, if there is any.

        Raises `NodeFailed`.
        """
        if finished.usage.completion_tokens != len(self.token_ids):
            counted = finished.usage.completion_tokens
            raise NodeFailed(attempt.label, f"it counts {counted} tokens where {len(self.token_ids)} came")
        cached = attempt.cached_tokens if self._cached_tokens is None else self._cached_tokens
        self.usage = attrs.evolve(finished.usage, cached_tokens=cached)
        self.timings = finished.timings
        self.finish_reason = finished.reason
        return self._finish_calls(self._calls) if self._calls else None

    def _calls_by(self, attempt: Attempt) -> CallReader | None:
        """What reads the calls out of a node's text, if there may be any. Raises `NodeFailed`."""
        if not self._request.tools:
            return None
        if self._calls is None and (form := FORMATS.get(attempt.tool_format or "")):
            self._calls, self._tool_format = CallReader(form), attempt.tool_format
        if self._calls is None or attempt.tool_format != self._tool_format:
            expected = self._tool_format or ", ".join(FORMATS)
            raise NodeFailed(attempt.label, f"it writes calls as {attempt.tool_format!r}, and not as {expected}")
        return self._calls

    def _finish_calls(self, calls: CallReader) -> Chunk | None:
        text = calls.finish().text
        self._texts.append(text)
        if self.finish_reason == "stop" and calls.whole:
            self.finish_reason = "tool_calls"
        return Chunk(text, ()) if text else None
