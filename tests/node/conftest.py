"""What the engine's tests share: the real model and tiny ones, on one thread, so that a busy machine matters little."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_models
import trio
from asking import serve

from llamanet.node.engine import Engine
from llamanet.node.llama import LlamaBackend, LlamaConfig


@pytest.fixture(scope="session")
def llama_config(model: Path) -> LlamaConfig:
    """Three slots of the real model."""
    return LlamaConfig(model_path=model, n_ctx=512, n_batch=64, n_parallel=3, n_threads=1)


@pytest.fixture(scope="module")
def backend(llama_config: LlamaConfig) -> Iterator[LlamaBackend]:
    backend = LlamaBackend(llama_config)
    yield backend
    backend.close()


@pytest.fixture
async def engine(nursery: trio.Nursery, llama_config: LlamaConfig) -> Engine:
    return await serve(nursery, llama_config)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The path of each of `tiny_models`, by architecture."""
    folder = tmp_path_factory.mktemp("models")
    paths = {}
    for write in (*tiny_models.GENERATING.values(), tiny_models.bert, tiny_models.t5):
        paths[write.__name__] = folder / f"{write.__name__}.gguf"
        write(paths[write.__name__])
    return paths
