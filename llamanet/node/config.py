"""Everything that a node can be told, checked before anything is opened.

Each field is one setting of the command line: field `n_ctx` is flag `--n-ctx` and variable `N_CTX`. A value that
cannot be right is refused with one line that names both.
"""

from pathlib import Path
from typing import Any

import attrs

from llamanet.errors import UserError
from llamanet.models.shards import model_name
from llamanet.models.source import parse_source
from llamanet.settings import LOG_FORMATS, LOG_LEVELS, host_name, is_host, number, one_of, refusal, setting_name, whole
from llamanet.wire.facts import MAX_HOSTS, MAX_LABEL, announced_hosts

FLASH_ATTENTION = ("auto", "on", "off")
CACHE_TYPES = ("auto", "f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
"""What llama.cpp can keep keys and values as; fewer bits hold more tokens in the same memory, less exactly."""
SPLIT_MODES = ("none", "layer", "row")
MAX_ANNOUNCED_HOST = 88
"""A record must hold it beside everything else (`wire.facts.MAX_VALUE_BYTES`)."""


def _announced_host(_: Any, attribute: "attrs.Attribute[Any]", value: Any) -> None:
    hosts = announced_hosts(value)
    if not 0 < len(hosts) <= MAX_HOSTS or not all(map(is_host, hosts)) or len(value) > MAX_ANNOUNCED_HOST:
        wanted = f"one to {MAX_HOSTS} IP addresses or host names with commas between, {MAX_ANNOUNCED_HOST} characters"
        raise refusal(attribute, value, f"{wanted} at most")


def _label(_: Any, attribute: "attrs.Attribute[Any]", value: Any) -> None:
    if not 1 <= len(value.encode()) <= MAX_LABEL or not value.isprintable() or value != value.strip():
        raise refusal(attribute, value, f"1 to {MAX_LABEL} printable characters (or bytes, in UTF-8)")


def _no_model() -> UserError:
    return UserError(
        f"{setting_name('model_path')} is required: the path of a GGUF model file, or hf:owner/repo; or else "
        f"{setting_name('upstream')}, the URL of a server that has models"
    )


def _some_models(_: Any, attribute: "attrs.Attribute[Any]", value: Any) -> None:
    sources = [parse_source(str(source)) for source in value]
    if Path() in value or "" in value:
        raise _no_model()
    names = [model_name(path) for path in sources if isinstance(path, Path)]
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{setting_name(attribute.name)}: two models are named {doubled!r}; rename one of the files")


@attrs.frozen(kw_only=True)
class NodeConfig:
    """The settings of a node. Raises `UserError` for a value that cannot be right."""

    model_path: tuple[Path | str, ...] = attrs.field(default=(), validator=_some_models)
    """GGUF files, repositories (`hf:owner/repo[@revision][:file-or-quant]`) or names of models that were pulled.
    A model's name is its file name without `.gguf`."""
    upstream: str | None = None
    """The base URL of an OpenAI-compatible server whose models are offered as the node's own."""
    upstream_api_key: str | None = attrs.field(default=None, repr=False)
    """What that server wants to be told, if anything."""
    upstream_model: tuple[str, ...] = ()
    """Its models to offer; all, if there are none."""
    host: str = attrs.field(default="0.0.0.0", validator=host_name)
    """The address that both ports are opened on."""
    port: int = attrs.field(default=8000, validator=whole(0, 65_535))
    """Inference, TCP; 0: any free one."""
    dht_port: int = attrs.field(default=8001, validator=whole(0, 65_535))
    """UDP; 0: any free one, and with it a fresh identity."""
    node_id: str | None = attrs.field(default=None, validator=attrs.validators.optional(_label))
    """The label that people know the node by; None: one made from its key."""
    bootstrap_nodes: tuple[str, ...] = ()
    """`host:port` of nodes to join through."""
    join: str | None = None
    """An invitation, instead of or beside `bootstrap_nodes`."""
    swarm_name: str | None = None
    """Of another swarm than the public one."""
    heartbeat_interval: float = attrs.field(default=10.0, validator=number(1, 600, "seconds"))
    """Seconds between two records with the node's load."""
    n_ctx: int = attrs.field(default=2048, validator=whole(32, 2**24))
    """Tokens a slot."""
    n_batch: int = attrs.field(default=512, validator=whole(1, 2**16))
    """Tokens computed in one step."""
    n_gpu_layers: int = attrs.field(default=0, validator=whole(-1, 10_000))
    """0: CPU only; -1: all."""
    main_gpu: int = attrs.field(default=0, validator=whole(0, 255))
    """The accelerator that computes what is not split."""
    split_mode: str = attrs.field(default="layer", validator=one_of(*SPLIT_MODES))
    """How a model is spread over several accelerators."""
    flash_attn: str = attrs.field(default="auto", validator=one_of(*FLASH_ATTENTION))
    """Flash attention; auto: where llama.cpp can."""
    cache_type_k: str = attrs.field(default="auto", validator=one_of(*CACHE_TYPES))
    """How the memory's keys are kept; auto: the faster of f16 and bf16."""
    cache_type_v: str = attrs.field(default="auto", validator=one_of(*CACHE_TYPES))
    """How the memory's values are kept; auto: the faster of f16 and bf16."""
    chat_template: Path | None = None
    """A Jinja file that stands in for the models' own chat templates."""
    n_parallel: int = attrs.field(default=4, validator=whole(1, 256))
    """Slots: requests that run at the same time, for each model."""
    n_threads: int | None = attrs.field(default=None, validator=attrs.validators.optional(whole(1, 1024)))
    """None: one for each physical core."""
    announce: str | None = attrs.field(default=None, validator=attrs.validators.optional(_announced_host))
    """The hosts that others reach the node by, best first, with commas between; None: the one that peers observe."""
    data_dir: Path | None = None
    """Where keys and contacts are kept; None: the platform's place for them."""
    log_level: str = attrs.field(default="info", validator=one_of(*LOG_LEVELS))
    log_format: str = attrs.field(default="text", validator=one_of(*LOG_FORMATS))
    no_tls: bool = False
    """Serve plain `ws://`."""
    swarm_key_file: Path | None = None
    """Holds a private swarm's key: 32 bytes in hexadecimal."""
    control: Path | None = None
    """The UNIX socket of `llamanet control`; None: one in the data directory, if the DHT port is fixed."""
    idle_unload: float | None = attrs.field(
        default=None, validator=attrs.validators.optional(number(1, 10_000_000, "seconds"))
    )
    """Seconds without a request after which a model is unloaded until the next one; None: never."""
    owner_first: bool = False
    """Take no new requests while other programs keep this machine busy."""

    def __attrs_post_init__(self) -> None:
        """Raises `UserError` for values that do not agree."""
        if not self.model_path and self.upstream is None:
            raise _no_model()
        if self.flash_attn == "off" and self.cache_type_v not in ("auto", "f32", "f16", "bf16"):
            names = setting_name("cache_type_v"), setting_name("flash_attn")
            raise UserError(f"{names[0]} {self.cache_type_v} needs flash attention, and {names[1]} is off")


@attrs.frozen(kw_only=True)
class LlamaSettings:
    """How llama.cpp is to run each model; the names and the defaults are `NodeConfig`'s.

    `n_ctx` is in tokens a slot, `n_batch` in tokens a step; `n_parallel` is the number of slots. `n_threads` None takes
    one a physical core. `n_gpu_layers` 0 computes on the CPU alone, -1 puts all layers on the accelerator.
    `chat_template` is Jinja source; None takes the model's own.
    """

    n_ctx: int = 2048
    n_batch: int = 512
    n_parallel: int = 4
    n_threads: int | None = None
    n_gpu_layers: int = 0
    main_gpu: int = 0
    split_mode: str = "layer"
    flash_attn: str = "auto"
    cache_type_k: str = "auto"
    cache_type_v: str = "auto"
    chat_template: str | None = None
