"""Asking an ASGI app without a server: a request in, the response's status, headers and body out."""

import json

import attrs
import trio

from llamanet.gateway.app import build_app
from llamanet.gateway.config import GatewayConfig
from llamanet.gateway.gateway import Gateway


@attrs.frozen
class Got:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self):
        return json.loads(self.body)

    @property
    def code(self):
        return self.json()["error"]["code"]


async def ask(app, method, path, body=b"", *, host="127.0.0.1:8080", receive=None, **headers):
    """Send one request; `headers` have underscores for dashes. `receive` stands in for a body that is not there yet."""
    pieces = [{"type": "http.request", "body": body, "more_body": False}]
    sent = []

    async def take():
        if not pieces:
            await trio.sleep_forever()
        return pieces.pop()

    async def send(message):
        sent.append(message)

    named = {"host": host, **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope = {
        "type": "http",
        "method": method,
        "path": path.partition("?")[0],
        "raw_path": path.partition("?")[0].encode(),
        "query_string": path.partition("?")[2].encode(),
        "root_path": "",
        "scheme": "http",
        "http_version": "1.1",
        "headers": [(name.encode(), value.encode()) for name, value in named.items() if value is not None],
        "client": ("192.0.2.1", 5),
        "server": ("127.0.0.1", 8080),
        "state": {},
    }
    await app(scope, receive or take, send)
    start = sent[0]
    names = [name for name, _ in start["headers"]]
    assert len(names) == len(set(names)), "a header comes twice"
    return Got(
        start["status"],
        {name.decode(): value.decode() for name, value in start["headers"]},
        b"".join(message.get("body", b"") for message in sent[1:]),
    )


def app_for(swarm, **settings):
    """The gateway's app in front of `swarm`, and its `Gateway`."""
    gateway = Gateway(swarm=swarm, config=GatewayConfig(**settings))
    return build_app(gateway), gateway
