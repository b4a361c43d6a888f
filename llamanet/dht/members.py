"""Who publishes under a name of any size: read from its root while that is small, and from its shards beyond.

A name with few publishers costs what one key costs. A reader of a large one asks some random shards at once, each for a
share of what it wants: every holder of a shard has all of the shard's publishers, so each of them is as likely to be
told as another, and no holder is asked more than another. Shares are so small that one answer holds one, and half as
many again are asked for as are wanted, so that a sample waits neither for a second page nor for the slowest shards; who
is slow for one reader is near another.
"""

from collections.abc import Sequence

import trio

from llamanet.dht.service import Dht
from llamanet.dht.shards import Crowd, read_depth, shard_name
from llamanet.wire.facts import key_of
from llamanet.wire.identity import NodeId
from llamanet.wire.record import Record

SAMPLED_SHARDS = 32
SHARDS_AT_ONCE = 8
"""Where all shards are read."""
SHARD_LIMIT = 500


async def sample(dht: Dht, name: str, limit: int, *, copies: bool = False) -> Sequence[Record]:
    """The current records of `limit` publishers of `name`, each as likely as another; of all, if there are fewer.

    With `copies` one node's word is enough, as in `Dht.get`.
    """
    root, depth = await _read_root(dht, name, limit, copies=copies)
    if not depth:
        return root
    prefixes = dht.rng.sample(range(2**depth), min(2**depth, SAMPLED_SHARDS))
    shards = [shard_name(name, prefix, depth) for prefix in prefixes]
    each = share_of(limit, len(shards))
    found = await _read_shards(dht, shards, each=each, limit=limit, at_once=len(shards), copies=copies)
    return _filled_up(found, root, limit)


def share_of(limit: int, shards: int) -> int:
    """How many records a sample of `limit` asks of each of so many shards: half as many again as it needs, in all."""
    return -(-3 * limit // (2 * shards))


async def everyone(dht: Dht, name: str, limit: int) -> Sequence[Record]:
    """The current records of all publishers of `name`, up to `limit`."""
    root, depth = await _read_root(dht, name, limit)
    if not depth:
        return root
    shards = [shard_name(name, prefix, depth) for prefix in range(2**depth)]
    dht.rng.shuffle(shards)
    found = await _read_shards(dht, shards, each=min(limit, SHARD_LIMIT), limit=limit)
    return _filled_up(found, root, limit)


async def _read_root(dht: Dht, name: str, limit: int, *, copies: bool = False) -> tuple[list[Record], int]:
    """What the root told, up to `limit`, and the depth at which the shards have all publishers (0: the root has)."""
    crowd = Crowd()
    records = await dht.get(key_of(name), limit=limit, crowd=crowd, copies=copies)
    return records, read_depth(crowd.publishers)


async def _read_shards(
    dht: Dht, shards: Sequence[str], *, each: int, limit: int, at_once: int = SHARDS_AT_ONCE, copies: bool = False
) -> dict[NodeId, Record]:
    """Up to `each` records of every shard, until there are `limit`; `at_once` shards are asked at the same time."""
    found: dict[NodeId, Record] = {}
    waiting = list(reversed(shards))

    async def read_some() -> None:
        while waiting and len(found) < limit:
            for record in await dht.get(key_of(waiting.pop()), limit=each, copies=copies):
                found[record.publisher] = record
        if len(found) >= limit:
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for _ in range(min(at_once, len(shards))):
            nursery.start_soon(read_some)
    return found


def _filled_up(found: dict[NodeId, Record], root: Sequence[Record], limit: int) -> list[Record]:
    """What was found, and of the root's sample what is missing: shards that liars invented are empty."""
    for record in root:
        found.setdefault(record.publisher, record)
    return list(found.values())[:limit]
