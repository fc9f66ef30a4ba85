"""Times the reference model on this machine's CPU: a calibration of NumPy's primitives, then the model's real phases.

Measuring runs in a process of its own with one BLAS thread (`python -m tripath.validation.host`), since the number of
threads is fixed when NumPy is loaded. What counts is the CPU time of the thread, and of several repeats the smallest: others
on the machine only ever add. The time on the wall is kept beside it.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from statistics import median

import numpy as np

from dllm.decoding import sample
from dllm.devices import Device, Shape
from dllm.families import expected_shapes, tensor_name
from dllm.model import ModelSpec
from dllm.reference import Cache, ReferenceModel, rms_norm, softmax
from npu.errors import TripathError
from tripath.validation.calibration import Clocked, Kernel, device_of, kernels, sampled
from tripath.validation.settings import HostSettings

ENVIRONMENT = {
    **dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 34),  # freed arrays are kept, so no call pays for fresh pages
}  # fmt: skip
MOVED_BYTES = 12_582_912
"""By so much everything lies further on in memory from round to round: 6 large pages."""
TIMED = ("prefill", "refine", "lm_head", "sampling", "softmax", "norm")


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """One phase of a model at one size: smallest and median CPU time of the repeats, and their smallest time on the wall."""

    model: str
    phase: str
    canvas: int
    block: int
    seconds: float
    median_seconds: float
    wall_seconds: float
    repeats: int


@dataclass(frozen=True, kw_only=True, slots=True)
class HostRun:
    """The device that the calibration makes, and what the phases took."""

    device: Device
    timings: Sequence[Timing]


def shapes_of(model: ModelSpec, settings: HostSettings) -> dict[str, ModelSpec]:
    """The models that are timed, by name: `model`, or what each of the settings' shapes makes of it.

    Raises:
        TripathError: a shape has an unknown field or no name of its own, or makes no model.
    """
    known = {each.name for each in fields(ModelSpec)}
    shapes: dict[str, ModelSpec] = {}
    for number, changes in enumerate(settings.shapes):
        key = f"validation.host.shapes[{number}]"
        if unknown := [name for name in changes if name not in known]:
            raise TripathError(f"{key}.{unknown[0]}: no such key of a model, one of {', '.join(sorted(known))}")
        name = str(changes.get("name", model.name))
        if name in shapes:
            raise TripathError(f"{key}.name: {name} is taken, each shape needs a name of its own")
        shapes[name] = replace(model, **changes)  # pyright: ignore[reportArgumentType]  ModelSpec checks values
    return shapes or {model.name: model}


def measure_host(models: Collection[ModelSpec], settings: HostSettings) -> HostRun:
    """Calibrate and time in a fresh process with one BLAS thread.

    Raises:
        TripathError: the process failed.
    """
    asked = json.dumps({"models": [asdict(model) for model in models], "settings": asdict(settings)})
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


def measure(models: Collection[ModelSpec], settings: HostSettings) -> HostRun:
    """Calibrate and time in turns, `rounds` times, so that both see the same spells of the machine.

    Each round makes its arrays anew, each time further on in memory: the same weights are copied a tenth faster or slower from
    place to place, whatever the reason, and neither side shall have the better places.
    """
    taken: dict[str, list[Clocked]] = {}
    timed: dict[tuple[str, str, int, int], list[Clocked]] = {}
    for number in range(settings.rounds):
        moved = np.ones(number * MOVED_BYTES, np.uint8)
        sampled(dict(kernels()), settings.repeats, taken)
        for model in models:
            phases = {(model.name, *size): call for size, call in phase_kernels(model, settings)}
            sampled(phases, settings.repeats, timed)
        del moved
    timings = [
        Timing(model=model, phase=phase, canvas=canvas, block=block, seconds=min(row).cpu, repeats=len(row),
               median_seconds=median(each.cpu for each in row), wall_seconds=min(each.wall for each in row))
        for (model, phase, canvas, block), row in timed.items()
    ]  # fmt: skip
    return HostRun(device=device_of({name: min(row).cpu for name, row in taken.items()}), timings=timings)


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
    """Seconds that the device model predicts for the phase and size of `timing`."""
    shape = Shape(batch=1, canvas=timing.canvas, block=timing.block)
    return device.seconds(device.phase(model, timing.phase, shape))


def main() -> int:
    """Read what to measure as JSON from standard input, write what was measured to standard output."""
    argparse.ArgumentParser(description=main.__doc__).parse_args()
    asked = json.load(sys.stdin)
    models = [ModelSpec(**row) for row in asked["models"]]
    run = measure(models, HostSettings(**asked["settings"]))
    answer = {
        "numbers": run.device.numbers,
        "curves": run.device.curves,
        "timings": [asdict(row) for row in run.timings],
    }
    json.dump(answer, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
