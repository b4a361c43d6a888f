"""OpenAI's forms, as pure functions: a failure's status and body.

Source: the error object and its codes as OpenAI's API reference and its Python client (`openai._exceptions`) have them.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import attrs

from llamanet.errors import DeadlineExceeded, LlamaNetError, NoNodeServes, NotJoined, RequestRefused, SwarmBusy

INVALID_REQUEST = "invalid_request_error"
READER_LEFT = 499
"""The status of a request whose reader went away; nginx's number, for HTTP has none."""
_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
UNAVAILABLE_RETRY_S = 5
"""When somebody whom no node could answer may come back."""


@attrs.frozen
class ApiError(LlamaNetError):
    """An answer that is an error: `status` of HTTP, and what OpenAI's error object holds. `retry_after` in seconds."""

    status: int
    message: str
    type: str = INVALID_REQUEST
    code: str | None = None
    param: str | None = None
    retry_after: float | None = None

    def __str__(self) -> str:
        return self.message

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def headers(self) -> Mapping[str, str]:
        """What goes with it."""
        return {} if self.retry_after is None else {"retry-after": str(max(1, math.ceil(self.retry_after)))}


def api_error(error: LlamaNetError) -> ApiError:
    """What the swarm's `error` is to a client of OpenAI's API."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestRefused):
        return _refused(error)
    if isinstance(error, SwarmBusy):
        return ApiError(429, str(error), "rate_limit_error", "swarm_busy", retry_after=error.retry_after)
    if isinstance(error, NoNodeServes) and error.model is not None and not error.tried:
        return no_such_model(error.model, error.served)
    if isinstance(error, NoNodeServes | NotJoined):
        code = "not_joined" if isinstance(error, NotJoined) else "no_node_serves"
        return ApiError(503, str(error), "service_unavailable_error", code, retry_after=UNAVAILABLE_RETRY_S)
    if isinstance(error, DeadlineExceeded):
        return ApiError(504, str(error), "timeout_error", "deadline_exceeded")
    return ApiError(500, str(error), "server_error", "internal_error")


def no_such_model(model: str, served: tuple[str, ...]) -> ApiError:
    """Nobody serves `model`."""
    others = ", ".join(served) or "nothing"
    message = f"The model {model!r} does not exist in this swarm; it serves {others}"
    return ApiError(404, message, INVALID_REQUEST, "model_not_found", "model")


def _refused(error: RequestRefused) -> ApiError:
    field = error.field.removeprefix("sampling.") if error.field else None
    if field is not None and field.startswith("texts"):
        field = "input" + field.removeprefix("texts")
    accepted = f" (accepted: {error.limit})" if error.limit and error.limit not in error.message else ""
    too_long = field in ("prompt", "messages") and "the context" in error.message
    code = "context_length_exceeded" if too_long else "invalid_value"
    return ApiError(400, error.message + accepted, INVALID_REQUEST, code, field)


def to_json(value: Any) -> bytes:
    """`value` as JSON in UTF-8."""
    # A lone surrogate, which UTF-8 cannot say, becomes its own JSON escape.
    return _JSON.encode(value).encode(errors="backslashreplace")
