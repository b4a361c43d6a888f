"""What a client remembers of the nodes that it asked: how soon they spoke, how fast, how often they failed. Pure.

Local to one client, and never published. Rules:
- Every `began` is followed by exactly one of `finished`, `failed` and `busy`.
- Times to a first token are kept by the length of their prompt, so that a long prompt does not make a node look slow.
- A limit is what this node's own times explain: their mean and four mean deviations (RFC 6298, section 2). Who is not
  known is given the times of all others, and more patience.
- A node that fails is not asked for `OPEN_S`, twice as long after each further failure (a circuit breaker). Then one
  request at a time may try it, until one brings a token.
- At most `MAX_PEERS` are remembered; the ones that were used least recently are forgotten.
"""

import math
from collections import deque

import attrs

from llamanet.wire.identity import NodeId

MAX_PEERS = 1024
FIXED_TOKENS = 128
"""What a first token costs beside its prompt (connection, queue, a step), as so many tokens of a prompt."""
SAMPLES = 64
"""The newest times to a first token of a node, from which its percentiles are taken."""
LEAST_SAMPLES = 8
"""Fewer tell no percentile."""
HEDGE_SHARE = 0.95
MEAN_WEIGHT = 1 / 8
DEVIATION_WEIGHT = 1 / 4
DEVIATIONS = 4
"""All three from RFC 6298, section 2."""
STRANGER = 4.0
"""How much slower than the others a node may be of which nothing is known."""
FIRST_TOKEN_LIMITS_S = (2.0, 30.0, 120.0)
"""The least limit, that of a client that knows nothing yet, and the largest."""
GAP_LIMITS_S = (1.0, 10.0, 30.0)
"""Likewise for the time between two answers of a stream: a step of other requests' prompts may come between."""
OPEN_S = 1.0
MAX_OPEN_S = 60.0


@attrs.define
class Average:
    """An exponentially weighted mean, and the mean deviation from it (RFC 6298, section 2)."""

    mean: float = 0.0
    deviation: float = 0.0
    samples: int = 0

    def add(self, value: float) -> None:
        """Count one more value."""
        if self.samples:
            self.deviation += DEVIATION_WEIGHT * (abs(value - self.mean) - self.deviation)
            self.mean += MEAN_WEIGHT * (value - self.mean)
        else:
            self.mean, self.deviation = value, value / 2
        self.samples += 1

    @property
    def limit(self) -> float:
        """What a further value should not exceed."""
        return self.mean + DEVIATIONS * self.deviation


@attrs.define
class _Peer:
    """One node. Times to a first token are in seconds for each token of prompt and of `FIXED_TOKENS`."""

    ttft: Average = attrs.field(factory=Average)
    ttfts: deque[float] = attrs.field(factory=lambda: deque(maxlen=SAMPLES))
    gap: Average = attrs.field(factory=Average)
    """Seconds between two answers of a stream."""
    rate: Average = attrs.field(factory=Average)
    """Tokens a second of one stream."""
    spoke_at: float = -math.inf
    in_flight: int = 0
    failures: int = 0
    """In a row; a token makes it 0."""
    open_until: float = 0.0
    trial: bool = False
    """A request tries the node, which failed before."""
    busy_until: float = 0.0
    silences: int = 0
    """Probes in a row that it did not answer."""
    silent_until: float = 0.0


class PeerMemory:
    """The nodes that one client asked. `now` is in seconds on one clock that never goes back."""

    def __init__(self) -> None:
        self._peers: dict[NodeId, _Peer] = {}
        """The least recently used first."""
        self._all = _Peer()
        """The averages of all nodes."""

    # --- what happens -------------------------------------------------------------------------------------------------

    def began(self, node_id: NodeId, now: float) -> None:
        """The node is being asked."""
        peer = self._use(node_id)
        peer.in_flight += 1
        peer.trial = peer.failures > 0

    def first_token(self, node_id: NodeId, ttft_s: float, prompt_tokens: int, now: float) -> None:
        """The first token came `ttft_s` after the node was asked; `prompt_tokens` had to be read for it."""
        peer = self._use(node_id)
        scaled = ttft_s / (FIXED_TOKENS + prompt_tokens)
        for known in (peer, self._all):
            known.ttft.add(scaled)
        peer.ttfts.append(scaled)
        peer.spoke_at = now
        peer.failures, peer.trial, peer.busy_until = 0, False, 0.0

    def tokens(self, node_id: NodeId, count: int, seconds: float, now: float) -> None:
        """`count` further tokens came together, `seconds` after the ones before them."""
        peer = self._use(node_id)
        for known in (peer, self._all):
            known.gap.add(seconds)
        if seconds > 0:
            peer.rate.add(count / seconds)
        peer.spoke_at = now
        peer.failures, peer.trial = 0, False

    def failed(self, node_id: NodeId, now: float) -> None:
        """The request ended because of the node: it died, hung, or broke the protocol."""
        peer = self._end(node_id)
        # What fails together counts once.
        if now >= peer.open_until:
            peer.failures += 1
            peer.open_until = now + min(MAX_OPEN_S, OPEN_S * 2 ** (peer.failures - 1))

    def finished(self, node_id: NodeId, now: float) -> None:
        """The request ended, and the node is not to blame: it is complete, or its caller gave it up."""
        self._end(node_id)

    def busy(self, node_id: NodeId, retry_after_s: float, now: float) -> None:
        """The node refused the request, for its queue is full; it asks to be left alone for so long."""
        self._end(node_id).busy_until = now + retry_after_s

    def answered(self, node_id: NodeId) -> None:
        """It answered a probe."""
        if peer := self._peers.get(node_id):
            peer.silences, peer.silent_until = 0, 0.0

    def unanswered(self, node_id: NodeId, now: float) -> None:
        """It did not answer a probe, nor the second datagram of it."""
        peer = self._use(node_id)
        peer.silences += 1
        peer.silent_until = now + min(MAX_OPEN_S, OPEN_S * 2 ** (peer.silences - 1))

    # --- what follows -------------------------------------------------------------------------------------------------

    def usable(self, node_id: NodeId, now: float) -> bool:
        """Whether the node may be asked while there are others: it did not just fail, fall silent or say it is busy."""
        peer = self._peers.get(node_id)
        if peer is None:
            return True
        return now >= max(peer.open_until, peer.busy_until, peer.silent_until) and not (peer.failures and peer.trial)

    def doubt(self, node_id: NodeId, now: float) -> str | None:
        """Why the node is not `usable`, in a few words; None if it is."""
        peer = self._peers.get(node_id)
        if peer is None or self.usable(node_id, now):
            return None
        if now < peer.busy_until:
            return f"it said that it is busy for {peer.busy_until - now:.1f} s more"
        if now < peer.silent_until:
            return "it did not answer lately"
        return f"it failed {peer.failures} times in a row" if peer.failures > 1 else "it failed lately"

    def busy_for_s(self, node_id: NodeId, now: float) -> float:
        """Seconds for which the node still asks to be left alone, for its queue is full; 0.0 if it does not."""
        peer = self._peers.get(node_id)
        return max(0.0, peer.busy_until - now) if peer else 0.0

    @property
    def all_in_flight(self) -> int:
        """Our own requests at all nodes that are not over."""
        return sum(peer.in_flight for peer in self._peers.values())

    def in_flight(self, node_id: NodeId) -> int:
        """Our own requests at the node that are not over."""
        peer = self._peers.get(node_id)
        return peer.in_flight if peer else 0

    def spoke_since(self, node_id: NodeId, since: float) -> bool:
        """Whether the node gave a token, to any request, after `since`."""
        peer = self._peers.get(node_id)
        return peer is not None and peer.spoke_at > since

    def failures(self, node_id: NodeId) -> int:
        """How often the node failed since its last token."""
        peer = self._peers.get(node_id)
        return peer.failures if peer else 0

    def tokens_per_second(self, node_id: NodeId) -> float:
        """Of one stream, as we saw it; 0.0 if we saw none."""
        peer = self._peers.get(node_id)
        return peer.rate.mean if peer else 0.0

    def first_token_limit_s(self, node_id: NodeId, prompt_tokens: int, now: float) -> float:
        """Seconds after which a node hangs that was asked and gave no token of a prompt so long."""
        own = self._peers.get(node_id, self._all).ttft
        return _limit(own, self._all.ttft, FIXED_TOKENS + prompt_tokens, FIRST_TOKEN_LIMITS_S)

    def gap_limit_s(self, node_id: NodeId, now: float) -> float:
        """Seconds after which a node hangs that was streaming and says nothing more."""
        own = self._peers.get(node_id, self._all).gap
        return _limit(own, self._all.gap, 1.0, GAP_LIMITS_S)

    def hedge_after_s(self, node_id: NodeId, prompt_tokens: int) -> float | None:
        """The 95th percentile of this node's times to a first token, for such a prompt; None if it is not known."""
        peer = self._peers.get(node_id)
        if peer is None or len(peer.ttfts) < LEAST_SAMPLES:
            return None
        ordered = sorted(peer.ttfts)
        # The nearest rank: the smallest that this share of all does not exceed.
        return ordered[math.ceil(HEDGE_SHARE * len(ordered)) - 1] * (FIXED_TOKENS + prompt_tokens)

    def _use(self, node_id: NodeId) -> _Peer:
        peer = self._peers.pop(node_id, None) or _Peer()
        self._peers[node_id] = peer
        if len(self._peers) > MAX_PEERS:
            del self._peers[next(iter(self._peers))]
        return peer

    def _end(self, node_id: NodeId) -> _Peer:
        peer = self._use(node_id)
        peer.in_flight = max(0, peer.in_flight - 1)
        # It need not be the trial that ended while others are in flight.
        peer.trial = peer.trial and peer.in_flight > 0
        return peer


def _limit(own: Average, others: Average, scale: float, limits: tuple[float, float, float]) -> float:
    least, unknown, most = limits
    if own is not others and own.samples:
        seconds = own.limit * scale
    elif others.samples:
        seconds = STRANGER * others.limit * scale
    else:
        return unknown
    return min(most, max(least, seconds))
