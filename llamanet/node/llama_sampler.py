"""One sequence's way of drawing tokens: a llama.cpp sampler chain, in llama.cpp's own order.

Biases, then penalties, DRY, top-k, typical, top-p, min-p, temperature, and the draw. Rules:
- The draw's generator is made anew for each token from (seed, position), so that it does not matter on which node a
  generation started. All other state is made from the tokens so far.
- Biases, and the ban on end tokens, are written into llama.cpp's logits: they cost nothing where they are not used.
- A grammar is asked about the drawn token only. If it does not allow it, a second draw is made among those that it
  allows, as in llama-server: to ask it about every token of the vocabulary takes far longer than the draw.
"""

import ctypes
import time
from collections.abc import Sequence

import llama_cpp.llama_cpp as lib
import numpy as np
import numpy.typing as npt

from llamanet.errors import RequestRefused
from llamanet.node.backend import BackendError
from llamanet.node.llama_dry import DrySamplers
from llamanet.node.llama_grammar import Candidates, LlamaGrammar, SlowGrammars
from llamanet.node.sampling import position_seed
from llamanet.wire.inference import Sampling

MAX_GRAMMAR_S = 0.5
"""Of the processor's time: all other streams of the engine wait for a draw. One by an ordinary grammar takes some
milliseconds."""
MIN_TEMPERATURE = 1e-6
"""Below it the likeliest token is taken, as at 0: logits divided by less leave the range of 32-bit numbers."""

Logits = npt.NDArray[np.float32]


class LlamaVocab:
    """What samplers need to know of a model's vocabulary."""

    def __init__(self, vocab: ctypes.c_void_p, *, n_ctx: int) -> None:
        self.handle = vocab
        self.n_ctx = n_ctx
        """Tokens a slot; none is ever repeated from further back."""
        self.size: int = lib.llama_vocab_n_tokens(vocab)
        self.slow_grammars = SlowGrammars()
        self.dry = DrySamplers(vocab, n_ctx=n_ctx)
        self.end_tokens = [token for token in range(self.size) if lib.llama_vocab_is_eog(vocab, token)]


class LlamaSampler:
    """A sampler chain for one generation. `close` frees it; it must not be used afterwards."""

    raw: Logits | None = None
    """The logits of the last draw as the model gave them, if log-probabilities are asked for."""

    def __init__(
        self, sampling: Sampling, seed: int, vocab: LlamaVocab, *, prompt: Sequence[int], resume: Sequence[int]
    ) -> None:
        """Penalties count the tokens before the first draw, those of the prompt too, as in llama-server.

        A grammar begins after the prompt; `sampling.json_schema` must have been turned into one. Raises
        `RequestRefused` for a grammar that llama.cpp does not take, or `resume` that does not follow it.
        """
        self._vocab = vocab
        self._seed = seed
        self._greedy = sampling.temperature < MIN_TEMPERATURE
        self._keeps_raw = sampling.logprobs is not None
        self._min_tokens = vocab.n_ctx if sampling.ignore_eos else sampling.min_tokens
        self._biased = np.array([token for token, _ in sampling.logit_bias], np.int64)
        self._biases = np.array([bias for _, bias in sampling.logit_bias], np.float32)
        self._edits = bool(self._keeps_raw or self._min_tokens or sampling.logit_bias)
        self._grammar = None
        self._grammar_text = sampling.grammar or ""
        if sampling.grammar is not None:
            self._grammar = LlamaGrammar(vocab.handle, sampling.grammar, resume, end_tokens=vocab.end_tokens)
        self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        self._add_penalties(sampling, prompt, resume)
        self._bare = self._greedy and self._grammar is None and lib.llama_sampler_chain_n(self._chain) == 0
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
        if self._bare or self._edits or self._grammar is not None:
            logits = np.ctypeslib.as_array(lib.llama_get_logits_ith(context, output), (self._vocab.size,))
            self._edit(logits, position)
            if self._grammar is not None:
                return self._draw_by_grammar(self._grammar, logits, position)
            if self._bare:
                # The chain would first copy each logit into a record of 12 bytes, at ten times the search's cost.
                return int(logits.argmax())
        self._reseed(position)
        token: int = lib.llama_sampler_sample(self._chain, context, output)
        return token

    def close(self) -> None:
        """Free the chain."""
        lib.llama_sampler_free(self._chain)
        if self._grammar is not None:
            self._grammar.close()

    def _edit(self, logits: Logits, position: int) -> None:
        if self._keeps_raw:
            self.raw = logits.copy()
        if self._biased.size:
            np.add.at(logits, self._biased, self._biases)
        if position < self._min_tokens:
            logits[self._vocab.end_tokens] = -np.inf

    def _draw_by_grammar(self, grammar: LlamaGrammar, logits: Logits, position: int) -> int:
        # Others with the same grammar may have been accepted before it was known to be slow.
        self._vocab.slow_grammars.check(self._grammar_text)
        # Of this thread: on a busy machine a good grammar may wait long for the processor.
        start = time.thread_time()
        token = self._choose(Candidates(logits), position)
        if not grammar.allows(token):
            candidates = Candidates(logits)
            if not grammar.restrict(candidates):
                return self._end_here()
            # The draws at negative positions belong to nobody else; the same draw again would not be a fair one.
            token = self._choose(candidates, -1 - position)
        lib.llama_sampler_accept(self._chain, token)
        grammar.accept(token)
        if time.thread_time() - start > MAX_GRAMMAR_S:
            # What it can grow to was probed, not proved; and where it took long once it soon takes ever longer.
            self._vocab.slow_grammars.add(self._grammar_text)
            message = f"the grammar took more than {MAX_GRAMMAR_S:g} s for one token"
            raise RequestRefused(message, "sampling.grammar", "fewer ways to read a text")
        return token

    def _end_here(self) -> int:
        """The end, where a grammar allows no token that the vocabulary has."""
        if not self._vocab.end_tokens:
            raise BackendError("the grammar allows no token here, and the model has no end token")
        return self._vocab.end_tokens[0]

    def _choose(self, candidates: Candidates, position: int) -> int:
        self._reseed(position)
        lib.llama_sampler_apply(self._chain, candidates.pointer)
        return candidates.selected

    def _reseed(self, position: int) -> None:
        if not self._greedy:
            lib.llama_sampler_free(lib.llama_sampler_chain_remove(self._chain, self._place))
            self._add(lib.llama_sampler_init_dist(position_seed(self._seed, position)))

    def _add_penalties(self, sampling: Sampling, prompt: Sequence[int], resume: Sequence[int]) -> None:
        sees = 0
        if sampling.repeat_penalty != 1 or sampling.presence_penalty or sampling.frequency_penalty:
            sees = sampling.penalty_last_n
        if sees:
            self._add(
                lib.llama_sampler_init_penalties(
                    self._vocab.size,
                    sees,
                    sampling.repeat_penalty,
                    sampling.frequency_penalty,
                    sampling.presence_penalty,
                )
            )
        if dry_sees := self._vocab.dry.sees(sampling):
            self._add(self._vocab.dry.copy(sampling))
            sees = max(sees, dry_sees)
        if sees:
            for token in [*prompt, *resume][-sees:]:
                lib.llama_sampler_accept(self._chain, token)

    def _add(self, sampler: object) -> None:
        lib.llama_sampler_chain_add(self._chain, sampler)


def logprobs_of(logits: Logits | None, token: int, top: int) -> list[tuple[int, float]]:
    """Log-probabilities under `logits`: that of `token`, then the `top` highest, each with its token.

    Raises `ValueError` if there are no logits.
    """
    if logits is None:
        raise ValueError("log-probabilities were not asked for")
    peak = float(logits.max())
    norm = peak + float(np.log(np.exp(logits - peak).sum(dtype=np.float64)))
    best = np.argpartition(logits, -top)[-top:] if top else np.empty(0, np.int64)
    best = best[np.argsort(-logits[best], kind="stable")]
    # A token that the model rules out has no logarithm; the wire's bounds stand for it.
    return [(int(id), min(0.0, max(-1e6, float(logits[id]) - norm))) for id in (token, *best)]
