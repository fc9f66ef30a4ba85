"""A run against other hardware: device models on the same workload, published figures, measurements, this machine."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median

import yaml

from dllm.devices import run_workload
from npu.errors import TripathError
from npu.metrics import Table
from npu.units import format_seconds
from tripath.experiment import Experiment, Outcome
from tripath.validation import Discrepancy, Reference, check_measurements, check_published
from tripath.validation.measurements import Measurement, Simulated, write_measurements

Show = Callable[[dict[str, str]], None]
NPU = "npu"
"""The simulated hardware among the devices."""
SAMPLING = ("sampling", "commit")
HOST_TOLERANCE = 0.15
HOST_REASON = "the goal of the CPU model; other work on the machine slows phases and calibration unlike"


def with_other_hardware(experiment: Experiment, outcome: Outcome, show: Show) -> Outcome:
    """The outcome with what `validation.devices`, `published`, `measurements` and `host` ask for."""
    settings = experiment.settings
    rows: list[Discrepancy] = []
    devices: dict[str, dict[str, float]] = {}
    tables: dict[str, Table] = {}
    files: dict[str, str] = {}
    if settings.devices:
        devices = _figures(experiment, outcome)
        tables["devices"] = _device_table(devices)
        rows += _references(settings.references, devices)
    if settings.published:
        rows += check_published(experiment.devices, experiment.models)
    if experiment.measurements:
        run = _simulated(experiment, outcome)
        rows += check_measurements(
            experiment.measurements, experiment.devices, experiment.models, run, settings.measured
        )
    if settings.host is not None:
        show({"host": "is calibrated and timed"})
        found, tables["host"], files = _host(experiment)
        rows += found
    return replace(outcome, discrepancies=[*outcome.discrepancies, *rows], devices=devices, tables=tables, files=files)


def _figures(experiment: Experiment, outcome: Outcome) -> dict[str, dict[str, float]]:
    """Metrics of each device, and of the simulated hardware against each."""
    workload, model = experiment.workload, experiment.model
    assert workload.prompt_length is not None
    found: dict[str, dict[str, float]] = {}
    for name in experiment.settings.devices:
        found[name] = dict(run_workload(experiment.devices[name], model, workload, workload.prompt_length).metrics)
    path = next((name for name in ("cycle", "analytical") if name in outcome.results), None)
    if path is None:
        return found
    metrics = outcome.results[path].metrics
    own = {name: metrics[name] for name in (
        "seconds", "tokens_per_second", "tokens_per_joule", "energy_joules", "average_power_watts", "sampling_share",
    ) if name in metrics}  # fmt: skip
    if path == "cycle":
        sampling = sum(metrics.get(f"phase_cycles.{phase}", 0.0) for phase in SAMPLING)
        own["sampling_stage_share"] = sampling / metrics["makespan_cycles"]
        own["other_share"] = 1 - own["sampling_stage_share"]
    for name, row in found.items():
        for metric in ("tokens_per_second", "tokens_per_joule"):
            if metric in own:
                own[f"{metric}_over_{name}"] = own[metric] / row[metric]
    return {NPU: own, **found}


def _device_table(devices: Mapping[str, Mapping[str, float]]) -> Table:
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


def _references(references: Sequence[Reference], devices: Mapping[str, Mapping[str, float]]) -> list[Discrepancy]:
    """The references whose path is a device, or `npu`."""
    rows = []
    for reference in references:
        path, name = reference.metric.split(".", 1)
        if path not in devices:
            continue
        if name not in devices[path]:
            raise TripathError(f"validation.references: {path} has no metric {name}")
        rows.append(Discrepancy(
            metric=name, scope=path, kind="reference", expected=reference.expected, expected_source=reference.source,
            observed=devices[path][name], observed_source=path, tolerance=reference.tolerance, reason=reference.reason,
        ))  # fmt: skip
    return rows


def _simulated(experiment: Experiment, outcome: Outcome) -> Simulated | None:
    if outcome.program is None:
        return None
    layout = outcome.program.layout
    return Simulated(
        hardware=experiment.hardware.name, clock_hz=experiment.hardware.clock_hz, model=experiment.model.name,
        batch=layout["batch"], canvas=layout["canvas"], block=layout["block_length"], results=outcome.results,
    )  # fmt: skip


def _host(experiment: Experiment) -> tuple[list[Discrepancy], Table, dict[str, str]]:
    """This machine: a discrepancy for each phase and for all, every size in a table, and the measurements as files."""
    from tripath.validation.host import measure_host, predicted_seconds

    assert experiment.settings.host is not None
    run, model = measure_host(experiment.model, experiment.settings.host), experiment.model
    ratios: dict[str, list[float]] = {}
    rows = []
    for timing in run.timings:
        predicted = predicted_seconds(run.device, model, timing)
        ratios.setdefault(timing.phase, []).append(predicted / timing.seconds)
        rows.append([
            timing.phase, timing.canvas, timing.block, format_seconds(timing.seconds),
            f"{timing.median_seconds / timing.seconds - 1:+.0%}", timing.repeats, format_seconds(predicted),
            f"{predicted / timing.seconds - 1:+.1%}",
        ])  # fmt: skip
    errors = [abs(ratio - 1) for row in ratios.values() for ratio in row]
    figures = {f"host.{phase}": median(row) for phase, row in ratios.items()}
    figures["host.median_error"] = 1 + median(errors)
    found = [
        Discrepancy(
            metric=name, scope=f"{model.name}, predicted over measured", kind="reference", expected=1.0,
            expected_source="this machine's CPU", observed=value, observed_source="device model host",
            tolerance=HOST_TOLERANCE, reason=HOST_REASON,
        ) for name, value in figures.items()
    ]  # fmt: skip
    columns = ["phase", "canvas", "block", "measured", "median above it", "repeats", "predicted", "error"]
    measured = [
        Measurement(device="host", model=model.name, phase=row.phase, batch=1, canvas=row.canvas, block=row.block,
                    seconds=row.seconds, source="experiment=validate_host")
        for row in run.timings
    ]  # fmt: skip
    device = {"name": "host", "software": "numpy",
              "numbers": {k: dict(v) for k, v in run.device.numbers.items()},
              "curves": {k: [list(p) for p in v] for k, v in run.device.curves.items()}}  # fmt: skip
    files = {"host.csv": write_measurements(measured), "host.yaml": yaml.safe_dump(device, sort_keys=False)}
    return found, Table(columns=columns, rows=rows), files
