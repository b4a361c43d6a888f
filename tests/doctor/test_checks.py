"""What facts of a machine mean."""

from pathlib import Path

import attrs
import pytest

from llamanet.doctor.checks import judge_machine, key_file, swarm_key_file
from llamanet.doctor.facts import Engine, Http, Machine, ModelFile, RunningNode, SecretFile
from llamanet.doctor.finding import Level

GIB = 2**30
NODE = RunningNode(label="a", id="00", version="1", port=8000, dht_port=8001, models=("m",))
MODEL = ModelFile(source="m.gguf", weights=GIB, remembered=GIB, slots=4, n_ctx=2048)
ENGINE = Engine(version="0.3", features=("AVX2",))
HTTP = Http(host="0.0.0.0", public=True, key_file=None, no_auth=False, missing=(), problem=None)


def bad(machine):
    return [
        (finding.check, finding.level.value, finding.what)
        for finding in judge_machine(machine)
        if finding.level is not Level.OK
    ]


def only(machine):
    [found] = bad(machine)
    return found


def test_a_machine_that_is_well():
    machine = Machine(
        key_file=SecretFile(what="key file", path=Path("k"), there=True, mode=0o600),
        models=(MODEL,),
        engine=ENGINE,
        memory=3 * GIB,
        disk=5 * GIB,
        http=attrs.evolve(HTTP, key_file=Path("keys")),
    )
    assert bad(machine) == []


@pytest.mark.parametrize(
    ("memory", "level"), [(GIB // 2, "error"), (GIB + GIB // 2, "warning"), (3 * GIB, None), (None, None)]
)
def test_memory_is_told_with_the_numbers(memory, level):
    found = bad(Machine(models=(MODEL,), memory=memory))
    assert [(check, how) for check, how, _ in found] == ([("memory", level)] if level else [])
    assert all("1.0 GiB for 4 slots of 2048 tokens" in what for _, _, what in found)


def test_what_a_node_has_loaded_is_not_missed():
    assert bad(Machine(models=(MODEL,), memory=1, node=NODE, version="1")) == []


def test_a_running_node():
    assert only(Machine(node=attrs.evolve(NODE, held_by=("operator",)), version="1"))[0] == "node"
    assert only(Machine(node=attrs.evolve(NODE, models=()), version="1"))[0] == "node"
    assert only(Machine(node=NODE, version="2"))[:2] == ("version", "warning")


def test_llama_cpp():
    assert only(Machine(engine=Engine(version=None)))[:2] == ("llama.cpp", "warning")
    assert only(Machine(engine=Engine(version=None), models=(MODEL,)))[:2] == ("llama.cpp", "error")
    assert "signal 4" in only(Machine(engine=Engine(version="", problem="it ended with signal 4")))[2]
    assert "no accelerator" in only(Machine(engine=ENGINE, n_gpu_layers=-1))[2]
    assert bad(Machine(engine=attrs.evolve(ENGINE, offload=True), n_gpu_layers=-1)) == []
    assert "m.gguf: odd" in only(Machine(engine=attrs.evolve(ENGINE, failures=(("m.gguf", "odd"),))))[2]


def test_little_disk_and_a_model_that_is_not_here():
    assert only(Machine(disk=10, data_dir=Path("d")))[:2] == ("disk", "warning")
    assert only(Machine(models=(ModelFile(source="hf:a/b", to_pull=True),)))[:2] == ("model", "warning")


def test_a_gateway():
    assert only(Machine(http=HTTP))[1] == "error"
    assert only(Machine(http=attrs.evolve(HTTP, no_auth=True)))[1] == "warning"
    assert bad(Machine(http=attrs.evolve(HTTP, host="127.0.0.1", public=False))) == []
    well = attrs.evolve(HTTP, key_file=Path("keys"))
    assert "starlette" in only(Machine(http=attrs.evolve(well, missing=("starlette",))))[2]
    assert only(Machine(http=attrs.evolve(well, problem="line 1: no key")))[2] == "line 1: no key"


def test_secret_files():
    file = SecretFile(what="key file", path=Path("k"), there=True, mode=0o600)
    held = attrs.evolve(file, held=True)
    assert key_file(held, runs=True).level is Level.OK
    assert key_file(held, runs=False).level is Level.WARNING
    assert key_file(attrs.evolve(file, there=False), runs=False).level is Level.OK
    assert "chmod 600 k" in key_file(attrs.evolve(file, mode=0o640), runs=False).do
    assert key_file(attrs.evolve(file, mode=None), runs=False).level is Level.OK
    assert swarm_key_file(attrs.evolve(file, there=False)).level is Level.ERROR
    assert swarm_key_file(attrs.evolve(file, problem="odd")).what == "odd"
