"""API keys: a file of them, who they belong to, and how much each may ask.

A line for each key: a label, the key or its SHA-256, and limits if there are any. What follows a `#` is a comment.

    # label   key                       limits
    alice     sk-3b1fbb5c6a0d4f13       rpm=60 concurrent=4
    ci        sha256:9f86d081884c7d65…  tpm=100000   # the key itself is nowhere on this machine

`rpm` and `tpm` bound requests and tokens (of prompts and answers) a minute, `concurrent` requests at a time.

Rules:
- A presented key is looked up by a keyed hash of it, under a key of this process that nobody knows: the time that takes
  says nothing of how much of a guess was right.
- The file is read again when it changes. A new one that is broken, or gone, leaves the old keys in force, and that is
  told in one line. A key that stays keeps what it has used of its limits; one that is gone is refused from then on.
"""

import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
from pathlib import Path

import attrs
import trio

from llamanet.errors import UserError
from llamanet.gateway.quota import Limits, Quota

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
MAX_FILE_BYTES = 4 << 20
MAX_LABEL = 64
SHORT = 16
"""A key of fewer characters can be guessed, which is told."""
_HASH = re.compile(r"sha256:([0-9A-Fa-f]{64})")
_LABEL = re.compile(r"[^\s=#]+")
_LIMITS = {"rpm": 1_000_000, "tpm": 10**9, "concurrent": 100_000}


@attrs.frozen(kw_only=True)
class Key:
    """A key as the file tells of it."""

    label: str
    digest: bytes = attrs.field(repr=False)
    """The SHA-256 of the key."""
    limits: Limits = Limits()


def parse_keys(content: str) -> tuple[Key, ...]:
    """The keys of a file. Raises `UserError` for the first line that is wrong; it never repeats a key."""
    keys: dict[str, Key] = {}
    for number, line in enumerate(content.splitlines(), 1):
        words = re.sub(r"(^|\s)#.*", "", line).split()
        if not words:
            continue
        key = _parse_key(words, f"line {number}")
        if key.label in keys:
            raise UserError(f"line {number}: {key.label!r} has a key already; give each one a label of its own")
        if any(key.digest == other.digest for other in keys.values()):
            raise UserError(f"line {number}: the key of {key.label!r} is another one's too")
        keys[key.label] = key
    if not keys:
        raise UserError("it holds no key; a line is: label key [rpm=60] [tpm=100000] [concurrent=4]")
    return tuple(keys.values())


def _parse_key(words: list[str], where: str) -> Key:
    if len(words) < 2 or len(words[0]) > MAX_LABEL or not _LABEL.fullmatch(words[0]):
        raise UserError(f"{where}: a line is a label of up to {MAX_LABEL} characters, a key, and limits (rpm=60)")
    label, secret, *settings = words
    limits: dict[str, int] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in _LIMITS or name in limits:
            raise UserError(f"{where}: after the key may come rpm=, tpm= and concurrent=, once each, not {name!r}")
        if not value.isascii() or not value.isdecimal() or not 1 <= int(value) <= _LIMITS[name]:
            raise UserError(f"{where}: {name} must be a whole number from 1 to {_LIMITS[name]}, not {value!r}")
        limits[name] = int(value)
    if secret.startswith("sha256:"):
        if not (found := _HASH.fullmatch(secret)):
            raise UserError(f"{where}: after sha256: come 64 hexadecimal digits")
        digest = bytes.fromhex(found[1])
    else:
        if len(secret) < SHORT:
            log.warning(
                "The API key of %s has only %d characters; make one with: openssl rand -hex 24", label, len(secret)
            )
        digest = hashlib.sha256(secret.encode()).digest()
    return Key(label=label, digest=digest, limits=Limits(**limits))


class Keys:
    """The keys that are in force, and what each has used."""

    def __init__(self, keys: tuple[Key, ...]) -> None:
        self._salt = secrets.token_bytes(32)
        self._holders: dict[bytes, tuple[Key, Quota]] = {}
        self.replace(keys)

    def __len__(self) -> int:
        return len(self._holders)

    def replace(self, keys: tuple[Key, ...]) -> None:
        """Put others in force; keys that stay keep what they have used."""
        before = self._holders
        self._holders = {}
        for key in keys:
            salted = self._salted(key.digest)
            quota = before[salted][1] if salted in before else Quota()
            self._holders[salted] = key, quota

    def find(self, presented: str) -> tuple[Key, Quota] | None:
        """Whose key that is; None if it is nobody's."""
        digest = hashlib.sha256(presented.encode("utf-8", "surrogateescape")).digest()
        holder = self._holders.get(self._salted(digest))
        return holder if holder is not None and hmac.compare_digest(holder[0].digest, digest) else None

    def _salted(self, digest: bytes) -> bytes:
        return hashlib.blake2b(digest, key=self._salt, digest_size=16).digest()


def load_keys(path: Path) -> tuple[Key, ...]:
    """The keys of the file. Raises `UserError` in one line; warns of a file that everybody may read."""
    try:
        with path.open(encoding="utf-8") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UserError(f"cannot read the API key file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the API key file {path} is no text (UTF-8)") from error
    if len(content) > MAX_FILE_BYTES:
        raise UserError(f"the API key file {path} has more than {MAX_FILE_BYTES} characters")
    if os.name == "posix" and mode & 0o007:
        log.warning("The API key file %s is open to everybody (mode %04o); run: chmod o= %s", path, mode, path)
    try:
        return parse_keys(content)
    except UserError as error:
        raise UserError(f"the API key file {path}: {error}") from error


async def follow_keys(path: Path, keys: Keys) -> None:
    """Keep `keys` as the file has them, until cancelled."""
    seen = _mark(path)
    while True:
        await trio.sleep(LOOK_EVERY_S)
        mark = _mark(path)
        if mark == seen:
            continue
        seen = mark
        try:
            fresh = load_keys(path)
        except UserError as error:
            log.error("%s; the %d keys that were read before stay in force", error, len(keys))
            continue
        keys.replace(fresh)
        log.info("Read %d API keys from %s", len(keys), path)


def _mark(path: Path) -> tuple[int, ...] | None:
    """What changes with the file; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
