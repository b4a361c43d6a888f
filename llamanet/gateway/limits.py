"""What a request may weigh. Pure ASGI; endpoints get bodies that are whole, and no larger or deeper than they can bear.

Rules:
- A body of more than `MAX_BODY_BYTES` is 413, one that is not there within `BODY_S` is 408, and JSON that is nested
  deeper than `MAX_DEPTH` is 400; before anything is parsed. (More than `MAX_CHAT_MESSAGES` are 400 too: nodes say so.)
- Whoever sends too much may first go on sending for a moment, for many clients read no answer before they are done.
- Headers of more than `MAX_HEADER_BYTES` are 431: hypercorn says so of those that come in several reads, and this layer
  of the others.
"""

import re

import trio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llamanet.gateway.openai import INVALID_REQUEST, ApiError
from llamanet.gateway.responses import error_response
from llamanet.wire.inference import MAX_MESSAGE_BYTES

MAX_BODY_BYTES = 2 * MAX_MESSAGE_BYTES
"""JSON says in up to twice the bytes what a message to a node says."""
MAX_HEADER_BYTES = 32 * 1024
MAX_DEPTH = 64
"""Of arrays and objects in each other; a schema of that depth is none that a model could follow."""
BODY_S = 30.0
LINGER_S = 2.0
LINGER_BYTES = 64 * 1024 * 1024
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_AS_ARRAYS = bytes.maketrans(b"{}", b"[]")
_BODILESS = ("GET", "HEAD", "OPTIONS")


class _Gone(Exception):
    """The client left before its body was complete."""


class BodyLimits:
    """The layer that reads a request whole, or refuses it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            message = f"The headers are too large; at most {MAX_HEADER_BYTES} bytes are accepted"
            await error_response(ApiError(431, message, INVALID_REQUEST, "headers_too_large"))(scope, receive, send)
            return
        if scope["method"] in _BODILESS:
            await self._app(scope, receive, send)
            return
        try:
            body = await _read(scope, receive)
        except _Gone:
            return
        except ApiError as error:
            await error_response(error)(scope, receive, send)
            return
        delivered = False

        async def receive_body() -> Message:
            nonlocal delivered
            if delivered:
                return await receive()
            delivered = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, receive_body, send)


async def _read(scope: Scope, receive: Receive) -> bytes:
    """The body. Raises `ApiError`, or `_Gone`."""
    announced = dict(scope["headers"]).get(b"content-length", b"0")
    pieces: list[bytes] = []
    size = int(announced) if announced.isdigit() else 0
    if size <= MAX_BODY_BYTES:
        size = 0
        with trio.move_on_after(BODY_S) as patience:
            more = True
            while more and size <= MAX_BODY_BYTES:
                piece, more = await _next_piece(receive)
                size += len(piece)
                pieces.append(piece)
        if patience.cancelled_caught:
            message = f"The body was not there within {BODY_S:g} s"
            raise ApiError(408, message, INVALID_REQUEST, "request_timeout")
    if size > MAX_BODY_BYTES:
        pieces.clear()
        await _linger(receive)
        message = f"The body is too large; at most {MAX_BODY_BYTES} bytes are accepted"
        raise ApiError(413, message, INVALID_REQUEST, "request_too_large")
    body = b"".join(pieces)
    if deeper_than(body, MAX_DEPTH):
        raise ApiError(400, f"The JSON is nested deeper than {MAX_DEPTH} levels", INVALID_REQUEST, "json_too_deep")
    return body


async def _next_piece(receive: Receive) -> tuple[bytes, bool]:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise _Gone
    return message.get("body", b""), message.get("more_body", False)


async def _linger(receive: Receive) -> None:
    left, more = LINGER_BYTES, True
    with trio.move_on_after(LINGER_S):
        while more and left > 0:
            piece, more = await _next_piece(receive)
            left -= len(piece)


def deeper_than(body: bytes, depth: int) -> bool:
    """Whether JSON is nested deeper than `depth`; what is not JSON may be either."""
    if body.count(b"[") + body.count(b"{") <= depth:
        return False
    brackets = _STRING.sub(b"", body).translate(_AS_ARRAYS, _NO_BRACKETS)
    for _ in range(depth):
        # The innermost pairs go, one level at a time; all at C's speed, for a body can have millions.
        brackets = brackets.replace(b"[]", b"")
    return b"[" in brackets
