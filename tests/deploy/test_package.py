"""The distribution: what is in it, and that it works where nothing else of the project is."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from llamanet._version import __version__

ROOT = Path(__file__).parents[2]
SMOKE = """
import importlib, pkgutil, llamanet, trio

for module in pkgutil.walk_packages(llamanet.__path__, "llamanet."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)

async def main():
    async with llamanet.Swarm(dht_port=0) as first, llamanet.Swarm([f"127.0.0.1:{first.dht_port}"]) as second:
        assert second.dht_port

trio.run(main)
print(llamanet.__version__)
"""


def run(*command, cwd):
    result = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=1800)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the sdist; the wheel is made from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    (sdist,) = folder.glob("*.tar.gz")
    return wheel, sdist


def test_the_distribution_has_what_it_needs_and_no_more(built):
    wheel, sdist = built
    names = set(zipfile.ZipFile(wheel).namelist())
    for needed in ("py.typed", "gateway/static/index.html", "cli/__init__.py"):
        assert f"llamanet/{needed}" in names
    assert {name.split("/")[0] for name in names} == {"llamanet", f"llamanet-{__version__}.dist-info"}
    with tarfile.open(sdist) as archive:
        source = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "tests/conftest.py"} <= source
    assert not [name for name in source if name.startswith(("models/", ".venv/", ".cache/"))]


def test_the_version_is_that_of_the_changelog(built):
    wheel, _ = built
    assert wheel.name.split("-")[1] == __version__
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert __version__ in changelog or "Unreleased" in changelog


def test_the_wheel_works_in_a_clean_environment(built, tmp_path):
    wheel, _ = built
    python = tmp_path / "bin" / "python"
    run(sys.executable, "-m", "venv", tmp_path, cwd=tmp_path)
    run(python, "-m", "pip", "install", f"{wheel}[gateway]", cwd=tmp_path)
    run(python, "-m", "pip", "check", cwd=tmp_path)
    assert run(python, "-c", SMOKE, cwd=tmp_path).strip() == __version__
    assert __version__ in run(tmp_path / "bin" / "llamanet", "--version", cwd=tmp_path)
