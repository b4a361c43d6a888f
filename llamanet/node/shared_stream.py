"""A stream that several tasks write to: one of them at a time, and each all that it has to say.

trio's lock would do, but it lets all other tasks run before it is had, and in the little time between two tokens that
costs as much as what is done under it.
"""

import trio


class SharedStream(trio.abc.Stream):
    """`stream`, for many writers."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        """Closing it closes `stream`."""
        self._stream = stream
        self._sending = False
        self._others = trio.lowlevel.ParkingLot()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """As `trio.abc.SendStream.send_all`, when no other task is sending."""
        while self._sending:
            await self._others.park()
        self._sending = True
        try:
            await self._stream.send_all(data)
        finally:
            self._sending = False
            self._others.unpark()

    async def wait_send_all_might_not_block(self) -> None:
        """As `trio.abc.SendStream.wait_send_all_might_not_block`."""
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """As `trio.abc.ReceiveStream.receive_some`."""
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        """Close the stream."""
        await self._stream.aclose()
