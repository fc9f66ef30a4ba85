"""The estimate and the bound far from what is shipped: `python -m benchmarks.estimate_grid [--models] [--runs N] [--seed S]`.

Draws machines and workloads of the shipped model by a seed, or with `--models` shapes of models on the shipped machines. Runs the
analytical and the cycle path on each, and prints the errors of the estimate (median, 95th percentile, largest): of all, of parts
of the grid, by the settings that outliers share, and the worst runs as overrides with which
`tripath paths=[analytical,cycle] OVERRIDE ...` shows them again. A bound above the cycles ends it with status 1.
"""

import argparse
import dataclasses
import itertools
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import analytical
import cycle
from npu.errors import TripathError
from npu.hardware import HardwareConfig
from npu.program import Program
from npu.program.trace import Trace
from npu_compiler import compile_program, schedule
from tripath.command.composition import compose_experiment
from tripath.experiment import Experiment
from tripath.sweeps.estimates import percentile


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """The settings from which trials are drawn.

    Attributes:
        bases: Machines, each with the settings that it needs.
        choices: Values of each setting; a value that is listed several times is drawn that much more often.
        parts: Settings whose errors are also printed separately.
    """

    bases: Mapping[str, Mapping[str, object]]
    choices: Mapping[str, Sequence[object]]
    parts: Sequence[str]


WORKLOADS: Mapping[str, Sequence[object]] = {
    "workload.cache": ("none", "prefix", "dual"), "workload.batch": (1, 1, 2, 3), "workload.block_length": (8, 16, 32),
    "workload.steps": (4, 8, 16), "workload.prompt_length": (5, 19, 60),
}  # fmt: skip
MACHINES = Grid(
    bases={
        "npu_small": {},
        "rtl_small": {  # its memories hold every workload drawn
            "hardware.sram.vector_bytes": 1 << 19, "hardware.sram.matrix_bytes": 1 << 18, "hardware.sram.int_bytes": 1 << 13,
            "hardware.sram.fp_bytes": 1 << 13,
        },
    },
    choices={
        "hardware.execution": ("decoupled", "decoupled", "decoupled", "serial"),
        "hardware.accumulator_sets": (1, 2),
        "hardware.blen": (4, 8, 16), "hardware.mlen": (32, 64, 128), "hardware.vlen": (32, 64, 128),
        **{f"hardware.queue_depth.{queue}": (1, 2, 3, 4, 8, 16, 32, 64, 128)
           for queue in ("matrix", "vector", "dma_in", "dma_out")},
        "hardware.dma_outstanding": (1, 2, 3, 4, 8, 16, 32, 64),
        "hardware.frontend.issue_cycles": (1, 1, 1, 2), "hardware.frontend.loop_cycles": (0, 1, 2, 4),
        "hardware.frontend.next_cycles": (0, 0, 1, 2), "hardware.frontend.exit_cycles": (0, 0, 1, 2),
        "hardware.frontend.break_cycles": (1, 5), "hardware.frontend.affine_cycles": (1, 4),
        "hardware.frontend.control_cycles": (0, 1, 2), "hardware.frontend.dispatch_cycles": (0, 0, 1, 2, 4, 8),
        "hardware.frontend.address_step_cycles": (0, 0, 0, 1),
        "hardware.hbm.model": ("bursts", "bursts", "bursts", "simple"), "hardware.hbm.channels": (1, 2, 4, 8, 16),
        "hardware.hbm.address_mapping": ("MOP4CLXOR", "RoBaRaCoCh"),
        "hardware.hbm.read_queue_entries": (1, 2, 4, 8, 16, 32, 64), "hardware.hbm.write_queue_entries": (1, 2, 4, 8, 16, 32, 64),
        "hardware.hbm.refresh": ("per_transfer", "absolute"),
        **WORKLOADS,
    },
    parts=("hardware.execution=decoupled", "hardware.execution=serial"),
)  # fmt: skip
MODELS = Grid(
    bases={"npu_small": {}, "npu_datacenter": {}, "npu_plena": {}},
    choices={
        "model.checkpoint": (None,), "model.max_sequence": (4096,), "model.layers": (1, 2, 6),
        "model.hidden": (64, 96, 160, 256, 448, 768, 1536, 2048), "model.head_dim": (32, 64, 96, 128),
        "model.kv_heads": (1, 2, 3, 5, 8),
        "model.heads": (3, 5, 8, 10, 15, 24, 40), "model.ffn": (128, 192, 448, 768, 1536, 3072),
        "model.vocab": (512, 1057, 8192, 32000, 126464), "model.shifted_logits": (False, True),
        **WORKLOADS,
        "workload.block_length": (4, 8, 16, 32), "workload.prompt_length": (3, 60, 199),
    },
    parts=("hardware=npu_small", "hardware=npu_datacenter", "hardware=npu_plena"),
)  # fmt: skip


SHARED, SHOWN = 0.9, 10
"""By which percentile settings are compared, and how many of them and of the worst runs are shown."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One machine with one workload: what was drawn, and what both paths say in cycles."""

    settings: Mapping[str, object]
    bound: float
    estimate: float
    makespan: float

    @property
    def error(self) -> float:
        """Of the estimate, relative to the cycle path."""
        return self.estimate / self.makespan - 1


def draw(seed: int, grid: Grid = MACHINES) -> Iterator[dict[str, object]]:
    """Settings without end, the same for the same seed."""
    chance = random.Random(seed)  # noqa: S311  no secret
    while True:
        base = chance.choice(list(grid.bases))
        drawn = {key: chance.choice(values) for key, values in grid.choices.items()}
        yield {"hardware": base, **grid.bases[base], **drawn}


def trials(seed: int, runs: int, grid: Grid = MACHINES) -> Iterator[Trial]:
    """So many trials; what is no model or does not compile (a memory too small) is drawn again."""
    return itertools.islice((trial for settings in draw(seed, grid) if (trial := measured(settings))), runs)


def compiled_of(settings: Mapping[str, object]) -> tuple[HardwareConfig, Program, Trace] | None:
    """Machine, program and the trace of its schedule; None where the compiler refuses it."""
    experiment: Any = _composed(str(settings["hardware"]))
    try:
        model = {key.partition(".")[2]: value for key, value in settings.items() if key.startswith("model.")}
        experiment = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, **model))
        for key, value in settings.items():
            if "." in key and not key.startswith("model."):
                experiment = _with(experiment, key.split("."), value)
        hardware, workload = experiment.hardware, experiment.workload
        lengths = [workload.prompt_length] * workload.batch
        program = compile_program(
            experiment.model, workload, hardware, experiment.numerics, lengths, experiment.compiler
        )
    except TripathError:
        return None
    return hardware, program, schedule(workload)


def measured(settings: Mapping[str, object]) -> Trial | None:
    """Both paths on one machine; None where the compiler refuses it."""
    compiled = compiled_of(settings)
    if compiled is None:
        return None
    hardware, program, trace = compiled
    closed = analytical.simulate(program, hardware=hardware, trace=trace).metrics
    exact = cycle.simulate(program, hardware=hardware, trace=trace, race_check=False).metrics
    return Trial(
        settings=settings, bound=closed["lower_bound_cycles"], estimate=closed["estimated_cycles"],
        makespan=exact["makespan_cycles"],
    )  # fmt: skip


@cache
def _composed(hardware: str) -> Experiment:
    return compose_experiment(f"hardware={hardware}", "paths=[analytical,cycle]", "workload.prompt_length=19")


def _with(node: Any, keys: Sequence[str], value: object) -> Any:  # noqa: ANN401  dataclasses and mappings alike
    """A copy with another value at a path of keys."""
    first, *rest = keys
    held = node[first] if isinstance(node, Mapping) else getattr(node, first)
    new = _with(held, rest, value) if rest else value
    return {**node, first: new} if isinstance(node, Mapping) else dataclasses.replace(node, **{first: new})


def line(name: str, found: Sequence[Trial]) -> str:
    """The errors of some trials."""
    errors = sorted(abs(trial.error) for trial in found)
    low = sum(trial.error < 0 for trial in found) / len(found)
    shares = "".join(f"{percentile(errors, share):10.1%}" for share in (0.5, 0.95, 1.0))
    return f"{name:56}{len(found):6}{shares}{low:10.0%}"


def main() -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", action="store_true", help="draw models on the shipped machines")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    grid = MODELS if options.models else MACHINES
    found = list(trials(options.seed, options.runs, grid))
    print(f"{'':56}{'runs':>6}{'median':>10}{'95 %':>10}{'largest':>10}{'too low':>10}")
    print(line("all", found))
    drawn = {"hardware": list(grid.bases), **grid.choices}
    by_setting = {f"{key}={value}": own for key, values in drawn.items() for value in dict.fromkeys(values)
                  if (own := [trial for trial in found if trial.settings[key] == value])}  # fmt: skip
    for name in grid.parts:
        print(line(name, by_setting[name]))
    print("\nsettings with the largest errors")
    for name in sorted(by_setting, key=lambda each: -percentile([abs(t.error) for t in by_setting[each]], SHARED))[
        :SHOWN
    ]:
        print(line(name, by_setting[name]))
    for trial in sorted(found, key=lambda each: -abs(each.error))[:SHOWN]:
        given = (f"{key}={'null' if value is None else value}" for key, value in trial.settings.items())
        print(f"\n{trial.error:+.1%}  {' '.join(given)}")
    above = [trial for trial in found if trial.bound > trial.makespan]
    for trial in above:
        print(f"\nbound {trial.bound} above {trial.makespan} cycles: {trial.settings}")
    return int(bool(above))


if __name__ == "__main__":
    sys.exit(main())
