"""Measurements of anyone's hardware, as a file: rows of device, model, phase and size, held against what is predicted.

Columns: `device` (a device model of `devices`, or the name of the simulated hardware), `model` (an option of the group model),
`phase` (of a device: `dllm.devices.PHASES`; of the hardware: `generation` or a phase of the program), `batch`, `canvas` and
`block` in tokens, `seconds`, `source` (who measured, with what). A column `wall_seconds` may stand beside `seconds` that are CPU
time; nothing is compared with it.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dllm.devices import PHASES, Device, Shape
from dllm.model import ModelSpec
from npu.errors import TripathError
from npu.metrics import Result
from tripath.validation.discrepancy import Discrepancy
from tripath.validation.rows import positive
from tripath.validation.settings import Tolerance

COLUMNS = ("device", "model", "phase", "batch", "canvas", "block", "seconds", "source")
WALL = "wall_seconds"
"""A column that a file may have."""
KEY = "validation.measurements"


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One row of a file; `line` is its number there."""

    device: str
    model: str
    phase: str
    batch: int
    canvas: int
    block: int
    seconds: float
    source: str
    wall_seconds: float | None = None
    line: int = 0

    @property
    def scope(self) -> str:
        """Where it was measured, as text."""
        return f"{self.device}/{self.model}/batch {self.batch}/canvas {self.canvas}/block {self.block}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Simulated:
    """The run that rows of the simulated hardware belong to."""

    hardware: str
    clock_hz: float
    model: str
    batch: int
    canvas: int
    block: int
    results: Mapping[str, Result]

    def seconds(self, phase: str) -> dict[str, float]:
        """Seconds of a phase by path, of those that know it."""
        metric, scale = ("seconds", 1.0) if phase == "generation" else (f"phase_cycles.{phase}", self.clock_hz)
        return {name: row.metrics[metric] / scale for name, row in self.results.items() if metric in row.metrics}


def read_measurements(file: str) -> list[Measurement]:
    """The rows of a CSV file with the columns above, in any order.

    Raises:
        TripathError: it cannot be read, lacks a column, or a row breaks a rule; the message names the line.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise TripathError(f"{KEY}: cannot read {file} ({error})") from None
    reader = csv.DictReader(text.splitlines(), skipinitialspace=True)
    header = reader.fieldnames or []
    if sorted(header) not in (sorted(COLUMNS), sorted((*COLUMNS, WALL))):
        raise TripathError(
            f"{KEY}: {file} must have the columns {', '.join(COLUMNS)}, got {', '.join(header) or 'none'}"
        )
    rows = [_measurement(file, reader.line_num, row) for row in reader]
    if not rows:
        raise TripathError(f"{KEY}: no rows in {file}")
    return rows


def write_measurements(rows: Sequence[Measurement]) -> str:
    """Text of a file that `read_measurements` reads."""
    walls = any(row.wall_seconds is not None for row in rows)
    lines = [",".join((*COLUMNS, WALL) if walls else COLUMNS)]
    for row in rows:
        source = row.source.replace('"', '""')
        cells = [row.device, row.model, row.phase, row.batch, row.canvas, row.block, repr(row.seconds), f'"{source}"']
        lines.append(",".join(map(str, [*cells, repr(row.wall_seconds)] if walls else cells)))
    return "\n".join(lines) + "\n"


def _measurement(file: str, line: int, row: Mapping[str, str | None]) -> Measurement:
    where = f"{KEY}: {file} line {line}"
    values = {name: (row[name] or "").strip() for name in (*COLUMNS, WALL) if name in row}
    if None in row or not all(values.values()):
        raise TripathError(f"{where}: needs a value for each of {', '.join(COLUMNS)}")
    numbers: dict[str, int] = {}
    for name in ("batch", "canvas", "block"):
        if not values[name].isdecimal() or int(values[name]) < 1:
            raise TripathError(f"{where}: {name} must be an integer of at least 1, got {values[name]!r}")
        numbers[name] = int(values[name])
    if numbers["block"] > numbers["canvas"]:
        raise TripathError(f"{where}: block {numbers['block']} exceeds canvas {numbers['canvas']}")
    seconds = positive(where, values, "seconds")
    wall_seconds = positive(where, values, WALL) if WALL in values else None
    return Measurement(device=values["device"], model=values["model"], phase=values["phase"], seconds=seconds,
                       wall_seconds=wall_seconds, source=values["source"], line=line, **numbers)  # fmt: skip


def check_names(rows: Sequence[Measurement], devices: Mapping[str, Device], hardware: str | None) -> None:
    """Refuse rows of a device that is neither a model nor the simulated `hardware` (None: nothing is simulated).

    Raises:
        TripathError: a row names an unknown device, or a phase that its device model does not know.
    """
    for row in rows:
        if row.device not in devices and row.device != hardware:
            known = ", ".join(devices if hardware is None else (*devices, hardware))
            raise TripathError(f"{KEY}: line {row.line}: unknown device {row.device!r}, one of {known}")
        if row.device in devices and row.phase not in PHASES:
            raise TripathError(f"{KEY}: line {row.line}: unknown phase {row.phase!r}, one of {', '.join(PHASES)}")


def check_measurements(
    rows: Sequence[Measurement], devices: Mapping[str, Device], models: Mapping[str, ModelSpec], run: Simulated | None,
    tolerance: Tolerance,
) -> list[Discrepancy]:  # fmt: skip
    """Each row against its device model, or against the run where it names the simulated hardware.

    A row of the simulated hardware for another model or size than the run's is left out.

    Raises:
        TripathError: a row of the hardware names an unknown phase, or no row is left.
    """
    found: list[Discrepancy] = []
    for row in rows:
        size = (row.model, row.batch, row.canvas, row.block)
        if row.device in devices:
            device, shape = devices[row.device], Shape(batch=row.batch, canvas=row.canvas, block=row.block)
            predicted = device.seconds(device.phase(models[row.model], row.phase, shape))
            found.append(_compare(row, predicted, f"device model {row.device}", tolerance))
        elif run is not None and size == (run.model, run.batch, run.canvas, run.block):
            by_path = run.seconds(row.phase)
            if not by_path:
                raise TripathError(f"{KEY}: line {row.line}: unknown phase {row.phase!r} of {row.device}")
            found += [_compare(row, seconds, path, tolerance) for path, seconds in by_path.items()]
    if not found:
        raise TripathError(f"{KEY}: no row belongs to this run (its model, batch, canvas and block)")
    return found


def _compare(row: Measurement, predicted: float, source: str, tolerance: Tolerance) -> Discrepancy:
    return Discrepancy(
        metric=f"{row.phase}_seconds", scope=row.scope, kind="reference", expected=row.seconds, expected_source=row.source,
        observed=predicted, observed_source=source, tolerance=tolerance.value, reason=tolerance.reason,
    )  # fmt: skip
