"""Which node to ask: pure policy. From what nodes say and what the caller wishes to an order, with reasons.

The node that should speak first comes first: round trip, queue, the prompt's prefill at its own rate, one decode step.
"""

from collections.abc import Iterable
from random import Random

import attrs

from llamanet.client.directory import Service
from llamanet.wire.rpc import Address, ModelState

ROUND_TRIPS_TO_ASK = 4
"""A new connection costs three (TCP, TLS 1.3, the websocket's upgrade), and the request one."""
SHORT_PROMPT_TOKENS = 32
"""What `ModelState.ttft_s` already counts for the prompt."""
CHARACTERS_A_TOKEN = 3
"""A cautious guess, for the client has no tokenizer: English has about 4, code and other languages fewer."""
TIE_S = 0.005
"""Estimates this close are equal; then load decides, and then chance, so that clients do not all take one node."""


@attrs.frozen(kw_only=True)
class Wishes:
    """What a caller demands of a node."""

    model: str | None = None
    """Its name; None takes any."""
    digest: bytes | None = None
    """SHA-256 of the model file."""
    min_tps: float = 0.0
    """Tokens a second of one stream."""
    max_load: float | None = None
    """Requests running and waiting, for each slot."""
    n_ctx: int = 0
    """Tokens a slot."""
    capability: str | None = None
    """One of `ServiceFacts.capabilities`."""


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


def load_of(running: int, waiting: int, slots: int) -> float:
    """Requests running and waiting, for each slot; above 1 some wait."""
    return (running + waiting) / slots if slots else 0.0


def tokens_in(characters: int) -> int:
    """About how many tokens a prompt of so many characters has."""
    return characters // CHARACTERS_A_TOKEN


def estimated_ttft(candidate: Candidate, prompt_tokens: int) -> float:
    """Seconds until the first token of a prompt with `prompt_tokens` would arrive from `candidate`."""
    state = candidate.state
    further = max(0, prompt_tokens - SHORT_PROMPT_TOKENS)
    prefill = further / state.prefill_tokens_per_second if state.prefill_tokens_per_second else 0.0
    return ROUND_TRIPS_TO_ASK * candidate.rtt + state.ttft_s + prefill


def objection(candidate: Candidate, wishes: Wishes) -> str | None:
    """Why `candidate` does not do, in a few words; None if it does."""
    state, facts = candidate.state, candidate.service.facts
    if candidate.draining:
        return "it is shutting down"
    if wishes.digest is not None and facts.digest != wishes.digest:
        return f"its file is another one (SHA-256 {facts.digest.hex()[:12]}…)"
    if wishes.capability is not None and wishes.capability not in facts.capabilities:
        return f"it has no {wishes.capability}"
    if state.tokens_per_second < wishes.min_tps:
        return f"{state.tokens_per_second:.1f} tokens/s is below min_tps {wishes.min_tps:g}"
    load = load_of(state.running, state.waiting, state.slots)
    if wishes.max_load is not None and load > wishes.max_load:
        return f"load {load:.2f} is above max_load {wishes.max_load:g}"
    if state.n_ctx < wishes.n_ctx:
        return f"its context of {state.n_ctx} tokens is too short"
    return None


def ranked(candidates: Iterable[Candidate], prompt_tokens: int, rng: Random) -> list[Candidate]:
    """The candidates, best first."""

    def cost(candidate: Candidate) -> tuple[int, float]:
        seconds, state = estimated_ttft(candidate, prompt_tokens), candidate.state
        return round(seconds / TIE_S), load_of(state.running, state.waiting, state.slots)

    shuffled = list(candidates)
    rng.shuffle(shuffled)
    return sorted(shuffled, key=cost)
