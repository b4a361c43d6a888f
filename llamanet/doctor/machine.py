"""Looking at this machine: files, ports, models, llama.cpp, memory and disk, and the node that runs here, if one does.

Nothing is made or changed: a key that is missing is not made, a model is not pulled, and a port is let go at once.
"""

import contextlib
import errno
import http.client
import json
import os
import shutil
import socket
import ssl
import stat
from collections.abc import Callable
from pathlib import Path

import attrs

from llamanet._version import __version__
from llamanet.dht.keyfile import hold_identity, load_or_create_identity, load_swarm_key
from llamanet.doctor.engine import look_at_engine
from llamanet.doctor.facts import Http, Machine, ModelFile, Port, RunningNode, SecretFile
from llamanet.errors import UserError
from llamanet.models.gguf import read_metadata
from llamanet.models.library import find_local_model
from llamanet.models.memory import Slots, available_memory, kv_cache_bytes
from llamanet.models.shards import check_layout, model_files
from llamanet.settings import default_control_path

Say = Callable[[str], None]
"""Called with what is being done."""
CONTROL_S = 5.0
"""For the node that runs here to answer."""


@attrs.frozen(kw_only=True)
class Asked:
    """What is to be looked at, by the settings of `llamanet node` and `llamanet gateway`."""

    client: bool
    """Only what a client needs."""
    host: str
    port: int
    dht_port: int
    data_dir: Path
    control: Path | None
    swarm_key_file: Path | None
    models: tuple[str, ...]
    slots: Slots
    load: bool
    """Load the models' weights too."""
    http: "HttpAsked | None"


@attrs.frozen(kw_only=True)
class HttpAsked:
    """A gateway's settings, and what cannot be known here: which packages are missing, what its key file says."""

    host: str
    port: int
    public: bool
    key_file: Path | None
    no_auth: bool
    missing: tuple[str, ...]
    key_problem: str | None


def look_at_machine(asked: Asked, say: Say) -> Machine:
    """The facts. Blocks, mostly for llama.cpp."""
    node = None if asked.client else ask_node(asked.control or default_control_path(asked.data_dir, asked.dht_port))
    swarm_key_file = asked.swarm_key_file and secret_file("swarm key file", asked.swarm_key_file, load_swarm_key)
    gateway = asked.http and Http(
        host=asked.http.host,
        public=asked.http.public,
        key_file=asked.http.key_file,
        no_auth=asked.http.no_auth,
        missing=asked.http.missing,
        problem=asked.http.key_problem,
    )
    machine = Machine(
        swarm_key_file=swarm_key_file or None,
        http=gateway or None,
        ports=tuple(_ports(asked, node)),
        version=__version__,
    )
    if asked.client:
        return machine
    say("Looking at the models")
    found = [_model(source, asked.slots) for source in asked.models]
    files = tuple(path for _, path in found if path is not None)
    say("Asking llama.cpp")
    return attrs.evolve(
        machine,
        key_file=_key_file(asked.data_dir / f"node-{asked.dht_port}.key") if asked.dht_port else None,
        models=tuple(model for model, _ in found),
        engine=look_at_engine(files, weights=asked.load),
        n_gpu_layers=asked.slots.n_gpu_layers,
        memory=available_memory(),
        disk=_free(asked.data_dir),
        data_dir=asked.data_dir,
        node=node,
    )


def ask_node(path: Path) -> RunningNode | None:
    """What the node says whose control socket is at `path`; None if none answers there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(CONTROL_S)
        try:
            sock.connect(str(path))
            sock.sendall(b'{"do": "status"}\n')
            told = json.loads(sock.makefile("rb").readline())["ok"]
            return RunningNode(
                label=told["node_id"],
                id=told["id"],
                version=told["version"],
                port=told["port"],
                dht_port=told["dht_port"],
                held_by=tuple(told["held_by"]),
                models=tuple(model["name"] for model in told["models"]),
            )
        except (OSError, ValueError, KeyError):
            return None


def secret_file(what: str, path: Path, load: Callable[[Path], object]) -> SecretFile:
    """What there is to say of a file that `load` reads, which refuses one that is open to others."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode) if os.name == "posix" else None
    except FileNotFoundError:
        return SecretFile(what=what, path=path, there=False)
    except OSError as error:
        return SecretFile(what=what, path=path, there=True, problem=str(error.strerror))
    problem = None
    if not (mode or 0) & 0o077:
        try:
            load(path)
        except UserError as error:
            problem = str(error)
    return SecretFile(what=what, path=path, there=True, mode=mode, problem=problem)


def _key_file(path: Path) -> SecretFile:
    file = secret_file("key file", path, load_or_create_identity)
    if not file.there or file.problem or (file.mode or 0) & 0o077:
        return file
    try:
        with hold_identity(path):
            return file
    except UserError:
        return attrs.evolve(file, held=True)


def _ports(asked: Asked, node: RunningNode | None) -> list[Port]:
    wanted = []
    if not asked.client:
        wanted = [
            ("inference", "TCP", "--port (PORT)", asked.host, asked.port, node and node.port),
            ("DHT", "UDP", "--dht-port (DHT_PORT)", asked.host, asked.dht_port, node and node.dht_port),
        ]
    if asked.http:
        place = asked.http.host, asked.http.port
        own = place[1] if _is_gateway(*place) else None
        wanted.append(("HTTP", "TCP", "--http-port (HTTP_PORT)", *place, own))
    return [
        Port(
            what=what,
            protocol=protocol,
            setting=setting,
            host=host,
            port=port,
            problem=_cannot_bind(protocol, host, port),
            ours=port == own,
        )
        for what, protocol, setting, host, port, own in wanted
        if port
    ]


def _cannot_bind(protocol: str, host: str, port: int) -> str | None:
    kind = socket.SOCK_STREAM if protocol == "TCP" else socket.SOCK_DGRAM
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=kind, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, kind) as sock:
            if protocol == "TCP":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
    except OSError as error:
        return "another program has it" if error.errno == errno.EADDRINUSE else str(error.strerror)
    return None


def _is_gateway(host: str, port: int) -> bool:
    """Whether a gateway of LlamaNet answers there; it describes its API to everybody."""
    near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    unchecked = ssl.create_default_context()
    unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
    for connection in (
        http.client.HTTPConnection(near, port, timeout=CONTROL_S),
        http.client.HTTPSConnection(near, port, timeout=CONTROL_S, context=unchecked),
    ):
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/openapi.json")
                told = json.loads(connection.getresponse().read())
                return bool(told["info"]["title"] == "LlamaNet")
            except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
                continue
    return False


def _model(source: str, slots: Slots) -> tuple[ModelFile, Path | None]:
    """What there is to say of a model, and its (first) file if it can be loaded."""
    try:
        path = find_local_model(source)
        if path is None:
            return ModelFile(source=source, to_pull=True), None
        files = model_files(path)
        check_layout(files)
        metadata = read_metadata(files[0])
    except UserError as error:
        return ModelFile(source=source, problem=str(error)), None
    facts = ModelFile(
        source=source,
        weights=sum(file.stat().st_size for file in files),
        remembered=kv_cache_bytes(metadata, slots),
        slots=slots.count,
        n_ctx=slots.n_ctx,
    )
    return facts, files[0]


def _free(folder: Path) -> int | None:
    there = next((path for path in (folder, *folder.parents) if path.exists()), None)
    try:
        return shutil.disk_usage(there).free if there else None
    except OSError:
        return None
