"""DRY samplers of llama.cpp, made beside the engine's thread and copied in it.

For each sequence breaker llama.cpp looks through the whole vocabulary, and tokenizes the rest of the breaker for each
token that ends like its beginning: measured with 49,152 tokens, 2 ms for ":", 0.2 s for "ee", and 3 s for sixteen of
that kind. A copy takes up to 25 ms. Rules:
- `ready` may be called from any thread; what it makes is kept for `MADE` of the latest settings.
- What was not made ready, or is no longer kept, `copy` makes itself.
"""

import ctypes
import threading
from collections import OrderedDict

import attrs
import llama_cpp.llama_cpp as lib

from llamanet.wire.inference import Sampling

MADE = 16
"""Settings kept; the worst breakers take some 20 MB each."""


@attrs.frozen
class _Settings:
    multiplier: float
    base: float
    allowed_length: int
    sees: int
    breakers: tuple[str, ...]


class DrySamplers:
    """Those of one vocabulary. `close` frees what is kept; copies belong to who has them."""

    def __init__(self, vocab: ctypes.c_void_p, *, n_ctx: int) -> None:
        """`n_ctx` is how many tokens are looked at where the sampling does not say it."""
        self._vocab = vocab
        self._n_ctx = n_ctx
        self._made: OrderedDict[_Settings, ctypes.c_void_p] = OrderedDict()
        self._lock = threading.Lock()

    def sees(self, sampling: Sampling) -> int:
        """How many tokens DRY looks back; 0 if it is off."""
        last_n = self._n_ctx if sampling.dry_penalty_last_n is None else sampling.dry_penalty_last_n
        return last_n if sampling.dry_multiplier else 0

    def ready(self, sampling: Sampling) -> None:
        """Make what `copy` will copy."""
        settings = self._settings(sampling)
        with self._lock:
            if not settings.sees or settings in self._made:
                return
        made = self._make(settings)
        with self._lock:
            # Another thread may have been faster.
            made, spare = self._made.setdefault(settings, made), made
            if spare is not made:
                lib.llama_sampler_free(spare)
            if len(self._made) > MADE:
                lib.llama_sampler_free(self._made.popitem(last=False)[1])

    def copy(self, sampling: Sampling) -> ctypes.c_void_p:
        """A sampler that saw no token yet; the caller frees it. DRY must be on."""
        settings = self._settings(sampling)
        with self._lock:
            if (made := self._made.get(settings)) is not None:
                self._made.move_to_end(settings)
                copied: ctypes.c_void_p = lib.llama_sampler_clone(made)
                return copied
        return self._make(settings)

    def close(self) -> None:
        """Free what is kept."""
        with self._lock:
            while self._made:
                lib.llama_sampler_free(self._made.popitem()[1])

    def _settings(self, sampling: Sampling) -> _Settings:
        return _Settings(
            sampling.dry_multiplier,
            sampling.dry_base,
            sampling.dry_allowed_length,
            self.sees(sampling),
            sampling.dry_sequence_breakers,
        )

    def _make(self, settings: _Settings) -> ctypes.c_void_p:
        breakers = [breaker.encode() for breaker in settings.breakers]
        sampler: ctypes.c_void_p = lib.llama_sampler_init_dry(
            self._vocab,
            settings.multiplier,
            settings.base,
            settings.allowed_length,
            settings.sees,
            (ctypes.c_char_p * len(breakers))(*breakers),
            len(breakers),
        )
        return sampler
