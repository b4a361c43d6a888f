"""Small GGUF files, made for each test."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

WriteModel = Callable[..., Path]


@pytest.fixture
def write_model(tmp_path: Path) -> WriteModel:
    """Write `tmp_path / name`, a file of the llama architecture with `metadata` under its keys."""

    def write(name: str = "model.gguf", *, tokens: int = 50, size: int = 1024, **metadata: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        file = GGUFWriter(path, "llama")
        file.add_token_list([f"token-{number}" for number in range(tokens)])
        file.add_token_scores([float(number) for number in range(tokens)])
        for key, value in metadata.items():
            key = key.replace("__", ".")
            if isinstance(value, list):
                file.add_array(key, value)
            elif isinstance(value, str):
                file.add_string(key, value)
            else:
                file.add_uint32(key, value)
        for number in range(2):
            file.add_tensor(f"tensor-{number}", np.full(size, number, np.float32))
        file.write_header_to_file()
        file.write_kv_data_to_file()
        file.write_tensors_to_file()
        file.close()
        return path

    return write
