"""The ways to choose a request's node, by name. Apart from the rest, so that a command line can name them at once."""

from typing import TYPE_CHECKING

from llamanet.errors import UserError

if TYPE_CHECKING:
    from llamanet.client.decision import Strategy

STRATEGIES = ("soonest", "random", "round_robin", "least_load")
"""`soonest` is the one that is meant; the others are there to compare it with."""


def check_strategy(strategy: "Strategy") -> "Strategy":
    """`strategy`. Raises `UserError` if it is not known."""
    if not callable(strategy) and strategy not in STRATEGIES:
        raise UserError(f"strategy {strategy!r} is not known; there are {', '.join(STRATEGIES)}, and functions")
    return strategy


def strategy_name(strategy: "Strategy") -> str:
    """What people read: a function's own name."""
    return getattr(strategy, "__name__", type(strategy).__name__) if callable(strategy) else strategy
