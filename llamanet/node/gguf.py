"""Model files: their name, whether they can be one at all, and their SHA-256.

What is wrong with a file is told in one line, before anything else starts. What only llama.cpp can find out (an unknown
architecture, a last tensor that is cut) it tells when it loads the model (`node/llama.py`).
"""

import contextlib
import hashlib
import json
import mmap
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

from llamanet.errors import ModelFileError

_MAGIC = b"GGUF"
_HEADER = struct.Struct("<4sIQQ")
"""Magic, version, number of tensors, number of metadata entries. Source: ggml/docs/gguf.md."""
_COUNT, _KIND = struct.Struct("<Q"), struct.Struct("<I")
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value, by its kind's number."""
_STRING, _ARRAY = 8, 9
_BLOCK = 1 << 20


def model_name(path: Path) -> str:
    """The name that the swarm knows the model by: its file name without `.gguf`."""
    return path.name.removesuffix(".gguf")


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


def check_model_layout(path: Path) -> None:
    """Raises `ModelFileError` for a file that ends before what it says that it holds, or says what cannot be.

    It takes some 0.1 s for a vocabulary of 100,000 tokens. `check_model_file` comes before.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            last = _last_tensor(data)
            if last > len(data):
                raise ModelFileError(
                    f"{path} ends at byte {len(data)}, and a tensor begins at {last}; get the file again"
                )
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    except (struct.error, LookupError, ValueError, OverflowError, RecursionError) as error:
        raise ModelFileError(f"{path} is cut off or damaged before its tensors; get the file again") from error


def _last_tensor(data: mmap.mmap) -> int:
    """The greatest offset of a tensor in a file. Raises one of several errors if there is no sense in it."""
    _, _, tensors, entries = _HEADER.unpack_from(data)
    at = _HEADER.size
    for _ in range(entries):
        at = _after_string(data, at)
        (kind,) = _KIND.unpack_from(data, at)
        at = _after_value(data, at + _KIND.size, kind)
    last = 0
    for _ in range(tensors):
        at = _after_string(data, at)
        (dimensions,) = _KIND.unpack_from(data, at)
        # The name is followed by the number of dimensions, each of them, the type, and the offset.
        at += 2 * _KIND.size + _COUNT.size * dimensions
        last = max(last, *_COUNT.unpack_from(data, at))
        at += _COUNT.size
    return at + last


def _after_string(data: mmap.mmap, at: int) -> int:
    (length,) = _COUNT.unpack_from(data, at)
    return at + _COUNT.size + int(length)


def _after_value(data: mmap.mmap, at: int, kind: int) -> int:
    if kind == _STRING:
        return _after_string(data, at)
    if kind != _ARRAY:
        return at + _SIZES[kind]
    (kind,) = _KIND.unpack_from(data, at)
    (count,) = _COUNT.unpack_from(data, at + _KIND.size)
    at += _KIND.size + _COUNT.size
    if kind in _SIZES:
        return at + int(count) * _SIZES[kind]
    for _ in range(count):
        at = _after_value(data, at, kind)
    return at


def file_digest(path: Path, cache: Path, *, progress: Callable[[int, int], None] = lambda done, size: None) -> bytes:
    """SHA-256 of the file, remembered in the JSON file `cache` by path, size and time of change.

    Reads the whole file, so call it in a thread. `progress` is called there with the bytes done and the size.
    Raises `ModelFileError` if the file cannot be read.
    """
    try:
        status = path.stat()
        key = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
        known = _read(cache)
        if key in known:
            return bytes.fromhex(known[key])
        digest = _hash(path, status.st_size, progress)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    _write(cache, {**known, key: digest.hex()})
    return digest


def _hash(path: Path, size: int, progress: Callable[[int, int], None]) -> bytes:
    sha256 = hashlib.sha256()
    done = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            sha256.update(block)
            done += len(block)
            progress(done, size)
    return sha256.digest()


def _read(cache: Path) -> dict[str, str]:
    """What the cache knows. A missing or a damaged one knows nothing, and is written anew."""
    try:
        known = json.loads(cache.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(known, dict):
        return {}
    return {key: value for key, value in known.items() if isinstance(value, str) and _is_digest(value)}


def _is_digest(value: str) -> bool:
    try:
        return len(bytes.fromhex(value)) == hashlib.sha256().digest_size
    except ValueError:
        return False


def _write(cache: Path, known: dict[str, str]) -> None:
    """Replace the cache in one go. Where that is not allowed, the next start reads the model once more, that is all."""
    temporary = cache.with_suffix(f".{os.getpid()}.tmp")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(known, indent=1))
        temporary.replace(cache)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
