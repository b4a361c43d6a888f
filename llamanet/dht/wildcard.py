"""A UDP socket on all local addresses that answers from the address that was asked.

Left alone, a system picks the sender's address of each datagram by its routes. On a machine with several addresses an
answer may then come from another one than was asked, and the asker drops it: it was told by a stranger.

Rules:
- A datagram to whoever was last heard goes out from the local address that it was heard at (RFC 3542, section 6; for
  IPv4 as in Linux's ip(7)); to anybody else, from where the system likes.
- What is remembered is bounded; who was heard first is forgotten first.
- Where the system does not tell the address asked, this is a plain socket.
"""

import errno
import socket
import struct
import sys
from typing import Any

REMEMBERED = 4096
IP_PKTINFO = 8
"""Linux's; Python 3.11 does not name it."""
_IPV4 = struct.Struct("=I4s4s")
"""Interface, local address, destination in the header (`struct in_pktinfo`)."""
_IPV6 = struct.Struct("=16sI")
"""Local address, interface (`struct in6_pktinfo`)."""


class WildcardSocket(socket.socket):
    """To be bound to 0.0.0.0 or ::; used by `recvfrom` and `sendto` as any other."""

    def __init__(self, family: socket.AddressFamily) -> None:
        super().__init__(family, socket.SOCK_DGRAM)
        self._heard_at: dict[Any, bytes] = {}
        """By whom: the control message that makes a datagram leave from where the last one came to."""
        self._told = False
        if sys.platform == "linux":
            if family == socket.AF_INET6:
                self._level, self._type = socket.IPPROTO_IPV6, socket.IPV6_PKTINFO
                self.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            else:
                self._level, self._type = socket.IPPROTO_IP, IP_PKTINFO
                self.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
            self._told = True

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:
        """The next datagram, and who sent it."""
        if not self._told:
            return super().recvfrom(bufsize, flags)
        datagram, told, _, source = self.recvmsg(bufsize, socket.CMSG_SPACE(_IPV6.size), flags)
        for level, kind, data in told:
            if level == self._level and kind == self._type:
                if level == socket.IPPROTO_IPV6:
                    answer = _IPV6.pack(_IPV6.unpack(data)[0], 0)
                else:
                    answer = _IPV4.pack(0, _IPV4.unpack(data)[1], bytes(4))
                self._remember(source[:2], answer)
        return datagram, source

    def _remember(self, source: tuple[str, int], answer: bytes) -> None:
        if self._heard_at.get(source) != answer:
            self._heard_at.pop(source, None)
            self._heard_at[source] = answer
            if len(self._heard_at) > REMEMBERED:
                del self._heard_at[next(iter(self._heard_at))]

    def sendto(self, datagram: bytes, address: tuple[str, int], /) -> int:  # type: ignore[override]  # all that we use
        """Send from where `address` was last heard. Raises `OSError` as a plain socket does."""
        answer = self._heard_at.get(address)
        if answer is None:
            return super().sendto(datagram, address)
        try:
            return self.sendmsg([datagram], [(self._level, self._type, answer)], 0, address)
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EINVAL, errno.ENETUNREACH):
                raise
        del self._heard_at[address]  # this machine does not have that address any more
        return super().sendto(datagram, address)
