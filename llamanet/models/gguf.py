"""GGUF files: whether a file can be one at all, and what it says of itself.

What is wrong with a file is told in one line, before anything else starts. What only llama.cpp can find out (an unknown
architecture, a last tensor that is cut) it tells when it loads the model (`node/llama.py`).
"""

import mmap
import stat
import struct
from pathlib import Path
from typing import TypeAlias

from llamanet.errors import ModelFileError

Number: TypeAlias = bool | int | float
Metadata: TypeAlias = dict[str, Number | str | list[Number]]
"""By key. Of arrays only those of numbers are kept, and only short ones."""

_MAGIC = b"GGUF"
_HEADER = struct.Struct("<4sIQQ")
"""Magic, version, number of tensors, number of metadata entries. Source: ggml/docs/gguf.md."""
_COUNT, _KIND = struct.Struct("<Q"), struct.Struct("<I")
_NUMBERS = {kind: struct.Struct(f"<{code}") for kind, code in enumerate("BbHhIif?")}
_NUMBERS |= {10: struct.Struct("<Q"), 11: struct.Struct("<q"), 12: struct.Struct("<d")}
"""How a number is packed, by its kind's number."""
_STRING, _ARRAY = 8, 9
_MAX_KEPT = 4096
"""Numbers in an array that is kept: models have some for each layer. A string's bytes, too."""


def check_model_file(path: Path) -> None:
    """Raises `ModelFileError` unless `path` is a readable file that begins as GGUF files do."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ModelFileError(f"{path} is a directory; give the .gguf file in it")
        if not stat.S_ISREG(mode):
            raise ModelFileError(f"{path} is not a regular file; give the path of a .gguf file")
        with path.open("rb") as file:
            header = file.read(_HEADER.size)
    except FileNotFoundError as error:
        raise ModelFileError(f"{path} does not exist; check the path of the model") from error
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    if header[:4] != _MAGIC:
        raise ModelFileError(f"{path} is not a GGUF file; get the model in GGUF format")
    if len(header) < _HEADER.size:
        raise ModelFileError(f"{path} ends after {len(header)} bytes; get the file again")


def read_metadata(path: Path) -> Metadata:
    """What the file says of itself. Raises `ModelFileError` if it says what cannot be, or ends before its tensors.

    It takes some 0.1 s for a vocabulary of 100,000 tokens. `check_model_file` comes before.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            metadata, last = _parse(data)
            if last > len(data):
                raise ModelFileError(
                    f"{path} ends at byte {len(data)}, and a tensor begins at {last}; get the file again"
                )
            return metadata
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    except (struct.error, LookupError, ValueError, OverflowError, RecursionError) as error:
        raise ModelFileError(f"{path} is cut off or damaged before its tensors; get the file again") from error


def _parse(data: mmap.mmap) -> tuple[Metadata, int]:
    """The metadata and the greatest offset of a tensor. Raises one of several errors if there is no sense in it."""
    _, _, tensors, entries = _HEADER.unpack_from(data)
    metadata: Metadata = {}
    at = _HEADER.size
    for _ in range(entries):
        start, at = at, _after_string(data, at)
        (kind,) = _KIND.unpack_from(data, at)
        value, at = _value(data, at + _KIND.size, kind)
        if value is not None:
            metadata[_string(data, start)] = value
    last = 0
    for _ in range(tensors):
        at = _after_string(data, at)
        (dimensions,) = _KIND.unpack_from(data, at)
        # The name is followed by the number of dimensions, each of them, the type, and the offset.
        at += 2 * _KIND.size + _COUNT.size * dimensions
        last = max(last, *_COUNT.unpack_from(data, at))
        at += _COUNT.size
    return metadata, at + last


def _value(data: mmap.mmap, at: int, kind: int) -> tuple[Number | str | list[Number] | None, int]:
    """A value, None if it is not kept, and where it ends."""
    if kind == _STRING:
        return _string(data, at), _after_string(data, at)
    if kind != _ARRAY:
        (number,) = _NUMBERS[kind].unpack_from(data, at)
        return number, at + _NUMBERS[kind].size
    (kind,) = _KIND.unpack_from(data, at)
    (count,) = _COUNT.unpack_from(data, at + _KIND.size)
    at += _KIND.size + _COUNT.size
    if packed := _NUMBERS.get(kind):
        numbers = None
        if count <= _MAX_KEPT:
            numbers = [packed.unpack_from(data, at + place * packed.size)[0] for place in range(count)]
        return numbers, at + int(count) * packed.size
    for _ in range(count):
        at = _after_string(data, at) if kind == _STRING else _value(data, at, kind)[1]
    return None, at


def _string(data: mmap.mmap, at: int) -> str:
    (length,) = _COUNT.unpack_from(data, at)
    start = at + _COUNT.size
    return data[start : start + min(length, _MAX_KEPT)].decode(errors="replace")


def _after_string(data: mmap.mmap, at: int) -> int:
    (length,) = _COUNT.unpack_from(data, at)
    return at + _COUNT.size + int(length)
