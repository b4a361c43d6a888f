"""Where a node's identity lives: a file with its 32-byte secret in hexadecimal, readable by its owner alone."""

import os
import stat
import tempfile
from pathlib import Path

from llamanet.errors import UserError
from llamanet.wire.identity import SEED_BYTES, Identity


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
    """The 32-byte key of a private swarm. Raises `UserError` in one line if the file holds none."""
    try:
        content = path.read_text("ascii", errors="replace").strip()
    except OSError as error:
        raise UserError(f"cannot read the swarm key file {path}: {error.strerror}") from error
    try:
        key = bytes.fromhex(content)
    except ValueError:
        key = b""
    if len(key) != SEED_BYTES:
        raise UserError(
            f"the swarm key file {path} must hold 64 hexadecimal digits; make one with: openssl rand -hex 32"
        )
    return key
