"""Embeddings by llama.cpp: a context of its own beside the one that generates, with the model's own pooling.

A text's vector is what the model says in its metadata: the mean of its tokens' vectors, the first one's or the last
one's. A model that says nothing was made for generating, and gets the mean. Where tokens see only what is before them,
a text may be computed in pieces, and the pooling is done here: llama.cpp pools only what it computes together.
"""

import ctypes
import itertools
from collections.abc import Sequence
from typing import TypeAlias

import llama_cpp.llama_cpp as lib
import numpy as np
import numpy.typing as npt

from llamanet.node.backend import BackendError

_Vector: TypeAlias = npt.NDArray[np.float64]


def embedding_size(model: ctypes.c_void_p) -> int:
    """Numbers in an embedding; 0 for a reranker, which gives scores of pairs and no vectors of texts."""
    if _own_pooling(model) == lib.LLAMA_POOLING_TYPE_RANK:
        return 0
    size: int = lib.llama_model_n_embd_out(model)
    return size


def is_causal(model: ctypes.c_void_p) -> bool:
    """Whether each token sees only itself and what is before it."""
    return _metadata(model, f"{_architecture(model)}.attention.causal") != "false"


class LlamaEmbedder:
    """A context that embeds. `close` frees it; the model must live until then."""

    def __init__(self, model: ctypes.c_void_p, *, n_batch: int, slots: int, n_threads: int, pieces: bool) -> None:
        """Room for `n_batch` tokens in `slots` texts at a time; `pieces` as `Backend.embeds_pieces`.

        Raises `BackendError` if there is no memory for it.
        """
        params = lib.llama_context_default_params()
        # llama.cpp plans a batch that is shared evenly by all texts, and ends the process if it cannot be.
        params.n_ctx = params.n_batch = params.n_ubatch = n_batch + -n_batch % slots
        params.n_seq_max = slots
        params.n_threads = params.n_threads_batch = n_threads
        params.kv_unified = True
        params.embeddings = True
        pooling = _own_pooling(model)
        nothing_said = pooling in (lib.LLAMA_POOLING_TYPE_UNSPECIFIED, lib.LLAMA_POOLING_TYPE_NONE)
        self._pooling = lib.LLAMA_POOLING_TYPE_MEAN if nothing_said else pooling
        self._pools = pieces
        params.pooling_type = lib.LLAMA_POOLING_TYPE_NONE if pieces else self._pooling
        self._size = embedding_size(model)
        self._context = lib.llama_init_from_model(model, params)
        if self._context is None:
            raise BackendError(f"no memory to embed {n_batch} tokens at a time")
        self._batch = lib.llama_batch_init(n_batch, 0, 1)
        self._begun: _Vector | None = None
        """Of the text that is computed in pieces, pooled so far."""

    def embed(self, texts: Sequence[Sequence[int]], *, done: int = 0) -> list[bytes]:
        """As `Backend.embed`."""
        self._decode(texts, done)
        if not self._pools:
            return [_unit(self._pooled_by_llama(slot)) for slot in range(len(texts))]
        ends = list(itertools.accumulate(map(len, texts), initial=-done))[1:]
        first, *others = np.split(self._rows(ends[-1]), ends[:-1])
        pooled = [self._pool(first, self._begun if done else None), *(self._pool(rows, None) for rows in others)]
        return [_unit(vector) for vector in pooled]

    def compute(self, text: Sequence[int], start: int, end: int) -> None:
        """As `Backend.embed_piece`."""
        self._decode([text[:end]], start)
        self._begun = self._pool(self._rows(end - start), self._begun if start else None)

    def close(self) -> None:
        """Free the context."""
        lib.llama_batch_free(self._batch)
        lib.llama_free(self._context)

    def _decode(self, texts: Sequence[Sequence[int]], done: int) -> None:
        memory = lib.llama_get_memory(self._context)
        if memory and not done:
            lib.llama_memory_clear(memory, True)
        at = 0
        for slot, tokens in enumerate(texts):
            start = 0 if slot else done
            for position, token in enumerate(tokens[start:], start):
                self._batch.token[at] = token
                self._batch.pos[at] = position
                self._batch.n_seq_id[at] = 1
                self._batch.seq_id[at][0] = slot
                self._batch.logits[at] = 1
                at += 1
        self._batch.n_tokens = at
        code = lib.llama_decode(self._context, self._batch)
        if code != 0:
            raise BackendError(f"llama.cpp could not embed {at} tokens (code {code})")

    def _rows(self, tokens: int) -> _Vector:
        """The vectors of all tokens of the last batch."""
        return np.ctypeslib.as_array(lib.llama_get_embeddings(self._context), (tokens, self._size)).astype(np.float64)

    def _pool(self, rows: _Vector, begun: _Vector | None) -> _Vector:
        """The vector, of any length, of a text that goes on with `rows`."""
        pooled: _Vector
        if self._pooling == lib.LLAMA_POOLING_TYPE_LAST:
            pooled = rows[-1]
        elif self._pooling == lib.LLAMA_POOLING_TYPE_CLS:
            pooled = rows[0] if begun is None else begun
        else:
            pooled = rows.sum(axis=0) + (0.0 if begun is None else begun)
        return pooled

    def _pooled_by_llama(self, slot: int) -> _Vector:
        pooled = lib.llama_get_embeddings_seq(self._context, slot)
        if not pooled:
            raise BackendError("llama.cpp gave no embedding")
        return np.ctypeslib.as_array(pooled, (self._size,)).astype(np.float64)


def _unit(vector: _Vector) -> bytes:
    length = float(np.sqrt(vector @ vector))
    return (vector / length if length else vector).astype("<f4").tobytes()


def _own_pooling(model: ctypes.c_void_p) -> int:
    """The model's `{architecture}.pooling_type`, one of llama.cpp's LLAMA_POOLING_TYPE numbers."""
    value = _metadata(model, f"{_architecture(model)}.pooling_type")
    return int(value) if value.isdecimal() else int(lib.LLAMA_POOLING_TYPE_UNSPECIFIED)


def _architecture(model: ctypes.c_void_p) -> str:
    return _metadata(model, "general.architecture")


def _metadata(model: ctypes.c_void_p, key: str) -> str:
    """A value of the model's metadata as text; empty if there is none."""
    buffer = ctypes.create_string_buffer(128)
    length = lib.llama_model_meta_val_str(model, key.encode(), buffer, len(buffer))
    return buffer.value.decode(errors="replace") if length >= 0 else ""
