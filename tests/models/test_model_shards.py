from pathlib import Path

import pytest

from llamanet.errors import ModelFileError
from llamanet.models.shards import check_layout, model_files, model_name


def test_a_models_name_is_its_file_name_without_the_suffix() -> None:
    assert model_name(Path("a/b/SmolLM2-135M.Q4_1.gguf")) == "SmolLM2-135M.Q4_1"
    assert model_name(Path("other.bin")) == "other.bin"
    assert model_name("big-Q4-00002-of-00003.gguf") == "big-Q4"
    assert model_name("big-2-of-3.gguf") == "big-2-of-3"


def write_shards(write_model, count: int) -> list[Path]:
    return [
        write_model(f"big-0000{number + 1}-of-0000{count}.gguf", split__count=count, split__no=number)
        for number in range(count)
    ]


def test_any_shard_stands_for_the_model(write_model) -> None:
    shards = write_shards(write_model, 3)
    for shard in shards:
        assert model_files(shard) == tuple(shards)
    check_layout(tuple(shards))
    alone = write_model("alone.gguf")
    assert model_files(alone) == (alone,)
    check_layout((alone,))


def test_a_missing_shard_is_named(write_model) -> None:
    first, second, third = write_shards(write_model, 3)
    second.unlink()
    with pytest.raises(ModelFileError, match=r"one of 3 files of a model, and big-00002-of-00003.gguf is missing"):
        model_files(first)
    third.unlink()
    with pytest.raises(ModelFileError, match=r"00002-of-00003.gguf, big-00003-of-00003.gguf are missing"):
        model_files(first)


def test_shards_that_are_something_else_are_told(write_model) -> None:
    shards = write_shards(write_model, 2)
    shards[1].write_bytes(shards[0].read_bytes())
    with pytest.raises(ModelFileError, match=r"00002-of-00002.gguf is not the shard that its name says"):
        check_layout(tuple(shards))
    whole = shards[0].rename(shards[0].with_name("renamed.gguf"))
    with pytest.raises(ModelFileError, match="says that it is one of 2 files, and its name says 1"):
        check_layout((whole,))
    shards[1].write_bytes(shards[1].read_bytes()[:300])
    with pytest.raises(ModelFileError, match=r"00002-of-00002.gguf (is cut off|ends at)"):
        check_layout((shards[1],))
