"""The outcome of one run."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from npu.metrics import Result, Table
from npu.program import Program
from npu_compiler import CompilerOptions
from tripath.validation import Discrepancy


@dataclass(frozen=True, kw_only=True, slots=True)
class Generated:
    """The output of the accuracy path. Per sequence: prompt and text, and for each token its id, its text, and the denoising
    step of its block (from 1; 0: none) that committed it. For the run: denoising steps per block."""

    prompts: Sequence[str]
    texts: Sequence[str]
    token_ids: Sequence[Sequence[int]]
    tokens: Sequence[Sequence[str]]
    commit_steps: Sequence[Sequence[int]]
    trip_counts: Sequence[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The outputs of a run. `program` None: no path ran one, at most `quality`. `cached` paths were not run anew.
    `reference_only`: why, where no program carries out what was asked for. `prompt_lengths`: tokens of the prompts that the
    program is for. `compiler`, `choice`: the options that a search of schedules found, and the line that says why.

    `devices`: metrics of other hardware by name; `tables` and `files` (name, text) are what such a comparison leaves.
    """

    program: Program | None
    results: Mapping[str, Result]
    wall_seconds: Mapping[str, float]
    discrepancies: Sequence[Discrepancy]
    generated: Generated | None
    fail_on: Sequence[str]
    devices: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    tables: Mapping[str, Table] = dataclasses.field(default_factory=dict)
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cached: Sequence[str] = ()
    reference_only: str = ""
    prompt_lengths: Sequence[int] = ()
    compiler: CompilerOptions | None = None
    choice: str = ""

    @property
    def trace_digest(self) -> str:
        """Digest of the trace that the paths of the program share; empty where there is no program."""
        return next((result.trace_digest for result in self.results.values() if result.program_digest), "")

    @property
    def failures(self) -> list[Discrepancy]:
        """Discrepancies that make the run fail."""
        return [row for row in self.discrepancies if not row.passed and row.kind in self.fail_on]

    @property
    def status(self) -> str:
        """`passed` or `failed`."""
        return "failed" if self.failures else "passed"
