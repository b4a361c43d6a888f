import hashlib
import json
import os
from pathlib import Path
from random import Random

import pytest

from llamanet.errors import ModelFileError
from llamanet.node.gguf import check_model_file, check_model_layout, file_digest, model_name


def test_a_models_name_is_its_file_name_without_the_suffix() -> None:
    assert model_name(Path("a/b/SmolLM2-135M.Q4_1.gguf")) == "SmolLM2-135M.Q4_1"
    assert model_name(Path("other.bin")) == "other.bin"


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


def test_a_digest_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"one" * 1_000_000)
    cache = tmp_path / "cache" / "digests.json"
    told: list[tuple[int, int]] = []
    expected = hashlib.sha256(model.read_bytes()).digest()

    assert file_digest(model, cache, progress=lambda done, size: told.append((done, size))) == expected
    assert told[-1] == (3_000_000, 3_000_000)
    told.clear()
    assert file_digest(model, cache, progress=lambda done, size: told.append((done, size))) == expected
    assert told == []

    model.write_bytes(b"two" * 1_000_000)
    os.utime(model, ns=(1, 1))
    assert file_digest(model, cache) == hashlib.sha256(model.read_bytes()).digest()
    assert [path.name for path in cache.parent.iterdir()] == ["digests.json"]


@pytest.mark.parametrize("damage", ["", "[1]", '{"x": 5}', "\udcff"])
def test_a_damaged_cache_is_written_anew(tmp_path: Path, damage: str) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"weights")
    cache = tmp_path / "digests.json"
    cache.write_bytes(damage.encode(errors="surrogateescape"))
    assert file_digest(model, cache) == hashlib.sha256(b"weights").digest()
    assert len(json.loads(cache.read_text())) == 1


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"weights")
    assert file_digest(model, model / "digests.json") == hashlib.sha256(b"weights").digest()


def test_a_missing_model_is_a_model_file_error(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"missing\.gguf"):
        file_digest(tmp_path / "missing.gguf", tmp_path / "digests.json")


def test_a_file_that_ends_too_early_is_told(tiny: dict[str, Path], tmp_path: Path) -> None:
    for name, path in tiny.items():
        check_model_layout(path)
        whole = path.read_bytes()
        for size in (30, 200, len(whole) // 4, len(whole) // 2):
            cut = tmp_path / f"{name}.gguf"
            cut.write_bytes(whole[:size])
            with pytest.raises(ModelFileError, match=r"\.gguf (ends at byte|is cut off)") as caught:
                check_model_layout(cut)
            assert "\n" not in str(caught.value)


def test_garbage_in_a_file_is_told(tiny: dict[str, Path], tmp_path: Path) -> None:
    random = Random(5)
    whole = tiny["llama"].read_bytes()
    path = tmp_path / "garbage.gguf"
    for _ in range(200):
        damaged = bytearray(whole[:20_000])
        for _ in range(random.randrange(1, 30)):
            damaged[random.randrange(4, 5_000)] = random.randrange(256)
        path.write_bytes(damaged)
        with pytest.raises(ModelFileError):
            check_model_layout(path)
    path.write_bytes(b"GGUF" + b"\xff" * 10_000)
    with pytest.raises(ModelFileError, match="damaged"):
        check_model_layout(path)
