"""One sequence's way of drawing tokens: a llama.cpp sampler chain, in llama.cpp's own order.

Penalties, then top-k, typical, top-p, min-p, temperature, and the draw. The draw's generator is made anew for each
token from (seed, position), so that it does not matter on which node a generation started.
"""

import ctypes
from collections.abc import Sequence

import llama_cpp.llama_cpp as lib
import numpy as np

from llamanet.node.sampling import position_seed
from llamanet.wire.inference import Sampling


class LlamaSampler:
    """A sampler chain for one generation. `close` frees it; it must not be used afterwards."""

    def __init__(self, sampling: Sampling, seed: int, *, n_vocab: int, tokens: Sequence[int]) -> None:
        """`tokens` are those before the first draw; penalties count them."""
        self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        self._seed = seed
        self._greedy = sampling.temperature <= 0
        if (
            sampling.repeat_penalty != 1 or sampling.presence_penalty or sampling.frequency_penalty
        ) and sampling.penalty_last_n:
            self._add(
                lib.llama_sampler_init_penalties(
                    n_vocab,
                    sampling.penalty_last_n,
                    sampling.repeat_penalty,
                    sampling.frequency_penalty,
                    sampling.presence_penalty,
                )
            )
            for token in tokens[-sampling.penalty_last_n :]:
                lib.llama_sampler_accept(self._chain, token)
        self._n_vocab = n_vocab
        self._bare = self._greedy and lib.llama_sampler_chain_n(self._chain) == 0
        if self._greedy:
            self._add(lib.llama_sampler_init_greedy())
            return
        if sampling.top_k:
            self._add(lib.llama_sampler_init_top_k(sampling.top_k))
        if sampling.typical_p < 1:
            self._add(lib.llama_sampler_init_typical(sampling.typical_p, 1))
        if sampling.top_p < 1:
            self._add(lib.llama_sampler_init_top_p(sampling.top_p, 1))
        if sampling.min_p > 0:
            self._add(lib.llama_sampler_init_min_p(sampling.min_p, 1))
        if sampling.temperature != 1:
            self._add(lib.llama_sampler_init_temp(sampling.temperature))
        self._place = lib.llama_sampler_chain_n(self._chain)
        self._add(lib.llama_sampler_init_dist(0))

    def draw(self, context: ctypes.c_void_p, output: int, position: int) -> int:
        """The token after output `output` of the last decode, the generation's number `position`."""
        if self._bare:
            # The chain would first copy each logit into a record of 12 bytes, at ten times the cost of the search.
            logits = lib.llama_get_logits_ith(context, output)
            return int(np.ctypeslib.as_array(logits, (self._n_vocab,)).argmax())
        if not self._greedy:
            lib.llama_sampler_free(lib.llama_sampler_chain_remove(self._chain, self._place))
            self._add(lib.llama_sampler_init_dist(position_seed(self._seed, position)))
        token: int = lib.llama_sampler_sample(self._chain, context, output)
        return token

    def close(self) -> None:
        """Free the chain."""
        lib.llama_sampler_free(self._chain)

    def _add(self, sampler: object) -> None:
        lib.llama_sampler_chain_add(self._chain, sampler)
