"""A sweep as one HTML file: what went wrong, its jobs by the metric that is looked for, pictures, how to run it again."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from npu.metrics import Table
from tripath.report.page import (
    code,
    document,
    folded,
    heading,
    inline_code,
    link,
    picture,
    reproduce,
    table,
    verdict,
    wrapped,
)
from tripath.sweeps.baseline import Drift, by_metric
from tripath.sweeps.study import quality_table
from tripath.sweeps.summary import DESCENDING, Row, axes_of, details
from tripath.tracking.record import git_commit

PAGE = "report.html"
FINE = ("passed", "infeasible")


def page_of_sweep(
    rows: Sequence[Row], *, counts: Mapping[str, int], good: bool, metric: str | None, command: str, commands: Mapping[int, str],
    drifts: Sequence[Drift] | None, pictures: Sequence[Path], found: tuple[str, Table] | None, shown: Sequence[str] = (),
) -> str:  # fmt: skip
    """The page. `counts` says how jobs ended, `commands` what runs each alone; `drifts` None: there is no baseline;
    `found` is what a search says of its designs, `shown` the metrics of the table."""
    how = ", ".join(f"{number} {what}" for what, number in counts.items() if number)
    against = "" if drifts is None else f"; drifts from the baseline: {len(drifts)}"
    parts: list[str] = [verdict(f"{how}{against}", good=good)]
    failed = [row for row in rows if row.verdict not in FINE]
    if failed:
        parts.append(heading("Failed jobs"))
    for row in failed:
        parts.append(f'<p>job {_job(row)} {inline_code(row.name)} <span class="failed">{row.verdict}</span></p>')
        parts += [wrapped(row.error), code(commands.get(row.number, ""))]
    if drifts:
        cells = [[drift.job, wrapped(str(drift))] for drift in drifts]
        parts += [heading("Drifts from the baseline"), *(wrapped(line) for line in by_metric(drifts, len(rows)))]
        parts += [table(Table(columns=["job", "metric"], rows=cells))]
    if found is not None:
        parts += [heading("What the search found"), wrapped(f"{found[0]}."), table(found[1])]
    ordered, extra = details(rows, metric, shown)
    by_number = {str(row.number): row for row in rows}
    cells = [[_job(by_number[str(first)]), *rest, note and wrapped(str(note))] for first, *rest, note in ordered.rows]
    jobs = table(Table(columns=ordered.columns, rows=cells), extra)
    by = f"{len(rows)} jobs" + (f", by {metric.removeprefix(DESCENDING)}" if metric else "")
    if found is None:
        parts += [heading("Jobs"), wrapped(f"{by}."), jobs]
    else:
        parts += [heading("Jobs"), folded(by, str(jobs))]
    if (quality := quality_table(rows)).rows:
        parts += [heading("Quality"), table(quality)]
    if pictures:
        parts += [heading("Pictures"), *(picture(path, path.name) for path in pictures)]
    parts += [heading("How to run it again"), reproduce(command, git_commit())]
    return document(f"Sweep of {', '.join(axes_of(rows)) or 'one job'}", parts)


def _job(row: Row) -> object:
    """The job's number, which leads to its own report where it left one."""
    return link(f"{row.folder}/{PAGE}", str(row.number)) if row.folder else str(row.number)
