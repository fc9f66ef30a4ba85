"""What every simulator is: a function from a program and the facts around it to a `Result`."""

from typing import Protocol

from tripath.hardware import HardwareConfig
from tripath.metrics import Result
from tripath.program import Program
from tripath.trace import Trace


class TimingSimulator(Protocol):
    """A path that says how long a program takes; it never sees tensor values."""

    def simulate(self, program: Program, *, hardware: HardwareConfig, trace: Trace) -> Result:
        """Result of running `program` with the trip counts of `trace` on `hardware`."""
        ...
