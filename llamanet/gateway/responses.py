"""Whole answers: JSON with a status, and errors in OpenAI's form."""

from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from llamanet.errors import LlamaNetError
from llamanet.gateway.openai import INVALID_REQUEST, READER_LEFT, ApiError, api_error, to_json


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`value` as a whole answer."""
    return Response(to_json(value), status, headers, media_type="application/json")


def error_response(error: ApiError) -> Response:
    """An error as a whole answer."""
    return json_response(error.body(), error.status, error.headers())


async def llamanet_error(request: Request, error: Exception) -> Response:
    """Starlette's handler of errors that LlamaNet raises on purpose."""
    assert isinstance(error, LlamaNetError)  # noqa: S101 -- as it is registered
    return error_response(api_error(error))


async def http_error(request: Request, error: Exception) -> Response:
    """Starlette's handler of its own errors: no such path, no such method."""
    assert isinstance(error, HTTPException)  # noqa: S101 -- as it is registered
    if error.status_code == 405:
        message = f"{request.method} is not allowed on {request.url.path}"
        answer = ApiError(405, message, INVALID_REQUEST, "method_not_supported")
    elif error.status_code == 404:
        answer = ApiError(
            404, f"There is nothing at {request.url.path}; see /openapi.json", INVALID_REQUEST, "unknown_url"
        )
    else:
        answer = ApiError(error.status_code, error.detail)
    return json_response(answer.body(), answer.status, error.headers)


async def reader_left(request: Request, error: Exception) -> Response:
    """Starlette's handler of a reader who left before the request was whole; nobody reads this."""
    return error_response(ApiError(READER_LEFT, "The reader went away"))


async def unexpected_error(request: Request, error: Exception) -> Response:
    """Starlette's handler of what nobody foresaw. It is logged by the server, and told to nobody else."""
    return error_response(ApiError(500, "The gateway failed; its log says why", "server_error", "internal_error"))
