"""The nodes that are left for one request, the best first: looked up, probed a few at a time, ranked.

The policy is in `client/router.py`; here it meets the network. Rules:
- At most `PROBES` nodes are probed for a request (`client/probe_budget.py`), and what the pool holds of others counts
  too; further ones are probed only when none of these will do.
- A preferred model file comes first. When no node that has it is left, those with another file of the model's name come
  at once, unless one that has it is only busy.
- Nobody is given up lightly: before the end the records are looked up anew, then come the nodes that failed this
  request before, and then those that were silent are asked again with patience.
- Why each node was passed over is remembered, for the error that names them.
"""

from collections.abc import Callable, Mapping

import trio

from llamanet.client.decision import Considered, Decision
from llamanet.client.directory import Directory, Service
from llamanet.client.pool import MAX_AGE_S
from llamanet.client.probe import probe
from llamanet.client.router import Question, Router
from llamanet.client.selection import (
    Candidate,
    Wishes,
    objection,
    objection_to_service,
    other_kind,
    overload,
    shortfalls,
)
from llamanet.client.strategy import strategy_name
from llamanet.dht.service import Dht
from llamanet.errors import NoNodeServes, RequestRefused, SwarmBusy
from llamanet.wire.identity import PublicKey

FURTHER_PROBES = 8
OVERLOADED_S = 1.0
"""After it a node is looked at again that has more load than the request allows."""


class Choice:
    """Where one request may go."""

    def __init__(
        self,
        dht: Dht,
        nursery: trio.Nursery,
        directory: Directory,
        router: Router,
        question: Question,
        failures: Mapping[PublicKey, int],
        max_failures: int,
    ) -> None:
        """`failures` counts how often each node failed this request so far; after `max_failures` it is not asked again.

        Probes run in `nursery`.
        """
        self.reasons: dict[str, str] = {}
        """By label, why a node was passed over."""
        self.busy: dict[str, float] = {}
        """By label, after how many seconds a busy node wants to be asked again."""
        self.decision: Decision | None = None
        """Why the node that `next` returned last is the one."""
        self._dht = dht
        self._nursery = nursery
        self._directory = directory
        self._router = router
        self._question = question
        self._failures = failures
        self._max_failures = max_failures
        self._ranked: list[Candidate] = []
        self._ranked_at = 0.0
        self._unprobed: list[Service] = []
        self._failed: list[Service] = []
        self._other_files: list[Service] = []
        self._silent: list[Service] = []
        self._known: set[Service] = set()
        self._answered: dict[Service, Candidate] = {}
        self._asked: list[Service] = []
        self._lookups = 0
        self._probes = 0

    async def next(self) -> Candidate | None:
        """The best node that was not handed out yet; None when there is none left."""
        now = trio.current_time()
        if now - self._ranked_at > MAX_AGE_S:
            # What was best then need not be so now.
            self._unprobed[:0] = [c.service for c in self._ranked if c.service not in self._unprobed]
            self._ranked = []
        while not self._ranked:
            if self._unprobed:
                count = FURTHER_PROBES if self._probes else self._router.probes.affordable(again=bool(self._failures))
                batch = self._router.first_of(self._unprobed, count, now)
                # Only what was probed is gone: who cancels this and calls again finds the rest, and the batch.
                silent = await self._probe(batch, patiently=False)
                self._unprobed = [service for service in self._unprobed if service not in batch]
                self._silent += silent
            elif self._lookups and self._other_files and not self.busy:
                self._unprobed = self._router.probe_order(self._question, self._other_files, now)
                self._other_files = []
            elif self._lookups < 2:
                await self._look_up(fresh=self._lookups > 0)
                self._lookups += 1
            elif self._failed:
                self._unprobed, self._failed = self._failed, []
            elif self._silent:
                silent = await self._probe(self._silent, patiently=True)
                self._silent = []
                for service in silent:
                    self.reasons[service.facts.label] = "it does not answer"
            else:
                return None
        return self._take()

    def spoke(self, candidate: Candidate) -> None:
        """Of those handed out, `candidate` is the one that gave the first token."""
        self._router.gave_up(self._question, (service for service in self._asked if service != candidate.service))

    async def nobody(self) -> NoNodeServes | SwarmBusy | RequestRefused:
        """The error that says why no node is left."""
        wishes = self._question.wishes
        kinds = {other_kind(service, wishes) for service in self._known}
        if wishes.model is not None and kinds and (kind := kinds.pop()) and not kinds:
            return RequestRefused(f"model {wishes.model!r} {kind}", "model", "a model of the other kind")
        if self.busy:
            overloaded = shortfalls(self._answered.values(), Wishes(max_load=wishes.max_load))
            return SwarmBusy(wishes.model, len(self._known), min(self.busy.values()), tuple(overloaded))
        served = tuple(await self._directory.models(fresh=True))
        reasons = (f"{label}: {reason}" for label, reason in self.reasons.items())
        return NoNodeServes(
            wishes.model, len(self._known), served, (*shortfalls(self._answered.values(), wishes), *reasons)
        )

    async def _look_up(self, *, fresh: bool) -> None:
        wishes = self._question.wishes
        found = []
        for service in await self._directory.services(wishes.model, fresh=fresh):
            if service in self._known:
                continue
            self._known.add(service)
            failures = self._failures.get(service.public_key, 0)
            if reason := objection_to_service(service, wishes):
                self.reasons[service.facts.label] = reason
            elif failures >= self._max_failures:
                self.reasons[service.facts.label] = "it failed repeatedly"
            elif wishes.preferred not in (None, service.facts.digest):
                self._other_files.append(service)
            elif failures:
                self._failed.append(service)
            else:
                found.append(service)
        self._unprobed = self._router.probe_order(self._question, found, trio.current_time())

    async def _probe(self, services: list[Service], *, patiently: bool) -> list[Service]:
        """Rank those that answer, or are in the pool, and will do; returns those that did not answer."""
        self._router.probes.spend(len(services))
        candidates = await probe(self._dht, self._nursery, services, self._hear, patiently=patiently)
        self._probes += len(services)
        now = trio.current_time()
        answered = {candidate.service: candidate for candidate in candidates}
        # In the order of their probes, which some strategies go by.
        fresh = [self._router.pool.latest(answered[service]) for service in services if service in answered]
        others = [service for service in self._unprobed if service not in services]
        pooled = [candidate for candidate in self._router.pool.candidates(now) if candidate.service in others]
        acceptable = []
        for candidate in (*fresh, *pooled):
            self._answered[candidate.service] = candidate
            label = candidate.service.facts.label
            if reason := objection(candidate, self._question.wishes):
                self.reasons[label] = reason
            elif reason := overload(candidate, self._question.wishes):
                self.reasons[label] = reason
                self.busy[label] = OVERLOADED_S
            else:
                acceptable.append(candidate)
        self._ranked = self._router.rank(self._question, acceptable, now)
        left_out = (candidate.service.facts.label for candidate in acceptable if candidate not in self._ranked)
        self.reasons.update(dict.fromkeys(left_out, f"{strategy_name(self._question.strategy)} left it out"))
        self._ranked_at = now
        silent = [service for service in services if service not in answered]
        for service in silent:
            # So that it holds up this request only. Should it answer yet, that is forgotten.
            self._router.peers.unanswered(service.node_id, now)
        return silent

    def _hear(self, service: Service, candidate: Candidate | None) -> None:
        self._router.heard(service, candidate, len(self._known), trio.current_time())

    def _take(self) -> Candidate:
        now = trio.current_time()
        considered = self._router.explain(self._question, self._ranked, now)
        passed_over = {node.node_id for node in considered}
        candidate = self._ranked.pop(0)
        if candidate.service in self._unprobed:
            self._unprobed.remove(candidate.service)
        self._router.asked(self._question, candidate.service, now)
        self._asked.append(candidate.service)
        self.decision = Decision(
            node_id=candidate.service.facts.label,
            strategy=strategy_name(self._question.strategy),
            known=len(self._known),
            probes=self._probes,
            prompt_tokens=self._question.prompt_tokens,
            hot_load=self._router.pool.hot_load(candidate.service.model),
            considered=(
                *considered,
                *(
                    Considered(node_id=label, verdict=reason)
                    for label, reason in self.reasons.items()
                    if label not in passed_over
                ),
            ),
        )
        return candidate


MakeChoice = Callable[[Wishes, int, Mapping[PublicKey, int], int], Choice]
"""From wishes, the prompt's tokens, each node's failures and how many it may have to where the request may go."""
