"""Which files a model is made of: one, or shards named `x-00001-of-00003.gguf` as llama.cpp's gguf-split makes them.

llama.cpp loads a sharded model by its first file, and finds the others by their names. So any of them stands for all.
"""

import re
from pathlib import Path

from llamanet.errors import ModelFileError
from llamanet.models.gguf import check_model_file, read_metadata

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf")


def model_name(path: Path | str) -> str:
    """The name that the swarm knows the model by: its file name without `.gguf`, and without a shard's number."""
    name = Path(path).name
    shard = _SHARD.fullmatch(name)
    return shard["stem"] if shard else name.removesuffix(".gguf")


def shard_names(name: str) -> tuple[str, ...]:
    """The names of all files of the model that the file `name` belongs to, in order; a folder before it is kept."""
    shard = _SHARD.fullmatch(name)
    if not shard:
        return (name,)
    count = int(shard["count"])
    return tuple(f"{shard['stem']}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1))


def model_files(path: Path) -> tuple[Path, ...]:
    """All files of the model that `path` is, or is a shard of; each is there and begins as GGUF files do.

    Raises `ModelFileError` in one line otherwise, for the file that was asked for first.
    """
    check_model_file(path)
    files = tuple(path.with_name(name) for name in shard_names(path.name))
    if missing := [file.name for file in files if not file.exists()]:
        raise ModelFileError(
            f"{path} is one of {len(files)} files of a model, and {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing beside it; get all of them"
        )
    for file in files:
        check_model_file(file)
    return files


def check_layout(files: tuple[Path, ...]) -> None:
    """Raises `ModelFileError` if one of a model's `files` is cut off, or is a shard of something else.

    What `model_files` returned is meant.
    """
    for number, file in enumerate(files):
        metadata = read_metadata(file)
        count = metadata.get("split.count", 1)
        if count != len(files) and not (count == 0 and len(files) == 1):
            raise ModelFileError(
                f"{file} says that it is one of {count} files, and its name says {len(files)}; "
                "get all of them under the names that they were published by"
            )
        if len(files) > 1 and metadata.get("split.no", number) != number:
            raise ModelFileError(f"{file} is not the shard that its name says; get the file again")
