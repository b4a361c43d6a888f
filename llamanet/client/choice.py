"""The nodes that are left for one request, the best first: looked up, probed a few at a time, ranked.

Rules:
- A few random nodes are probed, not all; the next ones only when none of these will do.
- Nobody is given up lightly: before the end the records are looked up anew, then come the nodes that failed this
  request before, and then those that were silent are asked again with patience.
- Why each node was passed over is remembered, for the error that names them all.
"""

from collections.abc import Mapping
from random import Random

from llamanet.client.directory import Directory, Service
from llamanet.client.probe import probe
from llamanet.client.selection import Candidate, Wishes, objection, ranked
from llamanet.dht.service import Dht
from llamanet.errors import NoNodeServes, SwarmBusy
from llamanet.wire.identity import PublicKey

FIRST_PROBES = 3
FURTHER_PROBES = 8
MAX_FAILURES = 2
"""A node that failed one request so often is not asked for it again. Once may be a connection that had gone stale."""
ANY_MODELS = 8
"""Names of models that are looked at when any will do."""


class Choice:
    """Where one request may go."""

    def __init__(
        self,
        dht: Dht,
        directory: Directory,
        *,
        wishes: Wishes,
        prompt_tokens: int,
        failures: Mapping[PublicKey, int],
        rng: Random,
    ) -> None:
        """`failures` counts how often each node failed this request so far."""
        self.reasons: dict[str, str] = {}
        """By label, why a node was passed over."""
        self.busy: dict[str, float] = {}
        """By label, after how many seconds a busy node wants to be asked again."""
        self._dht = dht
        self._directory = directory
        self._wishes = wishes
        self._prompt_tokens = prompt_tokens
        self._failures = failures
        self._rng = rng
        self._ranked: list[Candidate] = []
        self._unprobed: list[Service] = []
        self._failed: list[Service] = []
        self._silent: list[Service] = []
        self._known: set[Service] = set()
        self._lookups = 0
        self._batch = FIRST_PROBES

    async def next(self) -> Candidate | None:
        """The best node that was not handed out yet; None when there is none left."""
        while not self._ranked:
            if self._unprobed:
                batch, self._unprobed = self._unprobed[: self._batch], self._unprobed[self._batch :]
                self._batch = FURTHER_PROBES
                self._silent += await self._probe(batch, patiently=False)
            elif self._lookups < 2:
                await self._look_up(fresh=self._lookups > 0)
                self._lookups += 1
            elif self._failed:
                self._unprobed, self._failed = self._failed, []
            elif self._silent:
                batch, self._silent = self._silent, []
                for service in await self._probe(batch, patiently=True):
                    self.reasons[service.facts.label] = "it does not answer"
            else:
                return None
        return self._ranked.pop(0)

    async def nobody(self) -> NoNodeServes | SwarmBusy:
        """The error that says why no node is left."""
        if self.busy:
            return SwarmBusy(self._wishes.model, len(self._known), min(self.busy.values()))
        served = tuple(await self._directory.models(fresh=True))
        reasons = tuple(f"{label}: {reason}" for label, reason in self.reasons.items())
        return NoNodeServes(self._wishes.model, len(self._known), served, reasons)

    async def _look_up(self, *, fresh: bool) -> None:
        model = self._wishes.model
        models = [model] if model is not None else (await self._directory.models(fresh=fresh))[:ANY_MODELS]
        for model in models:
            for service in await self._directory.services(model, fresh=fresh):
                if service not in self._known:
                    self._known.add(service)
                    failures = self._failures.get(service.public_key, 0)
                    if failures >= MAX_FAILURES:
                        self.reasons[service.facts.label] = "it failed repeatedly"
                    else:
                        (self._failed if failures else self._unprobed).append(service)
        self._rng.shuffle(self._unprobed)

    async def _probe(self, services: list[Service], *, patiently: bool) -> list[Service]:
        """Rank those that answer and will do; returns those that did not answer."""
        candidates = await probe(self._dht, services, patiently=patiently)
        acceptable = []
        for candidate in candidates:
            reason = objection(candidate, self._wishes)
            if reason is None:
                acceptable.append(candidate)
            else:
                self.reasons[candidate.service.facts.label] = reason
        self._ranked = ranked(acceptable, self._prompt_tokens, self._rng)
        answered = {candidate.service for candidate in candidates}
        return [service for service in services if service not in answered]
