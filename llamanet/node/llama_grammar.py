"""A grammar's place in one generation: which tokens may come next, by llama.cpp's grammar sampler.

llama.cpp ends the process if a token is accepted that its grammar does not allow, so nothing is accepted unasked.
"""

import ctypes
import math
import time
from collections.abc import Callable, Container, Sequence

import llama_cpp.llama_cpp as lib
import numpy as np
import numpy.typing as npt

from llamanet.errors import RequestRefused

MAX_SLOW = 1_000
SLOW_S = 600.0
"""How long a grammar is refused that took too long."""

_RECORD = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""`llama_token_data`."""


class Candidates:
    """llama.cpp's `llama_token_data_array`: tokens with their logits, for samplers to work on."""

    def __init__(self, logits: npt.NDArray[np.float32], first: int = 0) -> None:
        """`logits` of the tokens `first`, `first + 1`, and so on; they are copied."""
        self._records = np.zeros(len(logits), _RECORD)
        self._records["id"] = np.arange(first, first + len(logits), dtype=np.int32)
        self._records["logit"] = logits
        data = self._records.ctypes.data_as(ctypes.POINTER(lib.llama_token_data))
        self._array = lib.llama_token_data_array(data=data, size=len(logits), selected=-1, sorted=False)
        self.pointer = ctypes.byref(self._array)

    @property
    def any(self) -> bool:
        """Whether a token is left. Only while no sampler has sorted or cut them."""
        return bool((self._records["logit"] > -np.inf).any())

    @property
    def selected(self) -> int:
        """The token that the last sampler chose."""
        return int(self._records["id"][self._array.selected])


class SlowGrammars:
    """Grammars that lately took too long for a token. May be used from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[int, float] = {}

    def add(self, text: str) -> None:
        """Remember a grammar for `SLOW_S`; of too many the oldest is forgotten."""
        self._until.pop(hash(text), None)
        if len(self._until) >= MAX_SLOW:
            del self._until[next(iter(self._until))]
        self._until[hash(text)] = self._clock() + SLOW_S

    def check(self, text: str) -> None:
        """Raises `RequestRefused` for a grammar that is remembered."""
        if self._clock() < self._until.get(hash(text), -math.inf):
            message = "the grammar took too long for one token a while ago"
            raise RequestRefused(message, "sampling.grammar", "fewer ways to read a text")


class LlamaGrammar:
    """A grammar and how far a text has come in it. `close` frees it."""

    def __init__(self, vocab: ctypes.c_void_p, text: str, resume: Sequence[int], *, end_tokens: Container[int]) -> None:
        """`text` is GBNF, from its rule `root` on; `resume` are the tokens that are there already.

        Raises `RequestRefused` if llama.cpp does not take the grammar, or the tokens do not follow it.
        """
        self._end_tokens = end_tokens
        self._sampler = lib.llama_sampler_init_grammar(vocab, text.encode(), b"root")
        if not self._sampler:
            raise RequestRefused(
                "llama.cpp cannot use this grammar: it has a mistake, no rule root, or left recursion",
                field="sampling.grammar",
                limit="GBNF with a rule root",
            )
        for token in resume:
            if token in end_tokens:
                break
            if not self.allows(token):
                self.close()
                raise RequestRefused(f"token {token} does not follow the grammar", field="resume")
            self.accept(token)

    def allows(self, token: int) -> bool:
        """Whether `token` may come next."""
        one = Candidates(np.zeros(1, np.float32), token)
        lib.llama_sampler_apply(self._sampler, one.pointer)
        return one.any

    def restrict(self, candidates: Candidates) -> bool:
        """Leave only the candidates that may come next; False if there are none."""
        lib.llama_sampler_apply(self._sampler, candidates.pointer)
        return candidates.any

    def accept(self, token: int) -> None:
        """Go on by `token`, which is allowed; after an end token nothing follows."""
        if token not in self._end_tokens:
            lib.llama_sampler_accept(self._sampler, token)

    def close(self) -> None:
        """Free the sampler."""
        lib.llama_sampler_free(self._sampler)
