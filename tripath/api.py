"""The public API for notebooks and scripts: the names in `__all__` keep their meaning (docs/api.md says for how long)."""

import accuracy
import analytical
import cycle
import rtl
from dllm.model import ModelSpec
from dllm.numerics import Numerics, Smoothing
from dllm.workload import Workload
from npu.energy import Technology
from npu.errors import CapacityError, ProgramError, TripathError
from npu.hardware import FrontEnd, HardwareConfig, Hbm, Sram, Timing
from npu.metrics import Result, Table
from npu.program import Phase, Program, Tensor
from npu.program.trace import Trace
from npu_compiler import CompilerOptions, compile_program, schedule
from tripath.command.composition import compose_experiment
from tripath.experiment import Experiment, Prompts
from tripath.experiment.prompts import read_prompts
from tripath.run.job import Prepared, prepare
from tripath.validation import Discrepancy, Reference, Settings, Tolerance, validate

__all__ = [
    "CapacityError", "CompilerOptions", "Discrepancy", "Experiment", "FrontEnd", "HardwareConfig", "Hbm", "ModelSpec",
    "Numerics", "Phase", "Prepared", "Program", "ProgramError", "Prompts", "Reference", "Result", "Settings", "Smoothing",
    "Sram", "Table", "Technology", "Tensor", "Timing", "Tolerance", "Trace", "TripathError", "Workload", "accuracy",
    "analytical", "compile_program", "compose_experiment", "cycle", "prepare", "read_prompts", "rtl", "schedule", "validate",
]  # fmt: skip
