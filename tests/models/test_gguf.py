import os
from pathlib import Path
from random import Random

import pytest

from llamanet.errors import ModelFileError
from llamanet.models.gguf import check_model_file, read_metadata


def test_what_is_wrong_with_a_file_is_told_in_one_line(tmp_path: Path) -> None:
    text = tmp_path / "text.gguf"
    text.write_text("hello")
    short = tmp_path / "short.gguf"
    short.write_bytes(b"GGUF\3\0\0\0")
    fifo = tmp_path / "fifo.gguf"
    os.mkfifo(fifo)
    cases = {
        tmp_path / "missing.gguf": "does not exist",
        tmp_path: "is a directory",
        text: "is not a GGUF file",
        short: "ends after 8 bytes",
        fifo: "is not a regular file",
        text / "below": "cannot be read",
    }
    for path, reason in cases.items():
        with pytest.raises(ModelFileError, match=reason) as caught:
            check_model_file(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_metadata(write_model) -> None:
    path = write_model(llama__block_count=4, llama__heads=[1, 2, 3], general__name="tiny", tokens=5000)
    metadata = read_metadata(path)
    assert metadata["general.architecture"] == "llama"
    assert metadata["llama.block_count"] == 4
    assert metadata["llama.heads"] == [1, 2, 3]
    assert metadata["general.name"] == "tiny"
    assert "tokenizer.ggml.tokens" not in metadata  # texts are many, and of no use here
    assert "tokenizer.ggml.scores" not in metadata  # so are numbers, one for each text


def test_a_file_that_ends_too_early_is_told(write_model, tmp_path: Path) -> None:
    whole = write_model().read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in (30, 200, len(whole) // 4, len(whole) // 2):
        cut.write_bytes(whole[:size])
        with pytest.raises(ModelFileError, match=r"\.gguf (ends at byte|is cut off)") as caught:
            read_metadata(cut)
        assert "\n" not in str(caught.value)


def test_garbage_in_a_file_is_told(write_model, tmp_path: Path) -> None:
    random = Random(5)
    whole = write_model(tokens=500).read_bytes()
    path = tmp_path / "garbage.gguf"
    for _ in range(200):
        damaged = bytearray(whole[:9_000])
        for _ in range(random.randrange(1, 30)):
            damaged[random.randrange(4, 5_000)] = random.randrange(256)
        path.write_bytes(damaged)
        with pytest.raises(ModelFileError):
            read_metadata(path)
    path.write_bytes(b"GGUF" + b"\xff" * 10_000)
    with pytest.raises(ModelFileError, match="damaged"):
        read_metadata(path)
