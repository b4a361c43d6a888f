"""Whether a model fits into this machine's memory, told with the numbers before it is loaded. Estimates are from below.

Rules:
- The weights are mapped from their files: what does not fit is read again and again, which is slow, and works. So that
  is a warning. What a model remembers of its slots' tokens is memory that must be there: that is an error.
- A wrong refusal is worse than a late one. What an architecture keeps is taken for the least that it may be: tokens
  outside a sliding window and layers without attention for none. What is put on a GPU is not counted.
"""

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path

import attrs

from llamanet.errors import UserError
from llamanet.models.gguf import Metadata, Number
from llamanet.models.progress import size_text

log = logging.getLogger(__name__)

BYTES_OF_TYPE: Mapping[str, float] = {
    "auto": 2,
    "f32": 4,
    "f16": 2,
    "bf16": 2,
    # Blocks of 32 numbers with what they have in common (ggml-common.h).
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
    "iq4_nl": 18 / 32,
}
"""Of one number in the memory, by the names of `--cache-type-k`."""


@attrs.frozen(kw_only=True)
class Slots:
    """What a model is to remember: `count` slots of `n_ctx` tokens, and how keys and values are kept."""

    n_ctx: int
    count: int
    type_k: str
    type_v: str
    n_gpu_layers: int


def check_memory(name: str, files: tuple[Path, ...], metadata: Metadata, slots: Slots) -> None:
    """Raises `UserError` if what the slots of model `name` remember cannot fit; warns if its weights do not fit beside.

    `metadata` is what the first of its `files` says.
    """
    available = available_memory()
    if available is None or slots.n_gpu_layers < 0:
        return
    weights = sum(file.stat().st_size for file in files)
    needed = kv_cache_bytes(metadata, slots)
    n_ctx = _usable(metadata, slots.n_ctx)
    remembered = f"{size_text(needed)} for {slots.count} slots of {n_ctx} tokens"
    if needed > available:
        raise UserError(
            f"{name} needs {remembered}, beside {size_text(weights)} of weights, and {size_text(available)} of memory "
            "are free; lower --n-ctx or --n-parallel, or take smaller --cache-type-k and --cache-type-v"
        )
    if not slots.n_gpu_layers and needed + weights > available:
        log.warning(
            "%s has %s of weights and needs %s, and %s of memory are free: parts of it will be read from the disk "
            "again and again, and it will be slow; take a smaller model or quantisation",
            *(name, size_text(weights), remembered, size_text(available)),
        )


def kv_cache_bytes(metadata: Metadata, slots: Slots) -> int:
    """The least that keys and values of all slots take, outside a GPU. 0 if the file does not say enough.

    A layer keeps, for each token, `head_count_kv` keys of `key_length` numbers, and as many values (llama.cpp's
    `llama-kv-cache.cpp`); with latent attention, `kv_lora_rank` numbers and the rotated ones.
    """
    architecture = metadata.get("general.architecture")
    layers = _layer_values(metadata, architecture, "attention.head_count_kv")
    heads = _number(metadata, architecture, "attention.head_count")
    if not layers or _hybrid(metadata, architecture) or not heads:
        return 0
    head = _number(metadata, architecture, "embedding_length") / heads
    key = _number(metadata, architecture, "attention.key_length") or head
    value = _number(metadata, architecture, "attention.value_length") or head
    if latent := _number(metadata, architecture, "attention.kv_lora_rank"):
        key, value = latent + _number(metadata, architecture, "rope.dimension_count"), 0
        layers = [min(1, count) for count in layers]
    tokens = _usable(metadata, slots.n_ctx)
    if window := _number(metadata, architecture, "attention.sliding_window"):
        tokens = min(tokens, int(window))
    on_cpu = layers[: max(0, len(layers) - slots.n_gpu_layers)]
    a_head = key * BYTES_OF_TYPE[slots.type_k] + value * BYTES_OF_TYPE[slots.type_v]
    return int(sum(on_cpu) * a_head * tokens * slots.count)


def available_memory() -> int | None:
    """Bytes that can be had without anybody being killed: free, cache, and swap, within a container's limit.

    None if the system does not say.
    """
    try:
        fields = dict(re.findall(r"^(\w+):\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE))
        available = 1024 * (int(fields["MemAvailable"]) + int(fields.get("SwapFree", 0)))
    except (OSError, KeyError):
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (ValueError, OSError):
            return None
    limit = _container_memory(Path("/sys/fs/cgroup"))
    return available if limit is None else min(available, limit)


def _container_memory(cgroup: Path) -> int | None:
    """Bytes left of a cgroup's limit (version 2), its cache of files not counted; None without a limit."""
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        statistics = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    files = int(statistics.get("inactive_file", 0)) + int(statistics.get("active_file", 0))
    return max(0, limit - max(0, used - files))


def _usable(metadata: Metadata, n_ctx: int) -> int:
    trained = _number(metadata, metadata.get("general.architecture"), "context_length")
    return int(min(n_ctx, trained)) if trained else n_ctx


def _hybrid(metadata: Metadata, architecture: object) -> bool:
    """Whether some layers keep a state instead of tokens, and the file does not say which."""
    recurrent = any(key.startswith((f"{architecture}.ssm.", f"{architecture}.wkv.")) for key in metadata)
    return recurrent and not isinstance(metadata.get(f"{architecture}.attention.head_count_kv"), list)


def _number(metadata: Metadata, architecture: object, key: str) -> Number:
    """A number, the least of those for each layer, or 0."""
    value = metadata.get(f"{architecture}.{key}", 0)
    if isinstance(value, list):
        return min((number for number in value if number), default=0)
    return 0 if isinstance(value, str) else value


def _layer_values(metadata: Metadata, architecture: object, key: str) -> list[Number]:
    """A number for each layer."""
    value = metadata.get(f"{architecture}.{key}")
    if value is None:
        value = metadata.get(f"{architecture}.attention.head_count", 0)
    if isinstance(value, list):
        return value
    layers = int(_number(metadata, architecture, "block_count"))
    return [] if isinstance(value, str) or layers > 10_000 else [value] * layers
