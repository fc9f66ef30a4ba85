"""`tripath compare A B`: what two runs share, where they differ, and by how much."""

import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from npu.errors import Arguments, TripathError, print_error
from npu.metrics import Table
from tripath.tracking.record import FILE, HEADLINE, Record, flat, from_json

REMOTE = ("tracking=off",)
COST = {
    "makespan_cycles",
    "estimated_cycles",
    "seconds",
    "energy_joules",
    "area_mm2",
    "average_power_watts",
    "forwards",
}
"""Metrics that are shown beside those of the headline."""
BAD_INPUT = 2


def main(arguments: Sequence[str]) -> int:
    """Carry out `tripath compare`; the exit status is that of the runs that it makes, else 0, or 2 after one line."""
    parser = Arguments(
        prog="tripath compare",
        description="Show what differs between two runs: the configuration, then metrics with B over A.",
        epilog="Example: tripath compare 'workload.cache=none' 'workload.cache=dual hardware.vlen=128'",
    )
    for name in ("a", "b"):
        parser.add_argument(
            name, metavar=name.upper(), help="the folder of a run, or overrides in one argument, which are run"
        )
    parser.add_argument("--all", action="store_true", help="every metric, not the headline alone")
    try:
        given = parser.parse_args(arguments)
        status, records = records_of([given.a, given.b])
        if records:
            _print(*records, everything=given.all)
    except (TripathError, OSError) as error:
        print_error(str(error))
        return BAD_INPUT
    return status


def records_of(places: Sequence[str]) -> tuple[int, list[Record]]:
    """The record of each run folder, or of what its overrides give; with the worst exit status of those, and none at bad input.

    Raises:
        TripathError: a folder has no record.
    """
    records, worst = [], 0
    with tempfile.TemporaryDirectory() as place:
        for number, text in enumerate(places):
            folder = Path(text)
            if _are_overrides(text):
                folder = Path(place) / str(number)
                command = [sys.executable, "-m", "tripath", *shlex.split(text), *REMOTE, f"hydra.run.dir={folder}"]
                done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)  # noqa: S603
                worst = max(worst, done.returncode)
                if done.returncode > 1:
                    return worst, []
            records.append(read_record(folder))
    return worst, records


def _are_overrides(text: str) -> bool:
    return not Path(text).exists() and (not text.strip() or "=" in text)


def read_record(folder: Path) -> Record:
    """The record of a run folder, with the metrics and tables of its paths.

    Raises:
        TripathError: there is none.
    """
    try:
        return flat(from_json((folder / FILE).read_bytes()))
    except OSError as error:
        raise TripathError(f"{folder}: no record of a run ({FILE}: {error.strerror})") from None


def _print(a: Record, b: Record, *, everything: bool) -> None:
    from tripath.report.console import out, table_of

    out.print(table_of("what differs", differences(a, b)))
    out.print()
    out.print(table_of("metrics", metrics(a, b, everything=everything)))


def differences(a: Record, b: Record) -> Table:
    """The parameters in which two runs differ."""
    names = dict.fromkeys([*a.parameters, *b.parameters])
    rows = [[name, a.parameters.get(name, ""), b.parameters.get(name, "")] for name in names]
    return Table(columns=["given", "A", "B"], rows=[row for row in rows if row[1] != row[2]])


def metrics(a: Record, b: Record, *, everything: bool) -> Table:
    """Metrics that both runs have, with B over A."""
    shown = HEADLINE | COST
    rows = []
    for name, first in a.metrics.items():
        second = b.metrics.get(name)
        if second is not None and (everything or name.partition(".")[2] in shown):
            ratio = f"{second / first:.3f}" if first else "" if second else "1.000"
            rows.append([name, f"{first:,.6g}", f"{second:,.6g}", ratio])
    return Table(columns=["metric", "A", "B", "B / A"], rows=rows)
