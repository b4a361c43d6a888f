"""Where a node's identity lives: a file with its 32-byte secret in hexadecimal, readable by its owner alone.

Rules:
- Two nodes never share an identity, for peers would take them for one that keeps moving: who runs as it holds the file.
- A file that is spoilt, or open to others, is refused and left alone.
"""

import contextlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from llamanet.errors import UserError
from llamanet.wire.identity import SEED_BYTES, Identity

if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[bytes]) -> None:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def hold_identity(path: Path) -> Iterator[Identity]:
    """The identity in `path`, as `load_or_create_identity` finds it, and nobody else's until the block is left.

    The system lets go of the file when its holder ends, however that ends. Raises `UserError` in one line if another
    process holds it, and as `load_or_create_identity` does.
    """
    identity = load_or_create_identity(path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"cannot read the key file {path}: {error.strerror}") from error
    with file:
        try:
            _lock(file)
        except BlockingIOError as error:
            raise UserError(
                f"another node runs with the key file {path}, and two must not share an identity; stop it, or give "
                "this one another --dht-port (DHT_PORT) or --data-dir (DATA_DIR)"
            ) from error
        except OSError as error:
            raise UserError(f"cannot lock the key file {path}: {error.strerror}") from error
        yield identity


def load_or_create_identity(path: Path) -> Identity:
    """The identity in `path`; a fresh one is written there (mode 0600, all or nothing) if there is no such file.

    Raises `UserError` in one line if the file cannot be read or made, holds no key, or is open to others.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(4 * SEED_BYTES)
    except FileNotFoundError:
        return _create(path)
    except OSError as error:
        raise UserError(f"cannot read the key file {path}: {error.strerror}") from error
    if os.name == "posix" and mode & 0o077:
        raise UserError(f"the key file {path} is open to others (mode {mode:04o}); run: chmod 600 {path}")
    try:
        seed = bytes.fromhex(content.decode("ascii").strip())
    except ValueError:
        seed = b""
    if len(seed) != SEED_BYTES:
        raise UserError(
            f"the key file {path} does not hold a key (64 hexadecimal digits); move it away to get a new one"
        )
    return Identity.from_seed(seed)


def _create(path: Path) -> Identity:
    identity = Identity.generate()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
        try:
            with open(descriptor, "wb") as file:
                file.write(identity.seed.hex().encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.link(draft, path)  # unlike a rename, this never replaces a key that another process made meanwhile
        finally:
            os.unlink(draft)
    except FileExistsError:
        return load_or_create_identity(path)
    except OSError as error:
        raise UserError(f"cannot write the key file {path}: {error.strerror}") from error
    return identity


def load_swarm_key(path: Path) -> bytes:
    """The 32-byte key of a private swarm. Raises `UserError` in one line for none, or a file that is open to others."""
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read().strip()
    except OSError as error:
        raise UserError(f"cannot read the swarm key file {path}: {error.strerror}") from error
    if os.name == "posix" and mode & 0o077:
        raise UserError(f"the swarm key file {path} is open to others (mode {mode:04o}); run: chmod 600 {path}")
    try:
        key = bytes.fromhex(content)
    except ValueError:
        key = b""
    if len(key) != SEED_BYTES:
        raise UserError(
            f"the swarm key file {path} must hold 64 hexadecimal digits; make one with: openssl rand -hex 32"
        )
    return key
