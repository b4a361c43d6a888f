import hashlib
import json
import os
from pathlib import Path

import pytest

from llamanet.errors import ModelFileError
from llamanet.models.digest import file_digest, known_digest, model_digest, remember_digest


def test_a_digest_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"one" * 1_000_000)
    cache = tmp_path / "cache" / "digests.json"
    told: list[tuple[str, int, int]] = []
    expected = hashlib.sha256(model.read_bytes()).digest()

    assert known_digest([model], cache) is None
    assert file_digest(model, cache, lambda *progress: told.append(progress)) == expected
    assert told[-1] == ("Hashing model.gguf", 3_000_000, 3_000_000)
    told.clear()
    assert file_digest(model, cache, lambda *progress: told.append(progress)) == expected
    assert known_digest([model], cache) == expected
    assert told == []

    model.write_bytes(b"two" * 1_000_000)
    os.utime(model, ns=(1, 1))
    assert file_digest(model, cache) == hashlib.sha256(model.read_bytes()).digest()
    assert [path.name for path in cache.parent.iterdir()] == ["digests.json"]


def test_the_digest_of_shards_is_that_of_their_digests(tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    for file in files:
        file.write_bytes(file.name.encode())
    cache = tmp_path / "digests.json"
    expected = hashlib.sha256(hashlib.sha256(b"a").digest() + hashlib.sha256(b"b").digest()).digest()
    remember_digest(files[0], hashlib.sha256(b"a").digest(), cache)
    assert known_digest(files, cache) is None
    assert model_digest(files, cache) == expected
    assert known_digest(files, cache) == expected
    assert model_digest(files[:1], cache) == hashlib.sha256(b"a").digest()


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
