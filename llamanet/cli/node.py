"""`llamanet node`: serve models to the swarm until SIGINT or SIGTERM, which drain the node."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import attrs
import click

from llamanet.cli.http import HTTP_SETTINGS, http_settings, need_packages
from llamanet.cli.logs import set_up_logging
from llamanet.cli.options import Listed, ModelSource, log_settings, setting, swarm_settings
from llamanet.node.config import CACHE_TYPES, FLASH_ATTENTION, SPLIT_MODES, NodeConfig

F = TypeVar("F", bound=Callable[..., Any])
defaults = {field.name: field.default for field in attrs.fields(NodeConfig)}


def number(name: str, kind: type, help: str, *, default: str | None = None) -> Callable[[F], F]:
    """A setting that is a number. `default` says in words what no number means."""
    return setting(name, type=kind, default=defaults[name], show_default=default or True, help=help)


def choice(name: str, allowed: Sequence[str], help: str) -> Callable[[F], F]:
    """A setting that is one of a few words."""
    return setting(name, type=click.Choice(allowed), default=defaults[name], show_default=True, help=help)


@click.command("node")
@click.option(
    "--model-path",
    "--model",
    "model_path",
    envvar="MODEL_PATH",
    show_envvar=True,
    type=ModelSource(),
    multiple=True,
    metavar="MODEL",
    help="A GGUF file, hf:owner/repo[@revision][:file-or-quant], or the name of a pulled model. Needed; give it "
    "again for more models (in the variable, separate them by commas).",
)
@setting(
    "upstream",
    metavar="URL",
    help="Offer the models of a server that is already there: the base URL of its OpenAI-compatible API (Ollama's is "
    "http://localhost:11434/v1). Needs no llama.cpp here.",
)
@setting("upstream_api_key", metavar="KEY", help="The API key that this server wants.")
@setting(
    "upstream_model", type=Listed(), multiple=True, metavar="NAME", show_default="all", help="Its models to offer."
)
@setting("host", default=defaults["host"], show_default=True, help="The address that both ports are opened on.")
@number("port", int, "Inference (TCP); 0: any free port.")
@number("dht_port", int, "DHT (UDP); 0: any free port, and a fresh identity.")
@setting("node_id", metavar="NAME", show_default="made from its key", help="What people call the node.")
@swarm_settings
@number("heartbeat_interval", float, "Seconds between two records with the node's load.")
@number("n_ctx", int, "Context, in tokens, for each slot.")
@number("n_batch", int, "Tokens computed in one step; a small value such as 8 makes prompts crawl.")
@number("n_gpu_layers", int, "Layers on the GPU; 0: CPU only, -1: all.")
@number("main_gpu", int, "The GPU that computes what is not split.")
@choice("split_mode", SPLIT_MODES, "How a model is spread over several GPUs.")
@choice("flash_attn", FLASH_ATTENTION, "Flash attention; auto: where llama.cpp can.")
@choice("cache_type_k", CACHE_TYPES, "How the memory's keys are kept; auto is f16, or bf16 where that is faster.")
@choice("cache_type_v", CACHE_TYPES, "How the memory's values are kept; auto is f16, or bf16 where that is faster.")
@setting(
    "chat_template",
    type=click.Path(path_type=Path),
    metavar="FILE",
    show_default="the model's own",
    help="A Jinja chat template for the models, instead of their own.",
)
@number("n_parallel", int, "Slots: requests that run at the same time, for each model.")
@number("n_threads", int, "Threads that compute.", default="physical cores")
@setting(
    "announce", metavar="HOST,...", show_default="as peers observe it", help="The hosts that others reach the node by."
)
@setting("data_dir", type=click.Path(path_type=Path), metavar="DIR", help="Where keys and known peers are kept.")
@log_settings("info")
@setting("no_tls", is_flag=True, help="Serve plain ws://, for a trusted network or behind a proxy.")
@setting(
    "control",
    type=click.Path(path_type=Path),
    metavar="PATH",
    show_default="in the data directory, if the DHT port is not 0",
    help="The UNIX socket that `llamanet control` speaks to.",
)
@number(
    "idle_unload", float, "Seconds without a request after which a model is unloaded until the next.", default="never"
)
@http_settings(None)
@setting("owner_first", is_flag=True, help="Take no new requests while other programs keep this machine busy.")
def command(**settings: Any) -> None:
    """Serve models to the swarm.

    A flag comes before its variable, and a variable before the default. An empty variable is an unset one.
    """
    http = {name: settings.pop(name) for name in HTTP_SETTINGS}
    config = NodeConfig(**settings)
    set_up_logging(config.log_level, config.log_format)
    # Imported only now, so that --help and a mistaken setting are answered at once.
    import trio

    from llamanet.cli.progress import progress_bars
    from llamanet.node.service import run_node

    with progress_bars() as report:
        if http["http_port"] is None:
            trio.run(run_node, config, report)
        else:
            need_packages()
            from llamanet.cli.node_http import run_node_with_http
            from llamanet.gateway.config import GatewayConfig

            trio.run(run_node_with_http, config, report, GatewayConfig(**http))
