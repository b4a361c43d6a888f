"""Checks of settings, for the configurations of commands.

A setting is one field: field `n_ctx` is flag `--n-ctx` and variable `N_CTX`. A value that cannot be right is refused
with one line that names both.
"""

import ipaddress
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import platformdirs

from llamanet.errors import UserError

LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("text", "json")
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")

Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def default_data_dir() -> Path:
    """Where keys, contacts and digests are kept unless the user says otherwise."""
    return platformdirs.user_data_path("llamanet")


def setting_name(field: str) -> str:
    """What a user knows a setting by: "--n-ctx (N_CTX)"."""
    return f"--{field.replace('_', '-')} ({field.upper()})"


def refusal(attribute: "attrs.Attribute[Any]", value: Any, wanted: str) -> UserError:
    """The error for a field that is not what was `wanted`."""
    return UserError(f"{setting_name(attribute.name)} must be {wanted}, not {value!r}")


def whole(low: int, high: int) -> Validator:
    """An integer from `low` to `high`."""

    def check(_: Any, attribute: "attrs.Attribute[Any]", value: Any) -> None:
        if type(value) is not int or not low <= value <= high:
            raise refusal(attribute, value, f"a whole number from {low} to {high}")

    return check


def number(low: float, high: float, unit: str = "") -> Validator:
    """A finite number from `low` to `high`; `unit` is a plural."""
    what = f"a number of {unit}" if unit else "a number"

    def check(_: Any, attribute: "attrs.Attribute[Any]", value: Any) -> None:
        if type(value) not in (int, float) or not math.isfinite(value) or not low <= value <= high:
            raise refusal(attribute, value, f"{what} from {low:g} to {high:g}")

    return check


def one_of(*allowed: str) -> Validator:
    """One of a few words."""

    def check(_: Any, attribute: "attrs.Attribute[Any]", value: Any) -> None:
        if value not in allowed:
            raise refusal(attribute, value, "one of " + ", ".join(allowed))

    return check


def is_host(host: str) -> bool:
    """Whether `host` is an IP address, or looks like a host name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        # A name that ends in a number is an address that somebody mistyped.
        last = host.rstrip(".").rpartition(".")[2]
        return len(host) <= 253 and _HOST_NAME.fullmatch(host) is not None and not last.isdigit()
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def host_name(_: Any, attribute: "attrs.Attribute[Any]", value: Any) -> None:
    """An IP address or a host name."""
    if not is_host(value):
        raise refusal(attribute, value, "an IP address or a host name")


def default_control_path(data_dir: Path, dht_port: int) -> Path:
    """The control socket of the node on `dht_port`."""
    return data_dir / f"node-{dht_port}.sock"
