"""What a notebook or script may rely on: the names of `__all__` keep their meaning (docs/api.md says for how long)."""

import accuracy
import analytical
import cycle
import rtl
from tripath.compiler import compile_program, schedule
from tripath.composition import compose_experiment
from tripath.energy import Technology
from tripath.errors import CapacityError, ProgramError, TripathError
from tripath.experiment import Experiment, Prompts, read_prompts
from tripath.hardware import FrontEnd, HardwareConfig, Hbm, Sram, Timing
from tripath.job import Prepared, prepare
from tripath.metrics import Result, Table
from tripath.model import ModelSpec
from tripath.program import Phase, Program, Tensor
from tripath.trace import Trace
from tripath.validation import Discrepancy, Reference, Settings, Tolerance, validate
from tripath.workload import Numerics, Smoothing, Workload

__all__ = [
    "CapacityError", "Discrepancy", "Experiment", "FrontEnd", "HardwareConfig", "Hbm", "ModelSpec", "Numerics", "Phase",
    "Prepared", "Program", "ProgramError", "Prompts", "Reference", "Result", "Settings", "Smoothing", "Sram", "Table",
    "Technology", "Tensor", "Timing", "Tolerance", "Trace", "TripathError", "Workload", "accuracy", "analytical",
    "compile_program", "compose_experiment", "cycle", "prepare", "read_prompts", "rtl", "schedule", "validate",
]  # fmt: skip
