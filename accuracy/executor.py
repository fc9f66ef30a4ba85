"""Runs a program bit-exactly, instruction by instruction in program order. It knows no time.

The order is legal: every wait of a well-formed program is satisfied by signals that come before it in program order.
"""

from dataclasses import dataclass, field

import numpy as np
from numba import njit

from accuracy.dispatch import dispatch
from tripath.errors import ProgramError
from tripath.isa import BY_MNEMONIC
from tripath.isa.control import Control, address_of, new_control
from tripath.isa.spec import SEMAPHORES
from tripath.program import Program
from tripath.tables import Tables, tabulate

FIRST_QUEUED_OPCODE = 0x10
BREAK = BY_MNEMONIC["C_BREAK_IF"].opcode
GATHER = BY_MNEMONIC["H_GATHER_V"].opcode
GATHER_INDEX, GATHER_ROWS = (list(BY_MNEMONIC["H_GATHER_V"].operands).index(name) for name in ("index", "rows"))
DONE, PAUSED, NO_TOKEN = 0, 1, 2
SLICE = 1 << 20
"""Instructions between two looks at the outside (progress, interrupts)."""


@njit(cache=True)
def _run(opcode, operands, waits, signals, control, hbm, matrix, vector, fp, integer, accumulator, tokens, retired,
         breaks, gathers, filled, resume, budget):  # fmt: skip
    """Run until the end, a C_BREAK_IF (unless it is the instruction resumed from), or `budget` instructions."""
    while control.pc[0] >= 0:
        pc = control.pc[0]
        op = opcode[pc]
        o = operands[pc]
        if budget == 0 or (op == BREAK and not resume):
            return PAUSED
        resume = False
        budget -= 1
        for slot in range(2):
            tokens[waits[pc, slot]] -= 1
            if waits[pc, slot] and tokens[waits[pc, slot]] < 0:
                return NO_TOKEN
        retired[pc] += 1
        if op == BREAK:
            level = o[0]
            if integer[address_of(control, o[1])] == 0 or control.index[level] + 1 == control.trips[level]:
                breaks[filled[0]] = control.index[level]
                filled[0] += 1
                dispatch(op, o, control, hbm, matrix, vector, fp, integer, accumulator)
            else:
                control.pc[0] += 1
        elif op < FIRST_QUEUED_OPCODE:
            dispatch(op, o, control, hbm, matrix, vector, fp, integer, accumulator)
        else:
            if op == GATHER:
                for row in range(o[GATHER_ROWS]):
                    gathers[filled[1]] = integer[address_of(control, o[GATHER_INDEX]) + row]
                    filled[1] += 1
            dispatch(op, o, control, hbm, matrix, vector, fp, integer, accumulator)
            control.pc[0] += 1
        for slot in range(2):
            tokens[signals[pc, slot]] += 1
    return DONE


@dataclass(kw_only=True)
class Machine:
    """All state of the NPU: memories (HBM and Matrix SRAM in bytes, Vector SRAM as BF16 values in float32), front end,
    semaphores; and what was recorded: retirements per instruction, breaks, gathered rows."""

    program: Program
    hbm: np.ndarray
    tables: Tables = field(init=False)
    control: Control = field(init=False)
    finished: bool = False

    def __post_init__(self) -> None:
        geometry = self.program.geometry
        self.tables = tabulate(self.program)
        self.control = new_control()
        self.matrix = np.zeros(geometry["matrix_bytes"], np.uint8)
        self.vector = np.zeros(geometry["vector_bytes"] // 2, np.float32)
        self.fp = np.zeros(geometry["fp_bytes"] // 4, np.float32)
        self.integer = np.zeros(geometry["int_bytes"] // 4, np.int32)
        self.accumulator = np.zeros((geometry["blen"], geometry["blen"]), np.float32)
        self.tokens = np.zeros(SEMAPHORES + 1, np.int64)
        self.retired = np.zeros(len(self.program.words), np.int64)
        self.breaks = np.zeros(1 << 16, np.int64)
        self.gathers = np.zeros(1 << 22, np.int64)
        self.filled = np.zeros(2, np.int64)
        self._at_break = False

    def run_to_break(self) -> bool:
        """Run to the next C_BREAK_IF (that is: after a denoising step), or to the end; whether the program goes on.

        Raises:
            ProgramError: an instruction waits on a semaphore that nothing before it signals.
        """
        t = self.tables
        while not self.finished:
            status = _run(
                t.opcode, t.operands, t.waits, t.signals, self.control, self.hbm, self.matrix, self.vector, self.fp,
                self.integer, self.accumulator, self.tokens, self.retired, self.breaks, self.gathers, self.filled,
                self._at_break, SLICE,
            )  # fmt: skip
            self._at_break = False
            pc = int(self.control.pc[0])
            if status == NO_TOKEN:
                raise ProgramError(
                    f"program: instruction {pc} ({self.program.instructions[pc].mnemonic}) waits for ever"
                )
            self.finished = status == DONE
            if not self.finished and t.opcode[pc] == BREAK:
                self._at_break = True
                return True
        return False
