"""Milliseconds of the analytical path: `python -m benchmarks.analytical_speed`.

For the shipped model and LLaDA-8B (256 + 256 tokens, 256 steps): to compile; to analyse a program seen for the first time; to
analyse it again on other hardware (another number of channels, same program), as a sweep does. Medians of CPU time over
repetitions, and each as a share of what the cycle path takes for the same program, compiled code warm.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

from hydra import compose, initialize_config_module

import analytical
import cycle
from benchmarks.cycle_speed import LLADA
from tripath.cli import build_experiment
from tripath.compiler import compile_program, schedule
from tripath.program import Program

REPEATS = 15
CASES = {f"{name}, {cache}": (*model, f"workload.cache={cache}") for name, model in (("wordmath", ()), ("LLaDA-8B", LLADA))
         for cache in ("none", "prefix", "dual")}  # fmt: skip


def milliseconds(function: Callable[[], object]) -> float:
    """CPU time of one call."""
    began = time.process_time()
    function()
    return 1e3 * (time.process_time() - began)


def line(name: str, overrides: Sequence[str]) -> str:
    """The figures of one case."""
    with initialize_config_module("conf", version_base="1.3"):
        x = build_experiment(compose("config", overrides=list(overrides)))[0]
    lengths, trace = [x.workload.prompt_length or 19], schedule(x.workload)
    wider = dataclasses.replace(x.hardware.hbm, channels=2 * x.hardware.hbm.channels)
    machines = [x.hardware, dataclasses.replace(x.hardware, hbm=wider)]

    def program() -> Program:
        return compile_program(x.model, x.workload, x.hardware, x.numerics, lengths)

    kept = program()
    compiled = [milliseconds(program) for _ in range(REPEATS)]
    fresh = [program() for _ in range(REPEATS)]
    first = [milliseconds(partial(analytical.simulate, p, hardware=x.hardware, trace=trace)) for p in fresh]
    runs = [partial(analytical.simulate, kept, hardware=machines[n % 2], trace=trace) for n in range(REPEATS + 1)]
    again = [milliseconds(run) for run in runs][1:]
    timed = partial(cycle.simulate, kept, hardware=x.hardware, trace=trace, race_check=False)
    timed()
    slow = milliseconds(timed)
    figures = [median(row) for row in (compiled, first, again)]
    return f"{name:18}{figures[0]:9.1f}{figures[1]:9.1f}{figures[2]:9.1f}{slow:12.1f}   {figures[2] / slow:.4f}"


def main() -> None:
    """Measure and print."""
    print(f"{'':18}{'compile':>9}{'first':>9}{'again':>9}{'cycle path':>12}   ms; again / cycle")
    for name, overrides in CASES.items():
        print(line(name, overrides), flush=True)


if __name__ == "__main__":
    main()
