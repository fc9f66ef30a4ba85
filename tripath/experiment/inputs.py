"""The inputs of one run: all that is compiled, simulated and compared."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dllm.canvas import canvas_of
from dllm.devices import Device
from dllm.model import ModelSpec
from dllm.numerics import Numerics
from dllm.workload import Workload, reference_only
from npu.energy import Technology
from npu.errors import TripathError
from npu.hardware import HardwareConfig, Hbm
from npu.program import Program
from npu.program.trace import Trace
from npu_compiler import CompilerOptions, Sampling, as_sampled, check_support, schedule, with_load
from tripath.paths import FROM_PATHS, PATHS, Fact, Path, giver_name, giver_of, own_path
from tripath.validation import HostSettings, Settings
from tripath.validation.areas import SynthesisedArea
from tripath.validation.figures import Figure
from tripath.validation.measurements import Measurement

if TYPE_CHECKING:
    from cycle.streams import Stream


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """The inputs of a run. `options` holds the options of each simulator by name; without `technology` there is no energy.

    Where no path needs a program none is compiled: the run then consists of `quality`, `perplexity`, or comparisons that need
    none.
    A simulator with the option `module` is a path of the user's own, which lives in that module.

    What else is compared: `streams` with the DRAM model, the workload on the devices that `compared` names, device models with
    `published` figures, `figures` and
    `measurements` that someone made, the technology with synthesised `areas`, and this CPU as `host` says.
    `devices` are all models of other hardware, `models` what measurements and published figures name.
    """

    model: ModelSpec
    workload: Workload
    hardware: HardwareConfig
    numerics: Numerics
    paths: Sequence[str]
    options: Mapping[str, Mapping[str, object] | None]
    settings: Settings
    compiler: CompilerOptions = dataclasses.field(default_factory=CompilerOptions)
    technology: Technology | None = None
    devices: Mapping[str, Device] = dataclasses.field(default_factory=dict)
    models: Mapping[str, ModelSpec] = dataclasses.field(default_factory=dict)
    streams: "Sequence[Stream]" = ()
    compared: Sequence[str] = ()
    published: bool = False
    measurements: Sequence[Measurement] = ()
    areas: Sequence[SynthesisedArea] = ()
    figures: Sequence[Figure] = ()
    memories: Mapping[str, Hbm] = dataclasses.field(default_factory=dict)
    host: HostSettings | None = None

    @property
    def shown_numerics(self) -> Numerics:
        """The numerics that a program shows, which a path without one computes in as well."""
        return as_sampled(self.numerics, self.compiler, self.workload)

    def schedule(self, prompts: Sequence[Sequence[int]], program: Program | None = None) -> Trace:
        """The trace of a program that stands in where no path gives one; without prompts, of blocks as the workload says."""
        canvas = canvas_of(self.model, self.workload, [len(tokens) for tokens in prompts]) if prompts else None
        return schedule(self.workload, canvas, program)

    def with_load(self, program: Program | None, trace: Trace | None) -> Trace | None:
        """The trace; where it does not say how many rows each expert has, and the program reads that, with the stated load."""
        if program is None or trace is None:
            return trace
        return with_load(program, self.model.experts, self.workload, trace)

    def __post_init__(self) -> None:
        for name, options in self.options.items():
            if options is not None and not isinstance(options, Mapping):
                raise TripathError(f"simulator.{name}: needs a mapping, got {options!r}")
        paths = (*PATHS, *(name for name, options in self.options.items() if (options or {}).get("module")))
        unknown = [path for path in self.paths if path not in paths]
        if unknown:
            raise TripathError(f"paths: unknown {unknown[0]!r}, one of {', '.join(paths)}")
        others = (
            self.figures
            or self.areas
            or self.streams
            or self.compared
            or self.published
            or self.measurements
            or self.host
        )
        if not (self.paths or others) or len(set(self.paths)) != len(self.paths):
            raise TripathError(f"paths: must be a choice of {', '.join(paths)}, got {list(self.paths)}")
        for name in self.compared:
            if name not in self.devices:
                raise TripathError(f"validation.devices: no device {name!r}, one of {', '.join(self.devices)}")
        if self.compared and self.workload.prompt_length is None:
            raise TripathError("validation.devices: needs workload.prompt_length, the tokens of a prompt")
        for name in self.options:
            if name not in paths:
                raise TripathError(
                    f"simulator.{name}: no such simulator, one of {', '.join(paths)}; your own needs module"
                )
        self._check_needs()

    def _check_needs(self) -> None:
        """Refuse a path that lacks what another must give, or a checkpoint."""
        rows = self.rows
        self._check_machine(rows)
        for row in rows:
            for fact in row.needs & FROM_PATHS:
                if giver_of(fact, rows) is None:
                    giver = PATHS[giver_name(fact)]
                    shared = " and ".join(each.argument for each in row.needs & giver.gives)
                    raise TripathError(
                        f"paths: {row.name} needs {giver.name} beside it, whose {shared} it is compared with"
                    )
        if self.model.checkpoint is None and any(Fact.WEIGHTS in row.needs for row in rows):
            without = ",".join(row.name for row in PATHS.values() if Fact.WEIGHTS not in row.needs)
            raise TripathError(
                f"paths: model {self.model.name} has no checkpoint to execute; use paths=[{without}] or give "
                "model.checkpoint"
            )

    def _check_machine(self, rows: Sequence[Path]) -> None:
        """Refuse a program that the machine cannot run, and a path that would have to know what a host does."""
        if self.runs_program:
            check_support(self.compiler, self.workload, self.hardware)
        if Sampling(self.compiler.sampling) is not Sampling.HOST:
            return
        executes = Fact.PROGRAM | Fact.WEIGHTS
        able = ",".join(row.name for row in rows if executes not in row.needs)
        for row in rows:
            if executes in row.needs:
                raise TripathError(
                    f"paths: {row.name} executes programs, what a host samples (compiler.sampling=host) is not simulated; "
                    f"use paths=[{able}]"
                )

    @property
    def rows(self) -> list[Path]:
        """The rows of the chosen paths, those of the package first, in their order there."""
        own = [name for name in self.paths if name not in PATHS]
        shipped = [row for name, row in PATHS.items() if name in self.paths]
        return [*shipped, *(own_path(name, str((self.options[name] or {})["module"])) for name in own)]

    @property
    def trace_giver(self) -> str | None:
        """The path whose trace the others replay; None: they take the workload's schedule."""
        giver = giver_of(Fact.TRACE, self.rows)
        return giver.name if giver else None

    @property
    def runs_program(self) -> bool:
        """True if a path runs a program."""
        return any(Fact.PROGRAM in row.needs for row in self.rows)

    @property
    def reads_prompts(self) -> bool:
        """True if a path, or the program that it runs, needs the prompts."""
        return self.runs_program or any(Fact.PROMPTS in row.needs for row in self.rows)

    @property
    def reference_only(self) -> str:
        """The choice for which no program is run, as none carries it out; empty where there is none."""
        return "" if self.runs_program or not self.paths else reference_only(self.workload, self.numerics)
