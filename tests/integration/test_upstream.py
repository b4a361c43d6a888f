"""Nodes that offer the models of a server that is already there: here the HTTP port of a node of another swarm.

So the same requests can be put to the model itself and to nodes in front of it.
"""

import contextlib
import json
import re
import signal

import pytest

from llamanet.client import Client
from llamanet.errors import NoNodeServes, RequestRefused
from llamanet.testing.processes import start_node

MODEL = "SmolLM2-135M-Instruct.Q4_1"
LONG = {"prompt": "Count: 1, 2, 3,", "temperature": 0.0, "max_tokens": 80}


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    """A node with the real model and an HTTP port; its URL."""
    node = start_node(
        9, tmp_path_factory.mktemp("server"), [], "--model-path", str(model), "--n-threads", "1", "--http-port", "0"
    )
    with node:
        node.wait_ready()
        entry = node.wait_for(lambda entry: "The gateway serves" in entry["message"], 60)
        yield node, re.search(r"http://\S+", entry["message"])[0] + "/v1"


@pytest.fixture
def start_nodes(server, tmp_path):
    """Start nodes in front of the server; they are closed after the test."""
    with contextlib.ExitStack() as stack:

        def start(size, *arguments):
            nodes = []
            for number in range(1, size + 1):
                bootstrap = [nodes[0].dht_address] if nodes else []
                node = start_node(number, tmp_path, bootstrap, "--upstream", server[1], *arguments)
                nodes.append(stack.enter_context(node).wait_ready())
            return nodes

        yield start


@pytest.fixture
def ask(start_nodes):
    (node,) = start_nodes(1)
    with Client(node.dht_address) as client:
        yield client


@pytest.fixture(scope="module")
def direct(server):
    with Client(server[0].dht_address) as client:
        yield client


def test_it_answers_as_the_model_does(ask, direct):
    for question in (
        LONG,
        LONG | {"stop": ["9"]},
        LONG | {"max_tokens": 12, "logprobs": 2},
        {"messages": [{"role": "user", "content": "Name a colour."}], "temperature": 0.0, "max_tokens": 12},
        {"prompt": "Once upon a time", "temperature": 0.9, "seed": 3, "max_tokens": 12},
    ):
        expected, reply = direct.generate(**question), ask.generate(**question)
        assert (reply.text, reply.finish_reason) == (expected.text, expected.finish_reason)
        assert reply.usage.completion_tokens == expected.usage.completion_tokens
        assert reply.usage.prompt_tokens == expected.usage.prompt_tokens
        assert [told.logprob for told in reply.logprobs] == pytest.approx([told.logprob for told in expected.logprobs])


def test_json_follows_a_schema_and_tools_are_called(ask):
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    reply = ask.generate("A number:", response_format=form, temperature=0.0, max_tokens=64)
    assert list(json.loads(reply.text)) == ["n"]
    tool = {"type": "function", "function": {"name": "count", "parameters": schema}}
    reply = ask.generate(
        messages=[{"role": "user", "content": "Count to 3."}],
        tools=[tool],
        tool_choice="required",
        temperature=0.0,
        max_tokens=64,
    )
    assert reply.finish_reason == "tool_calls"
    assert [call.name for call in reply.tool_calls][:1] == ["count"]
    assert list(json.loads(reply.tool_calls[0].arguments)) == ["n"]


def test_texts_are_embedded(ask, direct):
    vectors, expected = ask.embed(["llama", "alpaca"]).vectors, direct.embed(["llama", "alpaca"]).vectors
    for vector, same in zip(vectors, expected, strict=True):
        assert vector == pytest.approx(same, abs=1e-5)


def test_what_the_server_refuses_is_refused_with_its_words(ask):
    with pytest.raises(RequestRefused, match="2048"):
        ask.generate("word " * 3000, max_tokens=5)
    with pytest.raises(NoNodeServes, match="grammar"):
        ask.generate("x", grammar='root ::= "a"')


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_a_stream_outlives_its_node(start_nodes, direct, number):
    expected = direct.generate(**LONG)
    nodes = {node.label: node for node in start_nodes(2)}
    with Client(next(iter(nodes.values())).dht_address) as client:
        while len(client.nodes(MODEL)) < 2:
            pass
        with client.stream(**LONG) as stream:
            text = next(stream).text
            first = stream.node_id
            nodes[first].send_signal(number)
            text += "".join(chunk.text for chunk in stream)
            reply = stream.reply()
        if number == signal.SIGSTOP:
            nodes[first].send_signal(signal.SIGCONT)
    assert text == expected.text
    assert reply.usage.completion_tokens == expected.usage.completion_tokens
    if number != signal.SIGTERM:
        assert [hop.node_id for hop in reply.hops] == [first]


def test_stopping_stops_the_server_too(ask, server):
    def running():
        with Client(server[0].dht_address) as look:
            return sum(node.running for node in look.nodes())

    with ask.stream("Once", max_tokens=1500, ignore_eos=True, temperature=0.0) as stream:
        next(stream)
        assert running() == 1
    for _ in range(50):
        if not running():
            break
    assert running() == 0


def test_a_model_that_the_server_lost_is_no_longer_offered(model, tmp_path):
    behind = start_node(8, tmp_path, [], "--model-path", str(model), "--n-threads", "1", "--http-port", "0")
    with behind:
        entry = behind.wait_for(lambda entry: "The gateway serves" in entry["message"], 60)
        url = re.search(r"http://\S+", entry["message"])[0] + "/v1"
        with start_node(1, tmp_path, [], "--upstream", url) as node:
            node.wait_ready()
            behind.close()
            node.wait_for(lambda entry: "cannot reach the server" in entry["message"], 30)
            with Client(node.dht_address) as client, pytest.raises(NoNodeServes):
                client.generate("x", model=MODEL, max_tokens=1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--upstream", "localhost"], "must be a URL such as"),
        (["--upstream", "http://127.0.0.1:1/v1"], "cannot reach the server at http://127.0.0.1:1/v1"),
        (["--upstream", "{root}"], "does not list models as OpenAI's API does"),
        (["--upstream", "{url}", "--upstream-model", "x"], f"has none of x: it has {MODEL}"),
    ],
)
def test_a_wrong_server_is_one_line(run, server, arguments, says):
    url = server[1]
    given = [argument.format(url=url, root=url.removesuffix("/v1") + "/nothing") for argument in arguments]
    result = run("node", "--port", "0", "--dht-port", "0", "--log-level", "error", *given)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert says in result.stderr


def test_it_needs_no_llama_cpp(server, tmp_path, monkeypatch):
    hidden = tmp_path / "hide"
    hidden.mkdir()
    # An installation without the package: importing it fails.
    (hidden / "llama_cpp.py").write_text("raise ModuleNotFoundError('No module named llama_cpp', name='llama_cpp')\n")
    monkeypatch.setenv("PYTHONPATH", str(hidden))
    with start_node(1, tmp_path, [], "--upstream", server[1]) as node, Client(node.wait_ready().dht_address) as client:
        assert client.generate("Once", max_tokens=2, temperature=0.0).text


def test_a_model_of_ones_own_says_when_llama_cpp_is_missing(run, model, tmp_path):
    (tmp_path / "llama_cpp.py").write_text("raise ModuleNotFoundError('No module named llama_cpp', name='llama_cpp')\n")
    result = run(
        *("node", "--port", "0", "--dht-port", "0", "--log-level", "error", "--model-path", model),
        PYTHONPATH=str(tmp_path),
    )
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "llama-cpp-python is not installed" in result.stderr
