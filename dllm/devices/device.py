"""A device as a roofline: rates of its units, memory bandwidth, the cost of a launch.

Achievable shares are measured: figures that `tripath/validation/data/calibration.json` lists, and that nothing is compared with.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from dllm.devices.engines import ENGINES, driven
from dllm.devices.graph import SAMPLING_BYTES, phase_operations, steps_of, torch_gumbel
from dllm.devices.operation import Operation, Shape
from dllm.devices.products import Product, compute_seconds
from dllm.model import ModelSpec
from dllm.workload import Workload
from npu.choices import check_choices, one_of, within
from npu.errors import TripathError
from npu.sourced import Numbers, check_numbers

GPU_NUMBERS = (
    "matrix_bf16_flops", "vector_fp32_flops", "vector_fp64_flops", "memory_bytes_per_second", "matrix_fraction",
    "memory_fraction", "attention_fraction", "processors", "kernel_seconds", "call_seconds", "dispatch_seconds", "board_watts",
)  # fmt: skip
FP8_NUMBERS = ("matrix_fp8_flops", "matrix_fp8_fraction")
"""Of GPUs that multiply FP8; both or none."""
CPU_NUMBERS = (
    "gemm_flops", "scores_flops", "mix_flops", "call_seconds", "reduction_seconds", "mean_seconds",
    "broadcast_seconds", "split_seconds", "cold_seconds",
    "reduced_row_seconds", "joined_row_seconds", "choice_seconds", "board_watts",
)  # fmt: skip
CPU_CURVES = ("pack", "repack", "broadcast_row", "pass", "exp", "sum", "max", "argmax")
SOFTWARE = {"torch": GPU_NUMBERS, "numpy": CPU_NUMBERS}
"""Numbers that a device needs, by the software that it runs (`graph`)."""
HOTTEST = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """Hardware that runs the model with someone's software.

    Attributes:
        name: Name in reports and in `validation.devices`.
        software: PyTorch on a GPU (torch), or NumPy on a CPU (numpy).
        engine: Execution of its kernels on a GPU: eager, in CUDA graphs, or as a serving engine does.
        numbers: Each with `value`, `provenance` (docs/energy.md) and `source`; the unit ends its name.
        sampling_format: That of the probabilities; LLaDA's code has fp64.
        temperature: Above 0, sampling adds Gumbel noise in FP64, as LLaDA's code does. 0: that of the workload.
        curves: Of numpy: rates over the bytes that an operation names as resident, as points [bytes, per second], log-linear
            in between: caches and memory.

    Raises:
        TripathError: a number or curve is missing, unknown or not positive.
    """

    name: str
    software: str = field(metadata=one_of(SOFTWARE))
    numbers: Numbers
    engine: str = field(default="eager", metadata=one_of(ENGINES))
    sampling_format: str = field(default="fp64", metadata=one_of(SAMPLING_BYTES))
    temperature: float = field(default=0.0, metadata=within(0.0, HOTTEST))
    curves: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        key = f"devices.{self.name}"
        check_choices(key, self)
        fp8 = FP8_NUMBERS if self.software == "torch" and set(FP8_NUMBERS) & set(self.numbers) else ()
        check_numbers(f"{key}.numbers", self.numbers, (*SOFTWARE[self.software], *fp8))
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
        return sum(
            max(self._work_seconds(row), row.moved_bytes / self.bandwidth) + row.launches * self["kernel_seconds"]
            for row in driven(ENGINES[self.engine], list(operations))
        )

    def seconds(self, operations: Sequence[Operation]) -> float:
        """Time on the wall: the device's, or that in which the host can dispatch the launches, whichever is longer."""
        if self.software == "numpy":
            return self.kernel_seconds(operations)
        engine = ENGINES[self.engine]
        launches, kernels = (
            sum(row.launches for row in driven(engine, list(operations))),
            self.kernel_seconds(operations),
        )
        if engine.eager:
            return max(kernels, launches * self["dispatch_seconds"])
        return kernels + launches * engine.gap_seconds

    def step_seconds(self, forward: Sequence[Operation], tail: Sequence[Operation]) -> float:
        """Time on the wall of a step: the host dispatches `forward` while the GPU works, and waits for what `tail` chooses.

        So it is never ahead by more than a step.
        """
        if self.software == "numpy" or not ENGINES[self.engine].eager:
            return self.seconds([*forward, *tail]) + (
                0.0 if self.software == "numpy" else ENGINES[self.engine].step_seconds
            )
        launches = sum(row.launches for row in forward)
        dispatched = launches * self["dispatch_seconds"] + self.kernel_seconds(tail)
        return max(self.kernel_seconds([*forward, *tail]), dispatched)

    @property
    def bandwidth(self) -> float:
        """Bytes a second that memory reaches."""
        return self["memory_bytes_per_second"] * self["memory_fraction"]

    def product_seconds(self, product: Product) -> float:
        """Time of a matrix product on a GPU, without its launch.

        Raises:
            TripathError: it is in FP8, and the device has no rate for that.
        """
        kind = "fp8" if product.element_bytes == 1 else "bf16"
        if f"matrix_{kind}_flops" not in self.numbers:
            raise TripathError(f"devices.{self.name}: has no rate for products in {kind.upper()}")
        share = self["matrix_fp8_fraction"] if kind == "fp8" else self["matrix_fraction"]
        rate = self[f"matrix_{kind}_flops"] * share
        compute = compute_seconds(product, flops=rate, processors=int(self["processors"]))
        return max(compute, product.moved_bytes / self.bandwidth)

    def _work_seconds(self, row: Operation) -> float:
        """Time of a kernel's operations on a GPU: a product by its tiles, attention at its share, the rest at its rate."""
        if row.product is not None:
            return self.product_seconds(row.product)
        share = self["attention_fraction"] if row.engine == "matrix_bf16" else 1.0
        return row.work / (self[f"{row.engine}_flops"] * share)

    def _call_seconds(self, row: Operation) -> float:
        """Time of one call of NumPy, its fixed cost left out."""
        if row.engine.endswith("_seconds"):
            return row.work * self[row.engine]
        if row.engine == "repack":  # found where the last call or where the last pass left it
            return row.work / max(self._rate("pack", row.resident_bytes), self._rate("repack", row.own_bytes))
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
        operations = phase_operations(self.software, model, phase, shape, self.sampling_format)
        if self.temperature > 0 and phase in ("sampling", "step"):
            if self.software != "torch":
                raise TripathError(
                    f"devices.{self.name}.temperature: {self.software} adds no Gumbel noise, got {self.temperature} "
                    "(or of workload.temperature)"
                )
            operations += torch_gumbel(shape.batch * shape.block * model.vocab)
        return operations


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceRun:
    """A generation on a device: `metrics` (docs/devices.md lists them)."""

    device: str
    metrics: Mapping[str, float]


def run_workload(device: Device, model: ModelSpec, workload: Workload, prompt_length: int) -> DeviceRun:
    """The whole generation of `workload` (or its sampling stage alone) on a device, steps as scheduled.

    Raises:
        TripathError: the device's software does not draw tokens as the workload does, or as `steps_of`.
    """
    device = replace(device, temperature=device.temperature or min(workload.temperature, HOTTEST))
    steps = list(steps_of(workload, prompt_length))
    canvas = prompt_length + workload.generation_length
    totals = {"kernel": 0.0, "wall": 0.0}
    parts: dict[str, float] = dict.fromkeys(("forward", "lm_head", "sampling"), 0.0)
    of_step: dict[int, float] = {}
    for rows in sorted({rows for rows, _ in steps}):
        count = sum(rows == other for other, _ in steps)
        every_row = device.software == "torch" and ENGINES[device.engine].every_row
        head = rows if every_row and not workload.samples_only else workload.block_length
        shape = Shape(batch=workload.forwarded_sequences, canvas=canvas, block=head, rows=rows)
        chosen = {"forward": "refine", "lm_head": "lm_head", "sampling": "sampling"}
        if workload.samples_only:
            chosen = {"sampling": "sampling"}
        sampled = replace(shape, batch=workload.batch)
        operations = {
            name: device.phase(model, phase, sampled if name == "sampling" else shape) for name, phase in chosen.items()
        }
        for name, part in operations.items():
            parts[name] += count * device.kernel_seconds(part)
        forward = operations.get("forward", [])
        tail = [row for name, part in operations.items() if name != "forward" for row in part]
        of_step[rows] = device.kernel_seconds([*forward, *tail])
        totals["kernel"] += count * of_step[rows]
        totals["wall"] += count * device.step_seconds(forward, tail)
    tokens = workload.batch * workload.generation_length
    metrics = {
        "seconds": totals["wall"], "kernel_seconds": totals["kernel"], "tokens_per_second": tokens / totals["wall"],
        "energy_joules": totals["wall"] * device["board_watts"],
        "tokens_per_joule": tokens / (totals["wall"] * device["board_watts"]),
        "sampling_share": (parts["lm_head"] + parts["sampling"]) / totals["kernel"],
        "sampling_stage_share": parts["sampling"] / totals["kernel"],
        "refine_kernel_seconds": of_step[min(of_step)],
        **{f"{name}_seconds": value for name, value in parts.items()},
    }  # fmt: skip
    return DeviceRun(device=device.name, metrics=metrics)
