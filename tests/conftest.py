"""What all tests share: the command line in a process of its own, in an environment without LlamaNet's variables."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
VARIABLES = (
    "MODEL_PATH HOST PORT DHT_PORT NODE_ID BOOTSTRAP_NODES HEARTBEAT_INTERVAL N_CTX N_BATCH N_GPU_LAYERS N_PARALLEL"
    " N_THREADS ANNOUNCE DATA_DIR LOG_LEVEL LOG_FORMAT NO_TLS SWARM_KEY_FILE"
).split()

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside() -> None:
    for name in VARIABLES:
        os.environ.pop(name, None)


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
