"""The distance of the analytical path from the cycle path: `tripath estimates FOLDER` reads the runs that
a sweep of both left below FOLDER, e.g. `tripath --multirun experiment=analytical_error`.

It leaves estimates.csv (every run), estimates.md (percentiles and the worst runs, with what each waits for) and estimates.png.
"""

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from npu.errors import Arguments, TripathError, print_error
from tripath.paths import Fact, giver_name
from tripath.report.drawing import colour_of, new_figure, save
from tripath.sweeps.folders import job_reports, value_at

WORST = 5
ESTIMATE, EXACT = giver_name(Fact.ESTIMATE), giver_name(Fact.TIMES)
AXES = (
    "model.name", "workload.cache", "hardware.execution", "hardware.blen", "hardware.mlen", "hardware.vlen",
    "hardware.hbm.channels", "workload.batch", "workload.prompt_length", "workload.generation_length",
    "workload.block_length", "workload.steps",
)  # fmt: skip
"""Keys that tell runs apart."""
QUEUES = ("frontend", "matrix", "vector", "scalar", "dma_in", "dma_out")


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """One run: its axes, cycles of both paths and of the bound, the busiest unit of the cycle path and its share, and the
    largest cause of stalls of that unit with its share."""

    axes: Mapping[str, str]
    makespan: float
    estimated: float
    bound: float
    busiest: str
    busy_share: float
    stall: str
    stall_share: float

    @property
    def error(self) -> float:
        """Relative error of the estimate."""
        return self.estimated / self.makespan - 1


def read_estimates(folder: Path) -> list[Estimate]:
    """The runs below a sweep's folder that have both paths.

    Raises:
        TripathError: there is none.
    """
    found = []
    for report in job_reports(folder):
        simulators = json.loads(report.read_text(encoding="utf-8"))["simulators"]
        if not {ESTIMATE, EXACT} <= set(simulators):
            continue
        config = yaml.safe_load((report.parent / "config.yaml").read_text(encoding="utf-8"))
        metrics = simulators[ESTIMATE]["metrics"] | simulators[EXACT]["metrics"]
        makespan = metrics[f"{EXACT}.makespan_cycles"]
        busiest = max(QUEUES, key=lambda unit: metrics.get(f"{EXACT}.busy_cycles.{unit}", 0.0))
        prefix = f"{EXACT}.stall_cycles.{busiest}."
        stalls = {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
        cause = max(stalls, key=lambda name: stalls[name], default="")
        found.append(Estimate(
            axes={axis: value_at(config, axis) for axis in AXES}, makespan=makespan,
            estimated=metrics[f"{ESTIMATE}.estimated_cycles"], bound=metrics[f"{ESTIMATE}.lower_bound_cycles"],
            busiest=busiest, busy_share=metrics[f"{EXACT}.busy_cycles.{busiest}"] / makespan, stall=cause,
            stall_share=stalls.get(cause, 0.0) / makespan,
        ))  # fmt: skip
    if not found:
        raise TripathError(f"{folder}: no run of {ESTIMATE} and {EXACT} below (NUMBER/report.json)")
    return found


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1)]


def summary(runs: Sequence[Estimate]) -> str:
    """Markdown: percentiles by model and execution, and the worst runs."""
    lines = [
        "| model, execution | runs | median error | 95th percentile | largest | bound / makespan |",
        "|---" * 6 + "|",
    ]
    groups: dict[str, list[Estimate]] = {"all": list(runs)}
    for run in runs:
        groups.setdefault(f"{run.axes['model.name']}, {run.axes['hardware.execution']}", []).append(run)
    for name, members in groups.items():
        errors = [abs(run.error) for run in members]
        tightness = [run.bound / run.makespan for run in members]
        lines.append(
            f"| {name} | {len(members)} | {percentile(errors, 0.5):.2%} | {percentile(errors, 0.95):.2%} | {max(errors):.2%} | "
            f"{min(tightness):.2f} to {max(tightness):.2f} |"
        )
    varying = [axis for axis in AXES if len({run.axes[axis] for run in runs}) > 1]
    names = [axis.removesuffix(".name").rpartition(".")[2] for axis in varying]
    lines += ["", f"| error | bound | busiest unit | it waits most for | {' | '.join(names)} |"]
    lines.append("|---" * (4 + len(varying)) + "|")
    for run in sorted(runs, key=lambda run: -abs(run.error))[:WORST]:
        told = [f"{run.error:+.2%}", f"{run.bound / run.makespan:.2f}", f"{run.busiest} {run.busy_share:.0%}",
                f"{run.stall} {run.stall_share:.0%}", *(run.axes[axis] for axis in varying)]  # fmt: skip
        lines.append(f"| {' | '.join(told)} |")
    return "\n".join(lines) + "\n"


def draw(runs: Sequence[Estimate], path: Path) -> None:
    """Relative error over the makespan, a colour for each model, a mark for each execution."""
    figure = new_figure(8, 4.5)
    axes = figure.subplots()
    models = sorted({run.axes["model.name"] for run in runs})
    for number, model in enumerate(models):
        for execution, mark in (("decoupled", "o"), ("serial", "x")):
            chosen = [r for r in runs if (r.axes["model.name"], r.axes["hardware.execution"]) == (model, execution)]
            if chosen:
                axes.scatter([r.makespan for r in chosen], [100 * r.error for r in chosen], marker=mark, s=18,
                             color=colour_of(number), label=f"{model}, {execution}")  # fmt: skip
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set(xscale="log", xlabel="cycles of the cycle path", ylabel="error of the estimate (%)")
    axes.legend(fontsize=8)
    save(figure, path)


def write(folder: Path) -> str:
    """Write the three files; returns the summary."""
    runs = read_estimates(folder)
    with (folder / "estimates.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow([*AXES, "makespan_cycles", "estimated_cycles", "lower_bound_cycles", "error"])
        rows.writerows([*run.axes.values(), run.makespan, run.estimated, run.bound, run.error] for run in runs)
    text = summary(runs)
    (folder / "estimates.md").write_text(text, encoding="utf-8")
    draw(runs, folder / "estimates.png")
    return text


def main(arguments: Sequence[str]) -> int:
    """Carry out `tripath estimates FOLDER`; the exit status."""
    parser = Arguments(
        prog="tripath estimates",
        description="Draw the errors of the analytical path over the runs of a sweep, and list the worst.",
    )
    parser.add_argument("folder", type=Path, help="of a sweep with the paths analytical and cycle")
    try:
        sys.stdout.write(write(parser.parse_args(arguments).folder))
    except (TripathError, OSError) as error:
        print_error(str(error))
        return 2
    return 0
