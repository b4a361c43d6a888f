"""Finding, choosing, streaming, and going on elsewhere when a node dies. Knows nothing of engines.

`Client` is the blocking client; trio applications use `llamanet.Swarm`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llamanet.client.blocking import Client

__all__ = ["Client"]


def __getattr__(name: str) -> Any:
    # Not imported at once, for half of the package is of use without it.
    if name != "Client":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from llamanet.client.blocking import Client

    return Client
