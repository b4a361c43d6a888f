"""The gateway as an ASGI application: its routes, and the layers that each request passes."""

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from llamanet.errors import LlamaNetError
from llamanet.gateway import chat, completions, embeddings, health, live, metrics, models, openapi, page
from llamanet.gateway.access import Access, allow_origins, follow_key_file
from llamanet.gateway.access_log import log_access
from llamanet.gateway.exchange import Exchanges
from llamanet.gateway.gateway import Gateway
from llamanet.gateway.limits import BodyLimits
from llamanet.gateway.responses import http_error, llamanet_error, reader_left, unexpected_error

LAYERS: list[Callable[[ASGIApp, Gateway], ASGIApp]] = [
    lambda app, gateway: Exchanges(app, gateway.events, [log_access, gateway.metrics.ended]),
    lambda app, gateway: allow_origins(app, gateway.config.cors_origin),
    lambda app, gateway: Access(app, gateway.config, gateway.keys),
    lambda app, gateway: BodyLimits(app),
]
"""Pure ASGI middlewares, the outermost first; each is made from what it wraps and the gateway."""
SERVICES: list[Callable[[Gateway], Awaitable[None]]] = [follow_key_file]
"""What runs beside the requests, as long as the gateway serves."""


def build_app(gateway: Gateway) -> ASGIApp:
    """The whole application."""
    starlette = Starlette(
        routes=[
            *models.routes,
            *chat.routes,
            *completions.routes,
            *embeddings.routes,
            *openapi.routes,
            *health.routes(gateway),
            *metrics.routes(gateway.metrics),
            *live.routes(gateway),
            *page.routes(),
        ],
        exception_handlers={
            LlamaNetError: llamanet_error,
            HTTPException: http_error,
            ClientDisconnect: reader_left,
            Exception: unexpected_error,
        },
    )
    starlette.router.redirect_slashes = False
    starlette.state.gateway = gateway
    app: ASGIApp = starlette
    for layer in reversed(LAYERS):
        app = layer(app, gateway)
    return app
