"""A sweep as pictures: `python -m tripath.sweeps.sweep FOLDER` reads the runs that `tripath --multirun` left below FOLDER.

For each swept axis: sweep_AXIS.png (cycles, and the share of a run that sampling takes, with the crossover to half of it), and
sweep_AXIS.csv and sweep_AXIS.md with the same numbers. Sampling is what follows the last layer: LM head, sampling, commit.
"""

import argparse
import csv
import json
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import yaml

from npu.errors import Arguments, TripathError, print_error
from tripath.paths import PATHS as ROWS
from tripath.paths import Fact
from tripath.report.drawing import colour_of, new_figure, save
from tripath.sweeps.folders import job_reports, value_at

AXES = {
    "workload.batch": "sequences", "canvas": "tokens of a sequence", "hardware.vlen": "VLEN", "hardware.blen": "BLEN",
    "hardware.mlen": "MLEN", "hardware.hbm.channels": "HBM channels",
}  # fmt: skip
"""Axes that may be swept, and their names in the picture."""
PATHS = {name: row.cost for name, row in ROWS.items() if row.gives & (Fact.ESTIMATE | Fact.TIMES)}
"""Timing paths, and the cost that each gives."""
HALF = 0.5
"""Sampling dominates where its share is larger."""

Point = dict[str, float]
"""The axes of a run, and `PATH.cycles` and `PATH.sampling_share` of each path."""


def read_runs(folder: Path) -> list[Point]:
    """The runs of a sweep that ended well enough to leave a report.

    Raises:
        TripathError: there is none.
    """
    points = []
    for report in job_reports(folder):
        config = yaml.safe_load((report.parent / "config.yaml").read_text(encoding="utf-8"))
        simulators = json.loads(report.read_text(encoding="utf-8"))["simulators"]
        workload = config["workload"]
        point = {axis: float(value_at(config, axis)) for axis in AXES if axis != "canvas"}
        point["canvas"] = float((workload["prompt_length"] or 0) + workload["generation_length"])
        for path, cost in PATHS.items():
            if path in simulators:
                metrics = simulators[path]["metrics"]
                point[f"{path}.cycles"] = metrics[f"{path}.{cost}"]
                point[f"{path}.sampling_share"] = metrics[f"{path}.sampling_share"]
        points.append(point)
    if not points:
        raise TripathError(f"{folder}: no run of a sweep below (NUMBER/report.json)")
    return points


def swept_axes(points: Sequence[Point]) -> list[str]:
    """The axes that have more than one value."""
    return [axis for axis in AXES if len({point[axis] for point in points}) > 1]


def crossover(points: Sequence[tuple[float, float]]) -> float | None:
    """Where a share, given over ascending values of an axis, first crosses one half: log-linear between two values."""
    for (low, before), (high, after) in pairwise(points):
        if (before - HALF) * (after - HALF) <= 0 and before != after:
            return low * (high / low) ** ((HALF - before) / (after - before))
    return None


def write_axis(folder: Path, points: Sequence[Point], axis: str, others: Sequence[str] = ()) -> list[Path]:
    """Picture and tables of one axis; runs that also differ in `others` are lines of their own."""
    lines: dict[tuple[float, ...], list[Point]] = {}
    for point in sorted(points, key=lambda point: point[axis]):
        lines.setdefault(tuple(point[other] for other in others), []).append(point)
    stem = f"sweep_{axis.rpartition('.')[2]}"
    columns = [axis, *others, *(f"{path}.{what}" for path in PATHS for what in ("cycles", "sampling_share"))]
    rows = [[_text(point.get(column)) for column in columns] for line in lines.values() for point in line]
    picture, table, page = (folder / f"{stem}.{suffix}" for suffix in ("png", "csv", "md"))
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    notes = [_crossing(line, axis, path) for line in lines.values() for path in PATHS]
    text = ["| " + " | ".join(row) + " |" for row in (columns, ["---"] * len(columns), *rows)]
    page.write_text("\n".join([*text, "", *dict.fromkeys(note for note in notes if note)]) + "\n", encoding="utf-8")
    return [*_draw(picture, axis, others, lines), table, page]


def _text(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value == int(value) else f"{value:.4f}"


def _shares(line: Sequence[Point], axis: str, path: str) -> list[tuple[float, float]]:
    key = f"{path}.sampling_share"
    return [(point[axis], point[key]) for point in line if key in point]


def _crossing(line: Sequence[Point], axis: str, path: str) -> str:
    shares = _shares(line, axis, path)
    if not shares:
        return ""
    at = crossover(shares)
    if at is not None:
        return f"{path}: sampling takes half of a run at {axis} {at:.3g}."
    largest = max(shares, key=lambda pair: pair[1])
    where = (
        "takes more than half everywhere"
        if min(shares, key=lambda pair: pair[1])[1] > HALF
        else "never takes half of a run"
    )
    return f"{path}: sampling {where} ({largest[1]:.1%} at most, at {axis} {largest[0]:.0f})."


def _draw(
    path: Path, axis: str, others: Sequence[str], lines: Mapping[tuple[float, ...], Sequence[Point]]
) -> list[Path]:
    figure = new_figure(9, 3.6)
    cost, share = figure.subplots(1, 2)
    for number, (values, line) in enumerate(lines.items()):
        own = ", ".join(f"{AXES[other]} {value:.0f}" for other, value in zip(others, values, strict=True))
        for name in PATHS:
            drawn = [point for point in line if f"{name}.cycles" in point]
            if not drawn:
                continue
            x, marker, label = [point[axis] for point in drawn], ROWS[name].style, f"{name} {own}"
            cost.plot(x, [point[f"{name}.cycles"] for point in drawn], marker, color=colour_of(number), label=label)
            share.plot(
                x,
                [100 * point[f"{name}.sampling_share"] for point in drawn],
                marker,
                color=colour_of(number),
                label=label,
            )
            at = crossover(_shares(line, axis, name))
            if at is not None:
                share.axvline(at, color="grey", linestyle=":", label=f"half at {at:.3g}")
    share.axhline(100 * HALF, color="grey", linewidth=0.8)
    ticks = sorted({point[axis] for line in lines.values() for point in line})
    for axes in (cost, share):
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
        axes.set_xlabel(AXES[axis])
        axes.grid(visible=True, alpha=0.2)
    cost.set(yscale="log", ylabel="cycles", title="Cost of a run")
    share.set(ylim=(0, None), ylabel="share of a run (%)", title="LM head, sampling and commit")
    cost.legend()
    return save(figure, path)


def write_sweep(folder: Path) -> list[Path]:
    """Pictures and tables of every axis that was swept.

    Raises:
        TripathError: there are no runs, or they differ in no axis.
    """
    points = read_runs(folder)
    axes = swept_axes(points)
    if not axes:
        raise TripathError(f"{folder}: nothing was swept of {', '.join(AXES)}")
    others = {axis: [other for other in axes if other != axis] for axis in axes}
    return [file for axis in axes for file in write_axis(folder, points, axis, others[axis])]


def main() -> int:
    """Write pictures and tables beside the runs of a sweep; returns the exit status."""
    parser = Arguments(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of a sweep")
    try:
        files = write_sweep(parser.parse_args().folder)
    except (TripathError, OSError) as error:
        print_error(str(error))
        return 2
    sys.stdout.writelines(f"{file}\n" for file in files)
    return 0


if __name__ == "__main__":
    sys.exit(main())
