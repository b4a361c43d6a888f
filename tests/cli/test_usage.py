"""What the command line says before it does anything: help, and one line for each mistake, with exit status 2."""

import os
import socket
import subprocess
import sys

import attrs
import pytest

from llamanet._version import __version__
from llamanet.cli import COMMANDS, MEANT, cli
from llamanet.cli import options as cli_options
from llamanet.cli.http import HTTP_SETTINGS
from llamanet.cli.options import asking
from llamanet.errors import UserError
from llamanet.gateway.config import GatewayConfig


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_imports_nothing_heavy(command):
    code = (
        "import sys, llamanet.cli\n"
        f"try: llamanet.cli.main({[*command, '--help']!r})\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'trio', 'rich', 'llama_cpp', 'numpy', 'cryptography', 'ssl', 'jinja2'}\n"
        "print(sorted(heavy & sys.modules.keys()), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert "Usage: llamanet" in result.stdout
    assert result.stderr == "[]\n"


def test_help_names_every_command(run):
    result = run("--help")
    assert result.returncode == 0
    assert all(name in result.stdout for name in COMMANDS)


def test_version(run):
    assert run("--version").stdout == f"llamanet {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nod"], "No such command 'nod'. (Did you mean one of: 'node', 'nodes'?)"),
        (["serve"], "No such command 'serve'. Did you mean: llamanet node?"),
        (["keys", "apy"], "No such command 'apy'. Did you mean 'api'?"),
        (["--loud"], "No such option"),
        (["node", "--loud"], "--loud"),
        (["node"], "--model-path (MODEL_PATH) is required"),
        (["node", "--port", "x"], "'--port' (env var: 'PORT'): 'x' is not a valid integer"),
        (["node", "--model-path", "m.gguf", "--port", "70000"], "--port (PORT) must be a whole number"),
        (["node", "--model-path", "m.gguf", "--dht-port", "-1"], "--dht-port (DHT_PORT) must be a whole number"),
        (["node", "--model-path", "m.gguf", "--host", "1.2.3"], "--host (HOST) must be an IP address or a host name"),
        (["node", "--model-path", "m.gguf", "--announce", "no host"], "--announce (ANNOUNCE) must be"),
        (["node", "--model-path", "m.gguf", "--n-ctx", "0"], "--n-ctx (N_CTX) must be"),
        (["node", "--model-path", "m.gguf", "--n-batch", "0"], "--n-batch (N_BATCH) must be"),
        (["node", "--model-path", "m.gguf", "--n-parallel", "0"], "--n-parallel (N_PARALLEL) must be"),
        (["node", "--model-path", "m.gguf", "--n-threads", "0"], "--n-threads (N_THREADS) must be"),
        (["node", "--model-path", "m.gguf", "--n-gpu-layers", "-2"], "--n-gpu-layers (N_GPU_LAYERS) must be"),
        (["node", "--model-path", "m.gguf", "--heartbeat-interval", "0"], "--heartbeat-interval (HEARTBEAT_INTERVAL)"),
        (["node", "--model-path", "m.gguf", "--heartbeat-interval", "nan"], "--heartbeat-interval"),
        (["node", "--model-path", "m.gguf", "--node-id", ""], "--node-id (NODE_ID) must be"),
        (["node", "--model-path", "m.gguf", "--log-level", "loud"], "'--log-level' (env var: 'LOG_LEVEL')"),
        (["node", "--bootstrap-nodes", "localhost"], "'localhost' is not host:port"),
        (["node", "--bootstrap-nodes", "a:1,b:x"], "'b:x' is not host:port"),
        (["ask", "Hi", "--join", "llamanet1_AAAA"], "the invitation is damaged or incomplete (--join); paste"),
        (["node", "--model-path", "m.gguf", "--join", "x"], "not an invitation; one begins with llamanet1_ (--join)"),
        (["ask", "Hi", "--bootstrap-nodes", "ab@127.0.0.1:1"], "is not KEY@host:port"),
        (["ask", "", " "], "PROMPT is empty"),
        (["ask", "Hi", "--json", "--grammar", "README.md"], "give one of --json, --json-schema and --grammar"),
        (["ask", "--bootstrap-nodes", "127.0.0.1:1"], "Missing argument 'PROMPT'"),
        (["ask", "Hi", "--bootstrap-nodes", "::1:80"], "write an IPv6 address in brackets"),
        (["ask", "Hi", "--bootstrap-nodes", "127.0.0.1:1", "--max-tokens", "many"], "--max-tokens"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_status_2(run, arguments, says):
    result = run(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert says in result.stderr


def test_a_mistake_in_a_variable_names_the_variable(run):
    assert "PORT" in run("node", PORT="x").stderr
    assert "--n-ctx (N_CTX) must be" in run("node", MODEL_PATH="m.gguf", N_CTX="1").stderr


def test_a_node_that_serves_http_takes_what_a_gateway_takes():
    told = {name: {option.name for option in cli.get_command(None, name).params} for name in ("node", "gateway")}
    assert set(HTTP_SETTINGS) <= told["node"]
    assert {field.name for field in attrs.fields(GatewayConfig)} <= told["gateway"]
    assert told["gateway"] - set(HTTP_SETTINGS) <= told["node"]


@pytest.mark.parametrize("group", [[], ["keys"], ["control"]])
def test_a_group_without_a_command_shows_its_help(run, group):
    result = run(*group)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("Usage: llamanet")
    assert "\nCommands:\n" in result.stderr


@pytest.mark.parametrize("words", MEANT.values())
def test_what_may_be_meant_is_there(run, words):
    assert run(*words.split(), "--help").returncode == 0


def test_without_a_node_on_this_machine_it_is_told_at_once(monkeypatch):
    nowhere = {"bootstrap_nodes": (), "join": None}
    with socket.socket(type=socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setattr(cli_options, "LOCAL_NODE", (address,))
        assert asking(nowhere)["bootstrap_nodes"] == (address,)
    with pytest.raises(UserError, match=rf"no node runs on this machine \(nobody listens on UDP {address}\)"):
        asking(nowhere)
    assert asking({**nowhere, "bootstrap_nodes": ("a:1",)})["bootstrap_nodes"] == ("a:1",)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full device")
def test_an_output_that_is_full_or_closed_is_no_traceback():
    command = f"{sys.executable} -m llamanet keys swarm"
    for where, status, says in ((">/dev/full", 1, "error: cannot write the output"), (">&-", 0, "")):
        script = f"f=$(mktemp -u); {command} $f {where}; s=$?; rm $f; exit $s"
        result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=30)
        assert (result.returncode, result.stderr.count("\n")) == (status, bool(says))
        assert result.stderr.startswith(says)


def test_a_prompt_that_is_no_text():
    command = [sys.executable, "-m", "llamanet", "ask", "-"]
    for locale in ("C.UTF-8", "C"):
        result = subprocess.run(
            command, input=b"\xff", capture_output=True, env={**os.environ, "LC_ALL": locale}, timeout=30
        )
        assert (result.returncode, result.stderr) == (2, b"error: <stdin> is not UTF-8 text\n")
