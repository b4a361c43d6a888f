"""Embeddings by llama.cpp: a context of its own beside the one that generates, with the model's own pooling.

A text's vector is what the model says in its metadata: the mean of its tokens' vectors, the first one's or the last
one's. A model that says nothing was made for generating, and gets the mean.
"""

import ctypes
from collections.abc import Sequence

import llama_cpp.llama_cpp as lib
import numpy as np

from llamanet.node.backend import BackendError


def embedding_size(model: ctypes.c_void_p) -> int:
    """Numbers in an embedding; 0 for a reranker, which gives scores of pairs and no vectors of texts."""
    if _own_pooling(model) == lib.LLAMA_POOLING_TYPE_RANK:
        return 0
    size: int = lib.llama_model_n_embd_out(model)
    return size


class LlamaEmbedder:
    """A context that embeds. `close` frees it; the model must live until then."""

    def __init__(self, model: ctypes.c_void_p, *, n_batch: int, slots: int, n_threads: int) -> None:
        """Room for `n_batch` tokens in `slots` texts at a time. Raises `BackendError` if there is no memory for it."""
        params = lib.llama_context_default_params()
        # llama.cpp plans a batch that is shared evenly by all texts, and ends the process if it cannot be.
        params.n_ctx = params.n_batch = params.n_ubatch = n_batch + -n_batch % slots
        params.n_seq_max = slots
        params.n_threads = params.n_threads_batch = n_threads
        params.kv_unified = True
        params.embeddings = True
        pooling = _own_pooling(model)
        nothing_said = pooling in (lib.LLAMA_POOLING_TYPE_UNSPECIFIED, lib.LLAMA_POOLING_TYPE_NONE)
        params.pooling_type = lib.LLAMA_POOLING_TYPE_MEAN if nothing_said else pooling
        self._size = embedding_size(model)
        self._context = lib.llama_init_from_model(model, params)
        if self._context is None:
            raise BackendError(f"no memory to embed {n_batch} tokens at a time")
        self._batch = lib.llama_batch_init(n_batch, 0, 1)

    def embed(self, texts: Sequence[Sequence[int]]) -> list[bytes]:
        """As `Backend.embed`."""
        memory = lib.llama_get_memory(self._context)
        if memory:
            lib.llama_memory_clear(memory, True)
        at = 0
        for slot, tokens in enumerate(texts):
            for position, token in enumerate(tokens):
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
        return [self._vector(slot) for slot in range(len(texts))]

    def close(self) -> None:
        """Free the context."""
        lib.llama_batch_free(self._batch)
        lib.llama_free(self._context)

    def _vector(self, slot: int) -> bytes:
        pooled = lib.llama_get_embeddings_seq(self._context, slot)
        if not pooled:
            raise BackendError("llama.cpp gave no embedding")
        vector = np.ctypeslib.as_array(pooled, (self._size,)).astype(np.float64)
        length = float(np.sqrt(vector @ vector))
        return (vector / length if length else vector).astype("<f4").tobytes()


def _own_pooling(model: ctypes.c_void_p) -> int:
    """The model's `{architecture}.pooling_type`, one of llama.cpp's LLAMA_POOLING_TYPE numbers."""
    architecture = _metadata(model, "general.architecture")
    value = _metadata(model, f"{architecture}.pooling_type")
    return int(value) if value.isdecimal() else int(lib.LLAMA_POOLING_TYPE_UNSPECIFIED)


def _metadata(model: ctypes.c_void_p, key: str) -> str:
    """A value of the model's metadata as text; empty if there is none."""
    buffer = ctypes.create_string_buffer(128)
    length = lib.llama_model_meta_val_str(model, key.encode(), buffer, len(buffer))
    return buffer.value.decode(errors="replace") if length >= 0 else ""
