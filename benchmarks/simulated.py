"""What the benchmarks over simulated networks share."""

import hashlib
import resource
from collections.abc import Sequence
from pathlib import Path


def key(number: int) -> bytes:
    """A key as good as random."""
    return hashlib.sha256(b"key %d" % number).digest()


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of `values` are not above."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def resident_bytes() -> int:
    """The memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
