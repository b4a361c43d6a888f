"""What a node is told about memory and accelerators reaches llama.cpp, and does not change what a model says."""

from pathlib import Path

import attrs
import llama_cpp.llama_cpp as lib
import pytest

from llamanet.errors import UserError
from llamanet.models.progress import silent
from llamanet.node import llama
from llamanet.node.backend import Chunk
from llamanet.node.config import CACHE_TYPES, FLASH_ATTENTION, SPLIT_MODES, NodeConfig
from llamanet.node.llama import LlamaBackend, LlamaConfig
from llamanet.node.loading import llama_settings
from llamanet.wire.inference import Sampling

MODEL = Path(__file__).resolve().parents[2] / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
CONFIG = LlamaConfig(model_path=MODEL, n_ctx=128, n_batch=32, n_parallel=1, n_threads=1)

needs_model = pytest.mark.usefixtures("model")


def first_tokens(config: LlamaConfig, count: int = 3) -> list[int]:
    backend = LlamaBackend(config)
    try:
        tokens = prompt = backend.tokenize("The capital of France is")
        backend.begin(0, Sampling(temperature=0), 0, prompt, [])
        backend.decode([Chunk(0, 0, prompt, True)])
        drawn: list[int] = []
        while len(drawn) < count:
            drawn.append(backend.draw(0, len(drawn)))
            backend.decode([Chunk(0, len(tokens) + len(drawn) - 1, drawn[-1:], True)])
        return drawn
    finally:
        backend.close()


@needs_model
@pytest.mark.parametrize(
    "settings",
    [
        {"flash_attn": "on"},
        {"flash_attn": "off"},
        {"cache_type_k": "q8_0", "cache_type_v": "q8_0"},
        {"cache_type_k": "bf16", "cache_type_v": "bf16"},
        {"cache_type_k": "f32", "cache_type_v": "f32", "split_mode": "none"},
    ],
    ids=str,
)
def test_the_answer_stays(settings: dict[str, str]) -> None:
    assert first_tokens(attrs.evolve(CONFIG, **settings)) == first_tokens(CONFIG)


@pytest.mark.parametrize(
    ("built_with_amx", "n_embd", "n_gpu_layers", "kept_as"),
    [
        (True, 576, 0, llama._CACHE_TYPES["bf16"]),
        (True, 9 * 128, 0, lib.GGML_TYPE_F16),
        (True, 576, -1, lib.GGML_TYPE_F16),
        (False, 576, 0, lib.GGML_TYPE_F16),
    ],
)
def test_auto_is_the_faster_type(
    monkeypatch: pytest.MonkeyPatch, built_with_amx: bool, n_embd: int, n_gpu_layers: int, kept_as: int
) -> None:
    seen = []
    monkeypatch.setattr(llama, "_built_with_amx", lambda: built_with_amx)
    monkeypatch.setattr(lib, "llama_model_n_embd", lambda model: n_embd)
    monkeypatch.setattr(lib, "llama_model_n_head", lambda model: 9)
    monkeypatch.setattr(lib, "llama_init_from_model", lambda model, params: seen.append(params))
    with pytest.raises(UserError):
        llama._make_context(None, attrs.evolve(CONFIG, n_gpu_layers=n_gpu_layers), 128, 32)  # type: ignore[arg-type]
    assert (seen[0].type_k, seen[0].type_v) == (kept_as, kept_as)


@needs_model
def test_all_layers_on_an_accelerator_is_no_error_without_one() -> None:
    assert first_tokens(attrs.evolve(CONFIG, n_gpu_layers=-1)) == first_tokens(CONFIG)


@needs_model
def test_a_template_stands_in_for_the_models_own() -> None:
    backend = LlamaBackend(attrs.evolve(CONFIG, chat_template="{{ messages }}"))
    assert backend.chat_template == "{{ messages }}"
    backend.close()


def test_every_word_has_its_number() -> None:
    assert tuple(llama._SPLIT_MODES) == SPLIT_MODES
    assert tuple(llama._FLASH_ATTENTION) == FLASH_ATTENTION
    assert ("auto", *llama._CACHE_TYPES) == CACHE_TYPES


def test_settings_reach_the_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def refuse(*arguments: object) -> None:
        seen.append(arguments[1])

    monkeypatch.setattr(lib, "llama_init_from_model", refuse)
    monkeypatch.setattr(lib, "llama_model_load_from_file", refuse)
    config = attrs.evolve(
        CONFIG,
        n_gpu_layers=-1,
        main_gpu=3,
        split_mode="row",
        flash_attn="on",
        cache_type_k="q8_0",
        cache_type_v="q4_0",
    )
    with pytest.raises(UserError):
        llama._load_model(config, silent)
    with pytest.raises(UserError, match="--cache-type-k"):
        llama._make_context(None, config, 128, 32)  # type: ignore[arg-type]
    model, context = seen
    assert (model.n_gpu_layers, model.main_gpu, model.split_mode) == (-1, 3, lib.LLAMA_SPLIT_MODE_ROW)
    assert (context.type_k, context.type_v) == (lib.GGML_TYPE_Q8_0, lib.GGML_TYPE_Q4_0)
    assert context.flash_attn_type == lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
    assert context.offload_kqv
    assert context.op_offload


def test_a_nodes_settings_are_the_models(tmp_path: Path) -> None:
    template = tmp_path / "t.jinja"
    template.write_text("{{ messages }}")
    config = NodeConfig(
        model_path=(MODEL,), main_gpu=1, split_mode="none", flash_attn="on", cache_type_v="q8_0", chat_template=template
    )
    settings = llama_settings(config)
    assert settings.chat_template == "{{ messages }}"
    assert (settings.main_gpu, settings.split_mode, settings.flash_attn) == (1, "none", "on")
    assert (settings.cache_type_k, settings.cache_type_v) == ("auto", "q8_0")
