"""How a name with many publishers is split, so that no holder keeps or answers more than it should. Pure.

A name's own key is its root: every publisher stores there, and with more than `SPLIT_ABOVE` of them in shards as well.
The shard `{name}/{bits}` belongs to the publishers whose ids begin with those bits (text of 0 and 1).

Rules:
- Nobody administers the depth. Each holder of the root estimates the publishers, the median of what holders say is
  believed, and the depth follows from it by arithmetic.
- A publisher is at the depth at which shards have at most `SPLIT_ABOVE` publishers, and at one less. Where estimates
  differ about a boundary some are at d + 1 and d, others at d and d - 1: so all are at d. Readers change their depth
  half an octave away from where publishers do, and so read where all are, as long as no estimate is wrong by 40 %.
  Nothing has to be agreed on, or remembered; what a publisher left behind at another depth expires by itself.
"""

import statistics

import attrs

from llamanet.wire.identity import NodeId

SPLIT_ABOVE = 256
READ_ABOVE = 362
"""`SPLIT_ABOVE` times the square root of 2; still fewer than a holder keeps of one key."""
MAX_DEPTH = 12
"""Enough for a million publishers."""
SURE = 3
"""Holders whose word is enough to leave the root for its shards."""


def publish_depth(publishers: int) -> int:
    """The deeper of the two depths at which a publisher stores; 0 is the root alone."""
    return min(MAX_DEPTH, (max(0, publishers - 1) // SPLIT_ABOVE).bit_length())


def read_depth(publishers: int) -> int:
    """The depth at which a reader finds every publisher; 0 is the root."""
    return min(MAX_DEPTH, (max(0, publishers - 1) // READ_ABOVE).bit_length())


def shard_name(name: str, prefix: int, depth: int) -> str:
    """The name of one of the 2**depth shards (`depth` >= 1) of `name`."""
    return f"{name}/{prefix:0{depth}b}"


def shard_names(name: str, publisher: NodeId, publishers: int) -> tuple[str, ...]:
    """The shards in which `publisher` stores, if `name` has so many publishers."""
    depth = publish_depth(publishers)
    prefix = int.from_bytes(publisher[:4], "big")
    return tuple(shard_name(name, prefix >> (32 - bits), bits) for bits in (depth, depth - 1) if bits > 0)


@attrs.define
class Crowd:
    """How many publishers a key has, by the word of several holders, of whom some may lie."""

    told: list[int] = attrs.Factory(list)

    @property
    def publishers(self) -> int:
        """The median of what was told; 0 if nothing was."""
        return statistics.median_low(self.told) if self.told else 0

    @property
    def is_surely_split(self) -> bool:
        """Whether enough holders say that the key is split, so that a reader need not go on at the root."""
        return len(self.told) >= SURE and read_depth(self.publishers) > 0
