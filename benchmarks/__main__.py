"""Run every benchmark, and write their tables to docs/benchmarks.md: `python benchmarks [--quick]`."""

import ast
import subprocess
import sys
from pathlib import Path

from report import ROOT, machine

HERE = Path(__file__).parent
MARK = "\n    main(measure)\n"
"""How a benchmark ends, and its helpers do not."""


def main() -> None:
    parts = [
        "# Benchmarks\n\nMade by `make bench`. Each script in `benchmarks/` answers one question, and runs alone: "
        "`.venv/bin/python benchmarks/stream.py --quick`.\n",
        "Measured on: " + ", ".join(f"{name} {value}" for name, value in machine().items()) + ".\n",
    ]
    for path in sorted(HERE.glob("*.py")):
        source = path.read_text()
        if not source.endswith(MARK):
            continue
        print(f"\n{path.name}", file=sys.stderr)
        result = subprocess.run([sys.executable, path, *sys.argv[1:]], stdout=subprocess.PIPE, text=True, check=True)
        print(result.stdout, end="", flush=True)
        command = f"```console\n$ .venv/bin/python benchmarks/{path.name}\n```"
        parts.append(f"## {path.stem}\n\n{ast.get_docstring(ast.parse(source))}\n\n{command}\n\n{result.stdout}")
    (ROOT / "docs" / "benchmarks.md").write_text("\n".join(parts))


if __name__ == "__main__":
    main()
