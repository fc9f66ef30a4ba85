"""From model, workload, hardware and numerics to a Program.

`generation` is the top: blocks and steps. `forward` and `sampling` lower the phases, `lower` what they share, `rows`
cuts the rows of a pass into chunks, `layout` places everything in memory, `emit` makes instructions of it.
"""

from npu_compiler.generation import compile_program, schedule, target

__all__ = ["compile_program", "schedule", "target"]
