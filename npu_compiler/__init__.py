"""From model, workload, hardware and numerics to a Program.

Passes, each a module. Operators become stages over buffers in a tree of loops (`stages`), lowered by `generation`, `forward`,
`operators`, `attention`, `gated`, `experts`, `sampling`, `stable_max`, `cache`, `smoothing` and `mixing` from the sizes of
`tiling` and `rows`, what is in flight (`arrangement`),
the working sets of `buffers` and the tensors of `memory`. `lifetimes` and `allocation` give buffers addresses, `tokens` orders
stages, `emission` makes words; `text` prints what each made. `traces` are those without data.
"""

from npu_compiler.arrangement import CompilerOptions, Sampling, as_sampled, check_support
from npu_compiler.generation import compile_passes, compile_program, target
from npu_compiler.memory import check_capacity
from npu_compiler.text import explain
from npu_compiler.traces import schedule, with_load

__all__ = [
    "CompilerOptions", "Sampling", "as_sampled", "check_capacity", "check_support", "compile_passes", "compile_program",
    "explain", "schedule", "target", "with_load",
]  # fmt: skip
