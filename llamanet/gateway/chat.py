"""`/v1/chat/completions`: a conversation's next turn, whole or streamed."""

from collections.abc import Iterable
from typing import Any

from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp

from llamanet.gateway.answering import answer
from llamanet.gateway.bodies import ChatBody
from llamanet.gateway.options import chat_question
from llamanet.gateway.reading import read_body
from llamanet.gateway.tools import call_deltas, whole_calls
from llamanet.swarm import Chunk, Reply
from llamanet.wire.inference import TokenChance, TokenLogprobs


class ChatForm:
    """Choices as turns of the assistant."""

    prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, *, logprobs: bool = False) -> None:
        self._logprobs = logprobs

    def begin(self, index: int) -> dict[str, Any]:
        """Who speaks."""
        return self._delta(index, {"role": "assistant", "content": "", "refusal": None})

    def chunk(self, index: int, chunk: Chunk) -> dict[str, Any] | None:
        """Text, calls of tools, and log-probabilities."""
        if not (chunk.text or chunk.tool_calls or chunk.logprobs):
            return None
        delta: dict[str, Any] = {"content": chunk.text} if chunk.text or not chunk.tool_calls else {}
        if chunk.tool_calls:
            delta["tool_calls"] = call_deltas(chunk.tool_calls)
        return self._delta(index, delta, logprobs=self._told(chunk.logprobs))

    def end(self, index: int, finish_reason: str) -> dict[str, Any]:
        """Why it ends."""
        return self._delta(index, {}, finish_reason=finish_reason)

    def whole(self, index: int, reply: Reply, finish_reason: str) -> dict[str, Any]:
        """The turn."""
        message: dict[str, Any] = {"role": "assistant", "content": reply.text, "refusal": None}
        if reply.tool_calls:
            message["content"] = reply.text or None
            message["tool_calls"] = whole_calls(reply.tool_calls)
        return {
            "index": index,
            "message": message,
            "logprobs": self._told(reply.logprobs),
            "finish_reason": finish_reason,
        }

    def _delta(
        self, index: int, delta: dict[str, Any], *, logprobs: Any = None, finish_reason: str | None = None
    ) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}

    def _told(self, logprobs: Iterable[TokenLogprobs]) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        tokens = [{**_chance(token), "top_logprobs": [_chance(other) for other in token.top]} for token in logprobs]
        return {"content": tokens, "refusal": None}


def _chance(token: TokenChance) -> dict[str, Any]:
    piece = token.piece
    return {"token": piece.decode(errors="replace"), "logprob": token.logprob, "bytes": list(piece)}


async def create_chat_completion(request: Request) -> ASGIApp:
    """Answer a conversation."""
    body = await read_body(request, ChatBody)
    return await answer(request, body, chat_question(body), ChatForm(logprobs=bool(body.logprobs)))


routes = [Route("/v1/chat/completions", create_chat_completion, methods=["POST"])]
