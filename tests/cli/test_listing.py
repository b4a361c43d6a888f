"""Tables for people, on terminals of any width."""

import io
import re

import pytest

from llamanet.cli import progress
from llamanet.cli.listing import print_table

COLUMNS = {"node": lambda row: row[0], "id": lambda row: row[1], "model": lambda row: row[2], "n": lambda row: row[3]}
ROW = ("node-30ede106", "30ede106", "SmolLM2-135M-Instruct.Q4_1", "4")


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, width: int, row: tuple[str, ...] = ROW) -> list[list[str]]:
    screen = Screen()
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", screen)
        patch.setenv("COLUMNS", str(width))
        patch.setenv("TERM", "xterm")
        print_table(COLUMNS, [row], spare=("id",))
    lines = re.sub(r"\x1b\[[01]m", "", screen.getvalue()).splitlines()
    assert max(map(len, lines)) <= width
    return [line.split() for line in lines]


def test_a_narrow_terminal_gets_fewer_columns_and_folded_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, 80) == [["node", "id", "model", "n"], list(ROW)]
    header, cells = shown(monkeypatch, 50)
    assert (header, cells) == (["node", "model", "n"], ["node-30ede106", "SmolLM2-135M-Instruct.Q4_1", "4"])
    header, *lines = shown(monkeypatch, 30)
    assert header == ["node", "model", "n"]
    assert len(lines) > 1
    told = "".join(word for line in lines for word in line)
    assert sorted(told) == sorted(f"{ROW[0]}{ROW[2]}{ROW[3]}")  # nothing is cut


def test_a_label_does_not_move_the_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    _, cells = shown(monkeypatch, 80, ("\x1b[2Jevil[red]", *ROW[1:]))
    assert cells[0] == "[2Jevil[red]"


class Soon:
    """A timer whose time is over when it starts."""

    def __init__(self, seconds: float, function) -> None:
        self.start = function

    def cancel(self) -> None:
        pass


def test_what_takes_long_is_told_on_a_terminal_and_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr(progress.threading, "Timer", Soon)
    monkeypatch.setenv("TERM", "xterm")
    with progress.waiting("Asking"):
        pass
    assert "Asking" in screen.getvalue()
    assert screen.getvalue().endswith("\x1b[2K")
    drawn = len(screen.getvalue())
    monkeypatch.setattr("sys.stderr", io.StringIO())
    with progress.waiting("Asking"):
        pass
    assert len(screen.getvalue()) == drawn
