"""The RTL path: a core in SystemVerilog. `path` is the entry, `simulator` builds and runs it, `package` writes what it knows
of the instruction table and of the hardware, `limits` says what it lacks, `synthesis` maps it to cells."""

from rtl.path import RtlOutcome, simulate
from rtl.simulator import Memories

__all__ = ["Memories", "RtlOutcome", "simulate"]
