"""The page at `/`: a few static files, under a policy that lets nothing but them run.

Rules:
- Files are served as they lie in `static/`: there is no build step, and nothing is fetched from anywhere else.
- The policy allows scripts, styles and connections of this origin alone, and nothing inline: text that a model writes
  could not run even if a bug of the page made an element of it.
- A browser keeps the files, and asks each time whether they changed (ETag).
"""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

STATIC = Path(__file__).with_name("static")
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-cache",
}


class PageFiles(StaticFiles):
    """Static files with the page's headers; they open without an API key, for there is nothing secret in them."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """As any static file's, with `HEADERS`."""
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


def routes() -> list[BaseRoute]:
    """`/`, and the files that it uses under `/static/`."""
    files = PageFiles(directory=STATIC)

    async def page(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)

    return [Route("/", page, include_in_schema=False), Mount("/static", files)]
