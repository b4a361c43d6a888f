"""LlamaNet: people's machines as one inference service, with no server in the middle.

>>> async with llamanet.Swarm(bootstrap_nodes=["127.0.0.1:8001"]) as swarm:  # doctest: +SKIP
...     print((await swarm.generate("What is LlamaNet?", max_tokens=64)).text)

Names are imported when they are first used, so that `import llamanet` and `llamanet --help` stay fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

from llamanet._version import __version__

if TYPE_CHECKING:
    from llamanet.swarm import Swarm

__all__ = ["Swarm", "__version__"]

_homes = {"Swarm": "llamanet.swarm"}


def __getattr__(name: str) -> Any:
    if name not in _homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_homes[name]), name)
