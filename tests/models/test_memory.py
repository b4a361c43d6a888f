import logging
from pathlib import Path

import attrs
import pytest

from llamanet.errors import UserError
from llamanet.models import memory
from llamanet.models.memory import Slots, available_memory, check_memory, kv_cache_bytes

SLOTS = Slots(n_ctx=2048, count=4, type_k="auto", type_v="f16", n_gpu_layers=0)
SMOL = {
    "general.architecture": "llama",
    "llama.block_count": 30,
    "llama.context_length": 8192,
    "llama.embedding_length": 576,
    "llama.attention.head_count": 9,
    "llama.attention.head_count_kv": 3,
}
"""What SmolLM2-135M says of itself."""


def test_what_the_slots_take() -> None:
    # llama.cpp: "KV buffer size = 180.00 MiB" for 8,192 cells.
    assert kv_cache_bytes(SMOL, SLOTS) == 180 * 2**20
    assert kv_cache_bytes(SMOL, attrs.evolve(SLOTS, n_ctx=100_000)) == 4 * 180 * 2**20  # no more than it was trained on
    assert kv_cache_bytes(SMOL, attrs.evolve(SLOTS, type_k="q8_0", type_v="q4_0")) == 180 * 2**20 * (34 + 18) // 128
    assert kv_cache_bytes(SMOL, attrs.evolve(SLOTS, n_gpu_layers=20)) == 60 * 2**20
    assert kv_cache_bytes(SMOL, attrs.evolve(SLOTS, n_gpu_layers=99)) == 0


@pytest.mark.parametrize(
    ("says", "share"),
    [
        ({"llama.attention.sliding_window": 512}, 1 / 4),
        ({"llama.attention.head_count_kv": [3, 0, 0] * 10}, 1 / 3),
        ({"llama.attention.key_length": 128, "llama.attention.value_length": 64}, 3 / 2),
        ({"llama.attention.kv_lora_rank": 96, "llama.rope.dimension_count": 32}, 1 / 3),
        ({"llama.ssm.state_size": 16}, 0),
        ({"llama.block_count": 0}, 0),
        ({"llama.attention.head_count": "many"}, 0),
    ],
)
def test_the_least_that_other_architectures_take(says: dict[str, object], share: float) -> None:
    assert kv_cache_bytes({**SMOL, **says}, SLOTS) == int(180 * 2**20 * share)


def test_a_file_that_says_nothing_is_not_refused() -> None:
    assert kv_cache_bytes({}, SLOTS) == 0
    assert kv_cache_bytes({"general.architecture": "x", "x.block_count": 2**31}, SLOTS) == 0


def test_too_little_memory_is_told_with_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "smol.gguf"
    with file.open("wb") as weights:
        weights.truncate(300 * 2**20)
    monkeypatch.setattr(memory, "available_memory", lambda: 512 * 2**20)
    check_memory("smol", (file,), SMOL, SLOTS)
    assert caplog.messages == []

    monkeypatch.setattr(memory, "available_memory", lambda: 200 * 2**20)
    with caplog.at_level(logging.WARNING):
        check_memory("smol", (file,), SMOL, SLOTS)  # mapped from the disk: slow, but it works
    [warning] = caplog.messages
    assert "300.0 MiB of weights and needs 180.0 MiB for 4 slots of 2048 tokens, and 200.0 MiB" in warning

    monkeypatch.setattr(memory, "available_memory", lambda: 100 * 2**20)
    with pytest.raises(UserError) as caught:
        check_memory("smol", (file,), SMOL, SLOTS)
    assert str(caught.value) == (
        "smol needs 180.0 MiB for 4 slots of 2048 tokens, beside 300.0 MiB of weights, and 100.0 MiB of memory are "
        "free; lower --n-ctx or --n-parallel, or take smaller --cache-type-k and --cache-type-v"
    )
    check_memory("smol", (file,), SMOL, attrs.evolve(SLOTS, n_gpu_layers=-1))


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    assert memory._container_memory(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("600\n")
    (tmp_path / "memory.stat").write_text("anon 100\ninactive_file 300\nactive_file 100\n")
    assert memory._container_memory(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert memory._container_memory(tmp_path) == 800
    assert 0 < (available_memory() or 0) < 2**60
