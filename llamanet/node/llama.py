"""The backend that computes: one model and one context of llama.cpp, through llama-cpp-python's low-level API.

Rules:
- A slot is a llama.cpp sequence id, and each has room for `n_ctx` tokens of its own.
- Only the methods that `node/backend.py` says may be called from any thread.
- What llama.cpp logs goes to this module's logger, at debug level: it writes hundreds of lines for each model.
"""

import ctypes
import logging
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import attrs
import numpy as np

# How often a thread of GCC's OpenMP looks before it sleeps, while it waits for the others at the end of an operation:
# some 30 us. By default it is 3 ms, and where two programs compute on the same cores, each mostly waits for a thread
# that the other one keeps from running: measured with two nodes on two cores, under 1 token/s instead of 23.
# It is read once, when the library is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

import llama_cpp.llama_cpp as lib

from llamanet.errors import ModelFileError, UserError
from llamanet.models.gguf import check_model_file
from llamanet.models.progress import Report, silent
from llamanet.models.shards import model_name
from llamanet.node.backend import BackendError, Chunk
from llamanet.node.config import LlamaSettings
from llamanet.node.cores import physical_cores
from llamanet.node.llama_embedder import LlamaEmbedder, embedding_size, is_causal
from llamanet.node.llama_grammar import LlamaGrammar
from llamanet.node.llama_sampler import LlamaSampler, LlamaVocab, logprobs_of
from llamanet.node.llama_tokenizer import LlamaTokenizer
from llamanet.wire.inference import Sampling, TokenChance, TokenLogprobs

_logger = logging.getLogger(__name__)
_ERROR = 4
"""GGML_LOG_LEVEL_ERROR in ggml.h."""
_PROGRESS = 1000
"""Steps in which the progress of loading is told."""


@attrs.frozen(kw_only=True)
class LlamaConfig(LlamaSettings):
    """Which model to load, and how to run it."""

    model_path: Path


_SPLIT_MODES = {
    "none": lib.LLAMA_SPLIT_MODE_NONE,
    "layer": lib.LLAMA_SPLIT_MODE_LAYER,
    "row": lib.LLAMA_SPLIT_MODE_ROW,
}
_FLASH_ATTENTION = {
    "auto": lib.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": lib.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": lib.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}
_CACHE_TYPES = {
    "f32": lib.GGML_TYPE_F32,
    "f16": lib.GGML_TYPE_F16,
    "bf16": 30,  # GGML_TYPE_BF16 of ggml.h, which llama-cpp-python leaves out
    "q8_0": lib.GGML_TYPE_Q8_0,
    "q5_1": lib.GGML_TYPE_Q5_1,
    "q5_0": lib.GGML_TYPE_Q5_0,
    "q4_1": lib.GGML_TYPE_Q4_1,
    "q4_0": lib.GGML_TYPE_Q4_0,
    "iq4_nl": lib.GGML_TYPE_IQ4_NL,
}


class LlamaBackend:
    """A `Backend` on llama.cpp. Loading takes seconds, so make it in a thread."""

    def __init__(self, config: LlamaConfig, report: Report = silent) -> None:
        """Raises `ModelFileError` if the file is no model that llama.cpp can load. `report` is told how far that is."""
        check_model_file(config.model_path)
        if config.n_parallel > (most := lib.llama_max_parallel_sequences()):
            raise UserError(f"n_parallel is {config.n_parallel}, and llama.cpp runs at most {most} sequences")
        lib.llama_log_set(_on_log, ctypes.c_void_p(None))
        lib.llama_backend_init()
        self._model = _load_model(config, report)
        self.n_embd = embedding_size(self._model)
        self._vocab = lib.llama_model_get_vocab(self._model)
        self.slots = config.n_parallel
        self.n_batch = max(config.n_batch, config.n_parallel)
        self.n_ctx = _usable_context(config.n_ctx, lib.llama_model_n_ctx_train(self._model))
        try:
            self._context = _make_context(self._model, config, self.n_ctx, self.n_batch)
        except UserError:
            lib.llama_model_free(self._model)
            raise
        self._memory = lib.llama_get_memory(self._context)
        self._window: int = lib.llama_model_n_swa(self._model)
        self.generates = self._memory is not None and lib.llama_model_has_decoder(self._model)
        if not self.generates and not self.n_embd:
            lib.llama_free(self._context)
            lib.llama_model_free(self._model)
            raise ModelFileError(
                f"{config.model_path}: the model neither generates nor embeds, it only scores; give another"
            )
        self.embeds_pieces = self.generates and is_causal(self._model)
        self.cuts = not (lib.llama_model_is_recurrent(self._model) or lib.llama_model_is_hybrid(self._model))
        self.n_vocab: int = lib.llama_vocab_n_tokens(self._vocab)
        self.chat_template = config.chat_template or _text(lib.llama_model_chat_template(self._model, None))
        self._n_threads = config.n_threads or physical_cores()
        self._embedder: LlamaEmbedder | None = None
        self._drawn_from = LlamaVocab(self._vocab, n_ctx=self.n_ctx)
        self._tokenizer = LlamaTokenizer(self._vocab)
        self.piece_bytes = self._tokenizer.piece_bytes
        self.bos_text = self._special_text(lib.llama_vocab_bos(self._vocab))
        self.eos_text = self._special_text(lib.llama_vocab_eos(self._vocab))
        self._pieces: dict[int, bytes] = {}
        self._batch = _Batch(self.n_batch, self.slots)
        self._samplers: dict[int, LlamaSampler] = {}
        self._outputs: dict[int, int] = {}

    def tokenize(self, text: str, *, whole: bool = False) -> list[int]:
        """As `Backend.tokenize`."""
        return self._tokenizer.tokenize(text, whole=whole)

    def piece(self, token: int) -> bytes:
        """As `Backend.piece`."""
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self._piece(token, special=False)
        return known

    def is_end(self, token: int) -> bool:
        """As `Backend.is_end`."""
        return bool(lib.llama_vocab_is_eog(self._vocab, token))

    def check_grammar(self, grammar: str, resume: Sequence[int]) -> None:
        """As `Backend.check_grammar`."""
        self._drawn_from.slow_grammars.check(grammar)
        LlamaGrammar(self._vocab, grammar, resume, end_tokens=self._drawn_from.end_tokens).close()

    def ready(self, sampling: Sampling) -> None:
        """As `Backend.ready`."""
        self._drawn_from.dry.ready(sampling)

    def begin(self, slot: int, sampling: Sampling, seed: int, prompt: Sequence[int], resume: Sequence[int]) -> None:
        """As `Backend.begin`. Penalties count the prompt's tokens too, as in llama-server."""
        self._samplers[slot] = LlamaSampler(sampling, seed, self._drawn_from, prompt=prompt, resume=resume)

    def end(self, slot: int) -> None:
        """As `Backend.end`."""
        self._samplers.pop(slot).close()

    def forget(self, slot: int, start: int) -> bool:
        """As `Backend.forget`."""
        if 0 < start <= lib.llama_memory_seq_pos_max(self._memory, slot):
            # With a sliding window old positions are gone; llama.cpp cuts all the same, and goes on without them.
            first_seen = max(0, start - self._window) if self._window else 0
            if lib.llama_memory_seq_pos_min(self._memory, slot) > first_seen:
                return False
        return bool(lib.llama_memory_seq_rm(self._memory, slot, start, -1))

    def copy(self, source: int, slot: int) -> None:
        """As `Backend.copy`. The tokens move at the start of the next `decode`, before it computes."""
        lib.llama_memory_seq_rm(self._memory, slot, -1, -1)
        lib.llama_memory_seq_cp(self._memory, source, slot, -1, -1)

    def move(self, slot: int, target: int) -> None:
        """As `Backend.move`."""
        self.copy(slot, target)
        lib.llama_memory_seq_rm(self._memory, slot, -1, -1)
        self._samplers[target] = self._samplers.pop(slot)

    def decode(self, chunks: Sequence[Chunk]) -> None:
        """As `Backend.decode`."""
        self._outputs = self._batch.fill(chunks)
        code = lib.llama_decode(self._context, self._batch.struct)
        if code != 0:
            raise BackendError(f"llama.cpp could not compute a batch of {self._batch.struct.n_tokens} (code {code})")

    def draw(self, slot: int, position: int) -> int:
        """As `Backend.draw`."""
        return self._samplers[slot].draw(self._context, self._outputs[slot], position)

    def logprobs(self, slot: int, token: int, top: int) -> TokenLogprobs:
        """As `Backend.logprobs`."""
        drawn, *others = logprobs_of(self._samplers[slot].raw, token, top)
        chances = [TokenChance(token=id, piece=self.piece(id), logprob=logprob) for id, logprob in others]
        return TokenLogprobs(token=token, piece=self.piece(token), logprob=drawn[1], top=tuple(chances))

    def embed(self, texts: Sequence[Sequence[int]], *, done: int = 0) -> list[bytes]:
        """As `Backend.embed`."""
        return self._embeds().embed(texts, done=done)

    def embed_piece(self, text: Sequence[int], start: int, end: int) -> None:
        """As `Backend.embed_piece`."""
        self._embeds().compute(text, start, end)

    def _embeds(self) -> LlamaEmbedder:
        """A second context, made when it is first needed, for one context either generates or embeds."""
        if self._embedder is None:
            self._embedder = LlamaEmbedder(
                self._model,
                n_batch=self.n_batch,
                slots=self.slots,
                n_threads=self._n_threads,
                pieces=self.embeds_pieces,
            )
        return self._embedder

    def close(self) -> None:
        """As `Backend.close`."""
        if self._embedder is not None:
            self._embedder.close()
        for sampler in self._samplers.values():
            sampler.close()
        self._samplers.clear()
        self._drawn_from.dry.close()
        lib.llama_free(self._context)
        lib.llama_model_free(self._model)

    def _special_text(self, token: int) -> str:
        return self._piece(token, special=True).decode(errors="replace") if token >= 0 else ""

    def _piece(self, token: int, *, special: bool) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = lib.llama_token_to_piece(self._vocab, token, buffer, size, 0, special)
            if length >= 0:
                return buffer.raw[:length]
            size = -length


class _Batch:
    """llama.cpp's batch over arrays that are filled a whole chunk at a time."""

    def __init__(self, n_batch: int, slots: int) -> None:
        self._tokens = np.zeros(n_batch, np.int32)
        self._positions = np.zeros(n_batch, np.int32)
        self._sequences = np.zeros(n_batch, np.uintp)
        self._draws = np.zeros(n_batch, np.int8)
        self._one_each = np.ones(n_batch, np.int32)
        self._slots = np.arange(slots, dtype=np.int32)
        # Each token points at its sequence id; all tokens of a slot at the same one.
        self._addresses = self._slots.ctypes.data + self._slots.itemsize * np.arange(slots, dtype=np.uintp)
        self.struct = lib.llama_batch(
            token=self._tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            pos=self._positions.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            n_seq_id=self._one_each.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            seq_id=self._sequences.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
            logits=self._draws.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def fill(self, chunks: Sequence[Chunk]) -> dict[int, int]:
        """Lay the chunks out; for each slot that draws, the place of its last token."""
        outputs = {}
        at = 0
        for chunk in chunks:
            end = at + len(chunk.tokens)
            self._tokens[at:end] = chunk.tokens
            self._positions[at:end] = range(chunk.start, chunk.start + len(chunk.tokens))
            self._sequences[at:end] = self._addresses[chunk.slot]
            self._draws[at:end] = 0
            if chunk.draws:
                self._draws[end - 1] = 1
                outputs[chunk.slot] = end - 1
            at = end
        self.struct.n_tokens = at
        return outputs


def _load_model(config: LlamaConfig, report: Report) -> ctypes.c_void_p:
    params = lib.llama_model_default_params()
    params.n_gpu_layers = config.n_gpu_layers
    params.main_gpu = config.main_gpu
    params.split_mode = _SPLIT_MODES[config.split_mode]
    # GCC drops the stores that set up AMX's tiles in ggml (llama.cpp pull request 26954), and the first batch then ends
    # the process. Without the extra buffer types ggml never enters that code.
    params.use_extra_bufts = not _built_with_amx()

    def on_progress(fraction: float, user_data: ctypes.c_void_p) -> bool:
        report(f"Loading {model_name(config.model_path)}", int(fraction * _PROGRESS), _PROGRESS)
        return True

    params.progress_callback = lib.llama_progress_callback(on_progress)
    _errors.clear()
    model: ctypes.c_void_p | None = lib.llama_model_load_from_file(str(config.model_path).encode(), params)
    if model is None:
        raise ModelFileError(
            f"{config.model_path}: llama.cpp cannot load it ({_last_error()}); "
            "get the file again, or a newer llama-cpp-python"
        )
    if lib.llama_model_has_encoder(model) and lib.llama_model_has_decoder(model):
        lib.llama_model_free(model)
        raise ModelFileError(
            f"{config.model_path}: a model with an encoder and a decoder cannot be served; give a decoder-only one"
        )
    return model


def _make_context(model: ctypes.c_void_p, config: LlamaConfig, n_ctx: int, n_batch: int) -> ctypes.c_void_p:
    n_threads = config.n_threads or physical_cores()
    params = lib.llama_context_default_params()
    params.n_ctx = n_ctx * config.n_parallel
    params.n_seq_max = config.n_parallel
    params.n_batch = params.n_ubatch = n_batch
    params.n_threads = params.n_threads_batch = n_threads
    params.kv_unified = False
    params.flash_attn_type = _FLASH_ATTENTION[config.flash_attn]
    types = {"auto": _CACHE_TYPES["bf16" if _slow_f16(model, config) else "f16"], **_CACHE_TYPES}
    params.type_k, params.type_v = types[config.cache_type_k], types[config.cache_type_v]
    params.offload_kqv = params.op_offload = config.n_gpu_layers != 0
    _errors.clear()
    context: ctypes.c_void_p | None = lib.llama_init_from_model(model, params)
    if context is None:
        raise ModelFileError(
            f"{config.model_path}: no memory for {config.n_parallel} x {n_ctx} tokens ({_last_error()}); "
            "lower --n-ctx or --n-parallel, or take other --cache-type-k and --cache-type-v"
        )
    return context


def _built_with_amx() -> bool:
    """Whether llama.cpp was compiled for all that a processor with AMX can do; `tools/make_venv.py` leaves AMX out."""
    return b"AMX_INT8 = 1" in lib.llama_print_system_info()


def _slow_f16(model: ctypes.c_void_p, config: LlamaConfig) -> bool:
    """Whether attention over f16 is slow here.

    Processors with AMX have AVX512-FP16 too. Compiled for it, ggml takes half floats 128 at a time, and what is left
    over one by one: all of a smaller head (64 in many small models). Measured at position 1,000 of a 135M model: 41 ms
    a token, with bf16 13, and with f16 without these instructions 12.
    """
    if config.n_gpu_layers != 0 or not _built_with_amx():
        return False
    head: int = lib.llama_model_n_embd(model) // max(1, lib.llama_model_n_head(model))
    return head % 128 != 0


def _usable_context(wanted: int, trained: int) -> int:
    """Tokens a slot: past the length that it was trained on, a model rambles."""
    if not 0 < trained < wanted:
        return wanted
    _logger.warning("the model was trained on %d tokens, so a slot holds that many and not %d", trained, wanted)
    return trained


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode(errors="replace")


_errors: deque[str] = deque(maxlen=8)
"""The last errors that llama.cpp logged: its functions return no reason, they only log it."""


def _last_error() -> str:
    return _errors[0] if _errors else "no reason given"


def _log(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
    line = text.decode(errors="replace").rstrip()
    if level == _ERROR:
        _errors.append(line.rpartition("error loading model: ")[2])
    _logger.debug("%s", line)


_on_log = lib.llama_log_callback(_log)
"""llama.cpp keeps calling this one, so it must live as long as the process."""
