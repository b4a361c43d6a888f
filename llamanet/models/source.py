"""What a user means by a model: a path, `hf:owner/repo[@revision][:file-or-quant]`, or the name of one that was pulled.

Pure.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import attrs

from llamanet.errors import ModelFileError, UserError
from llamanet.models.shards import model_name, shard_names

DEFAULT_QUANT = "Q4_K_M"
"""Taken where nobody says which, as llama.cpp's tools do; where there is none, the first file by name."""
_HUB = "hf:"
_REPO = re.compile(r"\w[\w.-]{,95}/\w[\w.-]{,95}", re.ASCII)
_REVISION = re.compile(r"(?!.*\.\.)\w[\w./+-]{,254}", re.ASCII)
_QUANT = re.compile(r"(?:^|[-._/])(I?Q[0-9]\w*|TQ[0-9]_0|BF16|F16|F32|MXFP4\w*)(?=$|[-./])", re.ASCII | re.IGNORECASE)
_NO_MODEL = ("mmproj", "imatrix")
"""In the names of GGUF files that hold something beside a model."""


@attrs.frozen
class HubSource:
    """Models in a repository of the Hugging Face hub.

    `wanted` is a file, or a quantisation, or None for the usual; `revision` is a branch, a tag or a commit's full hash,
    or None for the branch `main`.
    """

    repo: str
    wanted: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{_HUB}{self.repo}{revision}:{self.wanted}" if self.wanted else f"{_HUB}{self.repo}{revision}"


def parse_source(text: str) -> HubSource | Path | str:
    """A repository, a path, or (without a slash or `.gguf`) the name of a model. Raises `UserError`."""
    if not text.startswith(_HUB):
        return Path(text) if "/" in text or text.endswith(".gguf") else text
    place, _, wanted = text.removeprefix(_HUB).partition(":")
    repo, at, revision = place.partition("@")
    if not _REPO.fullmatch(repo):
        raise UserError(f"{text}: write hf:owner/repo, and after a further colon a file or a quantisation (Q4_K_M)")
    if at and not _REVISION.fullmatch(revision):
        raise UserError(f"{text}: after the @ write a branch, a tag, or a commit's full hash")
    return HubSource(repo, wanted or None, revision or None)


def quant_of(name: str) -> str | None:
    """The quantisation that a file's name tells, such as "Q4_K_M"; the last one, if there are several words like it."""
    stem = re.sub(r"(-[0-9]{5}-of-[0-9]{5})?\.gguf$", "", name)
    found = _QUANT.findall(stem)
    return found[-1].upper() if found else None


def choose(source: HubSource, names: Iterable[str]) -> tuple[str, ...]:
    """The files of the model that is meant, out of the `names` of all files that there are; in the order of its shards.

    Raises `ModelFileError` in one line if there is none, or more than one, or a shard is missing.
    """
    there = {name for name in names if name.endswith(".gguf")}
    models = sorted({shard_names(name)[0] for name in there if not any(no in name.lower() for no in _NO_MODEL)})
    if not models:
        raise ModelFileError(f"hf:{source.repo} holds no GGUF model; give another repository (many end in -GGUF)")
    if source.wanted is None:
        usual = [name for name in models if quant_of(name) == DEFAULT_QUANT]
        chosen = (usual or models)[0]
    else:
        chosen = _only(source, source.wanted, models)
    files = shard_names(chosen)
    if missing := [name for name in files if name not in there]:
        raise ModelFileError(f"{source}: {', '.join(missing)} of {len(files)} files is missing there")
    return files


def _only(source: HubSource, wanted: str, models: Sequence[str]) -> str:
    exact = [name for name in models if wanted in (name, model_name(name), *shard_names(name))]
    word = re.compile(rf"(^|[-._/]){re.escape(wanted)}($|[-./])", re.IGNORECASE)
    found = exact or [name for name in models if word.search(name)]
    if not found:
        offered = ", ".join(dict.fromkeys(quant_of(name) or model_name(name) for name in models))
        raise ModelFileError(f"{source}: no file is {wanted!r} there; there are {offered}")
    if len(found) > 1:
        raise ModelFileError(f"{source}: {len(found)} files are meant by {wanted!r}; name one: {', '.join(found)}")
    return found[0]
