"""What the benchmarks over simulated networks share."""

import hashlib
from collections.abc import Sequence


def key(number: int) -> bytes:
    """A key as good as random."""
    return hashlib.sha256(b"key %d" % number).digest()


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of `values` are not above."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]
