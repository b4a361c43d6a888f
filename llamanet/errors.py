"""Every error that LlamaNet raises on purpose.

An error is one line: what failed, with which values, and what to do about it. Commands print `str(error)` and
exit with 2 for what the user can mend (`UserError`) and with 1 for the rest; nobody should see a traceback for either.
"""

import contextlib
import sys
from collections.abc import Iterator

import attrs

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup


class LlamaNetError(Exception):
    """The base of all errors that LlamaNet raises on purpose."""


@attrs.define
class UserError(LlamaNetError):
    """Something that the person at the keyboard can mend: a flag, a variable, a file. Commands exit with 2."""

    message: str

    def __str__(self) -> str:
        return self.message


@attrs.define
class ModelFileError(UserError):
    """A model file that is missing, unreadable, or not a GGUF file that llama.cpp can load."""


@attrs.define
class BadMessage(LlamaNetError):
    """Bytes from the network that break the protocol. The only error that decoders let out.

    `field` is the name of the offending field, where one is known, and `limit` what it would have accepted.
    """

    reason: str
    field: str | None = None
    limit: str | None = None

    def __str__(self) -> str:
        place = f"{self.field}: " if self.field else ""
        limit = f" (accepted: {self.limit})" if self.limit else ""
        return f"{place}{self.reason}{limit}"


@attrs.define
class RpcTimeout(LlamaNetError):
    """A DHT peer did not answer a request in time."""

    peer: str
    timeout: float

    def __str__(self) -> str:
        return f"{self.peer} did not answer within {self.timeout:g} s"


@attrs.define
class RpcRefused(LlamaNetError):
    """A DHT peer answered a request with a refusal."""

    peer: str
    reason: str

    def __str__(self) -> str:
        return f"{self.peer} refused: {self.reason}"


@attrs.define
class NotJoined(LlamaNetError):
    """No bootstrap peer has answered, so there is no swarm to ask."""

    tried: tuple[str, ...]

    def __str__(self) -> str:
        peers = ", ".join(self.tried) or "no peer given"
        return f"not joined to any swarm: no answer from {peers}; check the address, and that a node runs there"


@attrs.define
class NoNodeServes(LlamaNetError):
    """No node can take the request: none serves `model`, none meets the wishes, or each one failed.

    `reasons` says, a line for each, why the nodes that serve the model were passed over.
    """

    model: str | None
    tried: int
    served: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()

    def __str__(self) -> str:
        what = f"serves {self.model!r}" if self.model else "serves any model"
        others = ", ".join(self.served) or "nothing"
        because = f": {'; '.join(self.reasons)}" if self.reasons else ""
        return f"no reachable node {what} ({self.tried} tried){because}; the swarm serves {others}"


@attrs.define
class SwarmBusy(LlamaNetError):
    """Every node that serves the model has a full queue, or more load than the request allows; `reasons` tell."""

    model: str | None
    tried: int
    retry_after: float
    reasons: tuple[str, ...] = ()

    def __str__(self) -> str:
        what = repr(self.model) if self.model else "any model"
        because = f" ({'; '.join(self.reasons)})" if self.reasons else ""
        return f"all {self.tried} nodes that serve {what} are busy{because}; try again in {self.retry_after:.1f} s"


@attrs.define
class DeadlineExceeded(LlamaNetError):
    """A request did not end within its own `timeout`, in seconds; `tokens` had come."""

    timeout: float
    tokens: int = 0

    def __str__(self) -> str:
        return f"no end within the {self.timeout:g} s that the request allows ({self.tokens} tokens came)"


@attrs.define
class RequestRefused(LlamaNetError):
    """The request itself is at fault (a parameter, or a prompt that is too long); no other node would take it."""

    message: str
    field: str | None = None
    limit: str | None = None

    def __str__(self) -> str:
        return self.message


@attrs.define
class NodeFailed(LlamaNetError):
    """One node failed while it answered. `swarm` goes on elsewhere; seen only when talking to one node directly."""

    node: str
    reason: str

    def __str__(self) -> str:
        return f"{self.node} failed: {self.reason}"


@attrs.define
class ClientClosed(LlamaNetError):
    """A blocking client was used after it was closed, or closed while it was used."""

    def __str__(self) -> str:
        return "the client is closed"


@attrs.define
class EngineBusy(LlamaNetError):
    """A node's queue is full. `retry_after` is in seconds, from the node's measured rate."""

    waiting: int
    retry_after: float

    def __str__(self) -> str:
        return f"the queue is full ({self.waiting} waiting); try again in {self.retry_after:.1f} s"


@contextlib.contextmanager
def ungrouped() -> Iterator[None]:
    """Let a `LlamaNetError` out of a nursery as itself. A group that holds anything else too stays as it is."""
    try:
        yield
    except BaseExceptionGroup as group:
        _, rest = group.split(LlamaNetError)
        if rest is not None:
            raise
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from error.__cause__
