"""Quality results of a sweep: `quality.csv`, `quality.md` and pictures beside its other files.

Where jobs differ in steps, the picture is `pareto.png` (exact match over denoising steps, and over cycles), else
`exact_match.png` and `logit_kl.png`. Where programs were judged, `solved.png` (energy and time of a solved problem) is added.
Perplexity has `logit_kl.png` alone.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from npu.metrics import Table
from tripath.report.drawing import colour_of, literal, new_figure, save, ticks_in_figures, worded_key
from tripath.sweeps.summary import MARKERS, Row, axes_of, is_number, markdown_line, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TABLE, PAGE, PARETO, SOLVED = "quality.csv", "quality.md", "pareto.png", "solved.png"
EXACT_MATCH, STEPS, LOGIT_KL = "quality.exact_match", "quality.steps_per_block", "quality.logit_kl"
BY_PROGRAM = {EXACT_MATCH: "accuracy.exact_match", STEPS: "accuracy.steps_per_block"}
"""Metrics that stand in where a program was judged instead of the reference path."""
SECONDS_SOLVED, JOULES_SOLVED = (
    ("cycle.seconds_per_solved", "analytical.seconds_per_solved"),
    ("cycle.joules_per_solved", "analytical.joules_per_solved"),
)
CYCLES, ENERGY = (
    ("cycle.makespan_cycles", "analytical.estimated_cycles"),
    ("cycle.energy_joules", "analytical.energy_joules"),
)
"""Costs of the program, by the most exact path that ran."""
COLUMNS: dict[str, tuple[str, ...]] = {
    "arg max flips": (".4f", "quality.argmax_flips"), "transfer overlap": (".4f", "quality.transfer_overlap"),
}  # fmt: skip
"""Headings: format, and the metrics that stand below it, beside exact match and logit KL."""
CACHE_AXES = {"scheme", "numerics.kv"}
CACHE_COLUMNS: dict[str, tuple[str, ...]] = {
    "attention error": (".4f", "quality.attention_error"),
    "K drift, blocks / steps": (".3f", "quality.drift_blocks_k", "quality.drift_steps_k"),
    "V drift, blocks / steps": (".3f", "quality.drift_blocks_v", "quality.drift_steps_v"),
    "KV bytes/token": (".1f", "quality.kv_bytes_per_token"),
}
"""Columns that say something where one of `CACHE_AXES` is swept."""
PERPLEXITY, TEXT_KL = "perplexity.perplexity", "perplexity.logit_kl"
TEXT_COLUMNS: dict[str, tuple[str, ...]] = {
    "perplexity": (".3f", PERPLEXITY), "arg max agreement": (".4f", "perplexity.argmax_agreement"),
    "KV bytes/token": (",.0f", "perplexity.kv_bytes_per_token"),
}  # fmt: skip
"""Columns of perplexity, beside logit KL."""
REFERENCE_ONLY = "reference path only"
TITLES = {
    EXACT_MATCH: "exact match (95 % Wilson interval)",
    LOGIT_KL: "logit KL to FP32 on the same canvas, nats (± standard error)",
    TEXT_KL: "logit KL to FP32 over the same text, nats (± standard error)",
}
PANELS = {"simulator.quality.planted": "planted K outliers that leave the function as it is, gain"}
"""Axes whose short name says too little above a picture."""
SMALLEST_KL = 1e-9
TICKS = 6


def write_quality(folder: Path, rows: Sequence[Row]) -> list[str]:
    """Write table and pictures of the jobs that have one of the paths, and hand back their names; none, where no job has."""
    ordered = sorted(rows, key=lambda row: row.number)
    known = [row for row in ordered if is_judged(row)]
    if not known:
        return _write_perplexity(folder, [row for row in ordered if PERPLEXITY in row.metrics])
    _write_csv(folder / TABLE, known)
    (folder / PAGE).write_text(markdown(known), encoding="utf-8")
    steps, drawn = [judged(row, STEPS) for row in known], []
    if max(steps) > min(steps):
        drawn += _draw_pareto(folder / PARETO, known)
    else:
        for metric in (EXACT_MATCH, LOGIT_KL):
            members = [row for row in known if metric == EXACT_MATCH or metric in row.metrics]
            drawn += _draw(folder / f"{metric.partition('.')[2]}.png", members, metric) if members else []
    if len(solved := [row for row in known if cost(row, SECONDS_SOLVED) and cost(row, JOULES_SOLVED)]) > 1:
        drawn += _draw_solved(folder / SOLVED, solved)
    return [TABLE, PAGE, *(file.name for file in drawn)]


def is_judged(row: Row) -> bool:
    """True if a job was judged on problems, through the reference path or its program."""
    return EXACT_MATCH in row.metrics or BY_PROGRAM[EXACT_MATCH] in row.metrics


def judged(row: Row, metric: str) -> float:
    """A metric of the reference path, or what stands in for it."""
    return row.metrics[metric if metric in row.metrics else BY_PROGRAM[metric]]


def _write_perplexity(folder: Path, known: Sequence[Row]) -> list[str]:
    if not known:
        return []
    _write_csv(folder / TABLE, known)
    (folder / PAGE).write_text(text_markdown(known), encoding="utf-8")
    drawn = _draw(folder / "logit_kl.png", known, TEXT_KL)
    return [TABLE, PAGE, *(file.name for file in drawn)]


def cost(row: Row, names: Sequence[str]) -> float | None:
    """The cost of the program by the most exact path that ran, the first of `names` that exists; None if there is no program."""
    return next((row.metrics[name] for name in names if name in row.metrics), None)


def beyond(row: Row) -> str:
    """The choice that no program carries out; empty where one does."""
    return str((row.report or {}).get("reference_only") or "")


def markdown(rows: Sequence[Row]) -> str:
    """The table for documents."""
    return _lines(quality_table(rows))


def quality_table(rows: Sequence[Row]) -> Table:
    """The jobs that have the path: exact match with its interval, logit KL with its error, costs against the first job's.

    A column of `COLUMNS` whose cells are all alike is left out.
    """
    rows = [row for row in sorted(rows, key=lambda row: row.number) if is_judged(row)]
    axes = axes_of(rows)
    base = {
        names: next((known for row in rows if (known := cost(row, names)) is not None), None)
        for names in (CYCLES, ENERGY)
    }
    columns = _swept(rows) | {"exact match": [_exact_match(row) for row in rows]}
    if all(LOGIT_KL in row.metrics for row in rows):
        columns |= _divergence(rows, LOGIT_KL)
    steps = {"steps/block": [f"{judged(row, STEPS):.2f}" for row in rows]}
    for heading, cells in (steps | _cells(rows, COLUMNS | (CACHE_COLUMNS if CACHE_AXES & set(axes) else {}))).items():
        if len(set(cells)) > 1:
            columns[heading] = cells
    if any(base.values()) or any(map(beyond, rows)):
        columns["cycles"] = [
            _cost(row, CYCLES, base[CYCLES], ",.0f") or (REFERENCE_ONLY if beyond(row) else "") for row in rows
        ]
        columns["energy, J"] = [_cost(row, ENERGY, base[ENERGY], ".3g") for row in rows]
    for heading, names in (("ms a solved problem", SECONDS_SOLVED), ("mJ a solved problem", JOULES_SOLVED)):
        if any(cost(row, names) for row in rows):
            columns[heading] = [f"{1e3 * found:.3g}" if (found := cost(row, names)) else "none solved" for row in rows]
    return _table(columns)


def text_markdown(rows: Sequence[Row]) -> str:
    """The table of perplexity for documents."""
    return _lines(_table(_swept(rows) | _divergence(rows, TEXT_KL) | _cells(rows, TEXT_COLUMNS)))


def _swept(rows: Sequence[Row]) -> dict[str, list[str]]:
    axes = axes_of(rows)
    return {short(axis, axes): [row.swept.get(axis, "") for row in rows] for axis in axes}


def _divergence(rows: Sequence[Row], metric: str) -> dict[str, list[str]]:
    return {"logit KL, nats": [f"{row.metrics[metric]:.2g} ± {row.metrics[f'{metric}_error']:.1g}" for row in rows]}


def _cells(rows: Sequence[Row], columns: Mapping[str, tuple[str, ...]]) -> dict[str, list[str]]:
    return {
        heading: [" / ".join(format(row.metrics[name], form) for name in names if name in row.metrics) for row in rows]
        for heading, (form, *names) in columns.items()
    }


def _table(columns: Mapping[str, Sequence[str]]) -> Table:
    return Table(columns=[*columns], rows=[*zip(*columns.values(), strict=True)])


def _lines(table: Table) -> str:
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "".join(f"{markdown_line(line)}\n" for line in lines)


def _exact_match(row: Row) -> str:
    low, high = _interval(row)
    return f"{judged(row, EXACT_MATCH):.3f} ({low:.3f} to {high:.3f})"


def _cost(row: Row, names: Sequence[str], base: float | None, form: str) -> str:
    value = cost(row, names)
    if value is None or base is None:
        return ""
    return format(value, form) + ("" if value == base else f" ({value / base - 1:+.1%})")


def _interval(row: Row) -> tuple[float, float]:
    name = EXACT_MATCH if EXACT_MATCH in row.metrics else BY_PROGRAM[EXACT_MATCH]
    return row.metrics[f"{name}_low"], row.metrics[f"{name}_high"]


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Every job with its axes, what no program carries out, all metrics of quality, and the program's cycles and energy."""
    axes = axes_of(rows)
    paths = ("quality.", "perplexity.", *BY_PROGRAM.values())
    names = list(dict.fromkeys(name for row in rows for name in row.metrics if name.startswith(paths)))
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["job", *axes, "reference_only", *names, "cycles", "energy_joules"])
        for row in rows:
            given = [row.swept.get(axis, "") for axis in axes]
            table.writerow([row.number, *given, beyond(row), *(row.metrics.get(name, "") for name in names),
                            cost(row, CYCLES), cost(row, ENERGY)])  # fmt: skip


def _draw(path: Path, rows: Sequence[Row], metric: str) -> list[Path]:
    """The metric over the axis with most values, a colour for each value of the next, a panel for each of the third."""
    axes = axes_of(rows)
    values = {axis: list(dict.fromkeys(row.swept.get(axis, "") for row in rows)) for axis in axes}
    x, colour, panel = [*sorted(axes, key=lambda axis: -len(values[axis])), "", "", ""][:3]
    panels = {value: [row for row in rows if row.swept.get(panel, "") == value] for value in values.get(panel, [""])}
    width = max(6.0, 0.75 * len(values.get(x, [""])) + 2)
    figure = new_figure(width, 4.2 * len(panels))
    told = PANELS.get(panel, short(panel, axes))
    plots = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for plot, (value, members) in zip(plots, panels.items(), strict=True):
        places = list(dict.fromkeys(row.swept.get(x, "") for row in members))
        groups: dict[str, list[Row]] = {}
        for row in members:
            groups.setdefault(row.swept.get(colour, ""), []).append(row)
        for number, (name, group) in enumerate(groups.items()):
            if len(group) == 1 and len(places) > 1:  # what the others are compared with
                plot.axhline(judged(group[0], metric), color="0.4", linestyle="--", linewidth=1, label=literal(name))
                continue
            offset = (number - (len(groups) - 1) / 2) * 0.7 / len(groups)
            at = [places.index(row.swept.get(x, "")) + offset for row in group]
            _errors(plot, at, group, metric, literal(name), colour_of(number))
        plot.set_xticks(range(len(places)), [*map(literal, places)], rotation=40, ha="right")
        plot.set_title(TITLES[metric] + (literal(f"; {told} {value}") if panel else ""), fontsize=10)
        plot.set_xlabel(worded_key(x) if x else "")
        if metric != EXACT_MATCH:
            plot.set_yscale("log")
        plot.grid(axis="y", alpha=0.3)
        if colour:
            plot.legend(
                title=short(colour, axes), fontsize=8, title_fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5)
            )
    return save(figure, path)


def _errors(plot: "Axes", places: Sequence[float], rows: Sequence[Row], metric: str, label: str, shade: str) -> None:
    """Points with the interval of exact match, or the standard error of the logit KL."""
    if metric == EXACT_MATCH:
        shares, bounds = [judged(row, metric) for row in rows], [_interval(row) for row in rows]
        error: list[float] | list[list[float]] = [
            [share - low for share, (low, _) in zip(shares, bounds, strict=True)],
            [high - share for share, (_, high) in zip(shares, bounds, strict=True)],
        ]
    else:
        shares = [max(row.metrics[metric], SMALLEST_KL) for row in rows]
        error = [row.metrics[f"{metric}_error"] for row in rows]
    plot.errorbar(places, shares, yerr=error, fmt="o", markersize=4, capsize=2, label=label, color=shade)


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (cost, share) that no other beats in both, the cheapest first."""
    best, kept = -math.inf, []
    for place, share in sorted(points, key=lambda point: (point[0], -point[1])):
        if share > best:
            best = share
            kept.append((place, share))
    return kept


def _draw_pareto(path: Path, rows: Sequence[Row]) -> list[Path]:
    """Exact match over steps per block, and over the cycles of those that have a program; a colour for each policy."""
    axes = axes_of(rows)
    numeric = [axis for axis in axes if all(is_number(row.swept[axis]) for row in rows if axis in row.swept)]
    series: dict[str, list[Row]] = {}
    for row in rows:
        series.setdefault(
            " ".join(row.swept[axis] for axis in axes if axis in row.swept and axis not in numeric), []
        ).append(row)
    costs: dict[str, Mapping[int, float]] = {
        "denoising steps per block": {row.number: judged(row, STEPS) for row in rows}
    }
    cycles = {row.number: value for row in rows if (value := cost(row, CYCLES)) is not None}
    if cycles:
        costs["cycles of the program at that many steps"] = cycles
    figure = new_figure(6.5 * len(costs), 5.5)
    plots = figure.subplots(1, len(costs), squeeze=False)[0]
    for plot, (label, of_row) in zip(plots, costs.items(), strict=True):
        for number, (name, members) in enumerate(series.items()):
            points = sorted(
                (of_row[row.number], judged(row, EXACT_MATCH), row.number) for row in members if row.number in of_row
            )
            if not points:
                continue
            by_number = {row.number: row for row in members}
            hollow = all(beyond(row) for row in members)
            shade = colour_of(number)
            style = {
                "color": shade,
                "markerfacecolor": "white" if hollow else shade,
                "marker": MARKERS[number % len(MARKERS)],
            }
            named = f"{name}, {REFERENCE_ONLY}" if hollow else name
            plot.plot([x for x, _, _ in points], [y for _, y, _ in points], linewidth=1, label=literal(named), **style)
            for x, y, job in points:
                row = by_number[job]
                plot.vlines(x, *_interval(row), color=shade, alpha=0.25)
                told = ",".join(row.swept[axis] for axis in numeric if axis in row.swept)
                plot.annotate(literal(told), (x, y), xytext=(3, 3), textcoords="offset points", fontsize=7, color=shade)
        best = front([(of_row[row.number], judged(row, EXACT_MATCH)) for row in rows if row.number in of_row])
        plot.step(
            *zip(*best, strict=True), where="post", color="grey", linestyle="--", linewidth=1.5, label="Pareto front"
        )
        plot.set(xlabel=label, ylabel=TITLES[EXACT_MATCH], xscale="log")
        low, high = min(of_row.values()), max(of_row.values())
        ticks = [low * (high / low) ** (part / TICKS) for part in range(TICKS + 1)]
        plot.set_xticks(ticks, [f"{tick:.2g}" if tick < 1e3 else f"{tick / 1e6:.2f} M" for tick in ticks])
        plot.minorticks_off()
        plot.grid(visible=True, alpha=0.2)
    figure.legend(*plots[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    return save(figure, path)


def _draw_solved(path: Path, rows: Sequence[Row]) -> list[Path]:
    """Energy over time of a solved problem, a colour for each value of the first axis; the front of those that none beats."""
    axes = axes_of(rows)
    first = max(axes, key=lambda axis: len({row.swept.get(axis, "") for row in rows}), default="")
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.swept.get(first, ""), []).append(row)
    figure = new_figure(9.5, 6.0)
    plot = figure.subplots()
    points = {
        row.number: (1e3 * (cost(row, SECONDS_SOLVED) or 0), 1e3 * (cost(row, JOULES_SOLVED) or 0)) for row in rows
    }
    for number, (name, members) in enumerate(groups.items()):
        places = [points[row.number] for row in members]
        plot.plot(*zip(*places, strict=True), linestyle="", marker=MARKERS[number % len(MARKERS)], markersize=7,
                  color=colour_of(number), label=literal(name))  # fmt: skip
        for row, place in zip(members, places, strict=True):
            others = [row.swept[axis] for axis in axes if axis != first and axis in row.swept]
            told = ", ".join([*others, f"{judged(row, EXACT_MATCH):.0%}"])
            plot.annotate(literal(told), place, xytext=(5, 3), textcoords="offset points", fontsize=7)
    best = [(time, -gain) for time, gain in front([(time, -energy) for time, energy in points.values()])]
    plot.plot(*zip(*best, strict=True), color="grey", linestyle="--", linewidth=1.5, zorder=0, label="Pareto front")
    plot.set(xlabel="time of a solved problem, ms", ylabel="energy of a solved problem, mJ", xscale="log", yscale="log")
    plot.set_title("What a right answer costs (percent: exact match)", fontsize=10)
    ticks_in_figures(plot)
    plot.grid(visible=True, which="both", alpha=0.2)
    plot.legend(title=short(first, axes), fontsize=8, title_fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return save(figure, path)
