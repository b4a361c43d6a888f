"""`/v1/completions`: texts continued as they are, whole or streamed; OpenAI's older form, and its log-probabilities."""

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp

from llamanet.gateway.answering import answer
from llamanet.gateway.bodies import CompletionBody
from llamanet.gateway.options import completion_question
from llamanet.gateway.reading import read_body
from llamanet.swarm import Chunk, Reply
from llamanet.wire.inference import TokenLogprobs


class CompletionForm:
    """Choices as texts."""

    prefix = "cmpl-"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, *, logprobs: int | None = None, echo: Sequence[str] = ()) -> None:
        """`echo` is told before the text of each choice, by its index."""
        self._logprobs = logprobs
        self._echo = echo
        self._offsets: dict[int, int] = {}

    def begin(self, index: int) -> dict[str, Any] | None:
        """The prompt, if it is to be told."""
        return self._choice(index, self._echo[index]) if self._echo else None

    def chunk(self, index: int, chunk: Chunk) -> dict[str, Any] | None:
        """Text, and log-probabilities."""
        if not (chunk.text or chunk.logprobs):
            return None
        return self._choice(index, chunk.text, chunk.logprobs)

    def end(self, index: int, finish_reason: str) -> dict[str, Any]:
        """Why it ends."""
        return self._choice(index, "", finish_reason=finish_reason)

    def whole(self, index: int, reply: Reply, finish_reason: str) -> dict[str, Any]:
        """The text."""
        before = self._echo[index] if self._echo else ""
        return self._choice(index, before + reply.text, reply.logprobs, finish_reason)

    def _choice(
        self, index: int, text: str, logprobs: Sequence[TokenLogprobs] = (), finish_reason: str | None = None
    ) -> dict[str, Any]:
        told = None if self._logprobs is None else self._told(index, logprobs)
        return {"text": text, "index": index, "logprobs": told, "finish_reason": finish_reason}

    def _told(self, index: int, logprobs: Sequence[TokenLogprobs]) -> dict[str, Any]:
        """An offset is where a token begins in the text; where it splits a character, the next begins beside it."""
        told: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token in logprobs:
            name = token_name(token.piece)
            told["tokens"].append(name)
            told["token_logprobs"].append(token.logprob)
            told["top_logprobs"].append({token_name(other.piece): other.logprob for other in token.top})
            told["text_offset"].append(self._offsets.get(index, 0))
            self._offsets[index] = self._offsets.get(index, 0) + len(token.piece.decode(errors="ignore"))
        return told


def token_name(piece: bytes) -> str:
    """A token's text; of a part of a character its bytes, as OpenAI writes them."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


async def create_completion(request: Request) -> ASGIApp:
    """Continue a text, or several."""
    body = await read_body(request, CompletionBody)
    question = completion_question(body)
    echo = [question.choice(index)["prompt"] for index in range(question.choices)] if body.echo else []
    return await answer(request, body, question, CompletionForm(logprobs=body.logprobs, echo=echo))


routes = [Route("/v1/completions", create_completion, methods=["POST"])]
