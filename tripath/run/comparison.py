"""Comparisons of a run with other sources, as rows: device models, published figures, measurements, streams, this CPU."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

import yaml

from dllm.devices import Device, run_workload
from dllm.model import ModelSpec
from dllm.workload import Workload
from npu.energy import Technology
from npu.errors import TripathError
from npu.hardware import HardwareConfig
from npu.metrics import Result, Table
from npu.program import Program
from npu.program.steps import REFINE
from npu.units import format_seconds
from tripath.experiment import Experiment, Outcome
from tripath.paths import Fact, Path, gives, in_order, most_exact
from tripath.validation import (
    Discrepancy,
    HostSettings,
    Reference,
    Tolerance,
    check_areas,
    check_measurements,
    check_published,
    check_streams,
)
from tripath.validation.areas import SynthesisedArea
from tripath.validation.evidence import discrepancies, figure_table, judge, quality_table
from tripath.validation.figures import Figure
from tripath.validation.measurements import Measurement, Simulated, write_measurements
from tripath.validation.predictions import Models

if TYPE_CHECKING:
    from cycle.streams import Stream

Show = Callable[[dict[str, str]], None]
Figures = Mapping[str, Mapping[str, float]]
"""Metrics by device."""
NPU = "npu"
"""The name of the simulated hardware among the devices in reports."""
SAMPLING = ("sampling", "commit", "host")
HOST_TOLERANCE = 0.15
HOST_REASON = "the goal of the CPU model; other work on the machine slows phases and calibration unlike"


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """The findings of a comparison: discrepancies, metrics by device, and tables and files (name, text) for the run's folder."""

    checks: Sequence[Discrepancy] = ()
    figures: Figures = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    def __add__(self, other: "Findings") -> "Findings":
        return Findings(
            checks=[*self.checks, *other.checks], figures={**self.figures, **other.figures},
            tables={**self.tables, **other.tables}, files={**self.files, **other.files},
        )  # fmt: skip


def comparisons(experiment: Experiment) -> list[Path]:
    """A row for each comparison that the experiment asks for; its name is the key of the configuration that asks."""
    e, devices = experiment, "dllm.devices"
    rows = [
        Path(name=f"devices.{name}", module=devices, needs=Fact.MODEL | Fact.WORKLOAD, gives=Fact.FIGURES, here=True,
             run=partial(_device, name, e.devices[name]))
        for name in e.compared
    ]  # fmt: skip
    if e.compared:
        rows.append(Path(
            name="validation.devices", module=devices, needs=Fact.RESULTS | Fact.FIGURES, gives=Fact.CHECKS, here=True,
            run=partial(_beside_devices, e.settings.references),
        ))  # fmt: skip
    if e.streams:
        rows.append(Path(
            name="validation.streams", module="tripath.validation.streams", needs=Fact(0), gives=Fact.CHECKS,
            run=partial(_streams, e.streams), content=e.streams,
        ))  # fmt: skip
    if e.areas:
        rows.append(Path(
            name="validation.areas", module="tripath.validation.areas", needs=Fact(0), gives=Fact.CHECKS, here=True,
            run=partial(_areas, e.areas, e.technology),
        ))  # fmt: skip
    if e.figures:
        rows.append(Path(
            name="validation.figures", module="tripath.validation.figures", needs=Fact(0), gives=Fact.CHECKS, here=True,
            run=partial(_figures, e.figures, Models(devices=e.devices, models=e.models, memories=e.memories)),
        ))  # fmt: skip
    if e.published:
        rows.append(Path(
            name="validation.published", module=devices, needs=Fact(0), gives=Fact.CHECKS, here=True,
            run=partial(_published, e.devices, e.models),
        ))  # fmt: skip
    if e.measurements:
        rows.append(Path(
            name="validation.measurements", module=devices, gives=Fact.CHECKS, here=True,
            needs=Fact.PROGRAM | Fact.HARDWARE | Fact.MODEL | Fact.RESULTS,
            run=partial(_measured, e.measurements, e.devices, e.models, e.settings.measured),
        ))  # fmt: skip
    if e.host is not None:
        rows.append(Path(
            name="validation.host", module="tripath.validation.host", needs=Fact.MODEL, gives=Fact.CHECKS, here=True,
            run=partial(_host, e.host),
        ))  # fmt: skip
    return rows


def with_comparisons(experiment: Experiment, outcome: Outcome, show: Show, found: Iterable[Findings] = ()) -> Outcome:
    """The outcome with what tasks have `found`, and with what the comparisons find that run here."""
    facts: dict[Fact, Any] = {
        Fact.PROGRAM: outcome.program, Fact.HARDWARE: experiment.hardware, Fact.MODEL: experiment.model,
        Fact.WORKLOAD: experiment.workload, Fact.RESULTS: outcome.results,
    }  # fmt: skip
    whole = sum(found, Findings())
    for row in in_order([row for row in comparisons(experiment) if row.here]):
        assert row.run is not None
        show({row.name: "runs"})
        facts[Fact.FIGURES] = whole.figures
        whole += row.run(**{fact.argument: facts[fact] for fact in row.needs})
    return replace(
        outcome, discrepancies=[*outcome.discrepancies, *whole.checks], devices=whole.figures, tables=whole.tables,
        files=whole.files,
    )  # fmt: skip


def _streams(streams: "Sequence[Stream]") -> Findings:
    return Findings(checks=check_streams(streams))


def _areas(rows: Sequence[SynthesisedArea], technology: Technology | None) -> Findings:
    return Findings(checks=check_areas(rows, technology))


def _figures(rows: Sequence[Figure], models: Models) -> Findings:
    judged = judge(rows, models)
    return Findings(
        checks=discrepancies(judged), tables={"figures": figure_table(judged), "qualities": quality_table(judged)}
    )


def _device(name: str, device: Device, *, model: ModelSpec, workload: Workload) -> Findings:
    assert workload.prompt_length is not None
    return Findings(figures={name: run_workload(device, model, workload, workload.prompt_length).metrics})


def _published(devices: Mapping[str, Device], models: Mapping[str, ModelSpec]) -> Findings:
    return Findings(checks=check_published(devices, models))


def _measured(
    rows: Sequence[Measurement], devices: Mapping[str, Device], models: Mapping[str, ModelSpec], tolerance: Tolerance, *,
    program: Program | None, hardware: HardwareConfig, model: ModelSpec, results: Mapping[str, Result],
) -> Findings:  # fmt: skip
    run = None if program is None else Simulated(
        hardware=hardware.name, clock_hz=hardware.clock_hz, model=model.name, batch=program.layout["batch"],
        canvas=program.layout["canvas"], block=program.layout["block_length"], results=results,
    )  # fmt: skip
    return Findings(checks=check_measurements(rows, devices, models, run, tolerance))


def _beside_devices(references: Sequence[Reference], *, results: Mapping[str, Result], figures: Figures) -> Findings:
    """The simulated hardware beside the devices, and the references to any of them."""
    own = _own_figures(results, figures)
    devices = {**own, **figures}
    checks = list(_references(references, devices))
    return Findings(checks=checks, figures=own, tables={"devices": _device_table(devices)})


def _own_figures(results: Mapping[str, Result], devices: Figures) -> Figures:
    """Metrics of the simulated hardware by its most exact path, also against each device; none where no path has a time."""
    path = most_exact(results)
    if path is None:
        return {}
    metrics = results[path].metrics
    own = {name: metrics[name] for name in (
        "seconds", "tokens_per_second", "tokens_per_joule", "energy_joules", "average_power_watts", "sampling_share",
    ) if name in metrics}  # fmt: skip
    if Fact.TIMES in gives(path):
        sampling = sum(metrics.get(f"phase_cycles.{phase}", 0.0) for phase in SAMPLING)
        own["sampling_stage_share"] = sampling / metrics["makespan_cycles"]
        own["other_share"] = 1 - own["sampling_stage_share"]
        if (cycles := _refine_cycles(results[path])) is not None:
            own["refine_seconds"] = cycles * metrics["seconds"] / metrics["makespan_cycles"]
    for name, row in devices.items():
        if "refine_seconds" in own and "refine_kernel_seconds" in row:
            own[f"refine_speedup_over_{name}"] = row["refine_kernel_seconds"] / own["refine_seconds"]
        for metric in ("tokens_per_second", "tokens_per_joule"):
            if metric in own:
                own[f"{metric}_over_{name}"] = own[metric] / row[metric]
    return {NPU: own}


def _refine_cycles(result: Result) -> float | None:
    """Mean cycles of a step over the rows of a block alone; None: the program has none."""
    table = result.tables.get("steps")
    if table is None:
        return None
    step, passes, cycles = (table.columns.index(name) for name in ("step", "passes", "cycles"))
    rows = [row for row in table.rows if row[step] == REFINE]
    return sum(float(str(row[cycles])) for row in rows) / float(str(rows[0][passes])) if rows else None


def _device_table(devices: Figures) -> Table:
    columns = [
        "device",
        "time",
        "tokens/s",
        "W",
        "tokens/J",
        "LM head and sampling",
        "sampling alone",
        "speed-up of npu",
    ]
    own = devices.get(NPU, {})
    rows = []
    for name, metrics in devices.items():
        watts = metrics["energy_joules"] / metrics["seconds"] if "energy_joules" in metrics else 0.0
        rows.append([
            name, format_seconds(metrics["seconds"]), f"{metrics['tokens_per_second']:.4g}", f"{watts:.3g}",
            f"{metrics.get('tokens_per_joule', 0.0):.3g}", f"{metrics['sampling_share']:.1%}",
            f"{metrics['sampling_stage_share']:.1%}" if "sampling_stage_share" in metrics else "",
            f"{own[key]:.2f}" if (key := f"tokens_per_second_over_{name}") in own else "",
        ])  # fmt: skip
    return Table(columns=columns, rows=rows)


def _references(references: Sequence[Reference], devices: Figures) -> Iterator[Discrepancy]:
    """The references whose path is a device, or `npu`.

    Raises:
        TripathError: it has no such metric.
    """
    for reference in references:
        path, name = reference.metric.split(".", 1)
        if path not in devices:
            continue
        if name not in devices[path]:
            raise TripathError(f"validation.references: {path} has no metric {name}")
        yield Discrepancy(
            metric=name, scope=path, kind="reference", expected=reference.expected, expected_source=reference.source,
            observed=devices[path][name], observed_source=path, tolerance=reference.tolerance, reason=reference.reason,
        )  # fmt: skip


def _host(settings: HostSettings, *, model: ModelSpec) -> Findings:
    """This machine: a discrepancy for each phase of a model and for all, every size in a table, and the measurements as files."""
    from tripath.validation.host import measure_host, predicted_seconds, shapes_of

    models = shapes_of(model, settings)
    run = measure_host(models.values(), settings)
    ratios: dict[str, dict[str, list[float]]] = {name: {} for name in models}
    rows = []
    for timing in run.timings:
        predicted = predicted_seconds(run.device, models[timing.model], timing)
        ratios[timing.model].setdefault(timing.phase, []).append(predicted / timing.seconds)
        rows.append([
            timing.model, timing.phase, timing.canvas, timing.block, format_seconds(timing.seconds),
            f"{timing.median_seconds / timing.seconds - 1:+.0%}", format_seconds(timing.wall_seconds), timing.repeats,
            format_seconds(predicted), f"{predicted / timing.seconds - 1:+.1%}",
        ])  # fmt: skip
    found = []
    for name, by_phase in ratios.items():
        figures = {f"host.{phase}": median(row) for phase, row in by_phase.items()}
        figures["host.median_error"] = 1 + median(abs(ratio - 1) for row in by_phase.values() for ratio in row)
        found += [
            Discrepancy(
                metric=metric, scope=f"{name}, predicted over measured", kind="reference", expected=1.0,
                expected_source="this machine's CPU", observed=value, observed_source="device model host",
                tolerance=HOST_TOLERANCE, reason=HOST_REASON,
            ) for metric, value in figures.items()
        ]  # fmt: skip
    columns = [
        "model", "phase", "canvas", "block", "measured", "median above it", "on the wall", "repeats", "predicted", "error",
    ]  # fmt: skip
    measured = [
        Measurement(device="host", model=row.model, phase=row.phase, batch=1, canvas=row.canvas, block=row.block,
                    seconds=row.seconds, wall_seconds=row.wall_seconds, source="experiment=validate_host")
        for row in run.timings
    ]  # fmt: skip
    device = {"name": "host", "software": "numpy",
              "numbers": {k: dict(v) for k, v in run.device.numbers.items()},
              "curves": {k: [list(p) for p in v] for k, v in run.device.curves.items()}}  # fmt: skip
    files = {"host.csv": write_measurements(measured), "host.yaml": yaml.safe_dump(device, sort_keys=False)}
    return Findings(checks=found, tables={"host": Table(columns=columns, rows=rows)}, files=files)
