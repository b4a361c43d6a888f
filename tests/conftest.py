"""What all tests share: the command line in a process of its own, in an environment without LlamaNet's variables."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from llamanet.node.config import NodeConfig

ROOT = Path(__file__).resolve().parent.parent
Run = Callable[..., "subprocess.CompletedProcess[str]"]


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
