"""The inputs of one run: all that is compiled, simulated and compared."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dllm.devices import Device
from dllm.model import ModelSpec
from dllm.workload import Numerics, Workload, reference_only
from npu.energy import Technology
from npu.errors import TripathError
from npu.hardware import HardwareConfig
from tripath.validation import Settings
from tripath.validation.measurements import Measurement

QUALITY = "quality"
"""The path that runs no program: held-out problems on the reference path."""
TRACE_GIVERS = ("accuracy", QUALITY)
"""Paths whose trace the timing paths replay, the first that runs; none: the workload's schedule."""
PATHS = ("analytical", "cycle", *TRACE_GIVERS, "rtl")


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """The inputs of a run. `options` holds the options of each simulator by name; without `technology` there is no energy.

    Without `paths` no program is compiled: the run consists of checks that need none, of streams and of other hardware.
    `quality` needs none either. A simulator with the option `module` is a path of the user's own, which lives in that module.
    `devices` are models of other hardware, `measurements` what someone timed, `models` what these and published figures name.
    """

    model: ModelSpec
    workload: Workload
    hardware: HardwareConfig
    numerics: Numerics
    paths: Sequence[str]
    options: Mapping[str, Mapping[str, object] | None]
    settings: Settings
    technology: Technology | None = None
    devices: Mapping[str, Device] = dataclasses.field(default_factory=dict)
    models: Mapping[str, ModelSpec] = dataclasses.field(default_factory=dict)
    measurements: Sequence[Measurement] = ()

    def __post_init__(self) -> None:
        for name, options in self.options.items():
            if options is not None and not isinstance(options, Mapping):
                raise TripathError(f"simulator.{name}: needs a mapping, got {options!r}")
        paths = (*PATHS, *(name for name, options in self.options.items() if (options or {}).get("module")))
        unknown = [path for path in self.paths if path not in paths]
        settings = self.settings
        asked = (
            settings.streams,
            settings.host,
            self.measurements or None,
            settings.published or None,
            settings.devices or None,
        )
        nothing = not self.paths and all(what is None for what in asked)
        if unknown:
            raise TripathError(f"paths: unknown {unknown[0]!r}, one of {', '.join(paths)}")
        if nothing or len(set(self.paths)) != len(self.paths):
            raise TripathError(f"paths: must be a choice of {', '.join(paths)}, got {list(self.paths)}")
        for name in settings.devices:
            if name not in self.devices:
                raise TripathError(f"validation.devices: no device {name!r}, one of {', '.join(self.devices)}")
        if settings.devices and self.workload.prompt_length is None:
            raise TripathError("validation.devices: needs workload.prompt_length, the tokens of a prompt")
        for name in self.options:
            if name not in paths:
                raise TripathError(
                    f"simulator.{name}: no such simulator, one of {', '.join(paths)}; your own needs module"
                )
        if "rtl" in self.paths and "accuracy" not in self.paths:
            raise TripathError("paths: rtl needs accuracy beside it, whose trace and bits it is compared with")
        if self.trace_giver and self.model.checkpoint is None:
            raise TripathError(
                f"paths: model {self.model.name} has no checkpoint to execute; use paths=[analytical,cycle] or give "
                "model.checkpoint"
            )

    @property
    def trace_giver(self) -> str | None:
        """The path whose trace the timing paths replay; None: they take the workload's schedule."""
        return next((name for name in TRACE_GIVERS if name in self.paths), None)

    @property
    def runs_program(self) -> bool:
        """Whether a path runs a program."""
        return any(name != QUALITY for name in self.paths)

    @property
    def reference_only(self) -> str:
        """The choice for which `quality` alone runs, as no program carries it out; empty where there is none."""
        return reference_only(self.workload, self.numerics) if list(self.paths) == [QUALITY] else ""
