"""Each of `examples/` is run as it stands, against real nodes with the real model."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llamanet.testing.processes import start_node

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
WITHIN_S = 120


@pytest.fixture(scope="module")
def url(swarm_of_three, model, tmp_path_factory):
    """The URL of a node of the swarm that serves HTTP too."""
    arguments = ("--model-path", str(model), "--n-threads", "1", "--http-port", "0")
    with start_node(9, tmp_path_factory.mktemp("http"), [swarm_of_three[0].dht_address], *arguments) as node:
        entry = node.wait_for(lambda entry: "The gateway serves" in entry["message"], WITHIN_S)
        node.wait_ready()
        yield re.search(r"http://\S+", entry["message"])[0] + "/v1"


@pytest.fixture
def example(tmp_path):
    def run_example(name, *arguments):
        command = [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
        result = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=WITHIN_S
        )
        assert result.returncode == 0, result.stderr
        assert "Traceback" not in result.stderr, result.stderr
        return result.stdout

    return run_example


def test_all_examples_are_run():
    tested = {"trio_app", "asyncio_app", "openai_sdk", "langchain_chain", "batch_file", "own_policy"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested
    told = (EXAMPLES / "README.md").read_text()
    assert {name for name in tested if f"]({name}.py)" not in told} == set()


@pytest.mark.parametrize("name", ["trio_app", "asyncio_app"])
def test_two_questions_at_a_time(example, swarm_of_three, name):
    told = example(name, swarm_of_three[0].dht_address)
    assert len(re.findall(r"^What is an? \w+\? -- node-\d$", told, flags=re.MULTILINE)) == 2


def test_openai_sdk(example, url, model):
    told = example("openai_sdk", url)
    assert told.startswith(f"models: {model.stem}\n")
    assert re.search(r"^answered by node-\d$", told, flags=re.MULTILINE)


def test_langchain(example, url):
    assert re.match(r"Animal\(name='.*', legs=[02468]\)$", example("langchain_chain", url))


def test_batch_over_a_file_goes_on_where_it_was(example, swarm_of_three, tmp_path):
    prompts, answers = tmp_path / "prompts.txt", tmp_path / "answers.jsonl"
    prompts.write_text("A llama is\nAn alpaca is\nA camel is\n")
    example("batch_file", swarm_of_three[0].dht_address, prompts, answers)
    first = answers.read_text()
    assert all(json.loads(line)["text"] for line in first.splitlines())
    journal = Path(f"{answers}.journal")
    kept = journal.read_text()
    example("batch_file", swarm_of_three[0].dht_address, prompts, answers)
    assert (answers.read_text(), journal.read_text()) == (first, kept)


def test_own_policy(example, swarm_of_three):
    told = example("own_policy", swarm_of_three[0].dht_address, "node-2,node-3")
    assert re.search(r"^chose node-[23] by trusted_and_idle", told, flags=re.MULTILINE)
