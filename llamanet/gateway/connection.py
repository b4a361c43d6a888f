"""hypercorn's connection over trio, with a shorter way out for small writes, and an end as soon as the client leaves.

A streamed token is one write of some 200 bytes. On hypercorn's way that takes a lock, a cancel scope, and twice round
trio's scheduler, which costs more than all else that HTTP does with it. Here the kernel is asked first: what it takes
at once is gone, and the rest, as well as anything over TLS, goes hypercorn's way.

A client that closes a connection on which nothing runs is not waited for. hypercorn keeps the socket until the
connection was idle for too long, and clients that connect for each request would soon use up the sockets.
"""

import os

import trio
from hypercorn.events import Event, RawData, Updated
from hypercorn.trio.tcp_server import TCPServer


class Connection(TCPServer):
    """One client's connection."""

    _left = False
    """No request comes any more."""

    async def _read_data(self) -> None:
        await super()._read_data()
        self._left = True
        await self.idle_task.stop()

    async def protocol_send(self, event: Event) -> None:
        """Send, or close, or tell whether something runs."""
        if self._left and isinstance(event, Updated):
            return
        if isinstance(event, RawData) and os.name == "posix" and not self.send_lock.locked():
            stream: object = self.stream
            if isinstance(stream, trio.SocketStream):
                try:
                    sent = os.write(stream.socket.fileno(), event.data)
                except OSError:
                    sent = 0  # Full, or broken; hypercorn's way finds out which.
                if sent == len(event.data):
                    return
                # Half of a piece must not be all of it: who sends may be cancelled, and somebody else goes on sending.
                with trio.CancelScope(shield=sent > 0):
                    await super().protocol_send(RawData(data=event.data[sent:]))
                return
        await super().protocol_send(event)
