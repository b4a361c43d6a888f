"""What a node does against abuse: limits on what others cost it, write tokens, and a count of what it dropped. Pure.

Rules:
- Whatever is kept for each address or subnet is bounded, and what strangers may cost in all is bounded beside it, for
  an attacker may have, or forge, more addresses than any table holds.
- Peers that have proved themselves keep a share that strangers cannot use up.
- This machine's own loopback is not limited: no datagram comes from there by way of a network.
- A write token proves that whoever stores also receives at the address it stores from: it is a MAC over address and key
  under a secret that rotates, so nothing is remembered per asker.
"""

import functools
import hashlib
import hmac
import itertools
from collections import Counter
from collections.abc import Hashable
from typing import TypeVar

import attrs

from llamanet.dht.distance import REMEMBERED_HOSTS, Scope, scope_of, subnet_of
from llamanet.wire.rpc import TOKEN_BYTES, Address, pack_host

K = TypeVar("K", bound=Hashable)

TOKEN_ROTATION_S = 300.0
"""A token is good for this long at least, and for twice as long at most."""

DROP_REASONS = ("header", "rate", "box", "message", "unasked", "client", "quota", "unsent")
"""Not of this swarm; too many from there; a box that does not open; malformed; a reply to nothing that we asked there;
a request while we serve nobody; a request that the limits of all answers leave no room for; a reply that our own system
would not send."""

HOST_RATE, HOST_BURST = 500.0, 1500.0
"""Datagrams a second from one IP address; a gateway that serves many users is one."""
SUBNET_RATE, SUBNET_BURST = 1500.0, 4500.0
"""The same from one public subnet (/24, IPv6 /48)."""
INTRODUCTION_RATE, INTRODUCTION_BURST = 200.0, 400.0
"""From all addresses together: what introduces itself has proved nothing, and any source can be forged in it."""
SOURCE_INTRODUCTION_RATE, SOURCE_INTRODUCTION_BURST = 20.0, 80.0
"""The same from one public subnet, or from one private address: a real host leaves most of it to other newcomers."""
KEY_RATE, KEY_BURST = 500.0, 2000.0
"""Senders a second whose box keys must be computed first, which costs as much as 20 boxes: some 4 % of a core. Any
number of keys can be made beforehand, and any source forged."""
SOURCE_KEY_RATE, SOURCE_KEY_BURST = 50.0, 200.0
"""The same of one public subnet, or of one private address."""
SEND_RATE, SEND_BURST = 2.0 * 2**20, 4.0 * 2**20
"""Bytes a second of all answers together."""
VERIFY_RATE, VERIFY_BURST = 1000.0, 2000.0
"""Signatures verified a second for STORE requests: some 7 % of a core."""
UNANSWERED_RATE, UNANSWERED_BURST = 2.0, 64.0
"""Lookup requests of ours to one public subnet, or one private address, that it does not answer; an answer gives its
request back. So the subnet of somebody who never asked for them gets some 25 kB of us at once, and 0.8 kB a second."""
DIAL_RATE, DIAL_BURST = 1.0, 8.0
"""Hosts a second that are dialled back, for all who ask."""
SOURCE_DIAL_RATE, SOURCE_DIAL_BURST = 0.1, 4.0
"""The same for one public subnet, or one private address."""
KNOWN_SHARE = 0.5
"""Of what is limited in all, the part that only contacts in our table can use."""
MAX_HOSTS = 4096
MAX_SUBNETS = 1024
"""Addresses and subnets remembered, the ones seen first forgotten first.

Who was quiet for some seconds, and has its whole burst again, needs no place."""


@attrs.define(eq=False)
class Allowance:
    """A token bucket: `rate` a second, at most `burst` at once. `now` is in seconds."""

    rate: float
    burst: float
    at: float
    left: float = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.left = self.burst

    def take(self, now: float, amount: float = 1.0, *, keep: float = 0.0) -> bool:
        """Use `amount`; False, and nothing used, if less than `keep` would be left."""
        self.left = min(self.burst, self.left + (now - self.at) * self.rate)
        self.at = now
        if self.left - amount < keep:
            return False
        self.left -= amount
        return True

    def is_full(self, now: float) -> bool:
        """Whether all that can be saved up is there."""
        return self.left + (now - self.at) * self.rate >= self.burst

    def give(self, amount: float = 1.0) -> None:
        """Allow `amount` more, up to the burst."""
        self.left = min(self.burst, self.left + amount)


class _Sources:
    """How many datagrams each address and each public subnet may send."""

    def __init__(self) -> None:
        self._hosts: dict[str, Allowance] = {}
        self._subnets: dict[bytes, Allowance] = {}

    def admit(self, host: str, now: float) -> bool:
        allowance = _allowance_of(self._hosts, host, HOST_RATE, HOST_BURST, MAX_HOSTS, now)
        if not allowance.take(now):
            return False
        subnet = subnet_of(host)
        if subnet is None:
            return True
        return _allowance_of(self._subnets, subnet, SUBNET_RATE, SUBNET_BURST, MAX_SUBNETS, now).take(now)

    def expect(self, host: str) -> None:
        allowance = self._hosts.get(host)
        if allowance is None:
            return
        allowance.give()
        subnet = subnet_of(host)
        if subnet in self._subnets:
            self._subnets[subnet].give()


class _Shared:
    """What all may do together, and the share of it that one public subnet, or one private address, gets."""

    def __init__(self, rate: float, burst: float, source_rate: float, source_burst: float, now: float) -> None:
        self._all = Allowance(rate, burst, now)
        self._source_rate, self._source_burst = source_rate, source_burst
        self._sources: dict[bytes | str, Allowance] = {}

    def admit(self, host: str, now: float) -> bool:
        """Whether `host` may do it once more; it is counted if so. This machine's share is the whole."""
        if not _is_own_machine(host):
            rate, burst = self._source_rate, self._source_burst
            share = _allowance_of(self._sources, subnet_of(host) or host, rate, burst, MAX_SUBNETS, now)
            if not share.take(now):
                return False
        return self._all.take(now)


class Guard:
    """What each address, each public subnet, and all strangers together may cost us. `now` is in seconds."""

    def __init__(self, now: float) -> None:
        self._strangers = _Sources()
        self._known = _Sources()
        self._introductions = _Shared(
            INTRODUCTION_RATE, INTRODUCTION_BURST, SOURCE_INTRODUCTION_RATE, SOURCE_INTRODUCTION_BURST, now
        )
        self._keys = _Shared(KEY_RATE, KEY_BURST, SOURCE_KEY_RATE, SOURCE_KEY_BURST, now)
        self._sending = Allowance(SEND_RATE, SEND_BURST, now)
        self._verifying = Allowance(VERIFY_RATE, VERIFY_BURST, now)

    def admit(self, host: str, now: float, *, known: bool = False) -> bool:
        """Whether one more datagram from `host` is looked into; it is counted if so.

        `known` is one whose box a contact in our table closed. Those are counted apart, for whoever forges `host` in
        datagrams of its own must not use up what the contact has there.
        """
        return _is_own_machine(host) or (self._known if known else self._strangers).admit(host, now)

    def admit_introduction(self, host: str, now: float) -> bool:
        """Whether one more introduction, which any source can be forged in, is answered."""
        return _is_own_machine(host) or self._introductions.admit(host, now)

    def admit_key(self, host: str, now: float) -> bool:
        """Whether the box keys of one more sender, who says that it is at `host`, are computed."""
        return _is_own_machine(host) or self._keys.admit(host, now)

    def expect(self, host: str) -> None:
        """We ask something there: what answers it is not held against `host`."""
        if not _is_own_machine(host):
            self._known.expect(host)
            self._strangers.expect(host)

    def allow_answer(self, host: str, size: int, now: float, *, verifies: bool, known: bool) -> bool:
        """Whether all answers together leave room for one of `size` bytes, and for the signature that it verifies.

        Nothing is charged if not; what of `size` the answer did not need goes back by `return_unused`.
        """
        if _is_own_machine(host):
            return True
        kept = 0.0 if known else KNOWN_SHARE
        if not self._sending.take(now, size, keep=kept * SEND_BURST):
            return False
        if verifies and not self._verifying.take(now, keep=kept * VERIFY_BURST):
            self._sending.give(size)
            return False
        return True

    def return_unused(self, host: str, size: int) -> None:
        """The answer to `host` took `size` bytes less than it was allowed."""
        if not _is_own_machine(host):
            self._sending.give(size)


@functools.lru_cache(maxsize=REMEMBERED_HOSTS)
def _is_own_machine(host: str) -> bool:
    return scope_of(host) is Scope.LOOPBACK


def _allowance_of(table: dict[K, Allowance], key: K, rate: float, burst: float, most: int, now: float) -> Allowance:
    allowance = table.get(key)
    if allowance is None:
        # Those that are full say no more than a new one would; two are looked at for each that comes.
        for oldest in list(itertools.islice(table, 2)):
            other = table.pop(oldest)
            if not other.is_full(now):
                table[oldest] = other
        allowance = table[key] = Allowance(rate, burst, now)
        if len(table) > most:
            del table[next(iter(table))]
    return allowance


class Unanswered:
    """Our lookup requests that are not answered yet, or never were, by public subnet or private address."""

    def __init__(self) -> None:
        self._subnets: dict[bytes | str, Allowance] = {}

    def admit(self, host: str, now: float) -> bool:
        """Whether one more request goes to `host`; it is counted if so."""
        if _is_own_machine(host):
            return True
        subnet = subnet_of(host) or host
        return _allowance_of(self._subnets, subnet, UNANSWERED_RATE, UNANSWERED_BURST, MAX_SUBNETS, now).take(now)

    def note_answer(self, host: str) -> None:
        """`host` answered a request that was counted."""
        allowance = self._subnets.get(subnet_of(host) or host)
        if allowance is not None:
            allowance.give()


class Dials(_Shared):
    """How often others' hosts are dialled back at their request."""

    def __init__(self) -> None:
        super().__init__(DIAL_RATE, DIAL_BURST, SOURCE_DIAL_RATE, SOURCE_DIAL_BURST, 0.0)


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
