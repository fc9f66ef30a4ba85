"""Which loops the fast-forward may skip, and after how many iterations their addresses meet alike again."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from npu.isa.spec import SET_UP, ControlKind
from npu.program import Program, loop_tree
from npu.program.looptree import Loop
from npu.program.registers import Register
from npu.program.tables import address_registers


def mark_loops(program: Program, code: np.ndarray, hbm_period_bytes: int) -> None:
    """Fill in `period` of what closes each loop: iterations after which addresses repeat; 0: never skip."""
    if not set_up_once(program):
        return
    accesses = accesses_of(code)
    for loop in loop_tree(program).loops:
        code["period"][loop.next] = _period(program, accesses, loop, hbm_period_bytes)


def set_up_once(program: Program) -> bool:
    """True if no address register is set up twice or in a loop; otherwise nothing is known of the registers beforehand."""
    around, based = loop_tree(program).around, set()
    for number, instruction in enumerate(program.instructions):
        kind = instruction.spec.control
        if kind in SET_UP and around[number]:
            return False
        if kind is ControlKind.BASE:
            if instruction.operands["register"] in based:
                return False
            based.add(instruction.operands["register"])
    return True


@dataclass(frozen=True, kw_only=True, slots=True)
class Accesses:
    """Address registers of an instruction: `hbm`, of its access to HBM; `locks`, of its interlocked accesses, each with the
    LOCK."""

    hbm: list[int]
    locks: list[tuple[int, tuple[int, int, int, int]]]


def accesses_of(code: np.ndarray) -> list[Accesses]:
    """Those of every instruction."""
    columns = (code[name].tolist() for name in ("moves", "locks", "register", "lock"))
    return [
        Accesses(hbm=registers[:moves], locks=list(zip(registers[:count], locks, strict=False)))
        for moves, count, registers, locks in zip(*columns, strict=True)
    ]


def _period(program: Program, accesses: Sequence[Accesses], loop: Loop, hbm_period_bytes: int) -> int:
    """Iterations after which the addresses of a loop's body have moved by whole cells and periods; 0 if never alike."""
    registers, around = address_registers(program), loop_tree(program).around
    period, locks = 1, []
    for number in loop.numbers:
        instruction = program.instructions[number]
        if instruction.spec.control is ControlKind.TRIPS and instruction.operands["level"] == loop.level:
            return 0
        for name in accesses[number].hbm:
            step = registers.get(name, UNSET).strides.get(loop.level, 0)
            period = math.lcm(period, hbm_period_bytes // math.gcd(step, hbm_period_bytes))
        for name, (cell, width, size, write) in accesses[number].locks:
            register = registers.get(name, UNSET)
            step = register.strides.get(loop.level, 0)
            period = math.lcm(period, width // math.gcd(step, width))
            low, high = sweep(register, around[number])
            locks.append((cell + low // width, cell + (high + size - 1) // width, step, bool(write)))
    return period if meet_alike(locks) else 0


UNSET = Register(base=0, strides={})
"""A register that the program does not set up."""


def sweep(register: Register, around: Sequence[Loop]) -> tuple[int, int]:
    """First and last address that an instruction in these loops can reach through a register."""
    reach = (register.ring_length - 1) * register.ring_stride
    low, high = register.base + min(reach, 0), register.base + max(reach, 0)
    for loop in around:
        reach = (max(loop.most_trips, 1) - 1) * register.strides.get(loop.level, 0)
        low, high = low + min(reach, 0), high + max(reach, 0)
    return low, high


def meet_alike(locks: list[tuple[int, int, int, bool]]) -> bool:
    """True if no two accesses, one of them a write, move at different speeds over the same cells. An access is (first, last,
    step, write)."""
    table = np.array(sorted(set(locks)), np.int64).reshape(-1, 4)
    first, last, step, write = table.T
    overlap = (first[:, None] <= last[None]) & (first[None] <= last[:, None])
    unlike = (step[:, None] != step[None]) & ((write[:, None] | write[None]) == 1)
    return not (overlap & unlike).any()
