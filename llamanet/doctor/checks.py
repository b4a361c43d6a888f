"""From facts to findings. Pure: one function for each thing that is looked at, and `judge_machine` for all of them."""

from collections.abc import Iterator

from llamanet.doctor.facts import Http, Machine, ModelFile, Port, SecretFile
from llamanet.doctor.finding import Finding, error, ok, warning
from llamanet.models.progress import size_text

LITTLE_DISK = 2**30
"""Bytes; less is a warning."""


def judge_machine(machine: Machine) -> list[Finding]:
    """What the machine's facts mean."""
    return list(_judge(machine))


def _judge(machine: Machine) -> Iterator[Finding]:
    if machine.node is not None:
        yield from _running_node(machine)
    if machine.key_file is not None:
        yield key_file(machine.key_file, runs=machine.node is not None)
    if machine.swarm_key_file is not None:
        yield swarm_key_file(machine.swarm_key_file)
    yield from map(port, machine.ports)
    for model in machine.models:
        # What a node has loaded is no longer free.
        yield from judge_model(model, machine.memory if machine.node is None else None)
    yield from _engine(machine)
    if machine.disk is not None and machine.disk < LITTLE_DISK:
        yield warning(
            "disk",
            f"only {size_text(machine.disk)} are free at {machine.data_dir}",
            "Keys, contacts and digests are kept there; a node that cannot write forgets them.",
            "Make room, or give another --data-dir (DATA_DIR).",
        )
    elif machine.disk is not None:
        yield ok("disk", f"{size_text(machine.disk)} are free at {machine.data_dir}")
    if machine.http is not None:
        yield from judge_http(machine.http)


def _running_node(machine: Machine) -> Iterator[Finding]:
    node = machine.node
    if node is None:
        return
    if node.held_by:
        yield warning(
            "node",
            f"the node {node.label} runs, and is drained by the {' and the '.join(node.held_by)}",
            "It takes no new requests, and clients do not find it.",
            "Run: llamanet control resume (the owner's own work lets go by itself).",
        )
    elif not node.models:
        yield warning(
            "node",
            f"the node {node.label} runs, and serves no model",
            "Nobody has a reason to ask it.",
            "Run: llamanet control load MODEL",
        )
    else:
        yield ok("node", f"the node {node.label} runs, and serves {', '.join(node.models)}")
    if node.version != machine.version:
        yield warning(
            "version",
            f"the node runs version {node.version}, and {machine.version} is installed",
            "What was mended since is not in it.",
            "Start the node anew.",
        )


def key_file(file: SecretFile, *, runs: bool) -> Finding:
    """The node's identity; `runs` says whether our node answers on its control socket."""
    if not file.there:
        return ok("key-file", f"the node gets its key when it first starts ({file.path})")
    why = "Who has this key is the node: others take it for the same."
    if (file.mode or 0) & 0o077:
        return error(
            "key-file",
            f"the key file {file.path} is open to others (mode {file.mode:04o})",
            f"{why} A node refuses to start with such a file.",
            f"Run: chmod 600 {file.path}; if strangers could read it, move it away to get a new key.",
        )
    if file.problem is not None:
        return error("key-file", file.problem, "Without its key the node cannot start.", "Mend the file, or move it.")
    if file.held and not runs:
        return warning(
            "key-file",
            f"a node runs with the key file {file.path}, and does not answer on its control socket",
            "What it knows of itself cannot be asked, and another node cannot start with that key.",
            "Give its --control (CONTROL) here, or stop it.",
        )
    return ok("key-file", f"the key file {file.path} is its owner's alone")


def swarm_key_file(file: SecretFile) -> Finding:
    """The key of a private swarm."""
    why = "Who has this key is a member of the swarm; without it, or with another one, all others are silent."
    if not file.there:
        return error(
            "swarm-key",
            f"there is no swarm key file {file.path}",
            why,
            "Copy the file from another member, or join by the line that llamanet invite prints there.",
        )
    if (file.mode or 0) & 0o077:
        return error(
            "swarm-key",
            f"the swarm key file {file.path} is open to others (mode {file.mode:04o})",
            why,
            f"Run: chmod 600 {file.path}; if strangers could read it, make a new one for all members.",
        )
    if file.problem is not None:
        return error("swarm-key", file.problem, why, "Copy the file from another member.")
    return ok("swarm-key", f"the swarm key file {file.path} is its owner's alone")


def port(facts: Port) -> Finding:
    """A port that is to be opened."""
    place = f"{facts.protocol} port {facts.port} ({facts.what})"
    if facts.ours:
        return ok("ports", f"{place} is our node's")
    if facts.problem is not None:
        return error(
            "ports",
            f"{place} cannot be opened on {facts.host}: {facts.problem}",
            "Without it nothing starts.",
            f"Stop the other program, or give another port by {facts.setting}.",
        )
    return ok("ports", f"{place} is free")


def judge_model(model: ModelFile, memory: int | None) -> Iterator[Finding]:
    """A model's file, and whether there is memory for it; `memory` is what is available, in bytes."""
    if model.problem is not None:
        do = "Give the path of a GGUF file, hf:owner/repo, or a name that llamanet models --local shows."
        yield error("model", model.problem, "A node does not start without its models.", do)
        return
    if model.to_pull:
        yield warning(
            "model",
            f"{model.source} is not on this machine",
            "The node pulls it when it starts, which takes a while and needs the network.",
            f"Run: llamanet pull {model.source}",
        )
        return
    yield ok("model", f"{model.source} is a GGUF model of {size_text(model.weights)}")
    if memory is None:
        return
    needed = f"{size_text(model.remembered)} for {model.slots} slots of {model.n_ctx} tokens"
    room = f"{model.source} needs {needed}, beside {size_text(model.weights)} of weights; {size_text(memory)} are free"
    if model.remembered > memory:
        yield error("memory", room, "It cannot be loaded.", "Lower --n-ctx or --n-parallel, or take a smaller model.")
    elif model.remembered + model.weights > memory:
        do = "Take a smaller model or quantisation."
        yield warning("memory", room, "Parts are read from the disk again and again, which is slow.", do)
    else:
        yield ok("memory", room)


def _engine(machine: Machine) -> Iterator[Finding]:
    engine = machine.engine
    if engine is None:
        return
    if engine.version is None:
        what, why = "llama-cpp-python is not installed", "A model of one's own needs it."
        do = "Run: pip install llama-cpp-python; or offer a server that is already there by --upstream (UPSTREAM)."
        yield error("llama.cpp", what, why, do) if machine.models else warning("llama.cpp", what, why, do)
        return
    if engine.problem is not None:
        yield error(
            "llama.cpp",
            f"llama.cpp cannot be used here: {engine.problem}",
            "It may be built for another processor than this one.",
            "Build it here: pip install --force-reinstall --no-binary llama-cpp-python llama-cpp-python",
        )
        return
    for file, why in engine.failures:
        yield error(
            "model",
            f"llama.cpp does not load {file}: {why}",
            "A node does not start without its models.",
            "Get the file again, or a llama-cpp-python that is new enough for it.",
        )
    if machine.n_gpu_layers and not engine.offload:
        yield error(
            "llama.cpp",
            f"--n-gpu-layers is {machine.n_gpu_layers}, and this llama.cpp can use no accelerator",
            "All is computed by the processor, many times slower.",
            "Install llama-cpp-python for your accelerator (its README tells how), or leave --n-gpu-layers out.",
        )
    offload = "it can use an accelerator" if engine.offload else "it computes on the processor alone"
    yield ok("llama.cpp", f"llama-cpp-python {engine.version}: {offload}; {', '.join(engine.features)}")


def judge_http(http: Http) -> Iterator[Finding]:
    """A gateway's settings."""
    if http.missing:
        yield error(
            "gateway",
            f"serving HTTP needs more packages: {', '.join(http.missing)}",
            "The gateway does not start without them.",
            "Run: pip install 'llamanet[gateway]'",
        )
    why = "Everybody who reaches the port can ask, at your cost, and see what is asked."
    if http.problem is not None:
        yield error("gateway", http.problem, "The gateway does not start with it.", "Mend the file.")
    elif http.public and http.key_file is None and not http.no_auth:
        yield error(
            "gateway",
            f"the gateway is to serve {http.host}, which others reach, without API keys",
            f"{why} It refuses to start like that.",
            "Make a key (llamanet keys api LABEL --file FILE) and give --api-key-file FILE; or leave --http-host out.",
        )
    elif http.public and http.no_auth:
        do = "Give --api-key-file instead of --no-auth, unless the network is trusted."
        yield warning("gateway", f"the gateway serves {http.host} to everybody (--no-auth)", why, do)
    else:
        keys = f"with the keys in {http.key_file}" if http.key_file else "to this machine alone"
        yield ok("gateway", f"the gateway serves {http.host} {keys}")
