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
from tripath.paths import EXACTNESS, PATHS, Fact, giver_name
from tripath.report.drawing import colour_of, is_share, literal, new_figure, save, worded, worded_key
from tripath.run.comparison import NPU

_BY_EXACTNESS = sorted(PATHS.values(), key=lambda row: [fact not in row.gives for fact in EXACTNESS])
ESTIMATE = PATHS[giver_name(Fact.ESTIMATE)]
COSTS = tuple(f"{row.name}.{row.cost}" for row in _BY_EXACTNESS if row.cost)
"""Metrics that a table is ordered by unless another is asked for: the first that exists."""
SHOWN = tuple(
    f"{row.name}.{metrics[place]}"
    for place in range(max(len(row.headline) for row in _BY_EXACTNESS))
    for row in _BY_EXACTNESS
    if len(metrics := row.headline) > place
)
"""Metrics that a table shows: the first of each path's headline, then the second, and so on."""
MOST_COLUMNS, MOST_ROWS, MOST_LINES = 3, 40, 12
BESIDE = ("energy_joules", "area_mm2")
"""Further metrics that the page of a sweep shows."""
DESCENDING = "-"
LONGEST_NOTE = 60
"""Characters; errors are printed whole where they occur, and in the CSV."""
FAILED = re.compile(r"\S+ \(\w+\)")
"""A metric that failed, and the kind of its check."""
MARKERS = "os^Dvx"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """The outcome of a job. `swept`: its values by axis. `cached`: paths that were not run anew. `report`: its report.json (None:
    it left none). `fail_on`: kinds of checks that fail it. `folder`: its own folder below the sweep's (empty: it left none)."""

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
        """The name of the job."""
        return name_of(self.swept) or f"job {self.number}"


def name_of(swept: Mapping[str, str]) -> str:
    """The name of a job: the values that are its own, each under the last part of its key."""
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


def summary(rows: Sequence[Row], metric: str | None, columns: Sequence[str] = ()) -> Table:
    """The rows in order: job, axes (one column where jobs have other ones), verdict, the metrics asked for or else a few, the
    seconds that its simulators took, what went wrong."""
    axes, names = axes_of(rows), _shown(rows, metric, columns)
    beside = any(len(row.swept) < len(axes) for row in rows)  # jobs beside a product would leave most columns empty
    headings = ["given"] if beside else [short(axis, axes) for axis in axes]
    cells = [
        [
            str(row.number), *([row.name] if beside else [row.swept.get(axis, "") for axis in axes]), row.verdict,
            *(_text(row.metrics.get(name)) for name in names),
            f"{sum(row.wall_seconds.values()):.2f}" if row.wall_seconds else "",
            _note(row),
        ]
        for row in order(rows, metric)
    ]  # fmt: skip
    return Table(columns=["job", *headings, "verdict", *names, "seconds", "note"], rows=cells)


def details(rows: Sequence[Row], metric: str | None, chosen: Sequence[str] = ()) -> tuple[Table, list[str]]:
    """The table of a page: that of `summary` with what bounds each job, its energy and area, other hardware, and all that tables
    show of paths; and the columns that are shown only where they are chosen."""
    table, shown = summary(rows, metric, chosen), _shown(rows, metric, chosen)
    there = Counter(name for row in rows for name in row.metrics)
    beside = [max((f"{row.name}.{each}" for row in _BY_EXACTNESS), key=lambda name: there[name]) for each in BESIDE]
    metrics = [name for name in (*beside, *SHOWN) if name in there and name not in shown]
    devices = {row.number: (row.report or {}).get("devices", {}) for row in rows}
    others = [name for name in dict.fromkeys(name for of in devices.values() for name in of) if name != NPU]
    bounds = {row.number: _bound_by(row) for row in rows}
    known = ["bound by"] * any(bounds.values())
    columns = [*table.columns[:-1], *known, *metrics, *(f"{name}, tokens/s" for name in others), table.columns[-1]]
    cells = [
        [*own[:-1], *(bounds[row.number] for _ in known), *(_text(row.metrics.get(name)) for name in metrics),
         *(_text(devices[row.number].get(name, {}).get("tokens_per_second")) for name in others), own[-1]]
        for row, own in zip(order(rows, metric), table.rows, strict=True)
    ]  # fmt: skip
    return Table(columns=columns, rows=cells), ["seconds", *(name for name in metrics if name in SHOWN)]


def _bound_by(row: Row) -> str:
    """The busiest resource by the path that estimates, with its share of the estimate; empty without it."""
    prefix = f"{ESTIMATE.name}.bound_cycles."
    loads = {name.removeprefix(prefix): value for name, value in row.metrics.items() if name.startswith(prefix)}
    if not loads:
        return ""
    busiest = max(loads, key=lambda name: loads[name])
    return f"{busiest} {loads[busiest] / row.metrics[f'{ESTIMATE.name}.{ESTIMATE.cost}']:.0%}"


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


def draw_summary(path: Path, rows: Sequence[Row], metric: str | None) -> list[Path]:
    """Draw the metric over the axis with most values, a line for each choice of the others; the files, none: nothing to draw."""
    name = (metric or "").removeprefix(DESCENDING)
    known = [row for row in order(rows, None) if name in row.metrics]
    given = Counter(tuple(row.swept) for row in known).most_common(1)  # jobs beside a product have other axes
    drawn = [row for row in known if tuple(row.swept) == given[0][0]]
    values = {axis: list(dict.fromkeys(row.swept.get(axis, "") for row in drawn)) for axis in axes_of(drawn)}
    values = {axis: there for axis, there in values.items() if len(there) > 1}
    if not values:
        return []
    from matplotlib.ticker import EngFormatter

    x = max(values, key=lambda axis: (all(map(is_number, values[axis])), len(values[axis])))
    numeric = all(map(is_number, values[x]))
    others = sorted((axis for axis in values if axis != x), key=lambda axis: len(values[axis]))
    lines: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    for row in drawn:
        at = float(row.swept[x]) if numeric else values[x].index(row.swept[x])
        lines.setdefault(tuple(row.swept[axis] for axis in others), []).append((at, row.metrics[name]))
    colours = {value: colour_of(rank) for rank, value in enumerate(values[others[0]] if others else [])}
    markers = dict(zip(values[others[1]] if len(others) > 1 else [], cycle(MARKERS)))
    figure = new_figure(9, 4.2)
    axes = figure.subplots()
    few, joined = len(lines) <= MOST_LINES, "-" if numeric else ""  # between names there is nothing
    for choice, points in lines.items():
        named = others if few else others[:1]
        label = literal(", ".join(f"{short(axis, others)} {value}" for axis, value in zip(named, choice)))
        style: dict[str, Any] = {"color": colours[choice[0]], "label": label} if choice else {"color": colour_of(0)}
        marker = markers[choice[1]] if len(choice) > 1 else "o"
        axes.plot(
            *zip(*sorted(points), strict=True), marker=marker, linestyle=joined, linewidth=1, markersize=4, **style
        )
    costs = [row.metrics[name] for row in drawn]
    if min(costs) > 0 and max(costs) > 10 * min(costs) and not is_share(name):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=min(0.0, 1.1 * min(costs)))
        if max(map(abs, costs)) >= 1e3:
            axes.yaxis.set_major_formatter(EngFormatter())
    ticks = sorted({float(value) for value in values[x]}) if numeric else list(range(len(values[x])))
    if numeric and ticks[0] > 0 and ticks[-1] >= 8 * ticks[0]:
        axes.set_xscale("log", base=2)
    if len(ticks) <= MOST_LINES:
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks] if numeric else [*map(literal, values[x])])
    axes.set(xlabel=worded_key(x), ylabel=worded(name), title=f"{len(drawn)} jobs")
    axes.grid(visible=True, alpha=0.2)
    if others:
        handles, labels = axes.get_legend_handles_labels()
        once = dict(zip(labels, handles, strict=True))
        title = None if few else f"and {', '.join(short(axis, others) for axis in others[1:])}"
        beside = {"loc": "upper left", "bbox_to_anchor": (1, 1), "frameon": False}
        axes.legend(once.values(), once.keys(), title=title, **beside)
    return save(figure, path)


def markdown_line(cells: Sequence[object]) -> str:
    """A line of a table."""
    return f"| {' | '.join(markdown_text(str(cell)) for cell in cells)} |"


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is: in a table a bar ends a cell."""
    return re.sub(r"([|<`*\\\[\]])", r"\\\1", " ".join(printable(text).split()))


def _shown(rows: Sequence[Row], metric: str | None, columns: Sequence[str]) -> list[str]:
    there = {name for row in rows for name in row.metrics}
    first = [(metric or "").removeprefix(DESCENDING)]
    found = [name for name in dict.fromkeys([*first, *(columns or SHOWN)]) if name in there or name in columns]
    return found if columns else found[:MOST_COLUMNS]


def _note(row: Row) -> str:
    if row.error:
        return _shortened(row.error)
    only = (row.report or {}).get("reference_only")
    notes = [f"reference path only: {only}"] if only else []
    return ", ".join([*notes, *([f"from the cache: {' '.join(row.cached)}"] if row.cached else [])])


def _shortened(error: str) -> str:
    """An error as a note: of metrics that failed the first and how many more, else its beginning."""
    first, *more = error.split(", ")
    if more and all(FAILED.fullmatch(each) for each in (first, *more)):
        return f"{first}, and {len(more)} more"
    return error if len(error) <= LONGEST_NOTE else f"{error[:LONGEST_NOTE]}..."


def short(axis: str, axes: Sequence[str]) -> str:
    """The last part of a key, or all of it where two keys end so."""
    last = axis.rpartition(".")[2]
    return axis if sum(other.rpartition(".")[2] == last for other in axes) > 1 else last


def _text(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1e3 else f"{value:.4g}"


def is_number(text: str) -> bool:
    """True if a value of an axis is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True
