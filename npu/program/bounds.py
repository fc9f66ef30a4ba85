"""Where a program may reach: every access of every trip lies inside its memory, so no executor need look while it runs.

An address is a base plus a stride for the index of each running loop plus a ring's buffer, so its extremes are those of its
parts. What depends on data, the row that H_GATHER_V fetches, the executor looks at itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from npu.errors import ProgramError
from npu.isa import BYTES_PER_ADDRESS, Footprint, Instruction, Memory
from npu.isa.spec import SET_UP, ControlKind
from npu.program.looptree import Loop, LoopTree
from npu.program.registers import Register, register_of, set_up

CAPACITIES = {
    Memory.MATRIX: "matrix_bytes",
    Memory.VECTOR: "vector_bytes",
    Memory.FP: "fp_bytes",
    Memory.INT: "int_bytes",
}


def check_bounds(
    instructions: Sequence[Instruction], tree: LoopTree, geometry: Mapping[str, int], hbm_bytes: int
) -> None:
    """Raise unless every access lies inside its memory: HBM of `hbm_bytes`, SRAM as the program's geometry says.

    Raises:
        ProgramError: naming instruction, operand, addresses and limit; an address register is used before it is set, or set in
            a loop.
    """
    limits = {memory: geometry[name] // BYTES_PER_ADDRESS[memory] for memory, name in CAPACITIES.items()}
    _Walk(instructions=instructions, limits={**limits, Memory.HBM: hbm_bytes}).follow(tree.body)


@dataclass(kw_only=True)
class _Walk:
    """State at a point of the program: address registers, the largest index of each running loop, the length of each ring."""

    instructions: Sequence[Instruction]
    limits: dict[Memory, int]
    registers: dict[int, Register] = field(default_factory=dict)
    last: dict[int, int] = field(default_factory=dict)
    rings: dict[int, int] = field(default_factory=dict)

    def follow(self, nodes: Sequence[int | Loop]) -> None:
        """Go through nodes in program order; a loop that never runs reaches nothing."""
        for node in nodes:
            if not isinstance(node, Loop):
                self._pass(node)
            elif node.most_trips >= 1:
                self.last[node.level] = node.most_trips - 1
                self.follow(node.body)
                del self.last[node.level]

    def _pass(self, number: int) -> None:
        instruction = self.instructions[number]
        kind, o = instruction.spec.control, instruction.operands
        if kind in SET_UP:
            if self.last:
                raise ProgramError(f"program: {instruction.mnemonic} in a loop (instruction {number})")
            if kind is ControlKind.RING:
                if o["length"] < 1:
                    raise ProgramError(f"program: a ring without a buffer (instruction {number})")
                self.rings[o["ring"]] = max(o["length"], self.rings.get(o["ring"], 1))
            set_up(self.registers, instruction, number)
        for footprint in (*instruction.spec.reads, *instruction.spec.writes):
            self._check(instruction, footprint, number)

    def _check(self, instruction: Instruction, footprint: Footprint, number: int) -> None:
        o, operand = instruction.operands, instruction.spec.operands[footprint.operand]
        register = register_of(self.registers, o[footprint.operand], number)
        rows, size, memory = footprint.rows(o), footprint.size(o), operand.memory
        if memory is None or rows < 1 or size < 1:
            return
        moves = [stride * self.last[level] for level, stride in register.strides.items() if level in self.last]
        moves += [register.row_stride * (rows - 1), register.ring_stride * (self.rings.get(register.ring, 1) - 1)]
        low = register.base + sum(min(0, move) for move in moves)
        high = register.base + sum(max(0, move) for move in moves) + size
        if low < 0 or high > self.limits[memory]:
            raise ProgramError(
                f"program: {instruction.mnemonic} reaches {footprint.operand} [{low}, {high}) of {memory.name.lower()}, "
                f"which ends at {self.limits[memory]} (instruction {number})"
            )
