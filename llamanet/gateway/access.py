"""Who may ask: API keys, and what a browser may be made to do. Pure ASGI; it runs before any route.

Rules:
- With keys, `/v1/…`, `/live` and `/metrics` need one (the last not with `--open-metrics`). The page, `/health`,
  `/ready` and `/openapi.json` hold no secret, and need none.
- Only `/v1/…` counts towards a key's limits. Its responses say what is left.
- Without keys a gateway that serves this machine alone must not serve the web pages that its browser shows: a request
  has to name this machine in `Host` (against DNS rebinding), and its `Origin`, if there is one, has to be the same, or
  one that CORS was opened for. Whoever wants neither keys nor that says so with `--no-auth`.
"""

from urllib.parse import urlsplit

import trio
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from llamanet.gateway.config import GatewayConfig
from llamanet.gateway.exchange import Exchange
from llamanet.gateway.gateway import Gateway
from llamanet.gateway.keys import Key, Keys, follow_keys
from llamanet.gateway.openai import INVALID_REQUEST, ApiError
from llamanet.gateway.quota import Quota, Refusal
from llamanet.gateway.responses import error_response

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
PREFLIGHT_S = 600
EXPOSED = (
    "x-request-id",
    "x-llamanet-node",
    "x-llamanet-hops",
    "retry-after",
    *(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")),
)
"""Headers of a response that scripts of a foreign origin may read."""
_UNITS = {"requests": "requests a minute", "tokens": "tokens a minute", "concurrency": "requests at a time"}


def allow_origins(app: ASGIApp, origins: tuple[str, ...]) -> ASGIApp:
    """Let scripts of these origins ask; `*` is all. Without any the browser's own rule stands: only the same origin."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "POST"),
        allow_headers=("*",),
        expose_headers=EXPOSED,
        max_age=PREFLIGHT_S,
    )


async def follow_key_file(gateway: Gateway) -> None:
    """Keep the gateway's keys as their file has them, if it has any."""
    if gateway.keys is not None and gateway.config.api_key_file is not None:
        await follow_keys(gateway.config.api_key_file, gateway.keys)


class Access:
    """The layer that lets a request pass, or answers 401, 403 or 429."""

    def __init__(self, app: ASGIApp, config: GatewayConfig, keys: Keys | None) -> None:
        self._app = app
        self._keys = keys
        self._open_metrics = config.open_metrics
        self._origins = config.cors_origin
        self._names = LOOPBACK_NAMES | {config.http_host} if keys is None and not config.no_auth else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange: Exchange = scope["state"]["exchange"]
        headers: dict[bytes, bytes] = dict(scope["headers"])
        try:
            if self._names is not None:
                self._check_browser(headers, self._names)
            holder = self._holder(scope["path"], headers, self._keys) if self._keys is not None else None
            if holder is None or not scope["path"].startswith("/v1/"):
                if holder is not None:
                    exchange.key = holder[0].label
                await self._app(scope, receive, send)
                return
            key, quota = holder
            exchange.key = key.label
            scope["state"]["caller"] = key.label  # Requests of one key take turns as one when they queue up.
            now = trio.current_time()
            refusal = quota.begin(key.limits, now)
            exchange.headers += quota.headers(key.limits, now)
            if refusal is not None:
                raise _too_many(refusal, key)
        except ApiError as error:
            if error.status == 401:
                exchange.headers.append((b"www-authenticate", b"Bearer"))
            await error_response(error)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            quota.end(key.limits, exchange.prompt_tokens + exchange.tokens, trio.current_time())

    def _holder(self, path: str, headers: dict[bytes, bytes], keys: Keys) -> tuple[Key, Quota] | None:
        """Whose request that is; None if it may be anybody's."""
        if not (path.startswith("/v1/") or path in ("/v1", "/live") or (path == "/metrics" and not self._open_metrics)):
            return None
        scheme, _, presented = headers.get(b"authorization", b"").decode(errors="surrogateescape").partition(" ")
        if scheme.lower() != "bearer" or not presented.strip():
            raise _unknown("You didn't provide an API key; send it in the header Authorization: Bearer KEY")
        holder = keys.find(presented.strip())
        if holder is None:
            raise _unknown("Incorrect API key provided")
        return holder

    def _check_browser(self, headers: dict[bytes, bytes], names: frozenset[str]) -> None:
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if _name(host) not in names:
            raise _forbidden(f"The host {host[:100]!r} is not this machine's; use localhost", "host_not_allowed")
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        if origin and urlsplit(origin).netloc != host and not {origin, "*"} & set(self._origins):
            raise _forbidden(f"Pages of {origin[:100]!r} may not ask; --cors-origin lets them", "origin_not_allowed")


def _name(host: str) -> str:
    """`host` without its port."""
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() else host


def _unknown(message: str) -> ApiError:
    return ApiError(401, message, INVALID_REQUEST, "invalid_api_key")


def _forbidden(message: str, code: str) -> ApiError:
    return ApiError(403, message, INVALID_REQUEST, code)


def _too_many(refusal: Refusal, key: Key) -> ApiError:
    limits = {"requests": key.limits.rpm, "tokens": key.limits.tpm, "concurrency": key.limits.concurrent}
    message = f"The key {key.label!r} may have {limits[refusal.reason]} {_UNITS[refusal.reason]}"
    kind = "tokens" if refusal.reason == "tokens" else "requests"
    return ApiError(429, message, kind, "rate_limit_exceeded", retry_after=refusal.retry_after)
