"""What all tests share: an environment without LlamaNet's variables, the command line as a process, the real model."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import trio

from llamanet.cli.demo_model import demo_model
from llamanet.node.config import NodeConfig

ROOT = Path(__file__).resolve().parent.parent
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_unconfigure() -> None:
    """Close what llama_cpp opens when it is imported: at exit Python may take it for a mistake of the last test's."""
    if opened := sys.modules.get("llama_cpp._utils"):
        opened.outnull_file.close()
        opened.errnull_file.close()


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside() -> None:
    for setting in attrs.fields(NodeConfig):
        os.environ.pop(setting.name.upper(), None)


@pytest.fixture(scope="session")
def run() -> Run:
    """Run `llamanet ARGUMENTS` to its end; keyword arguments are variables, `stdin` text for its standard input."""

    def run_llamanet(
        *arguments: object, stdin: str | None = None, timeout: float = 60, **variables: str
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "llamanet", *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, **variables},
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run_llamanet


@pytest.fixture(scope="session")
def model() -> Path:
    """The path of SmolLM2-135M-Instruct.Q4_1.gguf, in `models/`; downloaded if need be."""
    return trio.run(demo_model, ROOT / "models")
