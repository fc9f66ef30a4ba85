"""A device as a roofline: rates of its engines, memory bandwidth, the cost of a launch. No factor fits a device to a figure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from dllm.devices.graph import SAMPLING_BYTES, phase_operations, steps_of
from dllm.devices.operation import Operation, Shape
from dllm.model import ModelSpec
from dllm.workload import Workload
from npu.choices import check_choices, one_of
from npu.errors import TripathError
from npu.sourced import Numbers, check_numbers

GPU_NUMBERS = (
    "matrix_bf16_flops", "vector_fp32_flops", "vector_fp64_flops", "memory_bytes_per_second", "matrix_fraction",
    "memory_fraction", "kernel_seconds", "dispatch_seconds", "board_watts",
)  # fmt: skip
CPU_NUMBERS = (
    "gemm_flops", "scores_flops", "mix_flops", "call_seconds", "reduction_seconds", "mean_seconds",
    "reduced_row_seconds", "choice_seconds", "board_watts",
)  # fmt: skip
CPU_CURVES = ("pack", "pack_row", "broadcast_row", "pass", "exp", "sum", "max", "argmax")
SOFTWARE = {"torch": GPU_NUMBERS, "numpy": CPU_NUMBERS}
"""Numbers that a device needs, by the software that it runs (`graph`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """Hardware that runs the model with someone's software.

    Attributes:
        name: What reports and `validation.devices` call it.
        software: Eager PyTorch on a GPU (torch), or NumPy on a CPU (numpy).
        numbers: Each with `value`, `provenance` (published, derived, assumed) and `source`; the unit ends its name.
        sampling_format: That of the probabilities; LLaDA's code has fp64.
        curves: Of numpy: rates over the bytes that an operation names as resident, as points [bytes, per second], log-linear
            in between: caches and memory.

    Raises:
        TripathError: a number or curve is missing, unknown or not positive.
    """

    name: str
    software: str = field(metadata=one_of(SOFTWARE))
    numbers: Numbers
    sampling_format: str = field(default="fp64", metadata=one_of(SAMPLING_BYTES))
    curves: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        key = f"devices.{self.name}"
        check_choices(key, self)
        check_numbers(f"{key}.numbers", self.numbers, SOFTWARE[self.software])
        wanted = CPU_CURVES if self.software == "numpy" else ()
        if set(self.curves) != set(wanted):
            raise TripathError(
                f"{key}.curves: needs {', '.join(wanted) or 'none'}, got {', '.join(self.curves) or 'none'}"
            )
        for name, points in self.curves.items():
            flat = [value for point in points for value in point]
            if not points or any(len(point) != 2 for point in points) or min(flat) <= 0 or not math.isfinite(sum(flat)):
                raise TripathError(f"{key}.curves.{name}: needs points [bytes, per second], got {list(points)}")

    def __getitem__(self, name: str) -> float:
        return float(self.numbers[name]["value"])

    def kernel_seconds(self, operations: Sequence[Operation]) -> float:
        """Time on the device: each operation takes its work or its bytes, whichever is longer, and its launches."""
        if self.software == "numpy":
            return sum(self._call_seconds(row) + row.launches * self["call_seconds"] for row in operations)
        fraction = {"matrix_bf16": self["matrix_fraction"]}
        bandwidth = self["memory_bytes_per_second"] * self["memory_fraction"]
        return sum(
            max(row.work / (self[f"{row.engine}_flops"] * fraction.get(row.engine, 1.0)), row.moved_bytes / bandwidth)
            + row.launches * self["kernel_seconds"]
            for row in operations
        )

    def seconds(self, operations: Sequence[Operation]) -> float:
        """Time on the wall: the device's, or that in which the host can dispatch the launches, whichever is longer."""
        if self.software == "numpy":
            return self.kernel_seconds(operations)
        launches = sum(row.launches for row in operations)
        return max(self.kernel_seconds(operations), launches * self["dispatch_seconds"])

    def _call_seconds(self, row: Operation) -> float:
        """Time of one call of NumPy, its fixed cost left out."""
        if row.engine.endswith("_seconds"):
            return row.work * self[row.engine]
        return row.work / self._rate(row.engine, row.resident_bytes)

    def _rate(self, engine: str, resident_bytes: float) -> float:
        if engine not in self.curves:
            return self[f"{engine}_flops"]
        points = sorted((x, y) for x, y in self.curves[engine])
        if resident_bytes <= points[0][0]:
            return points[0][1]
        for (low, slow), (high, fast) in pairwise(points):
            if resident_bytes <= high:
                share = math.log(resident_bytes / low) / math.log(high / low)
                return slow * (fast / slow) ** share
        return points[-1][1]

    def phase(self, model: ModelSpec, phase: str, shape: Shape) -> list[Operation]:
        """Operations of a phase in this device's software."""
        return phase_operations(self.software, model, phase, shape, self.sampling_format)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceRun:
    """A generation on a device: `metrics` (docs/devices.md lists them)."""

    device: str
    metrics: Mapping[str, float]


def run_workload(device: Device, model: ModelSpec, workload: Workload, prompt_length: int) -> DeviceRun:
    """The whole generation of `workload` (or its sampling stage alone) on a device, steps as scheduled."""
    steps = list(steps_of(workload, prompt_length))
    canvas = prompt_length + workload.generation_length
    totals = {"kernel": 0.0, "wall": 0.0}
    parts: dict[str, float] = dict.fromkeys(("forward", "lm_head", "sampling"), 0.0)
    for rows in sorted({rows for rows, _ in steps}):
        count = sum(rows == other for other, _ in steps)
        shape = Shape(batch=workload.batch, canvas=canvas, block=workload.block_length, rows=rows)
        chosen = {"forward": "refine", "lm_head": "lm_head", "sampling": "sampling"}
        if workload.samples_only:
            chosen = {"sampling": "sampling"}
        operations = {name: device.phase(model, phase, shape) for name, phase in chosen.items()}
        for name, part in operations.items():
            parts[name] += count * device.kernel_seconds(part)
        step = [row for part in operations.values() for row in part]
        totals["kernel"] += count * device.kernel_seconds(step)
        totals["wall"] += count * device.seconds(step)
    tokens = workload.batch * workload.generation_length
    metrics = {
        "seconds": totals["wall"], "kernel_seconds": totals["kernel"], "tokens_per_second": tokens / totals["wall"],
        "energy_joules": totals["wall"] * device["board_watts"],
        "tokens_per_joule": tokens / (totals["wall"] * device["board_watts"]),
        "sampling_share": (parts["lm_head"] + parts["sampling"]) / totals["kernel"],
        "sampling_stage_share": parts["sampling"] / totals["kernel"],
        **{f"{name}_seconds": value for name, value in parts.items()},
    }  # fmt: skip
    return DeviceRun(device=device.name, metrics=metrics)
