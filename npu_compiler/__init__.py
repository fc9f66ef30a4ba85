"""From model, workload, hardware and numerics to a Program.

Passes, each a module. Operators become stages over buffers in a tree of loops (`stages`), lowered by `generation`, `forward`,
`operators`, `attention`, `sampling`, `cache`, `smoothing` and `mixing` from the sizes of `tiling` and `rows`, the working sets of
`buffers` and the tensors of `memory`. `lifetimes` and `allocation` give buffers addresses, `tokens` orders stages, `emission`
makes words; `text` prints what each made.
"""

from npu_compiler.generation import compile_passes, compile_program, schedule, target
from npu_compiler.text import explain

__all__ = ["compile_passes", "compile_program", "explain", "schedule", "target"]
