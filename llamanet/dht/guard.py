"""What a node does against abuse: write tokens, and a count of each kind of datagram that it dropped. Pure.

A write token proves that whoever stores also receives at the address it stores from: it is a MAC over address and key
under a secret that rotates, so nothing is remembered per asker.
"""

import hashlib
import hmac
from collections import Counter

from llamanet.wire.rpc import TOKEN_BYTES, Address, pack_host

TOKEN_ROTATION_S = 300.0
"""A token is good for this long at least, and for twice as long at most."""

DROP_REASONS = ("header", "box", "message", "unasked", "client", "unsent")
"""Not of this swarm; a box that does not open; malformed; a reply to nothing that we asked there; a request while we
serve nobody; a reply that our own system would not send."""


class WriteTokens:
    """Makes and checks write tokens. `secret` is 32 random bytes; `now` is in seconds."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def make(self, address: Address, key: bytes, now: float) -> bytes:
        """The token that lets `address` store under `key`."""
        return self._make(address, key, int(now // TOKEN_ROTATION_S))

    def check(self, token: bytes, address: Address, key: bytes, now: float) -> bool:
        """Whether `token` was made for `address` and `key` in this rotation or the last one."""
        period = int(now // TOKEN_ROTATION_S)
        return any(hmac.compare_digest(token, self._make(address, key, p)) for p in (period, period - 1))

    def _make(self, address: Address, key: bytes, period: int) -> bytes:
        bound = b"".join(
            (period.to_bytes(8, "big", signed=True), pack_host(address.host), address.port.to_bytes(2, "big"), key)
        )
        return hashlib.blake2b(bound, key=self._secret, digest_size=TOKEN_BYTES).digest()


class Drops:
    """How many datagrams were dropped, by reason. Never logged one by one: that would be an attack of its own."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter(dict.fromkeys(DROP_REASONS, 0))

    def count(self, reason: str) -> None:
        """One more."""
        self.counts[reason] += 1
