"""What the commands print where: data on standard output, everything else on standard error."""

import json
import re
import subprocess
import sys

import pytest

from llamanet._version import __version__
from llamanet.client import Client
from llamanet.testing.processes import NodeProcess

COUNTING = ("--no-chat", "--temperature", "0", "--max-tokens", "8")


@pytest.fixture
def bootstrap(swarm_of_three):
    return ("--bootstrap-nodes", ",".join(node.dht_address for node in swarm_of_three))


def test_ask(run, bootstrap):
    result = run("ask", "Count: 1, 2, 3,", *COUNTING, *bootstrap)
    assert result.returncode == 0
    assert result.stdout == " 4, 5, 6\n"
    assert re.fullmatch(r"node-\d, 8 tokens, \d+\.\d tokens/s, first token after \d+\.\d\d s\n", result.stderr)


def test_ask_explains_which_node_it_chose_and_why(run, bootstrap):
    result = run("ask", "Count: 1, 2, 3,", *COUNTING, "--explain", *bootstrap)
    assert result.stdout == " 4, 5, 6\n"
    head, titles, first, *others, blank, closing = result.stderr.splitlines()
    assert blank == ""
    chosen = closing.partition(",")[0]
    assert re.match(rf"chose {chosen} by soonest, of 3 known, with 3 probes, for a prompt of about 5 tokens; hot", head)
    assert titles.split() == [
        "node",
        "age",
        "rtt",
        "load",
        "ours",
        "tokens/s",
        "seen",
        "cached",
        "first",
        "token",
        "why",
    ]
    assert re.fullmatch(
        rf"{chosen} +0\.\d+ s +\d+\.\d ms +0\.00 \(0\+0/4\) +0 +\d+\.\d +- +0 +\d+\.\d+ s +the soonest", first
    )
    assert all(re.fullmatch(r"node-\d +0\.\d+ s .* later", line) for line in others)
    result = run("ask", "Count: 1, 2, 3,", *COUNTING, "--explain", *bootstrap, STRATEGY="round_robin")
    assert " by round_robin, " in result.stderr
    refused = run("ask", "Hi", "--strategy", "best", *bootstrap)
    assert refused.returncode == 2
    assert "'best' is not one of 'soonest', 'random', 'round_robin', 'least_load'" in refused.stderr


def test_ask_reads_variables_and_standard_input(run, bootstrap):
    result = run("ask", "-", *COUNTING, stdin="Count: 1, 2, 3,", BOOTSTRAP_NODES=bootstrap[1])
    assert result.stdout == " 4, 5, 6\n"
    assert run("ask", "Count:", "1,", "-", *COUNTING, *bootstrap, stdin="2, 3,").stdout == " 4, 5, 6\n"


def test_ask_chats_unless_told_otherwise(run, bootstrap, model):
    options = ("--model", model.stem, "--max-tokens", "16", "--temperature", "0", "--seed", "7")
    result = run("ask", "Count from 1 to 50.", *options, *bootstrap)
    assert result.stdout.startswith("1. 1\n2. 2\n3. 3\n")


def test_ask_binds_the_form_of_the_answer(run, bootstrap, tmp_path):
    grammar = tmp_path / "answer.gbnf"
    grammar.write_text('root ::= "yes" | "no"')
    assert run("ask", "Is water wet?", "--grammar", str(grammar), *bootstrap).stdout in ("yes\n", "no\n")

    schema = tmp_path / "answer.json"
    schema.write_text('{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}')
    result = run("ask", "A number.", "--json-schema", str(schema), "--temperature", "0", *bootstrap)
    assert isinstance(json.loads(result.stdout)["n"], int)

    assert run("ask", "Count: 1, 2, 3,", *COUNTING, "--stop", " 5", *bootstrap).stdout == " 4,\n"
    grammar.write_text("root ::= (")
    refused = run("ask", "Hi", "--grammar", str(grammar), *bootstrap)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "error: line 1, column 11 of the grammar: ')' is missing\n"
    grammar.write_bytes(b"\xff")
    assert run("ask", "Hi", "--grammar", str(grammar), *bootstrap).stderr.endswith("is not UTF-8 text\n")


def test_embeddings_and_log_probabilities_from_a_script(bootstrap):
    with Client(bootstrap[1]) as client:
        reply = client.embed(["A cat sat on the mat.", "A kitten sat on the rug.", "Rates rose."] * 12)
        assert len(reply.vectors) == 36
        assert all(sum(number * number for number in vector) == pytest.approx(1, abs=1e-4) for vector in reply.vectors)
        told = client.generate("Count: 1, 2, 3,", temperature=0, max_tokens=4, logprobs=2).logprobs
        assert b"".join(chance.piece for chance in told) == b" 4, "


def test_nodes(run, bootstrap, swarm_of_three, model):
    table = run("nodes", *bootstrap)
    assert (table.returncode, table.stderr) == (0, "")
    header, *rows = table.stdout.splitlines()
    assert header.split()[:4] == ["node", "id", "address", "models"]
    assert [row.split()[0] for row in rows] == ["node-1", "node-2", "node-3"]

    listed = run("nodes", "--json", *bootstrap)
    assert (listed.returncode, listed.stderr) == (0, "")
    nodes = json.loads(listed.stdout)
    assert [node["address"] for node in nodes] == [f"127.0.0.1:{node.port}" for node in swarm_of_three]
    for node in nodes:
        assert re.fullmatch(r"[0-9a-f]{64}", node["id"])
        assert node["models"] == [model.stem]
        assert (node["running"], node["waiting"], node["slots"], node["load"]) == (0, 0, 4, 0)
        assert node["tokens_per_second"] >= 0


def test_one_node_is_found_by_its_label_or_its_id(run, bootstrap, swarm_of_three):
    [found] = json.loads(run("nodes", "--json", "--node", "node-2", *bootstrap).stdout)
    assert found["address"] == f"127.0.0.1:{swarm_of_three[1].port}"
    assert json.loads(run("nodes", "--json", "--node", found["id"], *bootstrap).stdout)[0]["node_id"] == "node-2"
    assert json.loads(run("nodes", "--json", "--node", "nobody", *bootstrap).stdout) == []


def test_health_of_the_dht(run, bootstrap):
    *_, line = run("nodes", "--health", *bootstrap).stdout.splitlines()
    assert re.fullmatch(
        r"about 3 nodes; 3 contacts, 0 of them silent; \d+ of \d+ requests unanswered; "
        r"round trips of \d+ ms \(median\); peers see us at 127.0.0.1",
        line,
    )
    told = json.loads(run("nodes", "--health", "--json", *bootstrap).stdout)
    assert [node["node_id"] for node in told["nodes"]] == ["node-1", "node-2", "node-3"]
    assert (told["health"]["network_size"], told["health"]["drops"]["box"]) == (3.0, 0)


def test_models(run, bootstrap, model):
    table = run("models", *bootstrap)
    assert (table.returncode, table.stderr) == (0, "")
    assert [row.split()[:2] for row in table.stdout.splitlines()] == [["model", "nodes"], [model.stem, "3"]]

    (only,) = json.loads(run("models", "--json", *bootstrap).stdout)
    assert (only["name"], only["nodes"], only["slots"], only["n_ctx"]) == (model.stem, 3, 12, 2048)


def test_a_node_logs_json_objects_and_prints_nothing(swarm_of_three):
    for entry in swarm_of_three[0].log:
        assert {"time", "level", "logger", "message"} <= entry.keys()
    assert any(entry["message"].startswith("Published node info: ") for entry in swarm_of_three[0].log)


@pytest.mark.parametrize("command", [("ask", "Count: 1,", *COUNTING), ("nodes",), ("nodes", "--json")])
def test_an_output_that_is_full_is_one_line(bootstrap, command):
    with open("/dev/full", "w") as full:
        arguments = [sys.executable, "-m", "llamanet", *command, *bootstrap]
        result = subprocess.run(arguments, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert result.returncode in (1, 2)
    assert re.fullmatch(r"error: cannot write .*No space left on device.*\n", result.stderr)


def test_what_the_terminal_cannot_show_becomes_a_question_mark(run, bootstrap, tmp_path):
    grammar = tmp_path / "answer.gbnf"
    grammar.write_text('root ::= "caf\u00e9"', encoding="utf-8")
    result = run("ask", "Where?", "--grammar", str(grammar), *bootstrap, PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stdout) == (0, "caf?\n")


def test_a_node_serves_both_families(run, model):
    arguments = ("--model-path", str(model), "--host", "::", "--port", "0", "--dht-port", "0", "--n-threads", "1")
    with NodeProcess(*arguments).wait_ready() as node:
        for host in ("127.0.0.1", "[::1]"):
            peer = ("--bootstrap-nodes", f"{host}:{node.dht_port}")
            assert [found["node_id"] for found in json.loads(run("nodes", "--json", *peer).stdout)] == [node.label]
            assert run("ask", "Count: 1, 2, 3,", *COUNTING, *peer).stdout == " 4, 5, 6\n"


def test_crawl(run, bootstrap, swarm_of_three):
    result = run("crawl", *bootstrap)
    assert result.returncode == 0
    assert "nodes      3: 3 answer, 0 are silent\n" in result.stdout
    assert f"versions   {__version__} (3)\n" in result.stdout
    found = json.loads(run("crawl", "--json", *bootstrap).stdout)
    assert (found["counted"], found["answering"], found["estimated_size"]) == (3, 3, 3)
    assert {node["address"] for node in found["nodes"]} == {node.dht_address for node in swarm_of_three}
    nobody = run("crawl", "--bootstrap-nodes", "127.0.0.1:9")
    assert (nobody.returncode, nobody.stdout) == (1, "")
    assert nobody.stderr.startswith("error: not joined to any swarm")
    assert nobody.stderr.count("\n") == 1
