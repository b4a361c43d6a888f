"""The messages that answer one request, on their way from whatever computes them to its connection.

Rules:
- `Accepted`, `Tokens`..., then `Finished`; or `Failed` at any point. All carry the request's id.
- Tokens wait here, and those that are there come in one message. Whoever computes them hears when they were taken, and
  bounds how far a reader may lag.
"""

from collections.abc import Callable
from typing import TypeAlias

import trio

from llamanet.wire.inference import Accepted, Failed, Finished, Generate, TokenLogprobs, Tokens

Message: TypeAlias = Accepted | Tokens | Finished | Failed


class Answer:
    """An async iterator of the messages that answer `request`. Only one task may read at a time."""

    def __init__(self, request: Generate) -> None:
        self.request = request
        self.on_news: Callable[[], None] | None = None
        """Called whenever there is something to take, and at the end."""
        self._accepted: Accepted | None = None
        self._text: list[str] = []
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._last: Finished | Failed | None = None
        self._over = False
        self._news = trio.lowlevel.ParkingLot()

    # --- reading ------------------------------------------------------------------------------------------------------

    async def receive(self) -> Message:
        """The next message; all tokens that are there come in one.

        Raises `trio.EndOfChannel` after the last message, or when cancelled. Cancelling the task that waits here loses
        nothing: what was not returned is still there.
        """
        if self._ready:
            await trio.lowlevel.checkpoint()
        while not self._ready:
            await self._news.park()
        return self._take()

    def take_all(self) -> list[Message]:
        """All messages that are there, without waiting for any."""
        messages: list[Message] = []
        while self._accepted or self._tokens or self._last:
            messages.append(self._take())
        return messages

    @property
    def over(self) -> bool:
        """Whether no further message will come than those that are there."""
        return self._over

    def cancel(self) -> None:
        """Stop the work. What was not received is dropped. May be called again, or too late."""
        self._end(None)

    def __aiter__(self) -> "Answer":
        """All messages, in order."""
        return self

    async def __anext__(self) -> Message:
        """As `receive`, ending the iteration after the last message."""
        try:
            return await self.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    @property
    def _ready(self) -> bool:
        return bool(self._accepted or self._tokens or self._over)

    def _take(self) -> Message:
        if accepted := self._accepted:
            self._accepted = None
            return accepted
        if self._tokens:
            message = Tokens(
                id=self.request.id,
                text="".join(self._text),
                token_ids=tuple(self._tokens),
                logprobs=tuple(self._logprobs),
            )
            self._text.clear()
            self._tokens.clear()
            self._logprobs.clear()
            self._taken(len(message.token_ids))
            return message
        if last := self._last:
            self._last = None
            return last
        raise trio.EndOfChannel

    def _taken(self, tokens: int) -> None:
        """The reader has so many more tokens."""

    # --- writing ------------------------------------------------------------------------------------------------------

    def _accept(self, message: Accepted) -> None:
        self._accepted = message
        self._tell()

    def _add(self, token: int, text: str, logprobs: TokenLogprobs | None) -> None:
        self._tokens.append(token)
        if logprobs is not None:
            self._logprobs.append(logprobs)
        if text:
            self._text.append(text)
        self._tell()

    def _end(self, last: Finished | Failed | None) -> None:
        if last is None:
            self._accepted = None
            self._text.clear()
            self._tokens.clear()
            self._logprobs.clear()
        self._last = last
        self._over = True
        self._tell()

    def _tell(self) -> None:
        self._news.unpark_all()
        if self.on_news is not None:
            self.on_news()
