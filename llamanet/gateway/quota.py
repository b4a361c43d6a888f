"""What one key may ask, and has asked: requests and tokens a minute, and requests at a time. Pure; `now` in seconds.

Rules:
- Each rate is a token bucket that holds a minute's worth: a burst of that many, and then as many as flow in.
- Tokens are known only when an answer is over. They are charged then, and may leave a debt; no request begins in debt.
- A refused request costs nothing.
"""

import math

import attrs

MINUTE = 60.0


@attrs.frozen(kw_only=True)
class Limits:
    """None: without limit."""

    rpm: int | None = None
    """Requests a minute."""
    tpm: int | None = None
    """Tokens a minute, of prompts and answers."""
    concurrent: int | None = None
    """Requests at a time."""


@attrs.frozen
class Refusal:
    """Why a request may not begin, and when it may, in seconds."""

    reason: str
    """`requests`, `tokens` or `concurrency`."""
    retry_after: float


@attrs.define
class Bucket:
    """What has been spent and has not flowed back yet, by a limit that may change meanwhile."""

    _spent: float = 0.0
    _at: float = 0.0

    def spent(self, limit: int, now: float) -> float:
        """As of `now`; more than `limit` is a debt."""
        self._spent = max(0.0, self._spent - max(0.0, now - self._at) * limit / MINUTE)
        self._at = now
        return self._spent

    def spend(self, amount: float, limit: int, now: float) -> None:
        """Take `amount`, whether it is there or not."""
        self._spent = self.spent(limit, now) + amount

    def wait_s(self, amount: float, limit: int, now: float) -> float:
        """How long until `amount` is there; 0.0 if it is."""
        # What has flowed back is not exact to the last bit.
        missing = self.spent(limit, now) + amount - limit
        return missing * MINUTE / limit if missing > 1e-6 else 0.0


@attrs.define
class Quota:
    """What one key has used."""

    running: int = 0
    _requests: Bucket = attrs.field(factory=Bucket)
    _tokens: Bucket = attrs.field(factory=Bucket)

    def begin(self, limits: Limits, now: float) -> Refusal | None:
        """Count a request, unless it may not begin; `end` must follow if it does."""
        if limits.rpm is not None and (wait := self._requests.wait_s(1, limits.rpm, now)):
            return Refusal("requests", wait)
        if limits.tpm is not None and (wait := self._tokens.wait_s(1, limits.tpm, now)):
            return Refusal("tokens", wait)
        if limits.concurrent is not None and self.running >= limits.concurrent:
            return Refusal("concurrency", 1.0)
        if limits.rpm is not None:
            self._requests.spend(1, limits.rpm, now)
        self.running += 1
        return None

    def end(self, limits: Limits, tokens: int, now: float) -> None:
        """A request that began is over; prompt and answer had so many tokens."""
        self.running -= 1
        if limits.tpm is not None:
            self._tokens.spend(tokens, limits.tpm, now)

    def headers(self, limits: Limits, now: float) -> list[tuple[bytes, bytes]]:
        """What is left, in OpenAI's headers: the limit, what remains of it, and the time until all is back."""
        found: list[tuple[bytes, bytes]] = []
        for name, limit, bucket in (
            (b"requests", limits.rpm, self._requests),
            (b"tokens", limits.tpm, self._tokens),
        ):
            if limit is not None:
                spent = bucket.spent(limit, now)
                found += [
                    (b"x-ratelimit-limit-" + name, b"%d" % limit),
                    (b"x-ratelimit-remaining-" + name, b"%d" % max(0, math.floor(limit - spent + 1e-6))),
                    (b"x-ratelimit-reset-" + name, b"%.3gs" % (spent * MINUTE / limit)),
                ]
        return found
