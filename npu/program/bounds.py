"""Where a program may reach: every access of every trip lies inside its memory, so no executor need look while it runs.

An address is a base plus a stride for the index of each running loop plus a ring's buffer, so its extremes are those of its
parts. What depends on data, the row that H_GATHER_V fetches, the executor looks at itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from npu.errors import ProgramError
from npu.isa import BYTES_PER_ADDRESS, Footprint, Instruction, Memory, Unit
from npu.program.registers import SET_UP, Register, register_of, set_up
from npu.program.structure import LOOPS

CAPACITIES = {
    Memory.MATRIX: "matrix_bytes",
    Memory.VECTOR: "vector_bytes",
    Memory.FP: "fp_bytes",
    Memory.INT: "int_bytes",
}


@dataclass(kw_only=True)
class _Walk:
    """What is known at a point of the program: address registers, the largest index of each running loop, the largest value of
    each trip register, the length of each ring."""

    limits: dict[Memory, int]
    registers: dict[int, Register] = field(default_factory=dict)
    last: dict[int, int] = field(default_factory=dict)
    trips: dict[int, int] = field(default_factory=dict)
    rings: dict[int, int] = field(default_factory=dict)


def check_bounds(instructions: Sequence[Instruction], geometry: Mapping[str, int], hbm_bytes: int) -> None:
    """Raise unless every access lies inside its memory: HBM of `hbm_bytes`, SRAM as the program's geometry says.

    Raises:
        ProgramError: naming instruction, operand, addresses and limit; an address register is used before it is set, or set in
            a loop.
    """
    limits = {memory: geometry[name] // BYTES_PER_ADDRESS[memory] for memory, name in CAPACITIES.items()}
    walk = _Walk(limits={**limits, Memory.HBM: hbm_bytes})
    number = 0
    while number < len(instructions):
        instruction = instructions[number]
        o = instruction.operands
        if instruction.mnemonic in SET_UP:
            if walk.last:
                raise ProgramError(f"program: {instruction.mnemonic} in a loop (instruction {number})")
            if instruction.mnemonic == "A_RING":
                if o["length"] < 1:
                    raise ProgramError(f"program: a ring without a buffer (instruction {number})")
                walk.rings[o["ring"]] = max(o["length"], walk.rings.get(o["ring"], 1))
            set_up(walk.registers, instruction, number)
        elif instruction.mnemonic == "C_AFFINE":
            reach = o["base"], o["base"] + o["factor"] * walk.last.get(o["level"], 0)
            walk.trips[o["register"]] = max(*reach, walk.trips.get(o["register"], 0))
        elif instruction.mnemonic in LOOPS:
            trips = o["trips"] if instruction.mnemonic == "C_LOOP" else walk.trips.get(o["register"], 0)
            if trips < 1:
                number += o["length"]
            else:
                walk.last[o["level"]] = trips - 1
        elif instruction.mnemonic == "C_NEXT":
            walk.last.pop(o["level"], None)
        elif instruction.spec.unit is not Unit.FRONTEND or instruction.spec.reads:
            for footprint in (*instruction.spec.reads, *instruction.spec.writes):
                _check(walk, instruction, footprint, number)
        number += 1


def _check(walk: _Walk, instruction: Instruction, footprint: Footprint, number: int) -> None:
    o, operand = instruction.operands, instruction.spec.operands[footprint.operand]
    register = register_of(walk.registers, o[footprint.operand], number)
    rows, size, memory = footprint.rows(o), footprint.size(o), operand.memory
    if memory is None or rows < 1 or size < 1:
        return
    moves = [stride * walk.last[level] for level, stride in register.strides.items() if level in walk.last]
    moves += [register.row_stride * (rows - 1), register.ring_stride * (walk.rings.get(register.ring, 1) - 1)]
    low = register.base + sum(min(0, move) for move in moves)
    high = register.base + sum(max(0, move) for move in moves) + size
    if low < 0 or high > walk.limits[memory]:
        raise ProgramError(
            f"program: {instruction.mnemonic} reaches {footprint.operand} [{low}, {high}) of {memory.name.lower()}, "
            f"which ends at {walk.limits[memory]} (instruction {number})"
        )
