"""Model files: their name, whether they can be one at all, and their SHA-256.

What is wrong with a file is told in one line, before anything else starts. What only llama.cpp can find out (an unknown
architecture, tensors past the end of the file) it tells when it loads the model (`node/llama.py`).
"""

import contextlib
import hashlib
import json
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

from llamanet.errors import ModelFileError

_MAGIC = b"GGUF"
_HEADER = struct.Struct("<4sIQQ")
"""Magic, version, number of tensors, number of metadata entries. Source: ggml/docs/gguf.md."""
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
