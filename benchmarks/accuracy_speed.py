"""Measures the speed of the accuracy path: `python benchmarks/accuracy_speed.py` prints one table, of one run on one thread.

1. `M_MM` through its compiled body, tile by tile as programs call it, against torch's float32 matmul of the same shapes.
2. The default problem (32 steps, dual cache) through the executor, warm.
3. Word problems per second on the reference path (`accuracy/quality`), with the machine's formats.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from hydra import compose, initialize_config_module
from numba import njit
from rich.console import Console
from rich.table import Table

from accuracy.quality.model import UNQUANTISED, StudyModel
from accuracy.quality.problems import load_problems, score
from accuracy.simulator import execute
from dllm.checkpoint import load_tensors, load_tokenizer
from npu.formats import FORMATS, MX_BLOCK
from npu.formats.rounding import encode_rows
from npu.isa.matrix import m_mm
from npu_compiler import compile_program
from tripath.command.composition import build_experiment
from tripath.experiment import Experiment

REPEATS = 5
GOAL_GMACS, GOAL_SHARE, GOAL_SECONDS = 2.0, 0.10, 10.0
SHAPES = {
    "npu_small": {"rows": 8, "inputs": 128, "outputs": 256, "tile": 8, "segment": 32},
    "npu_datacenter": {"rows": 32, "inputs": 4096, "outputs": 512, "tile": 32, "segment": 1024},
}
"""Products of the shipped model's gate on 8 rows, and of an eighth of an LLaDA-8B projection on 32; columns of a tile
(BLEN) and inputs of one instruction (MLEN) by the hardware of that name."""

PAIRS = (
    ("mxint8", "mxint8"),
    ("mxint4", "mxint8"),
    ("mxint4", "mxint4"),
    ("bf16", "bf16"),
    ("mxfp8_e4m3", "mxfp8_e4m3"),
)
"""Weights and activations."""


@njit
def product(weights, acts, accumulator, rows, inputs, outputs, tile, segment, weight_format, act_format, record):
    """One projection as a program runs it: M_MM over column tiles and segments of the inputs."""
    pitch = inputs // MX_BLOCK * record
    for column in range(0, outputs, tile):
        for first in range(0, inputs, segment):
            m_mm(weights, acts, accumulator, column * pitch + first // MX_BLOCK * record, pitch, first, inputs, rows, tile,
                 segment, 5, weight_format, act_format, record)  # fmt: skip


def best(run: Callable[[], object], repeats: int = REPEATS) -> float:
    """CPU seconds of the fastest of some runs: others share this machine."""
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        run()
        seconds.append(time.process_time() - started)
    return min(seconds)


def often(run: Callable[[], object], times: int) -> Callable[[], None]:
    """`run`, so often that the clock is good enough."""

    def repeated() -> None:
        for _ in range(times):
            run()

    return repeated


def matrix(table: Table) -> None:
    """M_MM against torch."""
    rng = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        rows, inputs, outputs = shape["rows"], shape["inputs"], shape["outputs"]
        macs, values = rows * inputs * outputs, rng.normal(size=(outputs, inputs)).astype(np.float32)
        acts = (rng.normal(size=rows * inputs).astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
        left, right = torch.from_numpy(acts.reshape(rows, inputs)), torch.from_numpy(values.T.copy())
        times = max(1, 20_000_000 // macs)
        ours = {}
        for pair in PAIRS:
            stored, quantised = (FORMATS[row] for row in pair)
            weights = np.zeros(outputs * stored.row_bytes(inputs), np.uint8)
            encode_rows(values, stored.code, MX_BLOCK, weights)
            accumulator = np.zeros((rows, shape["tile"]), np.float32)
            arguments = (weights, acts, accumulator, *shape.values(), stored.code, quantised.code,
                         stored.record_bytes(MX_BLOCK))  # fmt: skip
            product(*arguments)
            ours[pair] = macs * times / best(often(lambda a=arguments: product(*a), times)) / 1e9
        theirs = macs * 10 * times / best(often(lambda a=left, b=right: a @ b, 10 * times)) / 1e9
        what = f"{name}, {rows} x {inputs} x {outputs}"
        table.add_row(f"torch float32, {what}", f"{theirs:.1f} GMAC/s", "", "")
        for pair, rate in ours.items():
            share = rate / theirs
            verdict = "holds" if rate >= GOAL_GMACS and share >= GOAL_SHARE else "misses"
            goal = f"{GOAL_GMACS:g} GMAC/s and {GOAL_SHARE:.0%} of torch: {verdict}"
            table.add_row(f"M_MM {' x '.join(pair)}, {what}", f"{rate:.2f} GMAC/s", f"{share:.1%} of torch", goal)


def default() -> tuple[Experiment, str | None]:
    """The default experiment and its prompt."""
    with initialize_config_module("conf", version_base="1.3"):
        return build_experiment(compose("config", overrides=["workload.cache=dual"]))


def executor(table: Table) -> None:
    """The default problem, all steps; the first run warms up."""
    experiment, prompt = default()
    model, workload = experiment.model, experiment.workload
    assert prompt is not None
    assert model.checkpoint is not None
    prompts, tensors = [load_tokenizer(model.checkpoint).encode(prompt)], load_tensors(model)
    program = compile_program(model, workload, experiment.hardware, experiment.numerics, [len(prompts[0])])

    def run() -> int:
        _, steps = execute(program, model=model, workload=workload, tensors=tensors, prompts=prompts)
        return len(steps[0])

    count = run()
    seconds = best(run, 3)
    verdict = "holds" if seconds <= GOAL_SECONDS else "misses"
    name, share = f"executor, default problem, dual, {count} steps", f"{seconds / GOAL_SECONDS:.0%} of the goal"
    table.add_row(name, f"{seconds:.2f} s", share, f"{GOAL_SECONDS:g} s: {verdict}")


def reference(table: Table) -> None:
    """Problems a second on the reference path."""
    experiment, _ = default()
    spec, workload = experiment.model, experiment.workload
    problems = load_problems(spec)[:64]
    for name, numerics, lanes in (("fp32", UNQUANTISED, "fp32"), ("mxint8", experiment.numerics, "bf16")):
        model = StudyModel(spec, load_tensors(spec), numerics, workload.block_length, lanes=lanes)
        with torch.inference_mode():
            seconds = best(lambda m=model: score(m, problems, workload), 2)
        table.add_row(
            f"reference path, {name}, dual, batches of 64", f"{len(problems) / seconds:.1f} problems/s", "", ""
        )


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    table = Table("what", "measured", "ratio", "goal", title="Speed of the accuracy path, one thread")
    for part in (matrix, executor, reference):
        part(table)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
