"""What happens to the gateway's requests, told to whoever wants to know.

Rules:
- Publishing never waits and never fails: a request does not depend on who watches it.
- Listeners are called at once and see every event, so that what they count is exact.
- Subscribers read in their own time. Each one has a bounded buffer; when that is full its oldest event makes room, and
  the subscriber can tell how many it missed.
- Times are in seconds: `at` on trio's clock, everything else a duration. No event holds a word of a prompt or of an
  answer.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import attrs
import trio

BUFFERED = 1024
"""Events that a subscriber may be late by."""


@attrs.frozen(kw_only=True)
class RequestStarted:
    """A request is about to be asked of the swarm. `model` is None for "auto"."""

    request_id: str
    model: str | None
    at: float


@attrs.frozen(kw_only=True)
class RequestAnswered:
    """The first token has come, `ttft` seconds after the start."""

    request_id: str
    model: str | None
    node_id: str
    """The node's label, here and below."""
    ttft: float


@attrs.frozen(kw_only=True)
class RequestMoved:
    """The request left a node; `to_node` is None if the next one is not known yet."""

    request_id: str
    model: str | None
    from_node: str
    to_node: str | None
    reason: str


@attrs.frozen(kw_only=True)
class RequestEnded:
    """The last event of a request, however it ended."""

    request_id: str
    model: str | None
    node_id: str | None
    """None if no node was asked."""
    tokens: int
    """Of the answer."""
    seconds: float
    """Since the start."""
    status: int
    """As HTTP tells it, or 499 if the reader went away (`gateway/openai.py`)."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt's, found in the node's cache."""


Event: TypeAlias = RequestStarted | RequestAnswered | RequestMoved | RequestEnded


class Subscription:
    """An async iterator over the events from now on. Only one task may read it."""

    def __init__(self, buffered: int) -> None:
        self.missed = 0
        """Events that came while the buffer was full, and pushed others out."""
        self._events: deque[Event] = deque(maxlen=buffered)
        self._news = trio.Event()

    def put(self, event: Event) -> None:
        """Add an event; the oldest is lost if there is no room."""
        self.missed += len(self._events) == self._events.maxlen
        self._events.append(event)
        self._news.set()

    def __aiter__(self) -> "Subscription":
        """The subscription itself."""
        return self

    async def __anext__(self) -> Event:
        """The next event. Cancelling it loses nothing."""
        await trio.lowlevel.checkpoint()
        while not self._events:
            self._news = trio.Event()
            await self._news.wait()
        return self._events.popleft()


class Events:
    """The broadcast of one gateway."""

    def __init__(self) -> None:
        self.listeners: list[Callable[[Event], None]] = []
        """Called with each event, in turn; they must be quick, and must not raise."""
        self._subscriptions: set[Subscription] = set()

    def publish(self, event: Event) -> None:
        """Tell everybody."""
        for listener in self.listeners:
            listener(event)
        for subscription in self._subscriptions:
            subscription.put(event)

    @contextmanager
    def subscribe(self, buffered: int = BUFFERED) -> Iterator[Subscription]:
        """The events while the block runs, `buffered` of them kept for a slow reader."""
        subscription = Subscription(buffered)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.remove(subscription)
