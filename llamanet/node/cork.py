"""A stream that holds back what is written while it is corked, and sends it in one piece.

Many small messages then are one TLS record, one system call, and one wake-up of the reader: most of what a token costs.
"""

import contextlib
from collections.abc import AsyncIterator

import trio


class Cork(trio.abc.Stream):
    """`stream`, with a cork. Many tasks may write, for what they write is sent by one at a time."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        """Closing it closes `stream`."""
        self._stream = stream
        self._corked = False
        self._held = bytearray()
        self._sending = trio.Lock()

    @contextlib.asynccontextmanager
    async def corked(self) -> AsyncIterator[None]:
        """Hold back what is written inside, and send it at the end; raises as `send_all` then."""
        self._corked = True
        try:
            yield
        finally:
            self._corked = False
        await self._send()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """As `trio.abc.SendStream.send_all`, or later."""
        self._held += data
        if self._corked:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await self._send()

    async def _send(self) -> None:
        async with self._sending:
            while self._held:
                data, self._held = self._held, bytearray()
                await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """As `trio.abc.SendStream.wait_send_all_might_not_block`."""
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """As `trio.abc.ReceiveStream.receive_some`."""
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        """Close the stream."""
        await self._stream.aclose()
