"""Measures the coverage of the RTL by its tests: `python benchmarks/rtl_coverage.py` prints the table of docs/rtl.md.

Builds the core with `verilator --coverage-line`, runs test_units.py and test_rtl.py on it (not the slow tests), and merges the
counts. A point is a branch or a block of lines of a source, over all instances of its module.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
TESTS = ("tests/rtl/test_units.py", "tests/rtl/test_rtl.py")
POINT = re.compile(r"^C '(?P<key>.*)' (?P<count>\d+)$")


def counts(folder: Path) -> Counter[tuple[str, str, str]]:
    """Runs of each point (file, lines, what), over all files of counts in `folder`."""
    found: Counter[tuple[str, str, str]] = Counter()
    for file in sorted(folder.glob("*.dat")):
        for line in file.read_text(errors="replace").splitlines():
            match = POINT.match(line)
            if match is None:
                continue
            key = dict(part.split("\x02", 1) for part in match["key"].split("\x01")[1:])
            found[key["f"], key.get("S", key["l"]), key.get("o", "")] += int(match["count"])
    return found


def main() -> int:
    """Print points and those that never ran, by source."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "pytest", "-q", *TESTS]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "RTL_COVERAGE": place}, check=False)  # noqa: S603
        points = counts(Path(place))
    table = Table("source", "points", "run", "%", "lines that never ran")
    by_file: defaultdict[str, list[tuple[str, str, int]]] = defaultdict(list)
    for (file, lines, what), count in points.items():
        by_file[file].append((lines, what, count))
    for file, rows in sorted(by_file.items()):
        run = sum(count > 0 for *_, count in rows)
        never = sorted(
            {f"{lines} ({what})" for lines, what, count in rows if not count},
            key=lambda text: int(re.split(r"\D", text)[0]),
        )
        table.add_row(file, str(len(rows)), str(run), f"{100 * run / len(rows):.1f}", ", ".join(never))
    run = sum(count > 0 for count in points.values())
    table.add_row("all", str(len(points)), str(run), f"{100 * run / max(1, len(points)):.1f}", "")
    Console(width=200).print(table)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
