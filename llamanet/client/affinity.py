"""Which node has computed the beginning of a prompt before, so that a conversation goes back to it. Pure.

As in SGLang's cache-aware router (Zheng et al., NeurIPS '24, and its `sgl-router`), prefixes are those of text, for a
client has no tokenizer; and a node is noted when it is asked, so that requests that come together stay together. Rules:
- A text is cut into blocks: at the end of each message, and every `BLOCK_CHARS` characters within. The hash of a block
  holds all before it, so that equal hashes mean equal beginnings.
- Of nodes that were asked for one prompt, only the one that spoke remembers the end of it.
- Other prompts take a node's memory with time: after `MAX_AGE_S` nothing is expected of it.
- At most `MAX_BLOCKS` blocks are remembered, each with the last `MAX_HOLDERS` nodes; the oldest are forgotten.
"""

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b

import attrs

from llamanet.wire.identity import NodeId
from llamanet.wire.inference import Generate

BLOCK_CHARS = 256
MAX_CHAIN = 512
"""Blocks of one text that are looked at: 131,072 characters."""
MAX_BLOCKS = 16_384
MAX_HOLDERS = 4
MAX_AGE_S = 300.0


@attrs.frozen
class Block:
    """A piece of a text, with all before it. `end` is where it ends, in characters."""

    digest: bytes = attrs.field(repr=bytes.hex)
    end: int


def blocks_of(texts: Iterable[str]) -> tuple[Block, ...]:
    """The blocks of `texts`, each of which begins a new one."""
    blocks: list[Block] = []
    digest, end = b"", 0
    for text in texts:
        for start in range(0, len(text), BLOCK_CHARS):
            piece = text[start : start + BLOCK_CHARS]
            # The length keeps ["ab", "c"] and ["a", "bc"] apart.
            told = b"%b%d:%b" % (digest, len(piece), piece.encode("utf-8", "surrogatepass"))
            digest = blake2b(told, digest_size=16).digest()
            end += len(piece)
            blocks.append(Block(digest, end))
            if len(blocks) == MAX_CHAIN:
                return tuple(blocks)
    return tuple(blocks)


def request_texts(request: Generate) -> Iterator[str]:
    """The texts that a request's prompt is made of: itself, or its tools and its messages."""
    if request.prompt is not None:
        yield request.prompt
    for tool in request.tools:
        yield f"{tool.name}\n{tool.description}\n{tool.parameters or ''}"
    for message in request.messages:
        yield f"{message.role}\n{message.content}"
        for call in message.tool_calls:
            yield f"{call.name}\n{call.arguments}"


def request_blocks(request: Generate) -> tuple[Block, ...]:
    """The blocks of what a request's prompt is made of."""
    return blocks_of(request_texts(request))


class Affinity:
    """Which nodes were asked for which beginnings. `now` is in seconds on one clock that never goes back."""

    def __init__(self) -> None:
        self._holders: dict[bytes, dict[NodeId, float]] = {}
        """By block, when each node was asked for it; blocks and nodes each with the oldest first."""

    def asked(self, blocks: Sequence[Block], node_id: NodeId, now: float) -> None:
        """The node is asked to compute `blocks`."""
        # From the end: what is forgotten first is then the end of a text, not the beginning that leads to it.
        for block in reversed(blocks):
            holders = self._holders.pop(block.digest, {})
            holders.pop(node_id, None)
            holders[node_id] = now
            if len(holders) > MAX_HOLDERS:
                del holders[next(iter(holders))]
            self._holders[block.digest] = holders
        while len(self._holders) > MAX_BLOCKS:
            del self._holders[next(iter(self._holders))]

    def gave_up(self, blocks: Sequence[Block], node_id: NodeId) -> None:
        """The node was asked for `blocks`, and another one spoke."""
        if blocks and (holders := self._holders.get(blocks[-1].digest)):
            holders.pop(node_id, None)

    def expected(self, blocks: Sequence[Block], now: float) -> dict[NodeId, int]:
        """By node, how many characters of the text it is expected to have computed already."""
        expected: dict[NodeId, int] = {}
        for block in blocks:
            holders = self._holders.get(block.digest)
            if holders is None:
                break
            expected.update((node_id, block.end) for node_id, at in holders.items() if now - at <= MAX_AGE_S)
        return expected
