"""Address registers as the instructions that set them leave them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from npu.errors import ProgramError
from npu.isa import Instruction

SET_UP = ("A_BASE", "A_STEP", "A_ROWS", "A_RING")


@dataclass(frozen=True, kw_only=True, slots=True)
class Register:
    """What an address register is set to: base, stride by loop level, row stride, and the ring that it follows (-1: none)
    with its length and stride."""

    base: int
    strides: Mapping[int, int]
    row_stride: int = 0
    ring: int = -1
    ring_length: int = 1
    ring_stride: int = 0


def set_up(registers: dict[int, Register], instruction: Instruction, place: int) -> None:
    """Carry one of `SET_UP`, instruction `place` of its program, out on the registers by number.

    Raises:
        ProgramError: a register is used before A_BASE sets it.
    """
    o = instruction.operands
    number = o["register"]
    if instruction.mnemonic == "A_BASE":
        registers[number] = Register(base=o["base"], strides={})
        return
    known = register_of(registers, number, place)
    match instruction.mnemonic:
        case "A_STEP":
            changed = replace(known, strides={**known.strides, o["level"]: o["stride"]})
        case "A_ROWS":
            changed = replace(known, row_stride=o["stride"])
        case _:
            changed = replace(known, ring=o["ring"], ring_length=o["length"], ring_stride=o["stride"])
    registers[number] = changed


def register_of(registers: Mapping[int, Register], number: int, place: int) -> Register:
    """An address register that has been set before instruction `place`.

    Raises:
        ProgramError: it has not.
    """
    if number not in registers:
        raise ProgramError(f"program: address register {number} is used before A_BASE sets it (instruction {place})")
    return registers[number]
