"""The control socket: what its owner tells a running node to do. A UNIX socket that only its owner can open.

A connection carries one request, a line of JSON, and its answer, lines of JSON:

    {"do": "load", "model": "hf:owner/repo:Q4_K_M"}
    {"progress": {"what": "Loading x", "done": 120, "whole": 1000}}     none or more of these
    {"ok": {"name": "x", ...}}                                          or {"error": "one line", "status": 2}

| `do` | takes | is answered when |
|---|---|---|
| `status` | | at once |
| `load` | `model` | the model is served, and published unless the node is drained |
| `unload` | `model`, `timeout` (seconds, 30) | its streams have ended and its memory is free |
| `drain` | `wait` (true) | what ran has finished; the process lives |
| `resume` | | at once; what is served is announced again |

Rules:
- Whoever hangs up stops waiting. A model that is being loaded is then not loaded; all else goes on.
- What cannot be is one line, and the node goes on; `status` is the exit status of whoever tells that to a user.
"""

import contextlib
import json
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import trio

from llamanet._version import __version__
from llamanet.errors import LlamaNetError, UserError, ungrouped
from llamanet.models.progress import Report
from llamanet.node.engine import Engine
from llamanet.node.host import DRAIN_S, Host

MAX_LINE = 64 * 1024
MAX_PATH = 103
"""Bytes of a socket's path that all systems take (sun_path in unix(7), and 4 fewer on macOS)."""
PROGRESS_S = 0.2
"""Between two lines of progress."""
REQUEST_S = 10.0
"""For the request to arrive."""
OPERATOR = "operator"
"""Who holds the host after `drain`."""
Answer = dict[str, Any]


@contextlib.contextmanager
def control_socket(path: Path) -> Iterator[trio.socket.SocketType]:
    """A listening socket at `path`, mode 0600; the file is removed at the end. One that nobody listens on is replaced.

    Raises `UserError` if another process listens there, or if there can be no socket.
    """
    if not fits_a_socket(path):
        raise UserError(f"--control (CONTROL): {path} is too long for a socket ({MAX_PATH} bytes); give a shorter path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(path)
            sock.bind(str(path))
            path.chmod(0o600)  # nobody can connect before `listen`
            sock.listen()
        except OSError as error:
            raise UserError(f"--control (CONTROL): cannot make the socket {path} ({error.strerror})") from error
        try:
            yield trio.socket.from_stdlib_socket(sock)
        finally:
            with contextlib.suppress(OSError):
                path.unlink()


def fits_a_socket(path: Path) -> bool:
    """Whether there can be a socket at `path`, on any system."""
    return len(os.fsencode(path)) <= MAX_PATH


def _remove_stale(path: Path) -> None:
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise UserError(f"--control (CONTROL): another process listens on {path}; give another path")


@attrs.frozen
class Control:
    """What can be done to a running node."""

    host: Host
    load: Callable[[str, Report], Awaitable[Engine]]
    """Serve what a user calls a model."""
    about: Mapping[str, Any]
    """What `status` tells of the node beside its host."""

    async def perform(self, request: Mapping[str, Any], report: Report) -> Answer:
        """Do what `request` says. Raises `LlamaNetError`."""
        actions: dict[str, Callable[[], Awaitable[Answer]]] = {
            "status": self._status,
            "load": lambda: self._load(_text(request, "model"), report),
            "unload": lambda: self._unload(_text(request, "model"), _seconds(request, "timeout", DRAIN_S)),
            "drain": lambda: self._drain(wait=request.get("wait", True) is not False),
            "resume": self._resume,
        }
        action = actions.get(str(request.get("do")))
        if action is None:
            raise UserError(f"do: one of {', '.join(actions)}, not {request.get('do')!r}")
        return await action()

    async def _status(self) -> Answer:
        sources, endpoint = self.host.sources(), self.host.endpoint
        models = []
        for name, source in sources.items():
            entry = endpoint.served().get(name)
            state = "loaded" if name in endpoint.engines else "asleep" if entry else "loading or unloading"
            model: Answer = {"name": name, "source": source, "state": state}
            if entry is not None:
                live = attrs.asdict(entry.state())
                model |= {"digest": entry.digest.hex(), **live}
            models.append(model)
        return {
            "node_id": self.host.label,
            "version": __version__,
            "pid": os.getpid(),
            **self.about,
            "serving": self.host.serving,
            "draining": endpoint.draining,
            "held_by": list(self.host.held_by),
            "requests": endpoint.requests,
            "models": models,
        }

    async def _load(self, model: str, report: Report) -> Answer:
        started = trio.current_time()
        engine = await self.load(model, report)
        seconds = trio.current_time() - started
        if not self.host.endpoint.draining:
            await self.host.wait_announced()
        return {"name": engine.name, "digest": engine.digest.hex(), "seconds": round(seconds, 3)}

    async def _unload(self, model: str, timeout: float) -> Answer:
        await self.host.unload(model, timeout=timeout)
        return {"name": model}

    async def _drain(self, *, wait: bool) -> Answer:
        self.host.hold(OPERATOR)
        if wait:
            await self.host.endpoint.wait_idle()
        return {"requests": self.host.endpoint.requests}

    async def _resume(self) -> Answer:
        self.host.release(OPERATOR)
        return {"held_by": list(self.host.held_by)}


class _HungUp(LlamaNetError):
    """Whoever asked does not wait for the answer."""


async def serve_control(sock: trio.socket.SocketType, control: Control) -> None:
    """Answer on a socket that `control_socket` made, until cancelled."""

    async def answer(stream: trio.SocketStream) -> None:
        try:
            async with stream:
                await _answer(stream, control)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    await trio.serve_listeners(answer, [trio.SocketListener(sock)])


async def _answer(stream: trio.SocketStream, control: Control) -> None:
    line = await _read_line(stream)
    if line is None:
        return
    told: list[tuple[str, int, int]] = []

    def report(what: str, done: int, whole: int) -> None:
        told[:] = [(what, done, whole)]

    async def tell_progress() -> None:
        while True:
            await trio.sleep(PROGRESS_S)
            if told:
                what, done, whole = told.pop()
                try:
                    await _send(stream, {"progress": {"what": what, "done": done, "whole": whole}})
                except trio.BrokenResourceError as error:
                    raise _HungUp from error

    async def watch_for_end() -> None:
        try:
            while await stream.receive_some(MAX_LINE):
                pass
        except trio.BrokenResourceError as error:
            raise _HungUp from error
        raise _HungUp

    answer: Answer
    try:
        with ungrouped():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tell_progress)
                nursery.start_soon(watch_for_end)
                answer = {"ok": await control.perform(_decoded(line), report)}
                nursery.cancel_scope.cancel()
    except _HungUp:
        return
    except LlamaNetError as error:
        answer = {"error": str(error), "status": 2 if isinstance(error, UserError) else 1}
    await _send(stream, answer)


async def _read_line(stream: trio.SocketStream) -> bytes | None:
    line = b""
    with trio.move_on_after(REQUEST_S):
        while len(line) <= MAX_LINE:
            received = await stream.receive_some(MAX_LINE)
            line += received
            if b"\n" in line:
                return line.partition(b"\n")[0]
            if not received:
                break
    return None


async def _send(stream: trio.SocketStream, message: Answer) -> None:
    await stream.send_all(json.dumps(message, ensure_ascii=False).encode() + b"\n")


def _decoded(line: bytes) -> Mapping[str, Any]:
    try:
        request = json.loads(line)
    except ValueError as error:
        raise UserError(f"the request is no JSON ({error})") from error
    if not isinstance(request, dict):
        raise UserError('the request is no JSON object, such as {"do": "status"}')
    return request


def _text(request: Mapping[str, Any], field: str) -> str:
    value = request.get(field)
    if not isinstance(value, str) or not value:
        raise UserError(f"{field} must be a text, not {value!r}")
    return value


def _seconds(request: Mapping[str, Any], field: str, default: float) -> float:
    value = request.get(field, default)
    if type(value) not in (int, float) or not 0 <= value <= 1e7:
        raise UserError(f"{field} must be a number of seconds, not {value!r}")
    return float(value)
