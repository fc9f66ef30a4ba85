"""Address registers as the instructions that set them leave them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import assert_never

from npu.errors import ProgramError
from npu.isa import Instruction
from npu.isa.spec import ControlKind


@dataclass(frozen=True, kw_only=True, slots=True)
class Register:
    """The setting of an address register: base, stride by loop level, row stride, and the ring that it follows (-1: none) with
    its length and stride."""

    base: int
    strides: Mapping[int, int]
    row_stride: int = 0
    ring: int = -1
    ring_length: int = 1
    ring_stride: int = 0


def set_up(registers: dict[int, Register], instruction: Instruction, place: int) -> None:
    """Carry instruction `place` of its program out on the registers by number; only those that set up a register change one.

    Raises:
        ProgramError: a register is used before it is given a base.
    """
    o = instruction.operands
    match instruction.spec.control:
        case ControlKind.BASE:
            registers[o["register"]] = Register(base=o["base"], strides={})
        case ControlKind.STEP:
            known = register_of(registers, o["register"], place)
            registers[o["register"]] = replace(known, strides={**known.strides, o["level"]: o["stride"]})
        case ControlKind.ROWS:
            known = register_of(registers, o["register"], place)
            registers[o["register"]] = replace(known, row_stride=o["stride"])
        case ControlKind.RING:
            known = register_of(registers, o["register"], place)
            registers[o["register"]] = replace(known, ring=o["ring"], ring_length=o["length"], ring_stride=o["stride"])
        case (
            ControlKind.LOOP | ControlKind.NEXT | ControlKind.BREAK | ControlKind.TRIPS | ControlKind.ADVANCE
            | ControlKind.END | ControlKind.COUNT | ControlKind.HOST | None
        ):  # fmt: skip
            pass
        case other:
            assert_never(other)


def register_of(registers: Mapping[int, Register], number: int, place: int) -> Register:
    """An address register that has been set before instruction `place`.

    Raises:
        ProgramError: it has not.
    """
    if number not in registers:
        raise ProgramError(f"program: address register {number} is used before A_BASE sets it (instruction {place})")
    return registers[number]
