"""Whom to probe for a request, and whom to ask. Pure: what a client knows of the nodes, turned into an order.

Rules (of `soonest`, the strategy that is meant; the others are there to compare it with):
- Probed are the node that should remember the prompt's beginning, for this client asked it for that (whether it still
  does, only its answer tells), and those that were promising when last heard of. Old news are
  uncertain, so that chance has its share in what is promising, and the larger one the less is known: a client looks at
  all nodes now and then, and clients do not all look at the same ones.
- Asked is the best of the fresh probes, new or pooled (`client/selection.py`).
- Who failed lately, fell silent or said that it is busy comes last, but is not given up.
"""

import math
from collections.abc import Iterable, Sequence
from random import Random

import attrs

from llamanet.client.affinity import Affinity, Block
from llamanet.client.decision import Considered, Policy, Strategy, considered
from llamanet.client.directory import Service
from llamanet.client.peers import PeerMemory
from llamanet.client.pool import ProbePool
from llamanet.client.probe_budget import ProbeBudget
from llamanet.client.selection import (
    Candidate,
    Wishes,
    estimated_ttft,
    homes,
    load,
    objection,
    overload,
    ranked,
    remembers,
)
from llamanet.client.strategy import STRATEGIES, strategy_name
from llamanet.errors import UserError
from llamanet.wire.identity import NodeId

UNCERTAIN = 0.15
"""The standard deviation of chance in what is promising, in the logarithm: right after a probe..."""
UNCERTAIN_LATER = 0.5
"""...and long after it, or without any..."""
UNCERTAIN_S = 10.0
"""...growing within this time."""


@attrs.frozen(kw_only=True)
class Question:
    """A request, as far as the choice of its node depends on it."""

    wishes: Wishes
    prompt_tokens: int
    """To compute before the next token, if the node remembers none of them; a guess."""
    blocks: tuple[Block, ...] = ()
    """Of the prompt."""
    strategy: Strategy = STRATEGIES[0]


class Router:
    """The policy of one client, and what it goes by. `now` is in seconds on one clock that never goes back."""

    def __init__(self, rng: Random) -> None:
        self.peers = PeerMemory()
        self.pool = ProbePool(rng)
        self.probes = ProbeBudget()
        self._affinity = Affinity()
        self._rng = rng
        self._round = 0

    def probe_order(self, question: Question, services: Iterable[Service], now: float) -> list[Service]:
        """The services in the order in which they should be probed."""
        order = list(services)
        self._rng.shuffle(order)
        if question.strategy == "round_robin" and order:
            order.sort(key=lambda service: service.node_id)
            start = self._round % len(order)
            order = order[start:] + order[:start]
            self._round += 1
        elif question.strategy == "soonest" or callable(question.strategy):
            promises = self._promises(question, order, now)
            order.sort(key=lambda service: promises[service])
        return sorted(order, key=lambda service: (self._doubtful(service, now), self._unsuited(question, service, now)))

    def first_of(self, order: list[Service], count: int, now: float) -> list[Service]:
        """Up to `count` of a probe order, and no doubtful one while there is another."""
        first = order[:count]
        usable = [service for service in first if self.peers.usable(service.node_id, now)]
        return usable or first

    def rank(self, question: Question, candidates: Sequence[Candidate], now: float) -> list[Candidate]:
        """The nodes in the order in which they should be asked; `candidates` are in the order of their probes.

        Only a caller's own policy leaves any out. Raises `UserError` if that returns what it was not given.
        """
        if question.strategy == "soonest":
            cached = self._cached_tokens(question, now)
            order = ranked(
                candidates, question.prompt_tokens, self._rng, hot_load=self.pool.hot_load, cached_tokens=cached
            )
        elif question.strategy == "least_load":
            order = sorted(candidates, key=load)
        elif callable(question.strategy):
            order = self._by_policy(question.strategy, question, candidates, now)
        else:
            order = list(candidates)
        return sorted(order, key=lambda candidate: not self.peers.usable(candidate.service.node_id, now))

    def heard(self, service: Service, candidate: Candidate | None, nodes: int, now: float) -> None:
        """A probe of `service`, one of `nodes`, was answered, or given up."""
        if candidate is None:
            self.pool.forget(service)
            self.peers.unanswered(service.node_id, now)
        else:
            self.pool.add(candidate, nodes)
            self.peers.answered(service.node_id)

    def asked(self, question: Question, service: Service, now: float) -> None:
        """The request goes to `service`."""
        self.pool.used(service, question.prompt_tokens, now)
        self.pool.remove(now)
        self._affinity.asked(question.blocks, service.node_id, now)

    def gave_up(self, question: Question, services: Iterable[Service]) -> None:
        """They were asked, and another node gave the first token."""
        for service in services:
            self._affinity.gave_up(question.blocks, service.node_id)

    def explain(self, question: Question, order: Sequence[Candidate], now: float) -> tuple[Considered, ...]:
        """What was known of the ranked candidates, and why the first is the first."""
        cached = self._cached_tokens(question, now)
        back = homes(order, question.prompt_tokens, cached, self.pool.hot_load)
        explained = []
        for place, candidate in enumerate(order):
            tokens = cached.get(candidate.service.node_id, 0)
            if doubt := self.peers.doubt(candidate.service.node_id, now):
                verdict = doubt
            elif question.strategy != "soonest":
                verdict = strategy_name(question.strategy).replace("_", " ") if place == 0 else "not its turn"
            elif load(candidate) > self.pool.hot_load(candidate.service.model):
                verdict = "hot"
            elif place == 0:
                sticky = candidate.service.node_id in back
                verdict = "it should remember the prompt's beginning" if sticky else "the soonest"
            else:
                verdict = "later"
            explained.append(considered(candidate, self.peers, question.prompt_tokens, tokens, now, verdict))
        return tuple(explained)

    def _by_policy(
        self, policy: Policy, question: Question, candidates: Sequence[Candidate], now: float
    ) -> list[Candidate]:
        cached = self._cached_tokens(question, now)
        views = []
        for candidate in candidates:
            tokens = cached.get(candidate.service.node_id, 0)
            views.append(considered(candidate, self.peers, question.prompt_tokens, tokens, now, "it answered"))
        # By identity, for two nodes may look alike.
        meant = {id(view): candidate for view, candidate in zip(views, candidates, strict=True)}
        order = list(policy(views)) if views else []
        if stranger := next((view for view in order if id(view) not in meant), None):
            raise UserError(f"strategy {strategy_name(policy)} returned {stranger!r}, which it was not given")
        return [meant[id(view)] for view in order]

    def _doubtful(self, service: Service, now: float) -> bool:
        return not self.peers.usable(service.node_id, now)

    def _unsuited(self, question: Question, service: Service, now: float) -> bool:
        """Whether it was lately not what the question wishes, so that asking it again would be a waste."""
        outlook = self.pool.outlook(service, now)
        if outlook is None or now - outlook[0].at > UNCERTAIN_S:
            return False
        return bool(objection(outlook[0], question.wishes) or overload(outlook[0], question.wishes))

    def _promises(self, question: Question, services: Sequence[Service], now: float) -> dict[Service, float]:
        """When each would speak, with chance in it; less than 0 for one that remembers the prompt's beginning."""
        cached = self._cached_tokens(question, now)
        promises: dict[Service, float] = {}
        unknown = []
        for service in services:
            outlook = self.pool.outlook(service, now)
            if outlook is None:
                unknown.append(service)
                continue
            tokens = cached.get(service.node_id, 0)
            if remembers(question.prompt_tokens, tokens):
                promises[service] = -tokens
                continue
            candidate, later_s = outlook
            unsure = 1 - math.exp((candidate.at - now) / UNCERTAIN_S)
            chance = self._rng.gauss(0, UNCERTAIN + (UNCERTAIN_LATER - UNCERTAIN) * unsure)
            seconds = estimated_ttft(candidate, question.prompt_tokens, tokens) + later_s
            promises[service] = seconds * math.exp(chance)
        # Of whom nothing is known, no better and no worse is to be expected than of the others.
        known = [promise for promise in promises.values() if promise >= 0] or [1.0]
        for service in unknown:
            promises[service] = self._rng.choice(known) * math.exp(self._rng.gauss(0, UNCERTAIN_LATER))
        return promises

    def _cached_tokens(self, question: Question, now: float) -> dict[NodeId, int]:
        if not question.blocks:
            return {}
        tokens_a_character = question.prompt_tokens / question.blocks[-1].end
        expected = self._affinity.expected(question.blocks, now)
        return {node_id: int(characters * tokens_a_character) for node_id, characters in expected.items()}
