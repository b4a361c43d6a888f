"""The probes of one client: those fresh enough to choose by, and what older ones still tell. Pure.

The pool is that of Prequal (Wydrowski et al., "Load is not what you should balance", NSDI '24, section 4). Rules:
- A probe may be used a bounded number of times, and for `MAX_AGE_S`. At most `POOL_SIZE` are kept, the newest.
- With each request one more goes: in turn the oldest and the worst, so that the pool does not fill with bad nodes,
  which nobody uses up.
- Our own requests count at once: a probe that was used tells of one request more, and so does one that a node answered
  before it can have known of the request.
- What a node says of itself with an answer is a probe too, which may be used once.
- Load is hot above the `HOT_QUANTILE` of the loads that the last `LOADS` probes of the same model told; but a free slot
  is never hot.
- What is too old to choose by still says whom to probe: it fades within `FADE_S` into the node's average.
"""

import math
from collections import deque
from random import Random

import attrs

from llamanet.client.directory import Service
from llamanet.client.probe_budget import PROBES
from llamanet.client.selection import Candidate, load_of, ranked, with_one_more

POOL_SIZE = 16
REMOVED = 1
"""Removed for each request."""
EXCESS = 1.0
"""Prequal's delta: uses that are allowed beyond what keeps the pool full."""
MAX_AGE_S = 1.0
HOT_QUANTILE = 0.95
"""Prequal's Q_RIF, for which the paper has 0.84; with 0.95 benchmarks/routing.py has a p99 some percent lower."""
LEAST_HOT = 1.0
LOADS = 128
FADE_S = 3.0
WAIT_WEIGHT = 0.2
"""Of the newest probe in a node's average."""
UNSEEN_S = 0.01
"""A request is in what its node tells so long after it arrived: its prompt is prepared first."""
MAX_MODELS = 64
"""Whose loads are remembered."""
MAX_KNOWN = 1024
"""Nodes whose last probe is remembered."""


def uses_a_probe(nodes: int) -> float:
    """How often each probe may be used where `nodes` serve: b_reuse of Prequal, equation 1.

    It assumes more nodes than the pool holds; with fewer the pool is taken to hold half of them.
    """
    share = min(POOL_SIZE, nodes / 2) / nodes if nodes else 0.0
    return max(1.0, (1 + EXCESS) / ((1 - share) * PROBES - REMOVED))


@attrs.define
class _Probed:
    """A node's last probe."""

    candidate: Candidate
    uses: int
    """Left; 0: no longer in the pool."""
    wait_s: float
    """The node's average of `ModelState.ttft_s`."""
    ours: list[tuple[float, int]]
    """Our latest requests there: when each was sent, and the tokens of its prompt."""


class ProbePool:
    """Probes by service. `now` is in seconds on one clock that never goes back."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._known: dict[Service, _Probed] = {}
        """The oldest first."""
        self._loads: dict[str, deque[float]] = {}
        """By model, what its latest probes told; the model that was probed longest ago first."""
        self._worst_next = False

    def add(self, candidate: Candidate, nodes: int) -> None:
        """Keep a probe, of a model that `nodes` nodes serve."""
        # Rounded at random, so that the mean is right.
        uses = math.floor(uses_a_probe(nodes) + self._rng.random())
        self._keep(candidate, uses, _unseen_since(candidate))

    def told(self, candidate: Candidate, asked_at: float) -> None:
        """Keep what a node said of itself with an answer to our request, which was sent at `asked_at`."""
        # Of that request it knows.
        self._keep(candidate, 1, max(asked_at, _unseen_since(candidate)))

    def _keep(self, candidate: Candidate, uses: int, unseen_since: float) -> None:
        service, state = candidate.service, candidate.state
        old = self._known.pop(service, None)
        wait = state.ttft_s if old is None else old.wait_s + WAIT_WEIGHT * (state.ttft_s - old.wait_s)
        ours = [] if old is None else [sent for sent in old.ours if sent[0] > unseen_since]
        for _, prompt_tokens in ours:
            candidate = with_one_more(candidate, prompt_tokens)
        self._known[service] = _Probed(candidate, uses, wait, ours)
        self._loads[service.model] = loads = self._loads.pop(service.model, None) or deque(maxlen=LOADS)
        loads.append(load_of(state.running, state.waiting, state.slots))
        if len(self._loads) > MAX_MODELS:
            del self._loads[next(iter(self._loads))]
        if len(self._known) > MAX_KNOWN:
            self._known.pop(next(iter(self._known)))

    def hot_load(self, model: str) -> float:
        """The load above which a node of `model` is hot."""
        ordered = sorted(self._loads.get(model, ()))
        return max(LEAST_HOT, ordered[int(HOT_QUANTILE * (len(ordered) - 1))]) if ordered else math.inf

    def candidates(self, now: float) -> list[Candidate]:
        """The probes that may be chosen by, the newest first."""
        pool: list[Candidate] = []
        for probed in reversed(self._known.values()):
            if now - probed.candidate.at > MAX_AGE_S or len(pool) == POOL_SIZE:
                break
            if probed.uses > 0:
                pool.append(probed.candidate)
        return pool

    def latest(self, candidate: Candidate) -> Candidate:
        """What is now known of a node that answered as `candidate`: a later answer, and our own requests."""
        probed = self._known.get(candidate.service)
        return candidate if probed is None or probed.candidate.at < candidate.at else probed.candidate

    def used(self, service: Service, prompt_tokens: int, now: float) -> None:
        """Our request goes to `service`."""
        if probed := self._known.get(service):
            probed.uses -= 1
            probed.ours.append((now, prompt_tokens))
            probed.candidate = with_one_more(probed.candidate, prompt_tokens)

    def remove(self, now: float) -> None:
        """Remove one probe from the pool: in turn the oldest and the worst."""
        pool = self.candidates(now)
        if len(pool) > 1:
            gone = ranked(pool, 0, self._rng, hot_load=self.hot_load)[-1] if self._worst_next else pool[-1]
            self._known[gone.service].uses = 0
        self._worst_next = not self._worst_next

    def forget(self, service: Service) -> None:
        """The node does not answer."""
        self._known.pop(service, None)

    def outlook(self, service: Service, now: float) -> tuple[Candidate, float] | None:
        """The last probe of `service`, and how many seconds later its answer would now probably come than it tells.

        None if it was never probed.
        """
        probed = self._known.get(service)
        if probed is None:
            return None
        faded = 1 - math.exp((probed.candidate.at - now) / FADE_S)
        return probed.candidate, faded * (probed.wait_s - probed.candidate.state.ttft_s)


def _unseen_since(candidate: Candidate) -> float:
    """Since when our requests are not in what a node told."""
    # It answered half a round trip ago, and what we send takes half of one to arrive.
    return candidate.at - candidate.rtt - UNSEEN_S
