"""The gateway as an ASGI application: its routes, and the layers that each request passes."""

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from llamanet.errors import LlamaNetError
from llamanet.gateway import models
from llamanet.gateway.gateway import Gateway
from llamanet.gateway.responses import http_error, llamanet_error, unexpected_error

LAYERS: list[Callable[[ASGIApp, Gateway], ASGIApp]] = []
"""Pure ASGI middlewares, the outermost first; each is made from what it wraps and the gateway."""
SERVICES: list[Callable[[Gateway], Awaitable[None]]] = []
"""What runs beside the requests, as long as the gateway serves."""


def build_app(gateway: Gateway) -> ASGIApp:
    """The whole application."""
    starlette = Starlette(
        routes=[*models.routes],
        exception_handlers={
            LlamaNetError: llamanet_error,
            HTTPException: http_error,
            Exception: unexpected_error,
        },
    )
    starlette.router.redirect_slashes = False
    starlette.state.gateway = gateway
    app: ASGIApp = starlette
    for layer in reversed(LAYERS):
        app = layer(app, gateway)
    return app
