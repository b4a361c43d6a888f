"""The ways to choose a request's node, by name. Apart from the rest, so that a command line can name them at once."""

from llamanet.errors import UserError

STRATEGIES = ("soonest", "random", "round_robin", "least_load")
"""`soonest` is the one that is meant; the others are there to compare it with."""


def check_strategy(strategy: str) -> str:
    """`strategy`. Raises `UserError` if it is not known."""
    if strategy not in STRATEGIES:
        raise UserError(f"strategy {strategy!r} is not known; there are {', '.join(STRATEGIES)}")
    return strategy
