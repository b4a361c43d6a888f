"""Progress bars on a terminal's standard error, for what takes more than a second; elsewhere lines of the log."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

from llamanet.models.progress import QUIET_S, LogReport, Report


@contextlib.contextmanager
def progress_bars() -> Iterator[Report]:
    """A `Report` that may be called from any thread; at the end what it drew is gone."""
    if not sys.stderr.isatty():
        yield LogReport()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        DownloadColumn(binary_units=True),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    lock = threading.Lock()
    began: dict[str, float] = {}
    drawn: dict[str, TaskID] = {}
    ended = False

    def report(what: str, done: int, whole: int) -> None:
        with lock:
            if ended:
                return
            started = began.setdefault(what, time.monotonic())
            if what in drawn:
                bars.update(drawn[what], completed=done, total=whole)
            elif done < whole and time.monotonic() - started > QUIET_S:
                bars.start()
                drawn[what] = bars.add_task(what, completed=done, total=whole)
            if done >= whole:
                del began[what]
                if what in drawn:
                    bars.remove_task(drawn.pop(what))
                if not drawn:
                    bars.stop()

    try:
        yield report
    finally:
        with lock:
            ended = True
            bars.stop()


@contextlib.contextmanager
def telling() -> Iterator[Callable[[str], None]]:
    """What is called with what is being done: on a terminal, one line that moves and is gone at the end."""
    if not sys.stderr.isatty():
        yield lambda what: None
        return
    from rich.console import Console

    with Console(stderr=True).status("Looking") as status:
        yield status.update


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """On a terminal, a line that moves while the block takes more than a second; at the end it is gone."""
    if not sys.stderr.isatty():
        yield
        return
    lock = threading.Lock()
    drawn = contextlib.ExitStack()
    over = False

    def draw() -> None:
        from rich.console import Console

        with lock:
            if not over:
                drawn.enter_context(Console(stderr=True).status(what))

    timer = threading.Timer(QUIET_S, draw)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        with lock:
            over = True
            drawn.close()
