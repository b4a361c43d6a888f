"""The models that are on this machine, and finding the one that is meant, pulling it if need be.

What was pulled is in the hub's cache: `models--{owner}--{repo}/snapshots/{commit}/{file}`, with the commits of branches
and tags in `refs/`; see https://huggingface.co/docs/huggingface_hub/guides/manage-cache. A model that is there is taken
as it is, without asking the hub; `llamanet pull` gets a newer one.
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

_MAIN = "main"
"""The branch that is meant where none is named."""


@attrs.frozen(kw_only=True)
class LocalModel:
    """A model that was pulled, with all of its files."""

    name: str
    repo: str
    revision: str | None
    """None: main, or a commit that no branch and no tag names."""
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
        repos = ", ".join(str(HubSource(model.repo, model.name, model.revision)) for model in named)
        raise ModelFileError(f"{len(named)} pulled models are named {source}; say which: {repos}")
    return named[0].files[0]


def local_models() -> list[LocalModel]:
    """All models in the hub's cache, by name; of each the newest that was pulled, and those of other revisions."""
    cache = hub.cache_dir()
    found: dict[Path, LocalModel] = {}
    for folder in sorted(cache.glob("models--*--*")) if cache else ():
        repo = "/".join(folder.name.split("--")[1:3])
        for revision in (None, *sorted(_refs(folder).keys() - {_MAIN})):
            for name, snapshot in _newest(folder, revision).items():
                files = tuple(snapshot / file for file in shard_names(name))
                if all(file.exists() for file in files):
                    model = LocalModel(
                        name=model_name(name),
                        repo=repo,
                        revision=revision,
                        files=files,
                        size=sum(file.stat().st_size for file in files),
                        quant=quant_of(name),
                    )
                    found.setdefault(files[0].resolve(), model)
    return sorted(found.values(), key=lambda model: (model.name, model.repo, model.revision or ""))


def _in_cache(source: HubSource) -> Path | None:
    """The (first) file of the model that is meant, if it was pulled."""
    cache = hub.cache_dir()
    if cache is None:
        return None
    newest = _newest(cache / f"models--{source.repo.replace('/', '--')}", source.revision)
    names = [file for name, snapshot in newest.items() for file in shard_names(name) if (snapshot / file).exists()]
    try:
        first = choose(source, names)[0]
    except ModelFileError:
        return None
    return newest[first] / first


def _newest(repo: Path, revision: str | None) -> dict[str, Path]:
    """By the first file of each model in a repository's cache, the snapshot of `revision` that has it.

    Without a revision it is that of main, or else the newest that belongs to no other branch or tag.
    """
    snapshots, refs = repo / "snapshots", _refs(repo)
    if revision is not None:
        usable = [snapshots / refs.get(revision, revision)]
    else:
        main = refs.get(_MAIN)
        usable = [path for path in snapshots.glob("*") if path.name == main or path.name not in refs.values()]
        usable.sort(key=lambda path: (path.name == main, path.stat().st_mtime))
    return {shard_names(name)[0]: snapshot for snapshot in usable for name in _gguf_files(snapshot)}


def _refs(repo: Path) -> dict[str, str]:
    """The commits of the branches and tags of a repository that were pulled."""
    folder = repo / "refs"
    return {
        path.relative_to(folder).as_posix(): path.read_text().strip() for path in folder.rglob("*") if path.is_file()
    }


def _gguf_files(snapshot: Path) -> Iterator[str]:
    for path in sorted(snapshot.rglob("*.gguf")):
        yield path.relative_to(snapshot).as_posix()
