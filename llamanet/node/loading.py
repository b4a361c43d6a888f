"""From what a user calls a model to a `Model` that a host can serve: found or pulled, checked, hashed, then loaded."""

from pathlib import Path

import attrs
import trio

from llamanet.errors import UserError
from llamanet.models.digest import model_digest
from llamanet.models.gguf import read_metadata
from llamanet.models.library import find_model
from llamanet.models.memory import Slots, check_memory
from llamanet.models.progress import Report, silent
from llamanet.models.shards import check_layout, model_files, model_name
from llamanet.models.source import parse_source
from llamanet.node.backend import Backend
from llamanet.node.chat_template import load_chat_template
from llamanet.node.config import LlamaSettings, NodeConfig
from llamanet.node.host import Model
from llamanet.settings import setting_name
from llamanet.wire.state import MAX_MODEL_NAME


def llama_settings(config: NodeConfig) -> LlamaSettings:
    """The part of a node's settings that concerns llama.cpp. Raises `UserError` for a chat template that is none."""
    return LlamaSettings(
        n_ctx=config.n_ctx,
        n_batch=config.n_batch,
        n_parallel=config.n_parallel,
        n_threads=config.n_threads,
        n_gpu_layers=config.n_gpu_layers,
        main_gpu=config.main_gpu,
        split_mode=config.split_mode,
        flash_attn=config.flash_attn,
        cache_type_k=config.cache_type_k,
        cache_type_v=config.cache_type_v,
        chat_template=load_chat_template(config.chat_template) if config.chat_template else None,
    )


def check_model(source: Path | str) -> None:
    """Raises `UserError` for what can be known to be wrong without asking anybody: of a path, all but its content."""
    path = parse_source(str(source))
    if isinstance(path, Path):
        check_layout(model_files(path))


async def open_model(source: Path | str, settings: LlamaSettings, data_dir: Path, report: Report = silent) -> Model:
    """What `source` means, as a `Model`; pulled now if it is not here. `report` is told how far that is.

    Raises `ModelFileError` or another `UserError`.
    """
    digests = data_dir / "digests.json"

    def stoppable(what: str, done: int, whole: int) -> None:
        trio.from_thread.check_cancelled()
        report(what, done, whole)

    def prepare() -> tuple[Path, bytes]:
        path = find_model(str(source), digests, stoppable)
        files = model_files(path)
        check_layout(files)
        slots = Slots(
            n_ctx=settings.n_ctx,
            count=settings.n_parallel,
            type_k=settings.cache_type_k,
            type_v=settings.cache_type_v,
            n_gpu_layers=settings.n_gpu_layers,
        )
        check_memory(model_name(path), files, read_metadata(files[0]), slots)
        return files[0], model_digest(files, digests, stoppable)

    path, digest = await trio.to_thread.run_sync(prepare)
    name = model_name(path)
    if not 1 <= len(name) <= MAX_MODEL_NAME or "," in name:
        raise UserError(
            f"{path}: a model's file name must have 1 to {MAX_MODEL_NAME} characters and no comma; rename it"
        )

    def make_backend() -> Backend:
        # llama.cpp's library takes a while to load, and a process that only asks never needs it.
        try:
            from llamanet.node.llama import LlamaBackend, LlamaConfig
        except ModuleNotFoundError as error:
            if error.name != "llama_cpp":
                raise
            raise UserError(
                "llama-cpp-python is not installed, and a model of one's own needs it: pip install llama-cpp-python; "
                f"or offer a server that is already there by {setting_name('upstream')}"
            ) from error

        return LlamaBackend(LlamaConfig(model_path=path, **attrs.asdict(settings)), report)

    return Model(name=name, digest=digest, make_backend=make_backend, source=str(path))
