"""A sweep in one table and one picture: what each job was given, what became of it, and the metric that is looked for."""

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

from npu.errors import printable
from npu.metrics import Table
from tripath.paths import EXACTNESS, PATHS
from tripath.report.pictures import literal

_BY_EXACTNESS = sorted(PATHS.values(), key=lambda row: [fact not in row.gives for fact in EXACTNESS])
COSTS = tuple(f"{row.name}.{row.cost}" for row in _BY_EXACTNESS if row.cost)
"""What a table is ordered by unless it is said, the first that there is."""
SHOWN = tuple(
    f"{row.name}.{metrics[place]}"
    for place in range(max(len(row.headline) for row in _BY_EXACTNESS))
    for row in _BY_EXACTNESS
    if len(metrics := row.headline) > place
)
"""What a table shows: the first of each path's headline, then the second."""
MOST_COLUMNS, MOST_ROWS, MOST_LINES = 3, 40, 12
DESCENDING = "-"
LONGEST_NOTE = 60
"""Characters; errors are printed whole where they occur, and in the CSV."""
MARKERS = "os^Dvx"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What became of a job. `swept` is what it was given by axis, `cached` the paths that were not run anew, `report` its
    report.json (None: it left none), `fail_on` the kinds of checks that fail it, `folder` its own below that of the sweep
    (empty: it left none)."""

    number: int
    swept: dict[str, str]
    verdict: str
    error: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    wall_seconds: dict[str, float] = field(default_factory=dict)
    cached: Sequence[str] = ()
    report: Mapping[str, Any] | None = None
    fail_on: Sequence[str] = ()
    folder: str = ""

    @property
    def name(self) -> str:
        """What the job is called."""
        return name_of(self.swept) or f"job {self.number}"


def name_of(swept: Mapping[str, str]) -> str:
    """What a job is called: the values that are its own, under the last part of their keys."""
    return " ".join(f"{short(axis, list(swept))}={value}" for axis, value in swept.items())


def sort_metric(rows: Sequence[Row], asked: str | None) -> str | None:
    """The metric to order by, with its sign: the one asked for, or the cost that most is known of; None: no job has it."""
    there = {name for row in rows for name in row.metrics}
    wanted = COSTS if asked is None else (asked,)
    return next((name for name in wanted if name.removeprefix(DESCENDING) in there), None)


def order(rows: Sequence[Row], metric: str | None) -> list[Row]:
    """The rows by a metric, then those that lack it; by job number where it is None."""
    name = (metric or "").removeprefix(DESCENDING)
    sign = -1 if metric and metric.startswith(DESCENDING) else 1
    have = [row for row in rows if name in row.metrics]
    lack = [row for row in rows if name not in row.metrics]
    by_number = sorted(lack, key=lambda row: row.number)
    return sorted(have, key=lambda row: (sign * row.metrics[name], row.number)) + by_number


def axes_of(rows: Sequence[Row]) -> list[str]:
    """The keys that differ between jobs."""
    return list(dict.fromkeys(axis for row in rows for axis in row.swept))


def summary(rows: Sequence[Row], metric: str | None) -> Table:
    """The rows in order: job, axes (one column where jobs have other ones), verdict, a few metrics, the seconds that its
    simulators took, what went wrong."""
    axes, names = axes_of(rows), _shown(rows, metric)
    beside = any(len(row.swept) < len(axes) for row in rows)  # jobs beside a product would leave most columns empty
    headings = ["given"] if beside else [short(axis, axes) for axis in axes]
    columns = ["job", *headings, "verdict", *names, "seconds", "note"]
    cells = [
        [
            str(row.number), *([row.name] if beside else [row.swept.get(axis, "") for axis in axes]), row.verdict,
            *(_text(row.metrics.get(name)) for name in names),
            f"{sum(row.wall_seconds.values()):.2f}" if row.wall_seconds else "",
            _note(row),
        ]
        for row in order(rows, metric)
    ]  # fmt: skip
    return Table(columns=columns, rows=cells)


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Every job with its axes, verdict and all of its metrics, by job number."""
    axes, names = axes_of(rows), sorted({name for row in rows for name in row.metrics})
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["job", *axes, "verdict", "error", "cached", "seconds", *names])
        for row in order(rows, None):
            given = [row.swept.get(axis, "") for axis in axes]
            seconds = round(sum(row.wall_seconds.values()), 3)
            found = [row.metrics.get(name, "") for name in names]
            table.writerow([row.number, *given, row.verdict, row.error, " ".join(row.cached), seconds, *found])


def draw_summary(path: Path, rows: Sequence[Row], metric: str | None) -> bool:
    """Draw the metric over the axis with most values, a line for each choice of the others; False: nothing to draw."""
    name = (metric or "").removeprefix(DESCENDING)
    known = [row for row in order(rows, None) if name in row.metrics]
    given = Counter(tuple(row.swept) for row in known).most_common(1)  # jobs beside a product have other axes
    drawn = [row for row in known if tuple(row.swept) == given[0][0]]
    values = {axis: list(dict.fromkeys(row.swept.get(axis, "") for row in drawn)) for axis in axes_of(drawn)}
    values = {axis: there for axis, there in values.items() if len(there) > 1}
    if not values:
        return False
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    x = max(values, key=lambda axis: (all(map(is_number, values[axis])), len(values[axis])))
    numeric = all(map(is_number, values[x]))
    others = sorted((axis for axis in values if axis != x), key=lambda axis: len(values[axis]))
    lines: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    for row in drawn:
        at = float(row.swept[x]) if numeric else values[x].index(row.swept[x])
        lines.setdefault(tuple(row.swept[axis] for axis in others), []).append((at, row.metrics[name]))
    palette = plt.get_cmap("tab10")
    colours = {value: palette(rank % 10) for rank, value in enumerate(values[others[0]] if others else [])}
    markers = dict(zip(values[others[1]] if len(others) > 1 else [], cycle(MARKERS)))
    figure, axes = plt.subplots(figsize=(9, 4.2), layout="constrained")
    few = len(lines) <= MOST_LINES
    for choice, points in lines.items():
        named = others if few else others[:1]
        label = literal(", ".join(f"{short(axis, others)} {value}" for axis, value in zip(named, choice)))
        style = {"color": colours[choice[0]], "label": label} if choice else {}
        marker = markers[choice[1]] if len(choice) > 1 else "o"
        axes.plot(*zip(*sorted(points), strict=True), marker=marker, linewidth=1, markersize=4, **style)
    costs = [row.metrics[name] for row in drawn]
    if min(costs) > 0 and max(costs) > 10 * min(costs):
        axes.set_yscale("log")
    ticks = sorted({float(value) for value in values[x]}) if numeric else list(range(len(values[x])))
    if numeric and ticks[0] > 0 and ticks[-1] >= 8 * ticks[0]:
        axes.set_xscale("log", base=2)
    if len(ticks) <= MOST_LINES:
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks] if numeric else [*map(literal, values[x])])
    axes.set(xlabel=x, ylabel=name, title=f"{len(drawn)} jobs")
    axes.grid(visible=True, alpha=0.2)
    if others:
        handles, labels = axes.get_legend_handles_labels()
        once = dict(zip(labels, handles, strict=True))
        title = None if few else f"and {', '.join(short(axis, others) for axis in others[1:])}"
        beside = {"loc": "upper left", "bbox_to_anchor": (1, 1), "frameon": False}
        axes.legend(once.values(), once.keys(), title=title, **beside)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True


def markdown_line(cells: Sequence[object]) -> str:
    """A line of a table."""
    return f"| {' | '.join(markdown_text(str(cell)) for cell in cells)} |"


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is: in a table a bar ends a cell."""
    return re.sub(r"([|<`*\\\[\]])", r"\\\1", " ".join(printable(text).split()))


def _shown(rows: Sequence[Row], metric: str | None) -> list[str]:
    there = {name for row in rows for name in row.metrics}
    wanted = [(metric or "").removeprefix(DESCENDING), *SHOWN]
    return [name for name in dict.fromkeys(wanted) if name in there][:MOST_COLUMNS]


def _note(row: Row) -> str:
    if row.error:
        return row.error if len(row.error) <= LONGEST_NOTE else f"{row.error[:LONGEST_NOTE]}..."
    only = (row.report or {}).get("reference_only")
    notes = [f"reference path only: {only}"] if only else []
    return ", ".join([*notes, *([f"from the cache: {' '.join(row.cached)}"] if row.cached else [])])


def short(axis: str, axes: Sequence[str]) -> str:
    """The last part of a key, or all of it where two keys end so."""
    last = axis.rpartition(".")[2]
    return axis if sum(other.rpartition(".")[2] == last for other in axes) > 1 else last


def _text(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1e3 else f"{value:.4g}"


def is_number(text: str) -> bool:
    """Whether a value of an axis is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True
