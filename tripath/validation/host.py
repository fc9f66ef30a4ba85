"""Times the reference model on this machine's CPU: a calibration of NumPy's primitives, then the model's real phases.

Measuring runs in a process of its own with one BLAS thread (`python -m tripath.validation.host`), since the number of
threads is fixed when NumPy is loaded. What counts is the CPU time of the thread, and of several repeats the smallest: others
on the machine only ever add.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median

import numpy as np

from dllm.devices import Device, Shape
from dllm.families import expected_shapes, tensor_name
from dllm.model import ModelSpec
from dllm.reference import Cache, ReferenceModel, rms_norm, sample, softmax
from npu.errors import TripathError
from tripath.validation.calibration import Kernel, device_of, kernels, sampled
from tripath.validation.settings import HostSettings

ENVIRONMENT = {
    **dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 34),  # freed arrays are kept, so no call pays for fresh pages
}  # fmt: skip
TIMED = ("prefill", "refine", "lm_head", "sampling", "softmax", "norm")


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Seconds of one phase at one size: the smallest and the median of the repeats."""

    phase: str
    canvas: int
    block: int
    seconds: float
    median_seconds: float
    repeats: int


@dataclass(frozen=True, kw_only=True, slots=True)
class HostRun:
    """The device that the calibration makes, and what the phases took."""

    device: Device
    timings: Sequence[Timing]


def measure_host(model: ModelSpec, settings: HostSettings) -> HostRun:
    """Calibrate and time in a fresh process with one BLAS thread.

    Raises:
        TripathError: the process failed.
    """
    asked = json.dumps({"model": asdict(model), "settings": asdict(settings)})
    command = [sys.executable, "-m", "tripath.validation.host"]
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(  # noqa: S603  our own module
        command,
        input=asked,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": path},
    )
    if done.returncode:
        raise TripathError(f"validation.host: measuring failed ({(done.stderr.strip().splitlines() or ['?'])[-1]})")
    answer = json.loads(done.stdout)
    device = Device(name="host", software="numpy", numbers=answer["numbers"], curves=answer["curves"])
    return HostRun(device=device, timings=[Timing(**row) for row in answer["timings"]])


def measure(model: ModelSpec, settings: HostSettings) -> HostRun:
    """Calibrate and time in turns, `rounds` times, so that both see the same spells of the machine."""
    primitives, phases = dict(kernels()), dict(phase_kernels(model, settings))
    taken: dict[str, list[float]] = {}
    timed: dict[tuple[str, int, int], list[float]] = {}
    for _ in range(settings.rounds):
        sampled(primitives, settings.repeats, taken)
        sampled(phases, settings.repeats, timed)
    timings = [
        Timing(phase=phase, canvas=canvas, block=block, seconds=min(row), median_seconds=median(row), repeats=len(row))
        for (phase, canvas, block), row in timed.items()
    ]
    return HostRun(device=device_of({name: min(row) for name, row in taken.items()}), timings=timings)


def phase_kernels(model: ModelSpec, settings: HostSettings) -> Iterator[tuple[tuple[str, int, int], Kernel]]:
    """Each phase of the reference model with random weights, at each size: (phase, canvas, block) and its call."""
    tensors, rng = random_tensors(model), np.random.default_rng(1)
    reference, canvas = ReferenceModel(model, tensors), max(settings.canvases)
    weight = tensors[tensor_name("ln_f.weight")]
    for size in settings.canvases:
        tokens = rng.integers(0, model.vocab, size)
        hidden = rng.standard_normal((size, model.hidden), dtype=np.float32)
        yield ("prefill", size, 1), lambda t=tokens: reference.forward(t)
        yield ("norm", size, 1), lambda x=hidden: rms_norm(x, weight, model.rms_eps)
    tokens = rng.integers(0, model.vocab, canvas)
    cache: Cache = reference.new_cache()
    reference.forward(tokens, slice(None), cache)
    for block in settings.blocks:
        rows = slice(canvas - block, canvas)
        hidden = rng.standard_normal((block, model.hidden), dtype=np.float32)
        logits = reference.logits(hidden)
        yield ("refine", canvas, block), lambda r=rows: reference.forward(tokens, r, cache)
        yield ("lm_head", canvas, block), lambda x=hidden: reference.logits(x)
        yield ("sampling", canvas, block), lambda x=logits: sample(x)
        yield ("softmax", canvas, block), lambda x=logits: softmax(x)


def random_tensors(model: ModelSpec) -> dict[str, np.ndarray]:
    """Weights of the right shapes (float32), small enough that nothing overflows."""
    rng, scale = np.random.default_rng(2), np.float32(model.hidden**-0.5)
    return {
        name: rng.standard_normal(shape, dtype=np.float32) * scale for name, shape in expected_shapes(model).items()
    }


def predicted_seconds(device: Device, model: ModelSpec, timing: Timing) -> float:
    """What the device model says for the phase and size of `timing`."""
    shape = Shape(batch=1, canvas=timing.canvas, block=timing.block)
    return device.seconds(device.phase(model, timing.phase, shape))


def main() -> int:
    """Read what to measure as JSON from standard input, write what was measured to standard output."""
    argparse.ArgumentParser(description=main.__doc__).parse_args()
    asked = json.load(sys.stdin)
    run = measure(ModelSpec(**asked["model"]), HostSettings(**asked["settings"]))
    answer = {
        "numbers": run.device.numbers,
        "curves": run.device.curves,
        "timings": [asdict(row) for row in run.timings],
    }
    json.dump(answer, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
