"""The cycle-accurate path: `simulator` is the entry, `machine` the compiled rules of time, `races` the order check."""

import npu  # noqa: F401  before Numba is imported: it decides where compiled code is kept
from cycle.simulator import instruction_times, simulate

__all__ = ["instruction_times", "simulate"]
