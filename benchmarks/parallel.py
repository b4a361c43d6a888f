"""Measurements in processes of their own, a few at a time. They end with this process."""

import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from report import Case


def in_processes(most: int, calls: Sequence[tuple[Callable[..., list[Case]], tuple[Any, ...]]]) -> list[list[Case]]:
    """What each function returns for its arguments, in the order of `calls`; at most so many run at once.

    Raises `RuntimeError` if one ends without a result. (A `multiprocessing.Pool` would wait for that result for ever.)
    """
    context = multiprocessing.get_context("spawn")
    waiting = list(enumerate(calls))
    running: dict[Connection, tuple[int, multiprocessing.process.BaseProcess]] = {}
    results: dict[int, list[Case]] = {}
    while waiting or running:
        while waiting and len(running) < most:
            index, (function, arguments) = waiting.pop(0)
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_measure, args=(sender, function, arguments), daemon=True)
            process.start()
            sender.close()
            running[receiver] = index, process
        ready = wait(list(running))
        for receiver in [receiver for receiver in running if receiver in ready]:
            index, process = running.pop(receiver)
            try:
                results[index] = receiver.recv()
            except EOFError as error:
                process.join()
                raise RuntimeError(f"a measurement ended with exit code {process.exitcode}") from error
            process.join()
    return [results[index] for index in range(len(calls))]


def _measure(sender: Connection, function: Callable[..., list[Case]], arguments: tuple[Any, ...]) -> None:
    sender.send(function(*arguments))
