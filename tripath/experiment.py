"""One experiment: everything that is compiled, simulated, compared and tracked in one run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tripath.errors import TripathError
from tripath.hardware import HardwareConfig
from tripath.metrics import Result
from tripath.model import ModelSpec
from tripath.program import Program
from tripath.validation import Discrepancy, Settings
from tripath.workload import Numerics, Workload

PATHS = ("analytical", "cycle", "accuracy")


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """The inputs of a run. `options` holds the options of each simulator by name."""

    model: ModelSpec
    workload: Workload
    hardware: HardwareConfig
    numerics: Numerics
    paths: Sequence[str]
    options: Mapping[str, Mapping[str, object]]
    settings: Settings

    def __post_init__(self) -> None:
        unknown = [path for path in self.paths if path not in PATHS]
        if unknown or not self.paths or len(set(self.paths)) != len(self.paths):
            raise TripathError(f"paths: must be a choice of {', '.join(PATHS)}, got {list(self.paths)}")
        if "accuracy" in self.paths and self.model.checkpoint is None:
            raise TripathError(
                f"paths: model {self.model.name} has no checkpoint to execute; use paths=[analytical,cycle] or give "
                "model.checkpoint"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Generated:
    """What the accuracy path generated: per sequence the prompt, text and token ids; denoising steps per block."""

    prompts: Sequence[str]
    texts: Sequence[str]
    token_ids: Sequence[Sequence[int]]
    trip_counts: Sequence[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The outputs of a run."""

    program: Program
    results: Mapping[str, Result]
    wall_seconds: Mapping[str, float]
    discrepancies: Sequence[Discrepancy]
    generated: Generated | None
    fail_on: Sequence[str]

    @property
    def failures(self) -> list[Discrepancy]:
        """Discrepancies that make the run fail."""
        return [row for row in self.discrepancies if not row.passed and row.kind in self.fail_on]

    @property
    def status(self) -> str:
        """`passed` or `failed`."""
        return "failed" if self.failures else "passed"
