"""Why a request went to its node: what was known of each node that was looked at, for people to read."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import attrs

from llamanet.client.peers import PeerMemory
from llamanet.client.selection import Candidate, estimated_ttft, load_of

TITLES = ("node", "age", "rtt", "load", "ours", "tokens/s", "seen", "cached", "first token", "why")


@attrs.frozen(kw_only=True)
class Considered:
    """A node that was looked at. What is None was not known."""

    node_id: str
    """Its label."""
    id: str | None = None
    """Its id, in hexadecimal."""
    age_s: float | None = None
    """Since its probe was answered."""
    rtt: float | None = None
    """Seconds."""
    running: int | None = None
    waiting: int | None = None
    slots: int | None = None
    tokens_per_second: float | None = None
    """Of one stream, as it says."""
    seen_tokens_per_second: float = 0.0
    """Of one stream, as this client saw it; 0.0 if it saw none."""
    ours: int = 0
    """This client's own requests there that are not over."""
    cached_tokens: int = 0
    """How much of the prompt it is expected to remember."""
    ttft_s: float | None = None
    """When it should give the first token of this prompt, in seconds after it is asked."""
    verdict: str
    """Why it was chosen, or was not."""


Policy: TypeAlias = Callable[[Sequence[Considered]], Iterable[Considered]]
"""A caller's own way to choose: from the nodes that answered and meet the request's wishes to those that may be asked,
the best first. It is called after each batch of probes. What it leaves out is not asked; while it leaves out all,
further nodes are probed. Nodes that failed lately come last, whatever it says."""
Strategy: TypeAlias = str | Policy
"""One of `STRATEGIES`, or a function."""


@attrs.frozen(kw_only=True)
class Decision:
    """One choice of a node."""

    node_id: str
    """The label of the node that was chosen."""
    strategy: str
    """Its name, or that of the caller's own function."""
    known: int
    """Nodes in the directory that serve what was asked for."""
    probes: int
    """Sent for this request so far."""
    prompt_tokens: int
    """To be computed; a guess."""
    hot_load: float
    """The load (requests running and waiting, for each slot) above which a node was taken to be hot."""
    considered: tuple[Considered, ...]
    """The one that was chosen comes first."""

    def __str__(self) -> str:
        """A table."""
        head = (
            f"chose {self.node_id} by {self.strategy}, of {self.known} known, with {self.probes} probes, "
            f"for a prompt of about {self.prompt_tokens} tokens; hot is a load above {self.hot_load:.2f}"
        )
        rows = [TITLES, *map(_row, self.considered)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
        return "\n".join((head, *lines))


OnChoice = Callable[[Decision], object]
"""Is told why each node is asked, just before it is."""


def considered(
    candidate: Candidate, peers: PeerMemory, prompt_tokens: int, cached_tokens: int, now: float, verdict: str
) -> Considered:
    """What was known of `candidate`."""
    state, node_id = candidate.state, candidate.service.node_id
    return Considered(
        node_id=candidate.service.facts.label,
        id=node_id.hex(),
        age_s=now - candidate.at,
        rtt=candidate.rtt,
        running=state.running,
        waiting=state.waiting,
        slots=state.slots,
        tokens_per_second=state.tokens_per_second,
        seen_tokens_per_second=peers.tokens_per_second(node_id),
        ours=peers.in_flight(node_id),
        cached_tokens=cached_tokens,
        ttft_s=estimated_ttft(candidate, prompt_tokens, cached_tokens),
        verdict=verdict,
    )


def _row(node: Considered) -> tuple[str, ...]:
    if node.slots is None or node.running is None or node.waiting is None:
        return (node.node_id, *("",) * (len(TITLES) - 2), node.verdict)
    return (
        node.node_id,
        f"{node.age_s or 0:.3f} s",
        f"{1000 * (node.rtt or 0):.1f} ms",
        f"{load_of(node.running, node.waiting, node.slots):.2f} ({node.running}+{node.waiting}/{node.slots})",
        str(node.ours),
        f"{node.tokens_per_second or 0:.1f}",
        f"{node.seen_tokens_per_second:.1f}" if node.seen_tokens_per_second else "-",
        str(node.cached_tokens),
        f"{node.ttft_s or 0:.3f} s",
        node.verdict,
    )
