"""The seam between the engine and what computes tokens: llama.cpp (`node/llama.py`) or a script (`testing/backend.py`).

A backend holds the memory of `slots` sequences, each up to `n_ctx` tokens long. The engine decides what is computed
when; a backend only does it. Rules:
- `tokenize`, `piece`, `is_end`, `check_grammar` and `ready` may be called from any thread at any time. All else is
  called from one thread only.
- A slot's memory grows by `decode` at its end only, and shrinks by `forget`; `copy` and `move` replace it.
- What `draw` returns depends on the slot's tokens so far, its sampling, and (seed, position), and on nothing else.
"""

from collections.abc import Sequence
from typing import Protocol

import attrs

from llamanet.errors import LlamaNetError
from llamanet.wire.inference import Sampling, TokenLogprobs


@attrs.define
class BackendError(LlamaNetError):
    """A computation failed. What the slots in it remember is no longer known; other slots are not touched."""

    reason: str

    def __str__(self) -> str:
        return self.reason


@attrs.frozen
class Chunk:
    """A run of one slot's tokens to compute: `tokens` stand at positions `start`, `start + 1`, and so on.

    `draws` says that a token will be drawn after the last one.
    """

    slot: int
    start: int
    tokens: Sequence[int]
    draws: bool


class Backend(Protocol):
    """One loaded model with memory for several sequences."""

    n_ctx: int
    """Tokens that one slot holds."""
    n_batch: int
    """Most tokens in one `decode`; at least `slots`."""
    slots: int
    """Sequences that can be computed together."""
    n_vocab: int
    """Token ids are 0 to `n_vocab - 1`."""
    piece_bytes: int
    """A text has at least a token for so many of its bytes."""
    n_embd: int
    """Numbers in an embedding; 0: the model gives none."""
    generates: bool
    """Whether the model continues texts; False: it only embeds them."""
    embeds_pieces: bool
    """Whether a text to embed can be computed in pieces. False: each token looks ahead to all that follow it."""
    cuts: bool
    """Whether memory can be cut. False: it is one state after all tokens, as recurrent models keep it."""
    chat_template: str | None
    """Jinja source from the model's metadata."""
    bos_text: str
    eos_text: str

    def tokenize(self, text: str, *, whole: bool = False) -> list[int]:
        """Token ids of `text`, special tokens written in it included, begun as the model wants (BOS, once).

        A `whole` text, that nothing is to follow, is also ended as the model wants.
        """

    def piece(self, token: int) -> bytes:
        """The bytes that `token` adds to the text; empty for special tokens."""

    def is_end(self, token: int) -> bool:
        """Whether the model ends its generation with `token`."""

    def check_grammar(self, grammar: str, resume: Sequence[int]) -> None:
        """Raises `RequestRefused` if `grammar` cannot be used, or if the tokens `resume` do not follow it."""

    def ready(self, sampling: Sampling) -> None:
        """Make beforehand what would take `begin` long with `sampling`."""

    def begin(self, slot: int, sampling: Sampling, seed: int, prompt: Sequence[int], resume: Sequence[int]) -> None:
        """Make ready to draw for `slot`; penalties know the prompt and the tokens that were already generated.

        `sampling` has no `json_schema`, and its grammar was checked.
        """

    def end(self, slot: int) -> None:
        """Drop what `begin` made. What the slot remembers stays, until it is forgotten."""

    def forget(self, slot: int, start: int) -> bool:
        """Drop the slot's memory from position `start` on. False: this memory cannot be cut there, nothing changed.

        A cut is refused where the memory lacks what a token at `start` must see, or has no state to go on from. From
        position 0 on, and past the end, it never is.
        """

    def copy(self, source: int, slot: int) -> None:
        """Have `slot` remember what `source` remembers, and nothing else."""

    def move(self, slot: int, target: int) -> None:
        """Have `target`, for which nothing was begun, go on as `slot` would; `slot` remembers nothing then."""

    def decode(self, chunks: Sequence[Chunk]) -> None:
        """Compute the chunks, at most `n_batch` tokens together. Raises `BackendError`."""

    def draw(self, slot: int, position: int) -> int:
        """The next token of `slot`, whose chunk in the last `decode` had `draws`.

        `position` counts the tokens generated so far, the resumed ones included. Raises `BackendError`, and
        `RequestRefused` if the slot's grammar takes too long to follow.
        """

    def logprobs(self, slot: int, token: int, top: int) -> TokenLogprobs:
        """How likely `token`, just drawn for `slot`, was to the model, and the `top` likeliest tokens in its place.

        Only for a slot whose sampling asks for it.
        """

    def embed(self, texts: Sequence[Sequence[int]], *, done: int = 0) -> list[bytes]:
        """The vectors of tokenized texts, none of them empty, at most `n_batch` tokens together and `slots` texts.

        Each has length 1, and is `n_embd` little-endian 32-bit numbers. No slot is touched. `done` tokens of the first
        text were computed by `embed_piece`, with no other text in between. Raises `BackendError`.
        """

    def embed_piece(self, text: Sequence[int], start: int, end: int) -> None:
        """Compute `text[start:end]`, and not yet the end of it: `embed` wants it next. Raises `BackendError`.

        What is before `start` was computed by this method, with no other text in between. Only if `embeds_pieces`.
        """

    def close(self) -> None:
        """Free the model. Nothing may be called afterwards."""
