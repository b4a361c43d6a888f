"""What runs LlamaNet elsewhere: valid by the tools of its kind, and true to the commands that it calls."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from llamanet.cli import COMMANDS, cli

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(sys.executable).parent
DOCKERFILES = sorted(ROOT.glob("docker/*.Dockerfile"))
MANIFESTS = sorted(path for path in ROOT.glob("deploy/kubernetes/*.yaml") if path.name != "kustomization.yaml")
UNITS = sorted(ROOT.glob("deploy/systemd/*.service"))
COMPOSE = ROOT / "docker" / "docker-compose.yml"


def check(*command):
    result = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr


def named(path):
    return path.name


def settings_of(command):
    """The variables that a command reads."""
    options = cli.get_command(None, command).params
    names = [option.envvar for option in options if option.envvar]
    return {name for entry in names for name in ([entry] if isinstance(entry, str) else entry)}


def manifests():
    return [document for path in MANIFESTS for document in yaml.safe_load_all(path.read_text())]


@pytest.mark.parametrize("path", DOCKERFILES, ids=named)
def test_hadolint_finds_nothing_in_a_dockerfile(path):
    check(SCRIPTS / "hadolint", path)


def test_the_compose_file_follows_the_compose_specification():
    check(SCRIPTS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE)


@pytest.mark.parametrize("path", MANIFESTS, ids=named)
def test_a_manifest_is_what_kubernetes_takes(path):
    check(SCRIPTS / "kubernetes-validate", "--strict", path)


def test_kustomize_names_every_manifest():
    named_there = yaml.safe_load((ROOT / "deploy/kubernetes/kustomization.yaml").read_text())["resources"]
    assert sorted(named_there) == [path.name for path in MANIFESTS]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("path", UNITS, ids=named)
def test_systemd_takes_a_unit(path, tmp_path):
    unit = tmp_path / path.name
    # The program is not where the unit says, and systemd looks.
    unit.write_text(path.read_text().replace("/opt/llamanet/bin/llamanet", "/bin/true"))
    check("systemd-analyze", "verify", "--man=no", unit)


@pytest.mark.parametrize("service", ["bootstrap", "node-2", "node-3", "gateway"])
def test_what_compose_sets_is_what_the_command_reads(service):
    entry = yaml.safe_load(COMPOSE.read_text())["services"][service]
    command = entry.get("command", ["node"])[0]
    assert set(entry["environment"]) <= settings_of(command)


def test_further_nodes_of_compose_join_by_themselves():
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    assert services["bootstrap"]["ports"] == ["8000:8000/tcp", "8001:8001/udp"]
    assert services["gateway"]["ports"] == ["127.0.0.1:8080:8080"]
    for name in ("node-2", "node-3", "gateway"):
        assert services[name]["environment"]["BOOTSTRAP_NODES"] == "bootstrap:8001"
    assert [services[name]["profiles"] for name in ("prometheus", "grafana")] == [["monitoring"]] * 2
    for name in ("prometheus", "grafana"):
        for volume in services[name]["volumes"]:
            if volume.startswith("."):
                assert (COMPOSE.parent / volume.partition(":")[0]).exists(), volume


def test_what_kubernetes_sets_is_what_the_command_reads():
    containers = [
        container
        for manifest in manifests()
        if manifest["kind"] in ("StatefulSet", "Deployment")
        for container in manifest["spec"]["template"]["spec"]["containers"]
    ]
    assert len(containers) == 2
    for container in containers:
        variables = {variable["name"] for variable in container["env"]} - {"POD_IP"}
        assert variables <= settings_of(container["args"][0])


def test_what_prometheus_scrapes_by_annotation_needs_no_key():
    for manifest in manifests():
        template = manifest.get("spec", {}).get("template", {})
        if template.get("metadata", {}).get("annotations", {}).get("prometheus.io/scrape") == "true":
            variables = {entry["name"]: entry.get("value") for entry in template["spec"]["containers"][0]["env"]}
            assert "API_KEY_FILE" not in variables or variables["OPEN_METRICS"] == "1"


def test_bootstrap_names_of_kubernetes_are_pods_of_its_service():
    found = {
        manifest["kind"]: manifest for manifest in manifests() if manifest["metadata"]["name"].startswith("llamanet")
    }
    stateful_set, service = (
        found["StatefulSet"],
        next(m for m in manifests() if m.get("spec", {}).get("clusterIP") == "None"),
    )
    pod = stateful_set["metadata"]["name"]
    assert stateful_set["spec"]["serviceName"] == service["metadata"]["name"]
    for peer in re.findall(r"value: (\S+:8001\S*)", (ROOT / "deploy/kubernetes/gateway.yaml").read_text()):
        for number, name in enumerate(peer.split(",")):
            assert name == f"{pod}-{number}.{service['metadata']['name']}:8001"


@pytest.mark.parametrize("path", UNITS, ids=named)
def test_a_unit_starts_a_command_and_sets_what_it_reads(path):
    text = path.read_text()
    command = re.search(r"^ExecStart=\S+/llamanet (\w+)$", text, re.M)[1]
    assert command in COMMANDS
    assert set(re.findall(r"^Environment=(\w+)=", text, re.M)) <= settings_of(command)


@pytest.mark.parametrize("path", DOCKERFILES, ids=named)
def test_what_an_image_sets_and_calls_is_there(path):
    text = path.read_text().replace("\\\n", " ")
    variables = set(re.findall(r"(\w+)=", " ".join(re.findall(r"^ENV (.*)$", text, re.M)))) - {"PATH"}
    assert variables <= settings_of("node")
    for called in re.findall(r"^(?:HEALTHCHECK.* )?CMD (\[.*\])$", text, re.M):
        words = json.loads(called)
        assert (words[1] if words[0] == "llamanet" else words[0]) in COMMANDS
    assert '["llamanet", "control", "status", "--ready"]' in text
    assert re.search(r"^USER (?!root|0)", text, re.M)
    for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.M):
        assert all((ROOT / source).exists() for source in sources.split())


def test_the_install_steps_of_the_images_work_in_a_clean_environment(tmp_path):
    """As the images do it, but for where it is put and for the compiler's settings: the wheel that exists is taken."""
    steps = [re.search(r"RUN (python3 -m venv /opt.*?)\n\n", path.read_text(), re.S)[1] for path in DOCKERFILES]
    assert len(set(steps)) == 1
    source = tmp_path / "src"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "llamanet", source / "llamanet", ignore=shutil.ignore_patterns("__pycache__"))
    script = steps[0].replace("/opt/llamanet", str(tmp_path / "opt")).replace("/src", str(source))
    script = script.replace("--no-cache-dir ", "").replace("python3 -m venv", f"{sys.executable} -m venv")
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    installed = subprocess.run(
        ["bash", "-euc", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800
    )
    assert installed.returncode == 0, installed.stdout[-3000:] + installed.stderr[-3000:]
    program = tmp_path / "opt" / "bin" / "llamanet"
    for arguments in (["--version"], ["node", "--help"], ["gateway", "--help"]):
        check(program, *arguments)
    check(
        tmp_path / "opt" / "bin" / "python", "-c", "import llama_cpp, llamanet.gateway.service, llamanet.node.service"
    )
