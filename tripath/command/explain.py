"""`tripath explain RUN [RUN]`: why a run is as fast as it is, or where two differ."""

from collections.abc import Sequence
from pathlib import Path

from npu.errors import Arguments, TripathError, print_error
from npu.metrics import Table
from tripath.command.compare import read_record
from tripath.tracking.record import Record

MOST_CELLS = 16
BAD_INPUT = 2


def main(arguments: Sequence[str]) -> int:
    """Carry out `tripath explain`; the exit status is 0, or 2 after one line."""
    parser = Arguments(
        prog="tripath explain",
        description="Say why a run is as fast as it is. Of two runs: by phase, and by what the array waits for, where the second "
        "differs from the first, the largest difference first.",
    )
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument("other", type=Path, nargs="?", help="the folder of another")
    try:
        given = parser.parse_args(arguments)
        _print([read_record(folder) for folder in (given.run, given.other) if folder is not None])
    except (TripathError, OSError) as error:
        print_error(str(error))
        return BAD_INPUT
    return 0


def _print(records: Sequence[Record]) -> None:
    from tripath.report.console import out, table_of
    from tripath.report.explanation import NAME, by_cause, by_phase

    if len(records) == 1:
        (record,) = records
        if NAME not in record.tables:
            raise TripathError(
                "explain: the run's record says nothing of it; a run of a generation with a timing path does"
            )
        columns = record.tables[NAME]
        rows = list(zip(*columns.values(), strict=True))
        out.print(table_of(f"why this fast? {record.name}", Table(columns=list(columns), rows=rows)))
        return
    out.print(table_of("cycles by phase, the largest difference first", by_phase(*records)))
    causes = by_cause(*records)
    if causes is not None:
        shown = Table(columns=causes.columns, rows=causes.rows[:MOST_CELLS])
        more = f" ({MOST_CELLS} of {len(causes.rows)})" if len(causes.rows) > MOST_CELLS else ""
        out.print()
        out.print(table_of(f"what the array does, the largest difference first{more}", shown))
