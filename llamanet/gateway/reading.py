"""Reading a request: its body, checked; and whether anybody is still there to be answered."""

import logging
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

import trio
from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from llamanet.errors import LlamaNetError
from llamanet.gateway.bodies import Body
from llamanet.gateway.openai import ApiError

B = TypeVar("B", bound=Body)
T = TypeVar("T")
log = logging.getLogger(__name__)
_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TYPES = {"str", "int", "float", "bool", "dict", "list"}


async def read_body(request: Request, kind: type[B]) -> B:
    """The body as `kind`. Raises `ApiError` and `ClientDisconnect`."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if "origin" in request.headers and not content_type.endswith("json"):
        # A page of another site may send anything else without asking, and make the swarm work for it.
        raise ApiError(415, "From a browser the body must be application/json", code="unsupported_media_type")
    try:
        body = kind.model_validate_json(await request.body())
    except ValidationError as error:
        raise _invalid(error) from error
    if log.isEnabledFor(logging.DEBUG) and (unknown := body.model_extra):
        log.debug("Ignored fields of a request to %s: %s", request.url.path, ", ".join(sorted(unknown))[:1_000])
    return body


def _invalid(error: ValidationError) -> ApiError:
    """OpenAI tells one mistake; this tells the first, and how many more there are."""
    first, *others = error.errors(include_url=False, include_context=False, include_input=False)
    if first["type"] == "json_invalid":
        return ApiError(400, f"The body is not JSON that can be read: {first['msg']}", code="invalid_json")
    field = field_name(first["loc"])
    more = f" (and {len(others)} more)" if others else ""
    return ApiError(400, f"{field or 'The body'}: {first['msg']}{more}", code="invalid_value", param=field)


def field_name(place: Iterable[int | str]) -> str | None:
    """pydantic's place of a mistake as OpenAI writes it: `messages[0].content`; None for the whole body."""
    name = ""
    for step in place:
        if isinstance(step, int):
            name += f"[{step}]"
        elif _FIELD.fullmatch(step) and step not in _TYPES:
            # Else it names a type of which a value may be one of several.
            name += f".{step}" if name else step
    return name or None


async def while_read(receive: Receive, work: Callable[[], Awaitable[T]]) -> T:
    """The result of `work`, which is cancelled if the reader goes away; then this raises `ClientDisconnect`."""
    results: list[T] = []
    errors: list[LlamaNetError] = []

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        try:
            results.append(await work())
        except LlamaNetError as error:
            errors.append(error)
        nursery.cancel_scope.cancel()
    if errors:
        raise errors[0]
    if not results:
        raise ClientDisconnect
    return results[0]


def state_of(request: Request, name: str) -> Any:
    """What a layer around the endpoints left in the request's state; None if it did not."""
    return request.scope.get("state", {}).get(name)
