"""Every block of the README does what it says, as it stands but for the ports, which are those of the tests' swarm."""

import os
import re
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from llamanet.node.config import NodeConfig
from llamanet.testing.processes import NodeProcess

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [
    line
    for language, block in BLOCKS
    if language == "sh"
    for line in block.splitlines()
    if line.startswith("llamanet ")
]
PROGRAMS = [block for language, block in BLOCKS if language == "python"]
WITHIN_S = 120


def test_all_blocks_are_known():
    assert {language for language, _ in BLOCKS} == {"sh", "python"}
    others = {line for language, block in BLOCKS if language == "sh" for line in block.splitlines()} - set(COMMANDS)
    assert others == {"make demo", "make test", ". .venv/bin/activate"}


@pytest.mark.parametrize("command", [line for line in COMMANDS if not line.startswith("llamanet node ")])
def test_command(command, swarm_of_three):
    command = command.replace("127.0.0.1:8001", swarm_of_three[0].dht_address)
    result = subprocess.run(
        command.replace("llamanet", f"{sys.executable} -m llamanet", 1),
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("llamanet node ")])
def test_node(command, swarm_of_three, model, tmp_path):
    arguments = command.replace("192.0.2.7:8001", swarm_of_three[0].dht_address).split()[2:]
    free_ports = {"HOST": "127.0.0.1", "PORT": "0", "DHT_PORT": "0", "DATA_DIR": str(tmp_path), "N_THREADS": "1"}
    with NodeProcess(*arguments, variables=free_ports) as node:
        node.wait_ready()
    assert node.process.returncode == 0


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.splitlines()[0])
def test_program(program, swarm_of_three, tmp_path):
    path = tmp_path / "program.py"
    path.write_text(program.replace("127.0.0.1:8001", swarm_of_three[0].dht_address))
    result = subprocess.run(
        [sys.executable, path],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert result.stdout.strip()


def test_the_table_of_settings_is_complete():
    names = [field.name for field in attrs.fields(NodeConfig)]
    section = README.partition("## Configure a node")[2].partition("\n## ")[0]
    flags, variables = zip(*re.findall(r"^\| ([^|]*) \| ([^|]*) \|", section, flags=re.MULTILINE)[1:], strict=True)
    assert sorted(re.findall("`--(.*?)`", ",".join(flags))) == sorted(name.replace("_", "-") for name in names)
    assert sorted(re.findall("`(.*?)`", ",".join(variables))) == sorted(name.upper() for name in names)
