"""`/v1/embeddings`: texts as vectors."""

import base64
import secrets
import struct
from collections.abc import Sequence
from functools import partial
from typing import Any

import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llamanet.client.embedding import EmbeddingReply
from llamanet.errors import LlamaNetError
from llamanet.gateway.asking import node_headers
from llamanet.gateway.bodies import EmbeddingBody
from llamanet.gateway.events import RequestEnded, RequestStarted
from llamanet.gateway.gateway import Gateway
from llamanet.gateway.openai import INVALID_REQUEST, READER_LEFT, ApiError, api_error
from llamanet.gateway.options import asked_model, texts
from llamanet.gateway.reading import read_body, state_of, while_read
from llamanet.gateway.responses import json_response


async def create_embeddings(request: Request) -> Response:
    """Embed a text, or several."""
    body = await read_body(request, EmbeddingBody)
    given, model = texts(body.input, "input"), asked_model(body.model)
    gateway: Gateway = request.app.state.gateway
    request_id = state_of(request, "request_id") or f"req_{secrets.token_hex(16)}"
    reply = await while_read(request.receive, partial(_embed, gateway, request_id, given, model))
    size = len(reply.vectors[0])
    if body.dimensions not in (None, size):
        message = f"The vectors of {reply.model!r} have {size} dimensions, and are not cut to others"
        raise ApiError(400, message, INVALID_REQUEST, "invalid_value", "dimensions")
    encoded = body.encoding_format == "base64"
    data: list[dict[str, Any]] = [
        {"object": "embedding", "index": index, "embedding": _base64(vector) if encoded else vector}
        for index, vector in enumerate(reply.vectors)
    ]
    value = {
        "object": "list",
        "data": data,
        "model": reply.model,
        "usage": {"prompt_tokens": reply.prompt_tokens, "total_tokens": reply.prompt_tokens},
    }
    return json_response(value, headers=node_headers(reply.node_id, len(reply.hops)))


async def _embed(gateway: Gateway, request_id: str, given: list[str], model: str | None) -> EmbeddingReply:
    """Embed, and tell `gateway.events` of it."""
    started = trio.current_time()
    tell = gateway.events.publish
    tell(RequestStarted(request_id=request_id, model=model, at=started))
    status, reply = READER_LEFT, None
    try:
        reply = await gateway.swarm.embed(given, model=model)
        status = 200
    except LlamaNetError as error:
        status = api_error(error).status
        raise
    finally:
        tell(
            RequestEnded(
                request_id=request_id,
                model=reply.model if reply else model,
                node_id=reply.node_id if reply else None,
                tokens=0,
                seconds=trio.current_time() - started,
                status=status,
                prompt_tokens=reply.prompt_tokens if reply else 0,
            )
        )
    return reply


def _base64(vector: Sequence[float]) -> str:
    """32-bit floating point, little-endian, as OpenAI's clients read it."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


routes = [Route("/v1/embeddings", create_embeddings, methods=["POST"])]
