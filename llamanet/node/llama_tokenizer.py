"""Text to tokens, by llama.cpp's tokenizer, whatever the text is.

Rules:
- llama.cpp splits texts for byte pairs by regular expressions, whose library recurses once a character: 30,000
  of one kind overflow a thread's stack of 8 MB, and the process ends. So runs longer than `RUN` characters are
  tokenized in parts. That is harmless: no word is so long, and a cut costs another token at most.
- No cut goes through the text of a special token.
- Any thread may call it.
"""

import re
from collections.abc import Iterator

import llama_cpp.llama_cpp as lib

RUN = 4_000
"""Characters."""
LEAST_PIECE_BYTES = 64
"""What a token may stand for at least: some tokenizers drop spaces, or make one token of a word unknown to them."""

_SPECIAL = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_USER_DEFINED | lib.LLAMA_TOKEN_ATTR_UNKNOWN
_RUNS = (re.compile(r"\s+"), re.compile(r"[^ \t\r\n]+"))
"""What a tokenizer may take for spaces, and what for none: where they differ, a character counts for both."""


class LlamaTokenizer:
    """The tokenizer of one vocabulary, `lib`'s pointer to which must outlive it."""

    def __init__(self, vocab: object) -> None:
        self._vocab = vocab
        self._byte_pairs = lib.llama_vocab_type(vocab) == lib.LLAMA_VOCAB_TYPE_BPE
        self._bos = lib.llama_vocab_bos(vocab) if lib.llama_vocab_get_add_bos(vocab) else None
        self._eos = lib.llama_vocab_eos(vocab) if lib.llama_vocab_get_add_eos(vocab) else None
        self.piece_bytes = LEAST_PIECE_BYTES
        """A text has at least a token for so many bytes."""
        specials = set()
        for token in range(lib.llama_vocab_n_tokens(vocab)):
            piece: bytes = lib.llama_vocab_get_text(vocab, token)
            self.piece_bytes = max(self.piece_bytes, len(piece))
            if piece and lib.llama_vocab_get_attr(vocab, token) & _SPECIAL:
                specials.add(piece.decode(errors="replace"))
        longest_first = sorted(specials, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first))) if specials else None
        self._special_length = len(longest_first[0]) if specials else 0

    def tokenize(self, text: str, *, whole: bool) -> list[int]:
        """As `Backend.tokenize`."""
        if not self._byte_pairs:
            # These take no regular expressions, and would begin each part with a space.
            tokens = self._tokenize(text, whole)
        else:
            tokens = [token for part in self._parts(text) for token in self._tokenize(part, False)]
            if whole and self._eos is not None:
                tokens.append(self._eos)
        # A template may have written the BOS token already; twice it would not be what the model was trained on.
        if self._bos is not None and tokens[:1] != [self._bos]:
            return [self._bos, *tokens]
        return tokens

    def _tokenize(self, text: str, whole: bool) -> list[int]:
        data = text.encode()
        room = len(data) + 16
        tokens = (lib.llama_token * room)()
        count = lib.llama_tokenize(self._vocab, data, len(data), tokens, room, whole, True)
        found: list[int] = tokens[:count]
        return found

    def _parts(self, text: str) -> Iterator[str]:
        if len(text) <= RUN:
            yield text
            return
        cuts = {cut for runs in _RUNS for run in runs.finditer(text) for cut in range(*run.span(), RUN)[1:]}
        start = 0
        for cut in sorted(cuts):
            if (end := self._before_special(text, cut)) > start:
                yield text[start:end]
                start = end
        yield text[start:]

    def _before_special(self, text: str, cut: int) -> int:
        """`cut`, or where the special token begins that it would go through."""
        if self._special is not None:
            for found in self._special.finditer(text, max(0, cut - self._special_length), cut + self._special_length):
                if found.start() < cut < found.end():
                    return found.start()
        return cut
