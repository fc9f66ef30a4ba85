"""Runs a program bit-exactly, instruction by instruction in program order. It knows no time.

The order is legal: every wait of a well-formed program is satisfied by signals that come before it in program order.
"""

from dataclasses import dataclass, field

import numpy as np
from numba import njit

from accuracy.dispatch import dispatch
from npu.errors import ProgramError
from npu.isa import BY_MNEMONIC
from npu.isa.control import Control, address_of, new_control, set_count
from npu.isa.spec import LOOP_LEVELS, SEMAPHORES, ControlKind
from npu.program import Program, loop_tree
from npu.program.exits import denoising_loops
from npu.program.host import host_turns
from npu.program.tables import Tables, tabulate
from npu.program.trace import Trace
from npu.unowned import unowned

BREAK, COUNT = int(ControlKind.BREAK), int(ControlKind.COUNT)
GATHER = BY_MNEMONIC["H_GATHER_V"].opcode
GATHER_TABLE, GATHER_INDEX, GATHER_COLS, GATHER_ROWS = (
    list(BY_MNEMONIC["H_GATHER_V"].operands).index(name) for name in ("table", "index", "cols", "rows")
)
SAMPLE, DRAW = (BY_MNEMONIC[name].opcode for name in ("V_RED_MAX_IDX", "V_RED_SAMPLE_IDX"))
SAMPLE_PLACE, SAMPLE_ROW, SAMPLE_LANES, SAMPLE_FIRST = (
    list(BY_MNEMONIC["V_RED_MAX_IDX"].operands).index(name) for name in ("place", "a", "n", "first")
)
assert list(BY_MNEMONIC["V_RED_SAMPLE_IDX"].operands)[:5] == list(BY_MNEMONIC["V_RED_MAX_IDX"].operands)
DONE, PAUSED, NO_TOKEN, NO_ROW, NO_BODY = range(5)
SLICE = 1 << 20
"""Instructions between two looks at the outside (progress, interrupts)."""


@njit(cache=True)
def _run(opcode, kinds, operands, waits, signals, early, control, hbm, matrix, vector, fp, integer, accumulator, tokens,
         retired, breaks, gathers, counts, filled, entry, logits, sampled, resume, budget):  # fmt: skip
    """Run until the end, a C_BREAK_IF (unless it is the instruction resumed from), or `budget` instructions."""
    operands, control, hbm, matrix, vector = (
        unowned(operands),
        unowned(control),
        unowned(hbm),
        unowned(matrix),
        unowned(vector),
    )
    fp, integer, accumulator = unowned(fp), unowned(integer), unowned(accumulator)
    while control.pc[0] >= 0:
        pc = control.pc[0]
        op = opcode[pc]
        kind = kinds[pc]
        o = operands[pc]
        if budget == 0 or (kind == BREAK and not resume):
            return PAUSED
        resume = False
        budget -= 1
        for slot in range(2):
            tokens[waits[pc, slot]] -= 1
            if waits[pc, slot] and tokens[waits[pc, slot]] < 0:
                return NO_TOKEN
        retired[pc] += 1
        runs = True
        if kind == BREAK:
            level = o[0]
            runs = integer[address_of(control, o[1])] == 0 or control.index[level] + 1 == control.trips[level]
            if runs:
                breaks[entry[level]] = control.index[level]
        elif early[pc]:
            if filled[0] == breaks.size:
                return NO_ROW
            entry[o[0]] = filled[0]
            filled[0] += 1
        elif kind == COUNT:
            if filled[2] == counts.size:
                return NO_ROW
            set_count(control, o[0], np.int64(integer[address_of(control, o[1])]), o[2])
            counts[filled[2]] = control.register[o[0]]
            filled[2] += 1
        elif op == GATHER:
            for row in range(o[GATHER_ROWS]):
                number = integer[address_of(control, o[GATHER_INDEX]) + row]
                place = address_of(control, o[GATHER_TABLE]) + number * control.row_stride[o[GATHER_TABLE]]
                if place < 0 or place + 2 * o[GATHER_COLS] > hbm.size or filled[1] == gathers.size:
                    return NO_ROW
                gathers[filled[1]] = number
                filled[1] += 1
        elif op == SAMPLE or op == DRAW:
            position, first = address_of(control, o[SAMPLE_PLACE]) - sampled, address_of(control, o[SAMPLE_FIRST])
            if 0 <= position < logits.shape[0]:
                row = address_of(control, o[SAMPLE_ROW])
                for lane in range(min(o[SAMPLE_LANES], logits.shape[1] - first)):
                    logits[position, first + lane] = vector[row + lane]
        if runs and not dispatch(op, o, control, hbm, matrix, vector, fp, integer, accumulator):
            return NO_BODY
        if not runs or not kind:
            control.pc[0] += 1
        for slot in range(2):
            tokens[signals[pc, slot]] += 1
    return DONE


@dataclass(kw_only=True)
class Machine:
    """All state of the NPU: memories (HBM and Matrix SRAM in bytes, Vector SRAM as BF16 values in float32), front end,
    semaphores; and what was recorded: retirements per instruction, breaks, gathered rows, counts.

    Of loops that may be `early` left, `entry` is where the trace has the present one of each level. `logits` [positions of the
    batch's blocks, vocabulary] are what was sampled last; of size 0 they are not kept."""

    program: Program
    hbm: np.ndarray
    tables: Tables = field(init=False)
    control: Control = field(init=False)
    finished: bool = False
    logits: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    def __post_init__(self) -> None:
        if host_turns(self.program):
            raise ProgramError("program: it hands over to a host, of which the accuracy path knows nothing (C_HOST)")
        self.program.check_bounds()
        if self.hbm.size < self.program.hbm_bytes:
            raise ProgramError(f"program: the image has {self.hbm.size} bytes, HBM {self.program.hbm_bytes}")
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
        self.counts = np.zeros(1 << 23, np.int64)
        self.filled = np.zeros(3, np.int64)
        self.entry = np.zeros(LOOP_LEVELS, np.int64)
        self.early = np.zeros(len(self.program.words), np.bool_)
        self.early[[loop.head for loop in loop_tree(self.program).loops if loop.leaves_early]] = True
        self._at_break = False
        self._steps = {loop.left_at for loop in denoising_loops(self.program)}

    @property
    def trace(self) -> Trace:
        """The trace that was recorded, complete once the program has ended."""
        breaks, gathers, counts = (
            tuple(stream[:filled].tolist())
            for stream, filled in zip((self.breaks, self.gathers, self.counts), self.filled.tolist(), strict=True)
        )
        return Trace(breaks=breaks, gathers=gathers, counts=counts)

    def run_to_break(self) -> bool:
        """Run to the next C_BREAK_IF of a loop over denoising steps (that is: after a step), or to the end; whether the program
        goes on.

        Raises:
            ProgramError: an instruction waits on a semaphore that nothing before it signals, or fetches a row that is not there.
        """
        while not self.finished:
            if self.run_slice() and int(self.control.pc[0]) in self._steps:
                return True
        return False

    def run_slice(self) -> bool:
        """Run at most SLICE instructions, to the next C_BREAK_IF or the end; whether it stands at a break."""
        t = self.tables
        status = _run(
            t.opcode, t.control, t.operands, t.waits, t.signals, self.early, self.control, self.hbm, self.matrix, self.vector,
            self.fp, self.integer, self.accumulator, self.tokens, self.retired, self.breaks, self.gathers, self.counts,
            self.filled, self.entry, self.logits, self.program.layout.get("sampled", 0), self._at_break, SLICE,
        )  # fmt: skip
        pc = int(self.control.pc[0])
        faults = {
            NO_TOKEN: "waits for ever",
            NO_ROW: "fetches a row that HBM does not have, or is one too many to record",
            NO_BODY: "has no body here",
        }
        if status in faults:
            raise ProgramError(f"program: instruction {pc} ({self.program.instructions[pc].mnemonic}) {faults[status]}")
        self.finished = status == DONE
        self._at_break = not self.finished and int(self.tables.control[pc]) == BREAK
        return self._at_break
