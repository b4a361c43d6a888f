"""The blocks of a page, run one after the other as a reader would, in a home and a folder of their own.

Rules:
- Blocks marked `sh`, `python` and `toml` are run, from top to bottom, as they stand. `toml` goes into the configuration
  file. `console` (lines that begin with `$`) and `text` are not: they belong to another machine, need its administrator
  or the internet, or take too long.
- A line that begins a node or a gateway runs until the page ends, or until a comment `<!-- new swarm -->`; then it has
  to drain, and to end with status 0. All else has to end by itself, with status 0.
- The Hugging Face hub is a server on this machine that speaks its protocol, and has `owner/repo`.
- Put in place of what differs between machines are only addresses and ports, which are those of the page's first node
  and of its gateway, and `llamanet1_...`, which is what `llamanet invite` printed last.
"""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import attrs

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$|^(<!-- new swarm -->)$", re.MULTILINE | re.DOTALL)
NODE_READY = re.compile(r"DHT on port (\d+) \(UDP\)")
GATEWAY_READY = re.compile(r"The gateway serves http://127\.0\.0\.1:(\d+)")
TALKS = re.compile(r"llamanet (ask|nodes|models|top|crawl|invite|keys|control)|curl")
"""Commands that print what they found."""
WITHIN_S = 120
RUN = ("sh", "python", "toml")


@attrs.frozen
class Block:
    """A fenced block; `language` is "new swarm" for the comment."""

    language: str
    text: str
    line: int


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block("new swarm" if found[3] else found[1], found[2] or "", text.count("\n", 0, found.start()) + 1)
        for found in BLOCK.finditer(text)
    ]


def commands_of(script: str) -> Iterator[str]:
    """The lines of a shell script, those that end with a backslash joined with the next."""
    for line in script.replace("\\\n", " ").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield line


class Service:
    """A node or a gateway, started by its line."""

    def __init__(self, command: str, folder: Path, environment: dict[str, str]) -> None:
        self.dht_port: str | None = None
        self.http_port: str | None = None
        self._log: list[str] = []
        self._ready = threading.Event()
        gateway = command.startswith("llamanet gateway")
        self._wanted = [] if gateway else [NODE_READY]
        if gateway or "--http-port" in command:
            self._wanted.append(GATEWAY_READY)
        self._process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self._process.stderr or ():
            self._log.append(line)
            if found := NODE_READY.search(line):
                self.dht_port = found[1]
            if found := GATEWAY_READY.search(line):
                self.http_port = found[1]
            self._wanted = [pattern for pattern in self._wanted if not pattern.search(line)]
            if not self._wanted:
                self._ready.set()
        self._ready.set()

    def wait_ready(self) -> None:
        assert self._ready.wait(WITHIN_S), "".join(self._log)
        assert not self._wanted, "".join(self._log)

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(WITHIN_S)
        finally:
            self._process.kill()
            self._reader.join()
            assert self._process.stderr
            self._process.stderr.close()
        assert status == 0, "".join(self._log)


class Session:
    """A reader's machine, with nothing on it but LlamaNet and `models/`."""

    def __init__(self, folder: Path, models: Path, hub: str) -> None:
        """Its files are below `folder`; `hub` is the URL of what stands in for the Hugging Face hub."""
        self._hub = hub
        self._home = folder / "home"
        self._work = folder / "work"
        for made in (self._home, self._work):
            made.mkdir()
        (self._work / "models").symlink_to(models)
        self._services: list[Service] = []
        self._forget()

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_services()

    def run(self, block: Block) -> None:
        if block.language == "new swarm":
            self._end_services()
        elif block.language == "toml":
            self._config.write_text(self._here(block.text))
        elif block.language == "python":
            program = self._work / "program.py"
            program.write_text(self._here(block.text))
            self._finish([sys.executable, str(program)])
        else:
            script: list[str] = []
            for command in commands_of(block.text):
                if self._is_service(command):
                    self._run_script(script)
                    script = []
                    self._start(self._here(command))
                else:
                    script.append(command)
            self._run_script(script)

    def _run_script(self, script: list[str]) -> None:
        if script:
            output = self._finish(["bash", "-euo", "pipefail", "-c", self._here("\n".join(script))])
            assert output or not any(TALKS.match(command) for command in script)
            if found := re.search(r"llamanet1_[\w-]+", output):
                self._invite = found[0]

    @staticmethod
    def _is_service(command: str) -> bool:
        return command.startswith(("llamanet node ", "llamanet gateway ")) or command == "llamanet gateway"

    def _start(self, command: str) -> None:
        number = len(self._services)
        own = {"DATA_DIR": str(self._home / f"node-{number}"), "CONTROL": str(self._home / f"control-{number}")}
        own |= {"HTTP_PORT": "0"} if "gateway" in command.split()[:2] else {}
        # Flags come before variables, and fixed ports may be taken here.
        command = re.sub(r"--(port|dht-port|http-port) \d+", r"--\1 0", command)
        service = Service(command, self._work, {**self._environment(), **own})
        self._services.append(service)
        service.wait_ready()
        if service.dht_port and self._node is None:
            self._node = service.dht_port
            self._variables |= {"BOOTSTRAP_NODES": f"127.0.0.1:{service.dht_port}", **own}
        if service.http_port:
            self._gateway = service.http_port

    def _finish(self, command: list[str]) -> str:
        result = subprocess.run(
            command,
            cwd=self._work,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
        )
        assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
        assert "Traceback" not in result.stderr, result.stderr
        return result.stdout

    def _here(self, text: str) -> str:
        """`text` with this machine's ports."""
        if self._node:
            text = re.sub(r"(127\.0\.0\.1|localhost|192\.0\.2\.7):8001", f"127.0.0.1:{self._node}", text)
        if self._gateway:
            text = re.sub(r"(127\.0\.0\.1|localhost):8080", f"127.0.0.1:{self._gateway}", text)
        return re.sub(r"llamanet1_[\w.…-]+", self._invite, text) if self._invite else text

    def _environment(self) -> dict[str, str]:
        commands = Path(sys.executable).parent
        return {
            **os.environ,
            "HOME": str(self._home),
            "XDG_CONFIG_HOME": str(self._home / "config"),
            "XDG_DATA_HOME": str(self._home / "data"),
            "XDG_STATE_HOME": str(self._home / "state"),
            "PATH": f"{commands}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HF_ENDPOINT": self._hub,
            "HF_HOME": str(self._home / "hub"),
            "HOST": "127.0.0.1",
            "PORT": "0",
            "DHT_PORT": "0",
            "N_THREADS": "1",
            **self._variables,
        }

    @property
    def _config(self) -> Path:
        path = self._home / "config" / "llamanet" / "config.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _end_services(self) -> None:
        services, self._services = self._services, []
        try:
            # Who joined last leaves first.
            while services:
                services.pop().end()
        finally:
            for service in services:
                service.end()
            self._forget()

    def _forget(self) -> None:
        self._node: str | None = None
        self._gateway: str | None = None
        self._invite: str | None = None
        self._variables: dict[str, str] = {}
        self._config.unlink(missing_ok=True)
