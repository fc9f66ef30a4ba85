"""Seconds of the jobs of a sweep by stage of a generation: `by_phase.csv`, `by_phase.md`, and a picture of stacked bars.

Stages are the transformer, the LM head, sampling on the core, and the host. Where sampling is fused it is part of the LM head.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

from npu.metrics import PHASES, SAMPLING_PHASES, Table
from npu.units import format_seconds
from tripath.paths import Fact, giver_name
from tripath.report.drawing import BLACK, BLUE, VERMILION, YELLOW, literal, new_figure, save
from tripath.sweeps.summary import Row, axes_of, markdown_line, short

TABLE, PAGE, PICTURE = "by_phase.csv", "by_phase.md", "by_phase.png"
TIMED, ESTIMATED = giver_name(Fact.TIMES), giver_name(Fact.ESTIMATE)
STAGES = {
    "transformer": tuple(phase for phase in PHASES if phase not in SAMPLING_PHASES), "LM head": ("lm_head",),
    "sampling": ("sampling", "commit"), "host": ("host",),
}  # fmt: skip
"""Stages of a generation, and the phases of each."""
SMALL = 0.001
"""Shares below are left out."""
COLOURS = {"transformer": BLUE, "LM head": YELLOW, "sampling": VERMILION, "host": BLACK}


def write_by_phase(folder: Path, rows: Sequence[Row]) -> list[str]:
    """Write table and picture of the jobs that the path of times ran, and hand back their names; none, where it ran none."""
    known = [row for row in sorted(rows, key=lambda row: row.number) if f"{TIMED}.seconds" in row.metrics]
    if not known:
        return []
    table = stage_table(known)
    with (folder / TABLE).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([table.columns, *table.rows])
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    (folder / PAGE).write_text("".join(f"{markdown_line(line)}\n" for line in lines), encoding="utf-8")
    return [TABLE, PAGE, *(file.name for file in _draw(folder / PICTURE, known))]


def seconds_of(row: Row) -> dict[str, float]:
    """Seconds of each stage, which add up to the run."""
    per_cycle = row.metrics[f"{TIMED}.seconds"] / row.metrics[f"{TIMED}.makespan_cycles"]
    return {
        stage: per_cycle * sum(row.metrics.get(f"{TIMED}.phase_cycles.{phase}", 0.0) for phase in phases)
        for stage, phases in STAGES.items()
    }


def stage_table(rows: Sequence[Row]) -> Table:
    """Seconds of each stage and of the run, against the first job with the same value of the first axis; energy likewise, and how
    far the estimate is off."""
    axes = axes_of(rows)
    columns = [*(short(axis, axes) for axis in axes), *(f"{stage}, s" for stage in STAGES), "all, s", "times",
               "energy, J", "times the energy", "estimate"]  # fmt: skip
    cells = []
    for row in rows:
        first = next(each for each in rows if _group(each, axes) == _group(row, axes))
        whole, base = (each.metrics[f"{TIMED}.seconds"] for each in (row, first))
        estimate = row.metrics.get(f"{ESTIMATED}.seconds")
        joules, base_joules = (each.metrics.get(f"{TIMED}.energy_joules") for each in (row, first))
        cells.append([
            *(row.swept.get(axis, "") for axis in axes), *(f"{value:.4g}" for value in seconds_of(row).values()),
            f"{whole:.4g}", f"{whole / base:.3f}", "" if joules is None else f"{joules:.4g}",
            "" if joules is None or base_joules is None else f"{joules / base_joules:.3f}",
            "" if estimate is None else f"{estimate / whole - 1:+.1%}",
        ])  # fmt: skip
    return Table(columns=columns, rows=cells)


def _group(row: Row, axes: Sequence[str]) -> str:
    """The value of the first axis, whose jobs are compared with each other."""
    return row.swept.get(axes[0], "") if axes else ""


def _shares(row: Row) -> str:
    """The stages beside the transformer that take a part that counts, with their shares."""
    seconds = seconds_of(row)
    shares = {stage: value / sum(seconds.values()) for stage, value in seconds.items() if stage != "transformer"}
    return "".join(f", {stage} {share:.1%}" for stage, share in shares.items() if share >= SMALL)


def _draw(path: Path, rows: Sequence[Row]) -> list[Path]:
    """A bar for each job, a panel for each value of the first axis; each panel has seconds of its own."""
    axes = axes_of(rows)
    panels: dict[str, list[Row]] = {}
    for row in rows:
        panels.setdefault(_group(row, axes), []).append(row)
    figure = new_figure(11, 0.6 + sum(1.0 + 0.42 * len(members) for members in panels.values()))
    heights = [1 + 0.42 * len(members) for members in panels.values()]
    plots = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for plot, (title, members) in zip(plots, panels.items(), strict=True):
        names = [literal(", ".join(row.swept.get(axis, "") for axis in axes[1:])) for row in members]
        places, left = range(len(members)), [0.0] * len(members)
        for stage, shade in COLOURS.items():
            widths = [seconds_of(row)[stage] for row in members]
            plot.barh(places, widths, left=left, color=shade, edgecolor="white", linewidth=0.3, label=stage)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        for place, row, whole in zip(places, members, left, strict=True):
            told = f"{format_seconds(whole)}, {whole / left[0]:.2f} times{_shares(row)}"
            plot.text(whole + 0.01 * max(left), place, told, va="center", fontsize=8)
        plot.set_yticks(places, names, fontsize=8)
        plot.invert_yaxis()
        plot.set(title=literal(title), xlabel="seconds of a generation", xlim=(0, 1.45 * max(left)))
        plot.title.set_fontsize(10)
    figure.legend(
        *plots[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(STAGES), fontsize=9, frameon=False
    )
    return save(figure, path)
