"""Following a server that is already there: which models it has, and offering each of them as the node's own.

Rules:
- At the start it must answer: a wrong URL is a mistake to be told. Later it may go and come back; while it is gone, or
  no longer has a model, the node does not announce it.
- A model's digest stands for its name, for its file is not seen (`UpstreamModel.digest`).
"""

import hashlib
import logging
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import attrs
import httpx
import trio

from llamanet.errors import UserError
from llamanet.models.shards import model_name
from llamanet.node.host import Host
from llamanet.node.upstream import UpstreamEngine, UpstreamModel
from llamanet.settings import is_host, setting_name
from llamanet.wire.state import MAX_MODEL_NAME

log = logging.getLogger(__name__)

LOOK_EVERY_S = 10.0
CONNECT_S = 5.0
SILENCE_S = 600.0
"""Between two pieces of an answer: a first token may need a model to be loaded, and a long prompt to be read."""
MAX_MODELS = 16


@attrs.frozen(kw_only=True)
class UpstreamSettings:
    """`url` is the base of the server's API, which ends with /v1 as a rule; `models` are its models to offer, all if
    there are none. `n_ctx` is taken where the server does not tell it; `slots` requests are asked at a time, for each
    model."""

    url: str
    api_key: str | None = attrs.field(default=None, repr=False)
    models: tuple[str, ...] = ()
    n_ctx: int = 2048
    slots: int = 4


async def serve_upstream(
    host: Host, settings: UpstreamSettings, *, task_status: trio.TaskStatus[tuple[str, ...]]
) -> None:
    """Offer the server's models on `host` until cancelled; `task_status` gets their names once they are known.

    Raises `UserError` if the server does not answer at the start, or has none of the models.
    """
    _check_url(settings.url)
    _check_key(settings.api_key)
    headers = {"authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
    # A proxy of the environment is for the internet, and this server is near.
    async with (
        httpx.AsyncClient(
            base_url=settings.url.rstrip("/") + "/",
            headers=headers,
            timeout=httpx.Timeout(SILENCE_S, connect=CONNECT_S),
            # A connection for each request: a server may close an idle one at the very time that it is taken again.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            trust_env=False,
        ) as http,
        trio.open_nursery() as nursery,
    ):
        models = await _ask_at_start(http, settings)
        offered: dict[str, UpstreamModel] = {}
        told = ""
        try:
            _offer(host, models, offered, http, nursery, settings)
            task_status.started(tuple(offered))
            while True:
                await trio.sleep(LOOK_EVERY_S)
                try:
                    models, reason = _chosen(await _ask_models(http, settings), settings), ""
                except UserError as error:
                    models, reason = [], str(error)
                if taken := {model.name for model in models} & (host.sources().keys() - offered):
                    models = [model for model in models if model.name not in taken]
                    reason = f"Not offering {', '.join(sorted(taken))}: the node has other models of that name"
                if reason != told:
                    log.warning("%s", reason) if reason else log.info("%s answers again", settings.url)
                    told = reason
                for name in offered.keys() - {model.name for model in models}:
                    del offered[name]
                    host.take_back(name)
                _offer(host, models, offered, http, nursery, settings)
        finally:
            for name in offered:
                host.take_back(name)


def _offer(
    host: Host,
    models: Iterable[UpstreamModel],
    offered: dict[str, UpstreamModel],
    http: httpx.AsyncClient,
    nursery: trio.Nursery,
    settings: UpstreamSettings,
) -> None:
    for model in models:
        if model.name not in offered:
            host.offer(UpstreamEngine(model, http, nursery, label=host.label, slots=settings.slots), settings.url)
            offered[model.name] = model


async def _ask_at_start(http: httpx.AsyncClient, settings: UpstreamSettings) -> list[UpstreamModel]:
    models = await _ask_models(http, settings)
    chosen = _chosen(models, settings)
    if not chosen:
        has = ", ".join(model.name for model in models) or "no model"
        wanted = f"none of {', '.join(settings.models)}: it has {has}" if settings.models else has
        raise UserError(
            f"the server at {settings.url} has {wanted}; pull or load one there ({setting_name('upstream')})"
        )
    return chosen


def _chosen(models: list[UpstreamModel], settings: UpstreamSettings) -> list[UpstreamModel]:
    wanted = settings.models
    return [model for model in models if not wanted or {model.id, model.name} & set(wanted)][:MAX_MODELS]


async def _ask_models(http: httpx.AsyncClient, settings: UpstreamSettings) -> list[UpstreamModel]:
    """Raises `UserError` if the server does not tell."""
    try:
        response = await http.get("models", timeout=CONNECT_S)
    except httpx.HTTPError as error:
        raise UserError(
            f"cannot reach the server at {settings.url}: {str(error) or type(error).__name__}; does it run? "
            f"({setting_name('upstream')})"
        ) from error
    if response.status_code in (401, 403):
        raise UserError(f"the server at {settings.url} wants another key ({setting_name('upstream_api_key')})")
    try:
        if response.status_code != 200:
            raise ValueError(f"status {response.status_code}")
        return list(_read_models(response.json(), settings))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"the server at {settings.url} does not list models as OpenAI's API does ({error}); the URL ends with /v1 "
            f"as a rule ({setting_name('upstream')})"
        ) from error


def _read_models(body: Any, settings: UpstreamSettings) -> Iterable[UpstreamModel]:
    for entry in body["data"]:
        # A server that was given a file calls it by its path.
        name = model_name(Path(entry["id"])) if entry["id"].endswith(".gguf") else entry["id"]
        if not 1 <= len(name) <= MAX_MODEL_NAME or "," in name:
            log.warning("Not offering %.100r: a name has 1 to %d characters and no comma", name, MAX_MODEL_NAME)
            continue
        yield UpstreamModel(
            id=entry["id"],
            name=name,
            digest=hashlib.sha256(b"upstream:" + name.encode()).digest(),
            n_ctx=_context(entry) or settings.n_ctx,
            owner=str(entry.get("owned_by")),
        )


def _context(entry: dict[str, Any]) -> int | None:
    """Tokens of a request, where the server tells: vLLM, LM Studio, LlamaNet and llama-server do, in this order."""
    meta = entry.get("meta") if isinstance(entry.get("meta"), dict) else {}
    told: Collection[Any] = (
        entry.get("max_model_len"),
        entry.get("loaded_context_length"),
        entry.get("n_ctx"),
        meta.get("n_ctx") if meta else None,
        meta.get("n_ctx_train") if meta else None,
    )
    return next((value for value in told if type(value) is int and 0 < value <= 2**40), None)


def _check_url(url: str) -> None:
    try:
        parts = httpx.URL(url)
        good = parts.scheme in ("http", "https") and is_host(parts.raw_host.decode()) and 0 < (parts.port or 80) < 2**16
    except httpx.InvalidURL:
        good = False
    if not good:
        raise UserError(f"{setting_name('upstream')} must be a URL such as http://localhost:11434/v1, not {url!r}")


def _check_key(key: str | None) -> None:
    if key and not (key.isascii() and key.isprintable()):
        raise UserError(f"{setting_name('upstream_api_key')} must have printable ASCII characters only")
