"""Which node to ask: pure policy. From what nodes say and what the caller wishes to an order, with reasons.

The node that should speak first comes first: round trip, queue, the prompt's prefill at its own rate, one decode step.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from random import Random
from typing import TypeAlias

import attrs

from llamanet.client.directory import Service
from llamanet.wire.identity import NodeId
from llamanet.wire.inference import CAPABILITY_EMBEDDINGS
from llamanet.wire.rpc import Address
from llamanet.wire.state import ModelState

ROUND_TRIPS_TO_ASK = 4
"""A new connection costs three (TCP, TLS 1.3, the websocket's upgrade), and the request one."""
SHORT_PROMPT_TOKENS = 32
"""What `ModelState.ttft_s` already counts for the prompt."""
CHARACTERS_A_TOKEN = 3
"""A cautious guess, for the client has no tokenizer: English has about 4, code and other languages fewer."""
STICKY_SHARE = 0.5
"""SGLang's router takes the node with the prefix from the same share on (its `cache_threshold`)."""
STICKY_TOKENS = 64
"""Less is computed anew as soon as it is found."""
STICKY_FACTOR = 10.0
STICKY_S = 0.5
"""A node that remembers a prompt is waited for so many times as long as the soonest, and so much longer. Computing it
anew elsewhere delays others too: so benchmarks/routing.py has 90 % of turns land on their prefix below 75 % load."""
STICKY_REQUESTS = 4
"""So many more requests than elsewhere are borne in any case."""
USUAL_ANSWER_TOKENS = 128
"""About the median in conversations (129 in Patel et al., "Splitwise", ISCA '24, section 3)."""
BATCH_COST = 0.15
"""Of a lone stream's step, by which each further stream prolongs the step of all, about; a guess between what small
models on a processor and large ones on a card cost."""
TIE_S = 0.005
"""Estimates this close are equal; then load decides, and then chance, so that clients do not all take one node."""


@attrs.frozen(kw_only=True)
class Wishes:
    """What a caller demands of a node."""

    model: str | None = None
    """Its name; None takes any."""
    digest: bytes | None = None
    """SHA-256 of the model file."""
    preferred: bytes | None = None
    """Likewise; nodes with another file are asked when none with this one is left."""
    min_tps: float = 0.0
    """Tokens a second of one stream."""
    max_load: float | None = None
    """Requests running and waiting, for each slot."""
    n_ctx: int = 0
    """Tokens a slot."""
    capabilities: tuple[str, ...] = ()
    """Of `ServiceFacts.capabilities`."""
    generates: bool = False
    """Whether its model must do more than embed."""


@attrs.frozen(kw_only=True)
class Candidate:
    """A service whose node has just answered."""

    service: Service
    address: Address
    """Where it answered."""
    rtt: float
    """Seconds."""
    state: ModelState
    draining: bool = False
    at: float = 0.0
    """When it answered, in seconds on trio's clock."""


def load_of(running: int, waiting: int, slots: int) -> float:
    """Requests running and waiting, for each slot; above 1 some wait."""
    return (running + waiting) / slots if slots else 0.0


def load(candidate: Candidate) -> float:
    """Its node's."""
    return load_of(candidate.state.running, candidate.state.waiting, candidate.state.slots)


def tokens_in(characters: int) -> int:
    """About how many tokens a prompt of so many characters has."""
    return characters // CHARACTERS_A_TOKEN


def estimated_ttft(candidate: Candidate, prompt_tokens: int, cached_tokens: int = 0) -> float:
    """Seconds until the first token of a prompt would arrive from `candidate`.

    The prompt has `prompt_tokens`, of which the node is expected to remember `cached_tokens`.
    """
    state = candidate.state
    further = max(0, prompt_tokens - cached_tokens - SHORT_PROMPT_TOKENS)
    prefill = further / state.prefill_tokens_per_second if state.prefill_tokens_per_second else 0.0
    return ROUND_TRIPS_TO_ASK * candidate.rtt + state.ttft_s + prefill


def with_one_more(candidate: Candidate, prompt_tokens: int) -> Candidate:
    """What `candidate` would say of itself once it had one more request, with `prompt_tokens` to compute."""
    state = candidate.state
    prefill = prompt_tokens / state.prefill_tokens_per_second if state.prefill_tokens_per_second else 0.0
    rate, ttft_s = state.tokens_per_second, state.ttft_s + prefill
    if state.running >= state.slots:
        place = USUAL_ANSWER_TOKENS / (rate * state.slots) if rate else 0.0
        state = attrs.evolve(state, waiting=state.waiting + 1, ttft_s=ttft_s + place)
    elif not state.running or not rate:
        state = attrs.evolve(state, running=state.running + 1, ttft_s=ttft_s)
    else:
        slower = 1 + BATCH_COST / (1 + BATCH_COST * (state.running - 1))
        state = attrs.evolve(
            state,
            running=state.running + 1,
            tokens_per_second=rate / slower,
            ttft_s=ttft_s + (slower - 1) / rate,
        )
    return attrs.evolve(candidate, state=state)


def other_kind(service: Service, wishes: Wishes) -> str | None:
    """What `service` says of its model, if that is not of the kind that is asked for; None if it may be."""
    offered = service.facts.capabilities
    if CAPABILITY_EMBEDDINGS in wishes.capabilities and CAPABILITY_EMBEDDINGS not in offered:
        return "does not embed: use generate()"
    # What generates announces more than that; who announces nothing may do anything.
    if wishes.generates and offered == (CAPABILITY_EMBEDDINGS,):
        return "only embeds: use embed()"
    return None


def objection_to_service(service: Service, wishes: Wishes) -> str | None:
    """Why `service` does not do, whatever its node's state is; None if it may."""
    facts = service.facts
    if wishes.digest is not None and facts.digest != wishes.digest:
        return f"its file is another one (SHA-256 {facts.digest.hex()[:12]}…)"
    if missing := [capability for capability in wishes.capabilities if capability not in facts.capabilities]:
        return f"it has no {', '.join(missing)}"
    if kind := other_kind(service, wishes):
        return f"its {service.model} {kind}"
    if facts.n_ctx < wishes.n_ctx:
        return f"its context of {facts.n_ctx} tokens is too short"
    return None


def objection(candidate: Candidate, wishes: Wishes) -> str | None:
    """Why `candidate` does not do, in a few words; None if it does."""
    if candidate.draining:
        return "it is shutting down"
    if reason := objection_to_service(candidate.service, wishes):
        return reason
    state = candidate.state
    if state.tokens_per_second < wishes.min_tps:
        return f"{state.tokens_per_second:.1f} tokens/s is below min_tps {wishes.min_tps:g}"
    if state.n_ctx < wishes.n_ctx:
        return f"its context of {state.n_ctx} tokens is too short"
    return None


def overload(candidate: Candidate, wishes: Wishes) -> str | None:
    """Why `candidate` does not do for now, in a few words; None if it does."""
    if wishes.max_load is not None and load(candidate) > wishes.max_load:
        return f"load {load(candidate):.2f} is above max_load {wishes.max_load:g}"
    return None


def shortfalls(candidates: Iterable[Candidate], wishes: Wishes) -> list[str]:
    """What was asked for and no candidate offers, with what the best of them does."""
    candidates = list(candidates)
    if not candidates:
        return []
    found = []
    fastest = max(candidates, key=lambda candidate: candidate.state.tokens_per_second)
    if fastest.state.tokens_per_second < wishes.min_tps:
        label, rate = fastest.service.facts.label, fastest.state.tokens_per_second
        found.append(f"min_tps {wishes.min_tps:g} was asked, and the fastest, {label}, has {rate:.1f} tokens/s")
    idlest = min(candidates, key=load)
    if wishes.max_load is not None and load(idlest) > wishes.max_load:
        label = idlest.service.facts.label
        found.append(f"max_load {wishes.max_load:g} was asked, and the idlest, {label}, has load {load(idlest):.2f}")
    largest = max(candidates, key=lambda candidate: candidate.state.n_ctx)
    if largest.state.n_ctx < wishes.n_ctx:
        label, n_ctx = largest.service.facts.label, largest.state.n_ctx
        found.append(f"a context of {wishes.n_ctx} tokens is needed, and the largest, {label}'s, has {n_ctx}")
    return found


def remembers(prompt_tokens: int, cached_tokens: int) -> bool:
    """Whether a node that is expected to remember `cached_tokens` of a prompt is the one to go back to."""
    return cached_tokens >= max(STICKY_TOKENS, STICKY_SHARE * prompt_tokens)


HotLoad: TypeAlias = Callable[[str], float]
"""By a model's name, the load above which a node is hot."""


def homes(
    candidates: Collection[Candidate], prompt_tokens: int, cached_tokens: Mapping[NodeId, int], hot_load: HotLoad
) -> frozenset[NodeId]:
    """The nodes to go back to, for they are expected to remember so many tokens of the prompt.

    That is much of it, and the node is not hot, has not so many more requests than another that they cost more than is
    saved, and is not so late that it would be better to compute the prompt anew.
    """
    if not cached_tokens or not candidates:
        return frozenset()
    fewest = min(candidate.state.running + candidate.state.waiting for candidate in candidates)

    def cached(candidate: Candidate) -> int:
        return cached_tokens.get(candidate.service.node_id, 0)

    def seconds(candidate: Candidate) -> float:
        return estimated_ttft(candidate, prompt_tokens, cached(candidate))

    def saves(candidate: Candidate) -> bool:
        # Every request that runs beside it delays each token of an answer by about as much as a token of prompt takes.
        more = candidate.state.running + candidate.state.waiting - fewest
        return more * USUAL_ANSWER_TOKENS <= max(cached(candidate), STICKY_REQUESTS * USUAL_ANSWER_TOKENS)

    worth = STICKY_FACTOR * min(map(seconds, candidates)) + STICKY_S
    return frozenset(
        candidate.service.node_id
        for candidate in candidates
        if remembers(prompt_tokens, cached(candidate))
        and load(candidate) <= hot_load(candidate.service.model)
        and saves(candidate)
        and seconds(candidate) <= worth
    )


def ranked(
    candidates: Iterable[Candidate],
    prompt_tokens: int,
    rng: Random,
    *,
    hot_load: HotLoad = lambda model: math.inf,
    cached_tokens: Mapping[NodeId, int] | None = None,
) -> list[Candidate]:
    """The candidates, best first: hot-cold lexicographic (Wydrowski et al., NSDI '24, section 4).

    First those with a load up to `hot_load`, by the time to their first token; then the hot ones, by load. Before all
    come those of `homes`. `cached_tokens` says how much of the prompt a node is expected to remember.
    """
    cached_tokens = cached_tokens or {}
    shuffled = list(candidates)
    rng.shuffle(shuffled)
    limits = {model: hot_load(model) for model in {candidate.service.model for candidate in shuffled}}
    back = homes(shuffled, prompt_tokens, cached_tokens, limits.__getitem__)

    def cost(candidate: Candidate) -> tuple[bool, int, float, float]:
        cached = cached_tokens.get(candidate.service.node_id, 0)
        ttft = round(estimated_ttft(candidate, prompt_tokens, cached) / TIE_S)
        if load(candidate) > limits[candidate.service.model]:
            return True, 0, load(candidate), ttft
        return False, -cached if candidate.service.node_id in back else 0, ttft, load(candidate)

    return sorted(shuffled, key=cost)
