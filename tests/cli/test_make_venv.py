"""What `make` says where the machine lacks something: one line, before anything is made."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "make_venv.py"


@pytest.fixture
def make_venv():
    spec = importlib.util.spec_from_file_location("make_venv", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_this_python_will_do(make_venv):
    make_venv.check_python()


def test_old_python(make_venv, monkeypatch):
    monkeypatch.setattr(make_venv, "OLDEST_PYTHON", (99, 0))
    with pytest.raises(SystemExit, match=r"^make: Python 3\.10 or newer is needed, .*PYTHON="):
        make_venv.check_python()


def test_python_without_ensurepip(make_venv, monkeypatch):
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    with pytest.raises(SystemExit, match=r"^make: .* has no module ensurepip; .*python3-venv"):
        make_venv.check_python()


def test_no_compiler(make_venv, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(SystemExit, match=r"^make: a C\+\+ compiler is needed .*g\+\+"):
        make_venv.check_compiler()
    monkeypatch.setenv("CXX", "clang++-18")
    make_venv.check_compiler()


def test_progress_tells_what_pip_does(make_venv, capsys):
    screen = make_venv.Screen()
    try:
        screen.show("Collecting trio>=0.30")
        assert screen.doing == "getting trio>=0.30"
        screen.show("  [12/193] /usr/bin/c++ -O3 ...")
        assert screen.doing.endswith(": file 12 of 193")
        screen.show("  a line that means nothing")
        assert screen.doing.endswith(": file 12 of 193")
    finally:
        screen.close()
