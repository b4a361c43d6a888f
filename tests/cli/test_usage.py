"""What the command line says before it does anything: help, and one line for each mistake, with exit status 2."""

import subprocess
import sys

import attrs
import pytest

from llamanet._version import __version__
from llamanet.cli import COMMANDS, cli
from llamanet.cli.http import HTTP_SETTINGS
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
        (["nod"], "No such command 'nod'"),
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
