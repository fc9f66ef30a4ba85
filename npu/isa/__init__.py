"""The instruction set: each instruction is one function in the file of its unit; `spec` turns it into a table row.

`matrix`, `vector`, `scalar`, `dma`, `control` hold the instructions, `transcendental` the function tables they share,
`threefry` random numbers, `text` the assembler.
"""

from npu.isa import control, dma, matrix, scalar, vector
from npu.isa.spec import (
    BY_MNEMONIC,
    BYTES_PER_ADDRESS,
    TABLE,
    Footprint,
    Instruction,
    InstructionSpec,
    Memory,
    OpClass,
    Unit,
)
from npu.isa.text import assemble, disassemble

__all__ = [
    "BYTES_PER_ADDRESS", "BY_MNEMONIC", "TABLE", "Footprint", "Instruction", "InstructionSpec", "Memory", "OpClass", "Unit",
    "assemble", "control", "disassemble", "dma", "matrix", "scalar", "vector",
]  # fmt: skip
