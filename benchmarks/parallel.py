"""Measurements in processes of their own, a few at a time. They end when this process is told to stop."""

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from typing import Any

from report import Case


def in_processes(most: int, calls: Sequence[tuple[Callable[..., list[Case]], tuple[Any, ...]]]) -> list[list[Case]]:
    """What each function returns for its arguments, in the order of `calls`; at most so many run at once."""
    default_end = (signal.SIGTERM, signal.SIG_DFL)
    with multiprocessing.Pool(most, signal.signal, default_end, maxtasksperchild=1) as processes:
        results = [processes.apply_async(function, arguments) for function, arguments in calls]
        return [result.get() for result in results]
