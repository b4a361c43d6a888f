"""Where somebody who only asks listens for replies."""

import socket


def local_addresses() -> tuple[str, ...]:
    """The wildcard addresses of the address families that this machine has."""
    if not socket.has_ipv6:
        return ("0.0.0.0",)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("::", 0))
        except OSError:
            return ("0.0.0.0",)
    return ("0.0.0.0", "::")
