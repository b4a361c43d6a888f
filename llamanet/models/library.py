"""The models that are on this machine, and finding the one that is meant, pulling it if need be.

What was pulled is in the hub's cache: `models--{owner}--{repo}/snapshots/{commit}/{file}`, documented at
https://huggingface.co/docs/huggingface_hub/guides/manage-cache. A model that is there is taken as it is, without asking
the hub; `llamanet pull` gets a newer one.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import attrs

from llamanet.errors import ModelFileError
from llamanet.models import hub
from llamanet.models.progress import Report
from llamanet.models.shards import model_name, shard_names
from llamanet.models.source import HubSource, choose, parse_source, quant_of

log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class LocalModel:
    """A model that was pulled, with all of its files."""

    name: str
    repo: str
    files: tuple[Path, ...]
    size: int
    """Bytes, of all files."""
    quant: str | None
    """As far as the file's name tells."""


def find_model(text: str, digests: Path, report: Report) -> Path:
    """The (first) file of the model that `text` means; pulled now if it is in a repository and not here.

    Blocks: call it in a thread. The SHA-256 of what is pulled is remembered in `digests`. Raises `ModelFileError` or
    another `UserError`. That a path is a model's is not checked.
    """
    source = parse_source(text)
    if isinstance(source, HubSource) and not Path(text).exists():
        return _in_cache(source) or hub.pull(source, digests, report)
    return _on_this_machine(text, source)


def newest_model(source: HubSource, digests: Path, report: Report) -> Path:
    """As `find_model`, but of what is here already a newer version is pulled, unless HF_HUB_OFFLINE forbids to ask."""
    path = _in_cache(source) if hub.is_offline() else None
    if path is None:
        return hub.pull(source, digests, report)
    log.info("HF_HUB_OFFLINE is set: the hub is not asked for a newer version of %s", source)
    return path


def find_local_model(text: str) -> Path | None:
    """As `find_model`, but a model in a repository that is not here is not pulled: None."""
    source = parse_source(text)
    if isinstance(source, HubSource) and not Path(text).exists():
        return _in_cache(source)
    return _on_this_machine(text, source)


def _on_this_machine(text: str, source: HubSource | Path | str) -> Path:
    if isinstance(source, Path) or Path(text).exists():
        return Path(text)
    named = [model for model in local_models() if model.name == source]
    if not named:
        raise ModelFileError(
            f"{source} is neither a file nor a pulled model; give a path, hf:owner/repo, or a name that "
            "llamanet models --local shows"
        )
    if len(named) > 1:
        repos = ", ".join(f"hf:{model.repo}:{model.name}" for model in named)
        raise ModelFileError(f"{len(named)} pulled models are named {source}; say which: {repos}")
    return named[0].files[0]


def local_models() -> list[LocalModel]:
    """All models in the hub's cache, by name; of each the newest that was pulled."""
    cache = hub.cache_dir()
    found = []
    for folder in sorted(cache.glob("models--*--*")) if cache else ():
        repo = "/".join(folder.name.split("--")[1:3])
        for name, snapshot in _newest(folder).items():
            files = tuple(snapshot / file for file in shard_names(name))
            if all(file.exists() for file in files):
                size = sum(file.stat().st_size for file in files)
                found.append(LocalModel(name=model_name(name), repo=repo, files=files, size=size, quant=quant_of(name)))
    return sorted(found, key=lambda model: (model.name, model.repo))


def _in_cache(source: HubSource) -> Path | None:
    """The (first) file of the model that is meant, if it was pulled."""
    cache = hub.cache_dir()
    if cache is None:
        return None
    newest = _newest(cache / f"models--{source.repo.replace('/', '--')}")
    names = [file for name, snapshot in newest.items() for file in shard_names(name) if (snapshot / file).exists()]
    try:
        first = choose(source, names)[0]
    except ModelFileError:
        return None
    return newest[first] / first


def _newest(repo: Path) -> dict[str, Path]:
    """By the first file of each model in a repository's cache, the newest snapshot that has it."""
    newest: dict[str, Path] = {}
    for snapshot in sorted((repo / "snapshots").glob("*"), key=lambda path: path.stat().st_mtime):
        for name in _gguf_files(snapshot):
            newest[shard_names(name)[0]] = snapshot
    return newest


def _gguf_files(snapshot: Path) -> Iterator[str]:
    for path in sorted(snapshot.rglob("*.gguf")):
        yield path.relative_to(snapshot).as_posix()
