"""Clients of a simulated swarm for `routing.py`: the real policy, over a network that is only waiting.

A client looks at the nodes through what a real one has: PONGs after a round trip, what nodes say of themselves when
they take a request and when they have finished it, and its own requests. Rules that `client/choice.py` and
`client/attempt.py` keep are kept here likewise: whom to wait for, when to leave, when to hedge.
"""

import math
import statistics
import time
from collections.abc import Generator, Sequence
from random import Random
from typing import Any

import attrs
from simulated_swarm import SLOTS, STEP_S, Clock, Job, SimulatedNode, Wait, capacity

from llamanet.client.attempt import HUNG_ESTIMATES
from llamanet.client.directory import Service
from llamanet.client.hedge import HedgeBudget
from llamanet.client.probe import GRACE_S
from llamanet.client.router import Question, Router
from llamanet.client.selection import Candidate, estimated_ttft
from llamanet.wire.facts import ServiceFacts
from llamanet.wire.identity import PublicKey
from llamanet.wire.rpc import Address

STRATEGIES = ("random", "round robin", "published", "ours", "oracle")
NODES, SPREAD = 50, 8.0
PROMPT = (16, 1020, 0.9, 8000)
ANSWER = (1, 129, 0.8, 1000)
"""Tokens: least, median, deviation of the logarithm, most."""
RTT_S = (0.01, 0.06)
PUBLISH_S = 10.0
DEADLINE_S = 60.0
WARM_UP_S = 60.0
BACKGROUND_ON_S, BACKGROUND_OFF_S, BACKGROUND_LOAD = 20.0, 80.0, 0.5
"""A node's own load: for how long, and how much of its capacity."""
BAD_S, BAD_SHARE, SLOW = 30.0, 0.05, 0.1
IDLE_S = 60.0
"""A connection that was used within this time is there; another costs three round trips more."""
Process = Generator[Any, Any, Any]


@attrs.define
class Outcome:
    """What came of the requests after the warm-up. Times are in seconds."""

    ttfts: list[float] = attrs.field(factory=list)
    totals: list[float] = attrs.field(factory=list)
    requests: int = 0
    errors: int = 0
    probes: int = 0
    choices: int = 0
    """Of a node: one a request, and one more for each move and each hedge."""
    policy_s: float = 0.0
    """What the policy itself took, on this machine."""


def length(rng: Random, shape: tuple[int, int, float, int]) -> int:
    least, median, deviation, most = shape
    return min(most, max(least, int(rng.lognormvariate(math.log(median), deviation))))


def service(number: int) -> Service:
    facts = ServiceFacts(
        hosts=("10.0.0.1",),
        port=8000,
        dht_port=8001,
        tls=True,
        label=f"node-{number}",
        digest=bytes(32),
        n_ctx=16_384,
        slots=SLOTS,
        version="1",
    )
    return Service(public_key=PublicKey(number.to_bytes(32, "big")), model="alpha", facts=facts)


class World:
    """The nodes, and what befalls them."""

    def __init__(self, seed: int, *, nodes: int = NODES, spread: float = SPREAD, quiet: bool = False) -> None:
        """`quiet` nodes have no load of their own, and no trouble."""
        self.clock = Clock()
        self.services = [service(number) for number in range(nodes)]
        speeds = [spread ** (number / (nodes - 1)) for number in range(nodes)]
        self.nodes = {at: SimulatedNode(self.clock, speed) for at, speed in zip(self.services, speeds, strict=True)}
        rng = Random(0)
        prompt = statistics.mean(length(rng, PROMPT) for _ in range(20_000))
        answer = statistics.mean(length(rng, ANSWER) for _ in range(20_000))
        self.capacities = {at: capacity(node.speed, prompt, answer) for at, node in self.nodes.items()}
        self.capacity = sum(self.capacities.values())
        """Requests a second."""
        self.background = self.capacity * BACKGROUND_LOAD * BACKGROUND_ON_S / (BACKGROUND_ON_S + BACKGROUND_OFF_S)
        self.published: dict[Service, float] = dict.fromkeys(self.services, 0.0)
        for number, at in enumerate(self.services):
            fate = Random(f"{seed} {number}")
            self.clock.spawn(self._publish(at, fate))
            if not quiet:
                self.clock.spawn(self._background(at, fate))
                self.clock.spawn(self._trouble(at, fate))

    def _publish(self, at: Service, rng: Random) -> Process:
        yield rng.uniform(0, PUBLISH_S)
        while True:
            node = self.nodes[at]
            self.published[at] = len(node.running) + len(node.waiting)
            yield PUBLISH_S

    def _background(self, at: Service, rng: Random) -> Process:
        while True:
            yield rng.expovariate(1 / BACKGROUND_OFF_S)
            until = self.clock.now + rng.expovariate(1 / BACKGROUND_ON_S)
            while self.clock.now < until:
                self.nodes[at].submit(Job(length(rng, PROMPT), length(rng, ANSWER), self.clock.now))
                yield rng.expovariate(BACKGROUND_LOAD * self.capacities[at])

    def _trouble(self, at: Service, rng: Random) -> Process:
        while True:
            yield rng.expovariate(BAD_SHARE / (1 - BAD_SHARE) / BAD_S)
            self.nodes[at].set_factor(rng.choice([0.0, SLOW]))
            yield rng.expovariate(1 / BAD_S)
            self.nodes[at].set_factor(1.0)


@attrs.define(eq=False)
class Attempt:
    """A request at a node."""

    at: Service
    job: Job
    began: float
    expected: float
    """Seconds to the first token, as the node says when it is asked."""


class Client:
    """One client: a real policy, and a simulated network."""

    def __init__(self, world: World, strategy: str, outcome: Outcome, seed: str) -> None:
        self.world, self.strategy, self.outcome = world, strategy, outcome
        self.rng = Random(seed)
        self.router = Router(self.rng)
        self.peers = self.router.peers
        self.rtts = {at: self.rng.uniform(*RTT_S) for at in world.services}
        self.connected = dict.fromkeys(world.services, -math.inf)
        self.turn = self.rng.randrange(NODES)
        self.hedges = HedgeBudget()

    # --- where to -----------------------------------------------------------------------------------------------------

    def choose(self, question: Question, excluded: set[Service]) -> Process:
        """The nodes, best first."""
        left = [at for at in self.world.services if at not in excluded]
        if self.strategy == "oracle":
            return self.by_oracle(question, left)
        if self.strategy == "ours":
            return (yield from self.by_policy(question, left))
        usable = [at for at in left if self.peers.usable(at.node_id, self.world.clock.now)] or left
        if self.strategy == "round robin":
            self.turn += 1
            start = self.turn % len(usable)
            return usable[start:] + usable[:start]
        self.rng.shuffle(usable)
        return sorted(usable, key=self.world.published.__getitem__) if self.strategy == "published" else usable

    def by_oracle(self, question: Question, left: list[Service]) -> list[Service]:
        found: dict[Service, float] = {}
        soonest = math.inf
        for at in sorted(left, key=lambda at: self.world.nodes[at].least_ttft(question.prompt_tokens)):
            node = self.world.nodes[at]
            if node.least_ttft(question.prompt_tokens) >= soonest:
                break
            found[at] = node.true_ttft(question.prompt_tokens) + self.rtts[at]
            soonest = min(soonest, found[at])
        return sorted(found, key=found.__getitem__)

    def by_policy(self, question: Question, left: list[Service]) -> Process:
        """As client/choice.py does it."""
        clock = self.world.clock
        start = time.perf_counter()
        count = self.router.probes.affordable(again=len(left) < len(self.world.services))
        targets = self.router.probe_order(question, left, clock.now)[:count]
        self.router.probes.spend(len(targets))
        self.outcome.policy_s += time.perf_counter() - start
        self.count(probes=len(targets), choices=1)
        rtts = sorted(self.rtts[at] for at in targets)
        for at in targets:
            clock.at(clock.now + self.rtts[at] / 2, self.answer, at)
        yield min(rtts[0] + max(GRACE_S, rtts[0]), rtts[-1]) + 1e-6
        start = time.perf_counter()
        candidates = [told for told in self.router.pool.candidates(clock.now) if told.service in left]
        ranked = self.router.rank(question, candidates, clock.now)
        self.outcome.policy_s += time.perf_counter() - start
        return [told.service for told in ranked]

    def answer(self, at: Service) -> None:
        """A probe is at its node."""
        clock = self.world.clock
        arrival = clock.now + self.rtts[at] / 2
        clock.at(arrival, self.hear, self.told(at, arrival))

    def hear(self, told: Candidate) -> None:
        start = time.perf_counter()
        self.router.heard(told.service, told, len(self.world.services), self.world.clock.now)
        self.outcome.policy_s += time.perf_counter() - start

    def tell(self, at: Service, asked_at: float) -> None:
        """The node's state comes with what it says to a request that was sent at `asked_at`."""
        clock = self.world.clock
        arrival = clock.now + self.rtts[at] / 2
        clock.at(arrival, self.router.pool.told, self.told(at, arrival), asked_at)

    def told(self, at: Service, when: float) -> Candidate:
        state = self.world.nodes[at].state()
        return Candidate(service=at, address=Address("10.0.0.1", 8001), rtt=self.rtts[at], state=state, at=when)

    # --- a request ----------------------------------------------------------------------------------------------------

    def count(self, **counts: float) -> None:
        """Add to the outcome, after the warm-up."""
        if self.world.clock.now > WARM_UP_S:
            for name, value in counts.items():
                setattr(self.outcome, name, getattr(self.outcome, name) + value)

    def request(self, question: Question, answer: int) -> Process:
        """Ask until there is a first token, then to the end; returns the node that gave the first token, or None."""
        clock, prompt = self.world.clock, question.prompt_tokens
        start, counted = clock.now, clock.now > WARM_UP_S
        self.hedges.earn()
        self.router.probes.earn()
        self.count(requests=1)
        hedged = self.strategy == "oracle"
        left, answered = float(answer), None
        excluded: set[Service] = set()
        asked: set[Service] = set()
        attempts: list[Attempt] = []
        while True:
            if not attempts:
                attempt = yield from self.ask_one_of((yield from self.choose(question, excluded)), question, left)
                attempts = [] if attempt is None else [attempt]
            deadline = math.inf if answered else start + DEADLINE_S
            if clock.now >= deadline:
                self.give_up(attempts)
                self.count(errors=1)
                if counted:
                    self.outcome.ttfts.append(DEADLINE_S)
                return None
            if not attempts:
                yield self.rng.uniform(0.5, 1.5)
                excluded = set()
                continue
            asked |= {attempt.at for attempt in attempts}
            hedge_at = math.inf if hedged or answered else self.hedge_at(attempts[0], question)
            limit = min(self.limit(attempt, question) for attempt in attempts)
            news = next((attempt.job for attempt in attempts if attempt.job.first_at is not None), None)
            if news is None:
                news = yield Wait([attempt.job for attempt in attempts], min(deadline, limit, hedge_at))
            if news is None:
                if clock.now >= min(limit, deadline) - 1e-9:
                    late = [attempt for attempt in attempts if self.limit(attempt, question) <= clock.now + 1e-9]
                    excluded |= {attempt.at for attempt in late}
                    self.give_up(late, failed=True)
                    attempts = [attempt for attempt in attempts if attempt not in late]
                elif clock.now >= hedge_at - 1e-9:
                    hedged = True
                    if not self.hedges.spend():
                        continue
                    others = yield from self.choose(question, excluded | {attempts[0].at})
                    attempt = yield from self.ask_one_of(others[:1], question, left)
                    attempts += [] if attempt is None else [attempt]
                continue
            attempt = next(attempt for attempt in attempts if attempt.job is news)
            self.give_up([other for other in attempts if other is not attempt])
            rtt = self.rtts[attempt.at]
            if answered is None:
                answered = attempt.at
                self.router.gave_up(question, asked - {answered})
                if counted:
                    self.outcome.ttfts.append(clock.now + rtt / 2 - start)
            elapsed = clock.now + rtt / 2 - attempt.began
            self.peers.first_token(attempt.at.node_id, elapsed, question.prompt_tokens, clock.now)
            if (yield from self.read(attempt)):
                self.peers.finished(attempt.at.node_id, clock.now)
                if counted:
                    self.outcome.totals.append(clock.now + rtt / 2 - start)
                return answered
            left = max(1.0, news.tokens_left)
            excluded.add(attempt.at)
            self.give_up([attempt], failed=True)
            question = attrs.evolve(question, prompt_tokens=prompt + int(answer - left))
            attempts = []

    def ask_one_of(self, order: Sequence[Service], question: Question, answer: float) -> Process:
        """The attempt at the first node that takes the request; None if none does."""
        clock = self.world.clock
        for at in order:
            rtt = self.rtts[at]
            trips = 1 if clock.now - self.connected[at] < IDLE_S else 4
            self.connected[at] = clock.now
            began, expected = clock.now, estimated_ttft(self.told(at, clock.now), question.prompt_tokens)
            start = time.perf_counter()
            self.router.asked(question, at, clock.now)
            self.outcome.policy_s += time.perf_counter() - start
            self.peers.began(at.node_id, clock.now)
            yield rtt * (trips - 0.5)
            job = Job(question.prompt_tokens, answer, clock.now)
            if question.blocks:
                job.conversation = int.from_bytes(question.blocks[0].digest, "big")
                job.tokens = question.prompt_tokens + int(answer)
            node = self.world.nodes[at]
            retry_after = node.submit(job)
            if retry_after is None:
                if self.strategy == "ours" and node.factor:
                    # It takes the request between two steps.
                    delay = STEP_S / 2 / node.factor if len(node.running) > 1 else 0.0
                    clock.at(clock.now + delay, self.tell, at, began)
                return Attempt(at, job, began, expected)
            self.peers.busy(at.node_id, retry_after, clock.now)
        return None

    def read(self, attempt: Attempt) -> Process:
        """Whether the stream comes to its end; not if its node stalls for longer than its pace explains."""
        clock, node = self.world.clock, self.world.nodes[attempt.at]
        while attempt.job.done_at is None:
            hangs = not node.factor
            until = clock.now + self.peers.gap_limit_s(attempt.at.node_id, clock.now) if hangs else math.inf
            attempt.job.stalled = hangs
            yield Wait([attempt.job], until)
            if hangs and not node.factor and attempt.job.done_at is None:
                return False
        if self.strategy == "ours":
            self.tell(attempt.at, attempt.began)
        return True

    def hedge_at(self, attempt: Attempt, question: Question) -> float:
        """When a second node is asked."""
        after = self.peers.hedge_after_s(attempt.at.node_id, question.prompt_tokens)
        return math.inf if after is None else attempt.began + after

    def limit(self, attempt: Attempt, question: Question) -> float:
        """When a node that gave no token is left."""
        if self.strategy == "oracle":
            return math.inf
        limit_s = self.peers.first_token_limit_s(attempt.at.node_id, question.prompt_tokens, attempt.began)
        return attempt.began + max(limit_s, HUNG_ESTIMATES * attempt.expected)

    def give_up(self, attempts: Sequence[Attempt], *, failed: bool = False) -> None:
        now = self.world.clock.now
        for attempt in attempts:
            self.world.nodes[attempt.at].cancel(attempt.job)
            (self.peers.failed if failed else self.peers.finished)(attempt.at.node_id, now)
