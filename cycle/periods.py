"""Which loops the fast-forward may skip, and after how many iterations their addresses meet alike again."""

import math

import numpy as np

from npu.program import Program
from npu.program.structure import LOOPS
from npu.program.tables import Register, address_registers


def mark_loops(program: Program, code: np.ndarray, hbm_period_bytes: int) -> None:
    """Fill in `period` (iterations after which addresses repeat; 0: never skip) and `exits` (a C_BREAK_IF of its own may leave
    the loop) of each C_NEXT."""
    registers = _Registers.of(program)
    if registers is None:
        return
    for start, end in program.loop_ends().items():
        level = program.instructions[start].operands["level"]
        body = range(start + 1, end)
        exits = [
            program.instructions[i].operands["level"] for i in body if program.instructions[i].mnemonic == "C_BREAK_IF"
        ]
        code["exits"][end] = level in exits
        mixed = level in exits and len(exits) > 1  # the trace's entries of two nested exits would mix
        code["period"][end] = 0 if mixed else _period(program, code, registers, level, body, hbm_period_bytes)


_UNSET = Register(base=0, strides={})


class _Registers:
    """Where address registers can point, and the most trips of each loop."""

    def __init__(self, program: Program) -> None:
        self.registers = address_registers(program)
        self.enclosing: list[list[int]] = []
        self.trips: dict[int, int] = {}
        integer: dict[int, int] = {}
        stack: list[int] = []
        for number, instruction in enumerate(program.instructions):
            o = instruction.operands
            match instruction.mnemonic:
                case "C_AFFINE":
                    inner = [loop for loop in stack if program.instructions[loop].operands["level"] == o["level"]]
                    last = self.trips[inner[-1]] - 1 if inner else 0
                    most = max(o["base"], o["base"] + o["factor"] * last)
                    integer[o["register"]] = max(integer.get(o["register"], 0), most)
                case "C_NEXT":
                    stack.pop()
            if instruction.mnemonic in LOOPS:
                stack.append(number)
                self.trips[number] = o["trips"] if "trips" in o else integer.get(o["register"], 0)
            self.enclosing.append(list(stack))
        self.levels = {loop: program.instructions[loop].operands["level"] for loop in self.trips}

    @classmethod
    def of(cls, program: Program) -> "_Registers | None":
        """The registers, or None where one is set up twice or inside of a loop: then nothing is known beforehand."""
        depth, seen = 0, set()
        for instruction in program.instructions:
            if instruction.mnemonic in LOOPS:
                depth += 1
            elif instruction.mnemonic == "C_NEXT":
                depth -= 1
            elif instruction.mnemonic.startswith("A_") and instruction.mnemonic != "A_NEXT":
                register = instruction.operands["register"]
                if depth or (instruction.mnemonic == "A_BASE" and register in seen):
                    return None
                seen.add(register)
        return cls(program)

    def step(self, register: int, level: int) -> int:
        """By how much an address moves with each iteration of a level."""
        return self._of(register).strides.get(level, 0)

    def _of(self, number: int) -> Register:
        return self.registers.get(number, _UNSET)

    def sweep(self, register: int, number: int) -> tuple[int, int]:
        """First and last address that an instruction can reach through a register."""
        known = self._of(register)
        low = high = known.base
        for loop in self.enclosing[number]:
            reach = (max(self.trips[loop], 1) - 1) * self.step(register, self.levels[loop])
            low, high = low + min(reach, 0), high + max(reach, 0)
        ring = (known.ring_length - 1) * known.ring_stride
        return low + min(ring, 0), high + max(ring, 0)


def _period(
    program: Program, code: np.ndarray, registers: _Registers, level: int, body: range, hbm_period_bytes: int
) -> int:  # fmt: skip
    """Iterations after which the addresses of a loop's body have moved by whole cells and periods; 0 if never alike."""
    period, locks = 1, []
    for number in body:
        instruction = program.instructions[number]
        if instruction.mnemonic == "C_AFFINE" and instruction.operands["level"] == level:
            return 0
        row = code[number]
        if row["moves"]:
            step = registers.step(int(row["register"][0]), level)
            period = math.lcm(period, hbm_period_bytes // math.gcd(step, hbm_period_bytes))
        locks_of = zip(row["register"].tolist(), row["lock"][: row["locks"]].tolist(), strict=False)
        for register, (cell, width, size, write) in locks_of:
            step = registers.step(register, level)
            period = math.lcm(period, width // math.gcd(step, width))
            low, high = registers.sweep(register, number)
            locks.append((cell + low // width, cell + (high + size - 1) // width, step, bool(write)))
    return period if _meet_alike(locks) else 0


def _meet_alike(locks: list[tuple[int, int, int, bool]]) -> bool:
    """Whether no two accesses, one of them a write, move at different speeds over the same cells (first, last, step,
    write)."""
    table = np.array(sorted(set(locks)), np.int64).reshape(-1, 4)
    first, last, step, write = table.T
    overlap = (first[:, None] <= last[None]) & (first[None] <= last[:, None])
    unlike = (step[:, None] != step[None]) & ((write[:, None] | write[None]) == 1)
    return not (overlap & unlike).any()
