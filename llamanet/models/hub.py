"""Pulling models from the Hugging Face hub, into the cache that all its tools share.

Rules:
- A transfer that breaks off is gone on with by the next one: the part is kept beside the cache's blobs. huggingface_hub
  throws it away (1.33 and 2.4 do), and writes in pieces of 10 MB, of which the last is lost; so its transfer is called
  here, with small pieces, and only its cache, its requests and retries are its own.
- Nothing gets into the cache before its SHA-256 is what the hub says.
- Token, cache, endpoint and offline mode are where huggingface_hub has them: `HF_TOKEN` or `hf auth login`, `HF_HOME`,
  `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`.
- Whatever goes wrong is one line.

Everything here blocks: call it in a thread. A `report` that raises ends the transfer, and the part is kept.
"""

import contextlib
import importlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from llamanet.errors import ModelFileError, UserError
from llamanet.models.digest import remember_digest, sha256_of
from llamanet.models.progress import Report, size_text
from llamanet.models.source import HubSource, choose

RESERVE = 64 * 2**20
"""Bytes of the disk that a pull leaves free."""


PIECE = 64 * 1024
"""Bytes that a transfer writes at a time, and so the most that one which breaks off loses."""


@attrs.frozen(kw_only=True)
class _Blob:
    """A file of a repository, and where its content goes."""

    name: str
    url: str
    size: int
    sha256: str | None
    """In hexadecimal, where the hub tells it."""
    path: Path
    lock: Path
    """What all tools lock that get it."""

    @property
    def part(self) -> Path:
        """What has arrived so far."""
        return self.path.with_name(f"{self.path.name}.incomplete")

    @property
    def left(self) -> int:
        """Bytes still to get."""
        if self.path.exists():
            return 0
        return self.size - self.part.stat().st_size if self.part.exists() else self.size


def pull(source: HubSource, digests: Path, report: Report) -> Path:
    """Get the model that `source` means, or what is missing of it; returns its (first) file.

    The SHA-256 of what is got is remembered in the file `digests`. Raises `ModelFileError` or another `UserError`.
    """
    hub = _import()
    with _told(hub, source):
        info = hub.HfApi().model_info(source.repo, revision=source.revision, files_metadata=True)
        names = choose(source, (entry.rfilename for entry in info.siblings or ()))
        blobs = [_look_up(hub, source, name) for name in names]
        _check_disk(source, blobs)
        for blob in blobs:
            _get(hub, blob, digests, report)
        first, *_ = [Path(hub.hf_hub_download(source.repo, name, revision=source.revision)) for name in names]
        return first


def cache_dir() -> Path | None:
    """Where huggingface_hub keeps what was pulled; None if it is not installed."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return None
    return Path(constants.HF_HUB_CACHE)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids to ask the hub."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return False
    return constants.HF_HUB_OFFLINE


def _import() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.file_download
        import huggingface_hub.utils.logging
    except ImportError as error:
        raise UserError("huggingface_hub, which pulls models, is missing: pip install huggingface_hub") from error
    # It would warn, in several lines, of what is told here in one.
    huggingface_hub.utils.logging.set_verbosity(logging.ERROR)
    huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = PIECE
    return huggingface_hub


def _look_up(hub: Any, source: HubSource, name: str) -> _Blob:
    url = hub.hf_hub_url(source.repo, name, revision=source.revision)
    metadata = hub.get_hf_file_metadata(url)
    if metadata.etag is None or metadata.size is None:
        raise UserError(f"{source}: the hub tells neither size nor checksum of {name}; check HF_ENDPOINT")
    cache = Path(hub.constants.HF_HUB_CACHE)
    folder = hub.file_download.repo_folder_name(repo_id=source.repo, repo_type="model")
    return _Blob(
        name=name,
        url=url,
        size=metadata.size,
        sha256=metadata.etag if len(metadata.etag) == 64 else None,
        path=cache / folder / "blobs" / metadata.etag,
        lock=cache / ".locks" / folder / f"{metadata.etag}.lock",
    )


def _check_disk(source: HubSource, blobs: list[_Blob]) -> None:
    needed = sum(blob.left for blob in blobs)
    folder = blobs[0].path
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed and needed + RESERVE > free:
        raise UserError(
            f"{source}: {size_text(needed)} are to be got, and {folder} has {size_text(free)} free; "
            "make room, or set HF_HOME to a folder on another disk"
        )


def _get(hub: Any, blob: _Blob, digests: Path, report: Report) -> None:
    """Have `blob` in its place, verified."""
    for folder in (blob.path.parent, blob.lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with hub.utils.WeakFileLock(blob.lock):
        if blob.path.exists():
            return
        if blob.left < 0:
            blob.part.unlink()
        if blob.left:
            with blob.part.open("ab") as file:
                hub.file_download.http_get(
                    blob.url,
                    file,
                    resume_size=file.tell(),
                    headers=hub.utils.build_hf_headers(),
                    tqdm_class=_bar(f"Pulling {Path(blob.name).name}", blob.size, report),
                )
        digest = sha256_of(blob.part, report)
        size = blob.part.stat().st_size
        if size != blob.size or blob.sha256 not in (None, digest.hex()):
            blob.part.unlink()
            raise ModelFileError(
                f"{blob.name} came with {size} bytes and SHA-256 {digest.hex()}, and the hub says {blob.size} and "
                f"{blob.sha256 or 'nothing'}; it was thrown away: pull it again"
            )
        blob.part.rename(blob.path)
    remember_digest(blob.path, digest, digests)


def _bar(what: str, whole: int, report: Report) -> type:
    """A class like tqdm's progress bars, as far as huggingface_hub uses it, that tells `report`."""

    class Bar:
        def __init__(self, *, initial: int = 0, **_: Any) -> None:
            self._done = initial

        def update(self, count: int) -> None:
            self._done += count
            report(what, min(self._done, whole), whole)

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *_: object) -> None:
            pass

    return Bar


@contextlib.contextmanager
def _told(hub: Any, source: HubSource) -> Iterator[None]:
    """Turn what huggingface_hub raises into one line that says what to do."""
    constants, errors = hub.constants, hub.errors
    # httpx in huggingface_hub 1, httpx2 since 2.
    http = importlib.import_module(errors.HTTPError.__module__.partition(".")[0])
    page = f"{constants.ENDPOINT}/{source.repo}"
    log_in = "log in (hf auth login, or HF_TOKEN)"
    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(f"{source} is gated: accept its terms at {page}, and {log_in}") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"{source}: there is no {page}, or it is private; check the name, or {log_in}") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"{source}: {page} has no revision {source.revision!r}; give a branch, a tag, or a commit's full hash"
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise UserError(f"{source} was not pulled yet, and HF_HUB_OFFLINE forbids to; unset it") from error
    except errors.HFValidationError as error:
        raise UserError(f"{source}: that is no repository's name; write hf:owner/repo") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        advice = {
            401: f"check the token, or {log_in}",
            403: f"check the token, or {log_in}",
            404: f"is there {page}? check the name, and HF_ENDPOINT",
        }.get(status, "try again later")
        raise UserError(f"{source}: {constants.ENDPOINT} answers with status {status}; {advice}") from error
    except errors.FileMetadataError as error:
        raise UserError(f"{source}: {constants.ENDPOINT} does not answer as the hub does; check HF_ENDPOINT") from error
    except (http.ConnectError, http.ConnectTimeout) as error:
        raise UserError(f"{source}: cannot reach {constants.ENDPOINT} ({error}); check the network") from error
    except http.HTTPError as error:
        why = str(error) or type(error).__name__
        raise UserError(f"{source}: the transfer broke off ({why}); pull again to go on") from error
    except OSError as error:
        if error.errno is None:  # what huggingface_hub raises for a transfer that ends too early
            raise UserError(f"{source}: the transfer broke off; pull again to go on") from error
        raise UserError(f"{source}: cannot be put into {constants.HF_HUB_CACHE} ({error.strerror})") from error
