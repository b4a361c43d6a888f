"""What `llamanet doctor` prints, on a terminal and elsewhere."""

import io

import pytest

from llamanet.cli.doctor import INDENT, _print
from llamanet.doctor.finding import Finding, error

WHAT = "the announced address does not lead here " * 4
FINDING = error("endpoint", WHAT, "Clients are told to connect there. " * 4, "Announce another one. " * 6)


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_fit_the_terminal_and_are_indented(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    _print([FINDING], as_json=False)
    first, *others = screen.getvalue().split("\n\n")[0].splitlines()
    assert "error" in first
    assert len(others) > 4
    assert all(line.startswith(INDENT) and len(line) <= 80 for line in others)


def test_elsewhere_each_part_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    _print([FINDING], as_json=False)
    assert capsys.readouterr().out.splitlines()[0] == f"error   {WHAT}"


@pytest.mark.parametrize(
    ("findings", "last"),
    [([], "0 errors, 0 warnings"), ([FINDING], "1 error, 0 warnings"), ([FINDING] * 2, "2 errors, 0 warnings")],
)
def test_the_last_line_counts(capsys: pytest.CaptureFixture[str], findings: list[Finding], last: str) -> None:
    _print(findings, as_json=False)
    assert capsys.readouterr().out.splitlines()[-1] == last
