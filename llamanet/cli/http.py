"""What `llamanet gateway` and `llamanet node --http-port` have in common: a gateway's options and packages."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from llamanet.cli.options import STRATEGY, Listed, setting
from llamanet.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])
PACKAGES = ("hypercorn", "starlette", "pydantic", "prometheus_client")
PORT = 8080


_file: dict[str, Any] = {"type": click.Path(path_type=Path), "metavar": "FILE"}
_SETTINGS: dict[str, dict[str, Any]] = {
    "http_port": {"type": int, "help": "OpenAI's API, the page and /metrics (TCP); 0: any free port."},
    "http_host": {"default": "127.0.0.1", "show_default": True, "help": "The address that HTTP is served on."},
    "http_tls_cert": {**_file, "help": "A certificate chain, for HTTPS."},
    "http_tls_key": {**_file, "help": "The certificate's key."},
    "api_key_file": {**_file, "help": "API keys, one a line; needed to serve other machines."},
    "no_auth": {"is_flag": True, "help": "Let everybody ask who reaches the port."},
    "cors_origin": {
        "multiple": True,
        "type": Listed(),
        "metavar": "ORIGIN",
        "help": "An origin whose pages may ask, such as https://chat.example.org; give it again for more.",
    },
    "open_metrics": {"is_flag": True, "help": "Serve /metrics without a key."},
    "min_tps": {
        "type": float,
        "default": 0.0,
        "help": "Ask no node that is slower for one stream, in tokens a second.",
    },
    "max_load": {"type": float, "help": "Ask no node with more requests a slot."},
    "strategy": STRATEGY,
}
HTTP_SETTINGS = tuple(_SETTINGS)


def http_settings(port: int | None) -> Callable[[F], F]:
    """The options of a gateway, by the names of `GatewayConfig`; the port may be None, and then nothing is served."""

    def add_all(function: F) -> F:
        for name, attributes in reversed(_SETTINGS.items()):
            told = {"default": port, "show_default": True if port else "none"} if name == "http_port" else {}
            function = setting(name, **attributes, **told)(function)
        return function

    return add_all


def missing_packages() -> tuple[str, ...]:
    """The packages of the extra `gateway` that are not installed."""
    return tuple(name for name in PACKAGES if importlib.util.find_spec(name) is None)


def need_packages() -> None:
    """Raises `UserError` if the packages of the extra `gateway` are not installed."""
    if missing := missing_packages():
        raise UserError(f"serving HTTP needs more packages ({', '.join(missing)}): pip install 'llamanet[gateway]'")
