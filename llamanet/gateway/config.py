"""Everything that a gateway can be told, checked before anything is opened.

Each field is one setting of the command line: field `http_port` is flag `--http-port` and variable `HTTP_PORT`.
"""

import re
from pathlib import Path
from typing import Any

import attrs

from llamanet.client.strategy import STRATEGIES
from llamanet.errors import UserError
from llamanet.settings import (
    LOG_FORMATS,
    LOG_LEVELS,
    host_name,
    is_loopback,
    number,
    one_of,
    refusal,
    setting_name,
    whole,
)

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9._-]+(:[0-9]+)?|[a-z][a-z0-9+.-]*://\[[0-9a-f:.]+\](:[0-9]+)?")


def _origins(_: Any, attribute: "attrs.Attribute[Any]", value: tuple[str, ...]) -> None:
    for origin in value:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise refusal(attribute, origin, "a scheme and a host, such as https://chat.example.org, or *")


@attrs.frozen(kw_only=True)
class GatewayConfig:
    """The settings of a gateway. Raises `UserError` for a value that cannot be right."""

    http_host: str = attrs.field(default="127.0.0.1", validator=host_name)
    """The address that HTTP is served on."""
    http_port: int = attrs.field(default=8080, validator=whole(0, 65_535))
    """TCP; 0: any free one."""
    http_tls_cert: Path | None = None
    """A certificate chain in PEM, to serve HTTPS."""
    http_tls_key: Path | None = None
    """Its private key."""
    bootstrap_nodes: tuple[str, ...] = ()
    """`host:port` of nodes to join through."""
    join: str | None = None
    """An invitation, instead of or beside `bootstrap_nodes`."""
    swarm_name: str | None = None
    """Of another swarm than the public one."""
    dht_port: int = attrs.field(default=0, validator=whole(0, 65_535))
    """UDP; 0: any free one."""
    swarm_key_file: Path | None = None
    """Holds a private swarm's key: 32 bytes in hexadecimal."""
    min_tps: float = attrs.field(default=0.0, validator=number(0, 1e6, "tokens a second"))
    """Tokens a second of one stream, below which no node will do."""
    max_load: float | None = attrs.field(
        default=None, validator=attrs.validators.optional(number(0, 1e6, "requests a slot"))
    )
    """Requests running and waiting for each slot, above which no node will do."""
    strategy: str = attrs.field(default=STRATEGIES[0], validator=one_of(*STRATEGIES))
    """How a request's node is chosen."""
    api_key_file: Path | None = None
    """API keys, one a line, with labels and limits (`gateway/keys.py`); read again when it changes."""
    no_auth: bool = False
    """Let everybody ask who reaches the port: without keys, from any host name, on any address."""
    cors_origin: tuple[str, ...] = attrs.field(default=(), validator=_origins)
    """Origins (`https://chat.example.org`) whose pages may ask; `*`: all."""
    open_metrics: bool = False
    """Serve `/metrics` without a key."""
    log_level: str = attrs.field(default="info", validator=one_of(*LOG_LEVELS))
    log_format: str = attrs.field(default="text", validator=one_of(*LOG_FORMATS))

    def __attrs_post_init__(self) -> None:
        """Raises `UserError` for values that do not agree."""
        if (self.http_tls_cert is None) != (self.http_tls_key is None):
            names = setting_name("http_tls_cert"), setting_name("http_tls_key")
            raise UserError(f"{names[0]} and {names[1]} are given together, or not at all")
        keys, no_auth = setting_name("api_key_file"), setting_name("no_auth")
        if self.api_key_file is not None and self.no_auth:
            raise UserError(f"give {keys} or {no_auth}, not both")
        if self.api_key_file is None and not self.no_auth and not is_loopback(self.http_host):
            raise UserError(
                f"{setting_name('http_host')} {self.http_host} lets others ask: give {keys}, or say {no_auth} to let "
                "everybody"
            )
