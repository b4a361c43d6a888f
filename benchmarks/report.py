"""How every benchmark is called and what it prints: a table for people, and with `--json` the same for machines.

A benchmark script calls `main(measure)`, and `measure(quick)` returns its cases. `quick` ends within 50 s with the same
case names; the full run repeats and interleaves, and gives medians and spreads.
"""

import json
import os
import platform
import signal
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import click

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"


@attrs.frozen(kw_only=True)
class Case:
    """One answer: `value` in `unit`, and what it should be. `ours` and `peer` are what it was made from, as text."""

    name: str
    value: float
    unit: str
    better: str
    """ "higher" or "lower"."""
    target: float | None = None
    ours: str = ""
    peer: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None:
            return None
        return self.value >= self.target if self.better == "higher" else self.value <= self.target


def spread(values: Sequence[float], unit: str) -> str:
    """Median, and the lowest and highest of `values`."""
    return f"{statistics.median(values):.3g} {unit} ({min(values):.3g}-{max(values):.3g})"


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def table(cases: Sequence[Case]) -> str:
    """The cases as a Markdown table."""
    rows = [("name", "ours", "peer", "value", "target", "met")]
    for case in cases:
        sign = "≥" if case.better == "higher" else "≤"
        target = f"{sign} {case.target:g} {case.unit}" if case.target is not None else ""
        met = {True: "yes", False: "NO", None: ""}[case.met]
        rows.append((case.name, case.ours, case.peer, f"{case.value:.3g} {case.unit}", target, met))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def main(measure: Callable[..., list[Case]]) -> None:
    """Run a benchmark from the command line; options with which `measure` is decorated are its own."""

    @click.command(help=sys.modules["__main__"].__doc__)
    @click.option("--quick", is_flag=True, help="End within 50 s.")
    @click.option("--json", "json_path", metavar="PATH", help="Write the cases as JSON; - for standard output.")
    def command(quick: bool, json_path: str | None, **own: Any) -> None:
        # Told to stop, end as after Ctrl-C: through the `finally` blocks that end the node processes.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        cases = measure(quick, **own)
        click.echo(table(cases), err=json_path == "-")
        if json_path:
            entries = [
                {key: getattr(case, key) for key in ("name", "value", "unit", "better", "target", "met")}
                for case in cases
            ]
            with click.open_file(json_path, "w") as file:
                json.dump({"cases": entries, "machine": machine()}, file, indent=2)
                file.write("\n")

    command.params += getattr(measure, "__click_params__", [])
    command()
