"""Model files of a few hundred kB with random weights: one for each kind of memory that llama.cpp has.

Random weights make a sharp test. Their logits are far apart and depend on every token before, so what is computed from
a wrong memory comes out as other tokens at once. Tensors and metadata are what llama.cpp's `src/models/*.cpp` ask for.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGUFWriter, TokenType

N_CTX = 512
WINDOW = 32
"""Tokens that most layers of the gemma3 see."""
EMBD, HEADS, KV_HEADS, FF, LAYERS = 32, 2, 1, 64, 4
HEAD = EMBD // HEADS
KV = KV_HEADS * HEAD
INNER, STATE, CONV, RANK = 2 * EMBD, 16, 4, 4
"""Of mamba's layers."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class TinyModel:
    """Writes one file."""

    def __init__(self, path: Path, architecture: str, *, seed: int, layers: int = LAYERS) -> None:
        self._random = np.random.default_rng(seed)
        self.file = GGUFWriter(path, architecture)
        self.file.add_context_length(N_CTX)
        self.file.add_embedding_length(EMBD)
        self.file.add_block_count(layers)
        self.file.add_feed_forward_length(FF)
        self.layers = layers

    def tensor(self, name: str, *shape: int, scale: float | None = None) -> None:
        """Random numbers; `shape` has the input's size last, as numpy has it."""
        scale = shape[-1] ** -0.5 if scale is None else scale
        self.put(name, self._random.normal(0, scale, shape))

    def put(self, name: str, values: npt.NDArray[np.float64]) -> None:
        self.file.add_tensor(name, values.astype(np.float32))

    def norm(self, name: str, size: int = EMBD, *, bias: bool = False) -> None:
        self.put(f"{name}.weight", np.ones(size))
        if bias:
            self.put(f"{name}.bias", np.zeros(size))

    def ends(self, *, norm: str = "output_norm", embedding: float = 1.0) -> None:
        """What is before and after the layers. Wide logits have few near ties."""
        self.tensor("token_embd.weight", self.vocabulary, EMBD, scale=embedding)
        self.tensor("output.weight", self.vocabulary, EMBD, scale=1.0)
        self.norm(norm)

    def attention(self, at: str) -> None:
        self.tensor(f"{at}.attn_q.weight", EMBD, EMBD, scale=0.5)
        self.tensor(f"{at}.attn_k.weight", KV, EMBD, scale=0.5)
        self.tensor(f"{at}.attn_v.weight", KV, EMBD)
        self.tensor(f"{at}.attn_output.weight", EMBD, EMBD, scale=0.5)

    def feed_forward(self, at: str) -> None:
        self.norm(f"{at}.ffn_norm")
        self.tensor(f"{at}.ffn_gate.weight", FF, EMBD)
        self.tensor(f"{at}.ffn_up.weight", FF, EMBD)
        self.tensor(f"{at}.ffn_down.weight", EMBD, FF)

    def mamba(self, at: str, *, norms: bool) -> None:
        self.tensor(f"{at}.ssm_in.weight", 2 * INNER, EMBD)
        self.tensor(f"{at}.ssm_conv1d.weight", INNER, CONV)
        self.tensor(f"{at}.ssm_conv1d.bias", INNER, scale=0.1)
        self.tensor(f"{at}.ssm_x.weight", RANK + 2 * STATE, INNER)
        self.tensor(f"{at}.ssm_dt.weight", INNER, RANK)
        self.tensor(f"{at}.ssm_dt.bias", INNER, scale=0.1)
        if norms:
            self.norm(f"{at}.ssm_dt_norm", RANK)
            self.norm(f"{at}.ssm_b_norm", STATE)
            self.norm(f"{at}.ssm_c_norm", STATE)
        # A slow decay, so that the state still knows the first tokens after hundreds.
        self.put(f"{at}.ssm_a", -0.01 * np.tile(np.arange(1.0, STATE + 1), (INNER, 1)))
        self.put(f"{at}.ssm_d", np.ones(INNER))
        self.tensor(f"{at}.ssm_out.weight", EMBD, INNER, scale=0.5)

    def mamba_sizes(self) -> None:
        self.file.add_ssm_conv_kernel(CONV)
        self.file.add_ssm_inner_size(INNER)
        self.file.add_ssm_state_size(STATE)
        self.file.add_ssm_time_step_rank(RANK)

    def sentencepiece(self) -> None:
        """Letters, and a token for each byte that is none; begins texts with BOS."""
        tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *LETTERS]
        kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
        kinds += [TokenType.BYTE] * 256 + [TokenType.NORMAL] * (1 + len(LETTERS))
        self.file.add_tokenizer_model("llama")
        self.file.add_token_list(tokens)
        self.file.add_token_scores([0.0] * len(tokens))
        self.file.add_token_types(kinds)
        self.file.add_bos_token_id(1)
        self.file.add_eos_token_id(2)
        self.vocabulary = len(tokens)

    def byte_pairs(self, rules: str = "gpt-2", controls: Sequence[str] = ()) -> None:
        """As GPT-2 has it, with no pairs but "th" and "the"; begins texts with nothing. `rules` split it in words.

        `controls` are special tokens, after all others.
        """
        printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
        others = [byte for byte in range(256) if byte not in printable]
        tokens = ["<|endoftext|>", *map(chr, printable), *(chr(256 + number) for number in range(len(others)))]
        tokens += ["th", "the", *controls]
        kinds = [TokenType.NORMAL] * len(tokens)
        kinds[0] = TokenType.CONTROL
        kinds[len(tokens) - len(controls) :] = [TokenType.CONTROL] * len(controls)
        self.file.add_tokenizer_model("gpt2")
        self.file.add_tokenizer_pre(rules)
        self.file.add_token_list(tokens)
        self.file.add_token_types(kinds)
        self.file.add_token_merges(["t h", "th e"])
        self.file.add_eos_token_id(0)
        self.file.add_bos_token_id(0)
        self.file.add_add_bos_token(False)
        self.vocabulary = len(tokens)

    def word_pieces(self) -> None:
        """As BERT has it: letters that begin a word, and letters that go on in one."""
        tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"▁{letter}" for letter in LETTERS), *LETTERS]
        self.file.add_tokenizer_model("bert")
        self.file.add_token_list(tokens)
        self.file.add_token_types([TokenType.CONTROL] * 5 + [TokenType.NORMAL] * (len(tokens) - 5))
        self.file.add_token_type_count(2)
        self.file.add_bos_token_id(2)
        self.file.add_eos_token_id(3)
        self.file.add_sep_token_id(3)
        self.vocabulary = len(tokens)

    def close(self) -> None:
        self.file.write_header_to_file()
        self.file.write_kv_data_to_file()
        self.file.write_tensors_to_file()
        self.file.close()


def _heads(model: TinyModel, kv_heads: int | list[int] = KV_HEADS) -> None:
    model.file.add_head_count(HEADS)
    model.file.add_head_count_kv(kv_heads)
    model.file.add_layer_norm_rms_eps(1e-5)
    model.file.add_rope_dimension_count(HEAD)


def llama(path: Path, *, rules: str = "gpt-2", controls: Sequence[str] = (), causal: bool = True) -> None:
    """Full attention. `rules` names a pre-tokenizer of llama.cpp; `controls` are special tokens."""
    model = TinyModel(path, "llama", seed=1)
    if not causal:
        model.file.add_causal_attention(False)
    _heads(model)
    model.byte_pairs(rules, controls)
    model.ends()
    for at in (f"blk.{layer}" for layer in range(model.layers)):
        model.norm(f"{at}.attn_norm")
        model.attention(at)
        model.feed_forward(at)
    model.close()


def gemma3(path: Path) -> None:
    """Full attention in every sixth layer, and a window in the others."""
    model = TinyModel(path, "gemma3", seed=2, layers=6)
    _heads(model)
    model.file.add_sliding_window(WINDOW)
    model.file.add_key_length(HEAD)
    model.file.add_value_length(HEAD)
    model.sentencepiece()
    # The architecture multiplies embeddings by the root of their size.
    model.ends(embedding=0.1)
    for at in (f"blk.{layer}" for layer in range(model.layers)):
        model.norm(f"{at}.attn_norm")
        model.attention(at)
        model.norm(f"{at}.attn_q_norm", HEAD)
        model.norm(f"{at}.attn_k_norm", HEAD)
        model.norm(f"{at}.post_attention_norm")
        model.feed_forward(at)
        model.norm(f"{at}.post_ffw_norm")
    model.close()


def mamba(path: Path) -> None:
    """A state, and nothing else."""
    model = TinyModel(path, "mamba", seed=3)
    model.file.add_head_count(0)
    model.file.add_layer_norm_rms_eps(1e-5)
    model.mamba_sizes()
    model.byte_pairs()
    model.ends()
    for at in (f"blk.{layer}" for layer in range(model.layers)):
        model.norm(f"{at}.attn_norm")
        model.mamba(at, norms=False)
    model.close()


def jamba(path: Path) -> None:
    """A state in most layers, full attention in one."""
    model = TinyModel(path, "jamba", seed=4)
    _heads(model, [0, 0, KV_HEADS, 0])
    model.mamba_sizes()
    model.sentencepiece()
    model.ends()
    for layer in range(model.layers):
        at = f"blk.{layer}"
        model.norm(f"{at}.attn_norm")
        if layer == 2:
            model.attention(at)
        else:
            model.mamba(at, norms=True)
        model.feed_forward(at)
    model.close()


def lfm2(path: Path) -> None:
    """Short convolutions, which see the last tokens only, in most layers, full attention in one."""
    model = TinyModel(path, "lfm2", seed=5)
    _heads(model, [0, 0, KV_HEADS, 0])
    model.file.add_shortconv_l_cache(3)
    model.byte_pairs()
    model.ends(norm="token_embd_norm")
    for layer in range(model.layers):
        at = f"blk.{layer}"
        model.norm(f"{at}.attn_norm")
        if layer == 2:
            model.attention(at)
            model.norm(f"{at}.attn_q_norm", HEAD)
            model.norm(f"{at}.attn_k_norm", HEAD)
        else:
            model.tensor(f"{at}.shortconv.conv.weight", EMBD, 3)
            model.tensor(f"{at}.shortconv.in_proj.weight", 3 * EMBD, EMBD)
            model.tensor(f"{at}.shortconv.out_proj.weight", EMBD, EMBD)
        model.feed_forward(at)
    model.close()


def bert(path: Path, pooling: int | None = None) -> None:
    """Only embeds. `pooling` is one of llama.cpp's LLAMA_POOLING_TYPE numbers; None: the file does not say."""
    model = TinyModel(path, "bert", seed=6)
    model.file.add_head_count(HEADS)
    model.file.add_layer_norm_eps(1e-5)
    model.file.add_causal_attention(False)
    if pooling is not None:
        model.file.add_uint32("bert.pooling_type", pooling)
    model.word_pieces()
    model.tensor("token_embd.weight", model.vocabulary, EMBD, scale=1.0)
    model.tensor("token_types.weight", 2, EMBD, scale=0.1)
    model.tensor("position_embd.weight", N_CTX, EMBD, scale=0.3)
    model.norm("token_embd_norm", bias=True)
    for at in (f"blk.{layer}" for layer in range(model.layers)):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            model.tensor(f"{at}.{name}.weight", EMBD, EMBD)
        model.norm(f"{at}.attn_output_norm", bias=True)
        model.tensor(f"{at}.ffn_up.weight", FF, EMBD)
        model.tensor(f"{at}.ffn_down.weight", EMBD, FF)
        model.norm(f"{at}.layer_output_norm", bias=True)
    model.close()


def t5(path: Path) -> None:
    """An encoder, and a decoder that looks at what it made of the prompt."""
    model = TinyModel(path, "t5", seed=7, layers=1)
    _heads(model, HEADS)
    model.file.add_relative_attn_buckets_count(8)
    model.file.add_decoder_start_token_id(0)
    model.file.add_key_length(HEAD)
    model.file.add_value_length(HEAD)
    model.sentencepiece()
    model.tensor("token_embd.weight", model.vocabulary, EMBD, scale=1.0)
    for side in ("enc", "dec"):
        model.norm(f"{side}.output_norm")
        for part in ("attn", "cross_attn") if side == "dec" else ("attn",):
            model.norm(f"{side}.blk.0.{part}_norm")
            for name in "qkvo":
                model.tensor(f"{side}.blk.0.{part}_{name}.weight", EMBD, EMBD)
        model.tensor(f"{side}.blk.0.attn_rel_b.weight", 8, HEADS)
        model.feed_forward(f"{side}.blk.0")
    model.close()


GENERATING: dict[str, Callable[[Path], None]] = {
    writer.__name__: writer for writer in (llama, gemma3, mamba, jamba, lfm2)
}
"""One for each kind of memory."""
