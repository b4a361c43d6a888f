"""The SHA-256 of model files, computed once and remembered by path, size and time of change.

Of a model in several files it is the SHA-256 of their digests (32 bytes each, in the order of the shards).
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from llamanet.errors import ModelFileError
from llamanet.models.progress import Report, silent

_BLOCK = 1 << 20


def model_digest(files: Iterable[Path], cache: Path, report: Report = silent) -> bytes:
    """The digest of the model in `files`. As `file_digest` otherwise."""
    digests = [file_digest(file, cache, report) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()


def file_digest(path: Path, cache: Path, report: Report = silent) -> bytes:
    """SHA-256 of the file, remembered in the JSON file `cache`.

    Reads the whole file, so call it in a thread. Raises `ModelFileError` if the file cannot be read.
    """
    try:
        key = _key(path)
        known = _read(cache)
        if key in known:
            return bytes.fromhex(known[key])
        digest = sha256_of(path, report)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    _write(cache, {**_read(cache), key: digest.hex()})
    return digest


def known_digest(files: Iterable[Path], cache: Path) -> bytes | None:
    """The digest of the model in `files`, if it need not be computed. Raises `OSError` for a file that is not there."""
    known = _read(cache)
    digests = [known.get(_key(file)) for file in files]
    found = [bytes.fromhex(digest) for digest in digests if digest is not None]
    if len(found) < len(digests):
        return None
    return found[0] if len(found) == 1 else hashlib.sha256(b"".join(found)).digest()


def remember_digest(path: Path, digest: bytes, cache: Path) -> None:
    """Note that `path` has `digest`, which somebody has just computed. Raises `OSError` if there is no such file."""
    _write(cache, {**_read(cache), _key(path): digest.hex()})


def sha256_of(path: Path, report: Report = silent) -> bytes:
    """SHA-256 of the file, read now. Raises `OSError`."""
    sha256 = hashlib.sha256()
    done, size = 0, path.stat().st_size
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            sha256.update(block)
            done += len(block)
            report(f"Hashing {path.name}", done, max(done, size))
    return sha256.digest()


def _key(path: Path) -> str:
    status = path.stat()
    return f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"


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
