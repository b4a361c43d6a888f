"""What a doctor may know of a machine and its swarm, before anything is made of it. None means: not looked at."""

from pathlib import Path

import attrs

from llamanet.dht.distance import Scope, scope_of


@attrs.frozen(kw_only=True)
class SecretFile:
    """A file that only its owner may read."""

    what: str
    path: Path
    there: bool
    mode: int | None = None
    """None where there are no modes."""
    problem: str | None = None
    """Why it cannot be used, its mode aside."""
    held: bool = False
    """Whether another process runs as the identity in it."""


@attrs.frozen(kw_only=True)
class Port:
    """A port that a node or a gateway opens."""

    what: str
    protocol: str
    setting: str
    host: str
    port: int
    problem: str | None
    """Why it cannot be had; None: it is free."""
    ours: bool
    """Whether our own node has it."""


@attrs.frozen(kw_only=True)
class ModelFile:
    """A model that a node is to serve. Sizes are in bytes."""

    source: str
    problem: str | None = None
    to_pull: bool = False
    weights: int = 0
    remembered: int = 0
    """The least that its slots take."""
    slots: int = 0
    n_ctx: int = 0


@attrs.frozen(kw_only=True)
class Engine:
    """llama.cpp, as it is installed."""

    version: str | None
    """Of llama-cpp-python; None: it is not installed."""
    features: tuple[str, ...] = ()
    offload: bool = False
    """Whether it can compute on an accelerator."""
    problem: str | None = None
    """Why it cannot be used."""
    failures: tuple[tuple[str, str], ...] = ()
    """(a model's file, why it does not load)."""


@attrs.frozen(kw_only=True)
class Http:
    """A gateway's settings."""

    host: str
    public: bool
    key_file: Path | None
    no_auth: bool
    missing: tuple[str, ...]
    """Packages."""
    problem: str | None
    """Why the key file cannot be used."""


@attrs.frozen(kw_only=True)
class Machine:
    """What there is to know without asking the network."""

    key_file: SecretFile | None = None
    swarm_key_file: SecretFile | None = None
    ports: tuple[Port, ...] = ()
    models: tuple[ModelFile, ...] = ()
    engine: Engine | None = None
    n_gpu_layers: int = 0
    memory: int | None = None
    """Bytes that are available."""
    disk: int | None = None
    """Bytes that are free where the node keeps its data."""
    data_dir: Path | None = None
    http: Http | None = None
    node: "RunningNode | None" = None
    version: str = ""
    """Of this program."""


@attrs.frozen(kw_only=True)
class RunningNode:
    """The node that runs here, by what it says on its control socket."""

    label: str
    id: str
    version: str
    port: int
    dht_port: int
    held_by: tuple[str, ...] = ()
    models: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class BootstrapPeer:
    """A bootstrap peer, and what came of greeting it."""

    peer: str
    unresolved: str | None = None
    """Why its name means no address."""
    answered: bool = False
    ours: bool = False
    """It is the node that runs here."""
    another: bool = False
    """Who answered has another key than the one that was given."""
    closed: bool = False
    """Its machine says that nothing listens there."""
    open_swarm: bool = False
    """It answers those who have no swarm key."""
    tcp_port: int | None = None
    """Where a node's endpoint answers on that machine."""


@attrs.frozen(kw_only=True)
class Clock:
    """How far a peer's clock is ahead of ours, in seconds; right to about a second."""

    peer: str
    ahead: float


@attrs.frozen(kw_only=True)
class Dial:
    """What a peer tells of dialling this machine's host, as it sees it."""

    peer: str
    host: str
    udp: bool | None
    """Whether its greeting arrived, and was answered if a node runs; None: it could not be asked for that."""
    tcp: bool | None

    @property
    def outside(self) -> bool:
        """Whether it comes from another machine."""
        return scope_of(self.host) is not Scope.LOOPBACK


@attrs.frozen(kw_only=True)
class Reached:
    """What came of connecting from here to where others are told to."""

    host: str
    port: int
    problem: str | None = None
    """Why there is no connection."""
    another: bool = False
    """Somebody else answers there."""


@attrs.frozen(kw_only=True)
class Surroundings:
    """What the network tells."""

    peers: tuple[BootstrapPeer, ...] = ()
    clocks: tuple[Clock, ...] = ()
    dials: tuple[Dial, ...] = ()
    dialable: bool = False
    """Whether a peer could have been asked to dial at all: there is one, and something here to be reached."""
    announced: tuple[str, ...] = ()
    """Hosts that others are told, or are to be told by what the doctor was given; none: those that peers observe."""
    announced_instead: tuple[str, ...] = ()
    """Hosts that the node that runs here tells others, where the doctor was given others."""
    observed: tuple[str, ...] = ()
    observed_instead: str | None = None
    reached: tuple[Reached, ...] = ()
    contacts: int = 0
    node_silent: bool = False
    """Whether the node that runs here does not hear us, nor does anybody else."""
    private: bool = False
    """Whether we have a swarm key."""
