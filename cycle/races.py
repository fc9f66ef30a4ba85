"""The race check: semaphores, queue order and interlocks order every two accesses to the same bytes, whatever the latencies.

Loops without semaphores are walked whole, of others two iterations (three where a ring of buffers advances), in program
order; where data decide how often loops go round, with the most, with none, and with both in turns. Each instruction knows,
per queue, up to which instruction everything is complete before it starts (a vector clock: what its queue knew, what the
front end knew, what the tokens it took brought along). Every read must know the last write of each byte to be complete,
every write also the last reads. A compute unit orders its own accesses, except that a tile product must know what an M_OUT
before it wrote to be complete.

Cells that were touched alike share one history (`Shadow`), so an access costs as many steps as it meets histories, not cells.
"""

import mmap
import sys
from collections import namedtuple
from dataclasses import dataclass

import numpy as np
from numba import njit

from cycle.code import COMPUTE_QUEUES, VECTOR
from npu.errors import ProgramError
from npu.hardware import QUEUED_UNITS
from npu.isa import Memory
from npu.isa.control import address_of, c_break_if, control_step, new_control, set_count
from npu.isa.spec import SEMAPHORES, ControlKind
from npu.program import Program, loop_tree
from npu.program.tables import ACCESSES, QUEUE_OF_UNIT, tabulate
from npu.unowned import unowned

GRANULE = (1, 16, 4, 1, 1)
"""Addresses per shadow cell, by memory; buffers start at multiples of it."""
CHUNK = 1 << 10
"""Cells that a run of cells with one history does not cross a multiple of, so that its first is found in few steps."""
ITERATIONS = 2
ALL = 1 << 40
MAX_TOKENS = 64
FLAG = int(Memory.INT)
FINE, RACE, STUCK, NO_BODY = range(4)
PATTERNS = ((True,), (False,), (True, False), (False, True))
"""Of the numbers that C_COUNT reads in turn, whether each is the most that it may be, or none."""
QUEUES = len(QUEUED_UNITS)
LOOP, BREAK, COUNT, HOST = (
    int(kind) for kind in (ControlKind.LOOP, ControlKind.BREAK, ControlKind.COUNT, ControlKind.HOST)
)
_MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0
"""No promise of memory for what is never touched (mman.h; Python names it from 3.13 on)."""

HISTORY = np.dtype(
    [
        ("write_queue", np.int32), ("write_number", np.int32), ("write_pc", np.int32),
        ("read_number", np.int32, (QUEUES,)), ("read_pc", np.int32, (QUEUES,)),
    ],
    align=True,
)  # fmt: skip
"""Queue and number of the last write, numbers of the last read by each queue, and which instructions."""

Shadow = namedtuple("Shadow", "run history first size granule")
"""Cells of all memories, one memory behind the other. Cells with one history are a run: `run` says at its first cell how many
they are (0: none begins here, or at a multiple of CHUNK that its chunk is one run), `history` there what touched them. By
memory, `first` is its first cell, `size` its cells and `granule` the addresses of each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Race:
    """Two accesses that nothing orders: instruction numbers, the memory, and the address."""

    first: int
    second: int
    memory: str
    address: int

    def describe(self, program: Program) -> str:
        """One line."""
        names = [program.instructions[number].mnemonic for number in (self.first, self.second)]
        return (f"race on {self.memory} at {self.address}: {names[1]} (instruction {self.second}) does not wait for "
                f"{names[0]} (instruction {self.first})")  # fmt: skip


def find_race(program: Program) -> Race | None:
    """The first race of a program, or None if there is none."""
    tables = tabulate(program)
    found = np.zeros(4, np.int64)
    for pattern in PATTERNS if (tables.control == COUNT).any() else PATTERNS[:1]:
        status = _walk(
            tables.opcode, tables.control, QUEUE_OF_UNIT[tables.unit], tables.operands, tables.waits, tables.signals,
            tables.accesses, _limits(program), new_control(), _new_shadow(program), np.array(pattern), found,
        )  # fmt: skip
        if status == FINE:
            continue
        if status != RACE:
            what = {STUCK: "waits for ever", NO_BODY: "is none that the race check can follow"}[status]
            raise ProgramError(f"program: instruction {found[1]} ({program.instructions[found[1]].mnemonic}) {what}")
        return Race(first=int(found[0]), second=int(found[1]), memory=Memory(int(found[2])).name, address=int(found[3]))
    return None


def check_races(program: Program) -> None:
    """Raise if two accesses of a program are not ordered.

    Raises:
        ProgramError: naming both instructions, the memory and the address.
    """
    race = find_race(program)
    if race is not None:
        raise ProgramError(f"program: {race.describe(program)}")


def _new_shadow(program: Program) -> Shadow:
    """Nothing was touched. Of HBM only what is written to has cells."""
    writable = max((t.address + t.size_bytes for t in program.hbm if t.writable), default=1)
    words = (("matrix", 1), ("vector", 2), ("fp", 4), ("int", 4))
    addresses = [writable, *(program.geometry[f"{name}_bytes"] // size for name, size in words)]
    granule = np.array(GRANULE)
    size = -(-np.array(addresses) // granule)
    ends = np.cumsum(-(-size // CHUNK) * CHUNK)
    cells = int(ends[-1])
    return Shadow(_zeros(np.dtype(np.int16), cells), _zeros(HISTORY, cells), np.array([0, *ends[:-1]]), size, granule)


def _zeros(kind: np.dtype, count: int) -> np.ndarray:
    """Zeros that take memory only where they are written: of a KV cache of many GiB the walk sees two layers."""
    pages = mmap.mmap(-1, count * kind.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    return np.frombuffer(pages, kind, count)


def _limits(program: Program) -> np.ndarray:
    """Iterations to walk of each loop, by the instruction that opens it: all where no semaphore is touched in its body, else a
    few, and one more where a ring advances directly in it."""
    limits, instructions = np.full(len(program.words), ALL, np.int64), program.instructions
    for loop in loop_tree(program).loops:
        if any(isinstance(node, int) and instructions[node].spec.control is ControlKind.ADVANCE for node in loop.body):
            limits[loop.head] = ITERATIONS + 1
        elif any(instructions[number].waits or instructions[number].signals for number in (loop.head, *loop.numbers)):
            limits[loop.head] = ITERATIONS
    return limits


@njit(cache=True)
def _walk(opcode, kinds, queue, operands, waits, signals, accesses, limits, control, shadow, pattern, found):
    opcode, kinds, queue, operands = unowned(opcode), unowned(kinds), unowned(queue), unowned(operands)
    waits, signals, accesses, limits = unowned(waits), unowned(signals), unowned(accesses), unowned(limits)
    control, shadow = unowned(control), unowned(shadow)
    knows = np.zeros((QUEUES, QUEUES), np.int64)
    front = np.zeros(QUEUES, np.int64)
    number = np.zeros(QUEUES, np.int64)
    tokens = np.zeros((SEMAPHORES + 1, MAX_TOKENS, QUEUES), np.int64)
    given, taken = np.zeros(SEMAPHORES + 1, np.int64), np.zeros(SEMAPHORES + 1, np.int64)
    counted = 0
    while control.pc[0] >= 0:
        pc = control.pc[0]
        kind = kinds[pc]
        q = queue[pc]
        for slot in range(2):
            semaphore = waits[pc, slot]
            if semaphore:
                if given[semaphore] == taken[semaphore]:
                    found[1] = pc
                    return STUCK
                for u in range(QUEUES):
                    known = tokens[semaphore, taken[semaphore] % MAX_TOKENS, u]
                    if kind:
                        front[u] = max(front[u], known)
                    else:
                        knows[q, u] = max(knows[q, u], known)
                taken[semaphore] += 1
        if kind:
            reads = kind == BREAK or kind == COUNT
            if reads and _meets(shadow, FLAG, address_of(control, operands[pc, 1]), 1, -1, False, front, pc, found):
                return RACE
            # All units know what the host touched: they begin nothing before its turn is over.
            if kind == HOST and _access(shadow, accesses[pc], control, -1, front, 0, pc, False, found):
                return RACE
            if kind == COUNT:
                most = operands[pc, 2]
                set_count(control, operands[pc, 0], most if pattern[counted % pattern.size] else 0, most)
                counted += 1
            if kind == BREAK:
                level = operands[pc, 0]
                if control.index[level] + 1 >= control.trips[level]:
                    c_break_if(control, level, 0)
                else:
                    control.pc[0] += 1
            else:
                if not control_step(control, opcode[pc], operands[pc]):
                    found[1] = pc
                    return NO_BODY
                if kind == LOOP:
                    level = operands[pc, 0]
                    control.trips[level] = min(control.trips[level], limits[pc])
            continue
        for u in range(QUEUES):
            knows[q, u] = max(knows[q, u], front[u])
        number[q] += 1
        for noting in (False, True):  # an instruction does not race with itself
            if _access(shadow, accesses[pc], control, q, knows[q], number[q], pc, noting, found):
                return RACE
        for slot in range(2):
            semaphore = signals[pc, slot]
            if semaphore:
                for u in range(QUEUES):
                    tokens[semaphore, given[semaphore] % MAX_TOKENS, u] = knows[q, u]
                tokens[semaphore, given[semaphore] % MAX_TOKENS, q] = number[q]
                given[semaphore] += 1
        control.pc[0] += 1
    return FINE


@njit(cache=True)
def _access(shadow, accesses, control, q, knows, number, pc, noting, found):
    """Note the accesses of an instruction; or, not `noting`, note in `found` the first race of one, if there is one."""
    for access in range(ACCESSES):
        memory, write, register, rows, size = accesses[access]
        if memory < 0:
            continue
        base, pitch = address_of(control, register), control.row_stride[register]
        if pitch == size:
            rows, size = 1, rows * size
        for row in range(rows):
            address = base + row * pitch
            if noting:
                _note(shadow, memory, address, size, q, write == 1, number, pc)
            elif _meets(shadow, memory, address, size, q, write == 1, knows, pc, found):
                return True
    return False


@njit(cache=True)
def _cells(shadow, memory, address, size):
    """First cell, and the one behind the last, of `size` addresses, of which the part of HBM that is never written has none; a
    run begins at both."""
    granule = shadow.granule[memory]
    first = min(address // granule, shadow.size[memory])
    stop = min((address + size - 1) // granule + 1, shadow.size[memory])
    first, stop = first + shadow.first[memory], stop + shadow.first[memory]
    _cut(shadow, first)
    _cut(shadow, stop)
    return first, stop


@njit(cache=True)
def _cut(shadow, cell):
    """Let a run begin at a cell."""
    run, history = shadow.run, shadow.history
    first = cell - cell % CHUNK
    if first == cell or run[cell]:
        return
    stop = _stop(run, first)
    while stop <= cell:
        first, stop = stop, _stop(run, stop)
    run[first], run[cell] = cell - first, stop - cell
    history[cell] = history[first]


@njit(cache=True)
def _stop(run, first):
    """The cell behind the run that begins at a cell."""
    return first + (run[first] or CHUNK)


@njit(cache=True)
def _meets(shadow, memory, address, size, q, write, knows, pc, found):
    """Note in `found` the first race of an access, if there is one."""
    cell, stop = _cells(shadow, memory, address, size)
    while cell < stop:
        other = _conflict(shadow.history[cell], q, write, knows)
        if other >= 0:
            found[0], found[1], found[2] = other, pc, memory
            found[3] = (cell - shadow.first[memory]) * shadow.granule[memory]
            return True
        cell = _stop(shadow.run, cell)
    return False


@njit(cache=True)
def _note(shadow, memory, address, size, q, write, number, pc):
    """Note an access; what it writes is one run, or one a chunk."""
    run, (cell, stop) = shadow.run, _cells(shadow, memory, address, size)
    while cell < stop:
        following, history = _stop(run, cell), shadow.history[cell]
        if write:
            history.write_queue, history.write_number, history.write_pc = q, number, pc
            end = min(cell - cell % CHUNK + CHUNK, stop)
            while following < end:
                run[following], following = 0, _stop(run, following)
            run[cell] = end - cell
        else:
            history.read_number[q], history.read_pc[q] = number, pc
        cell = following


@njit(cache=True)
def _conflict(history, q, write, knows):
    """The instruction that touched a cell and is not known to be over, or -1. Units that compute order their own, except that
    the matrix unit has no interlock: a product must know that the M_OUT which wrote what it reads is over."""
    writer, ordered = history.write_queue, q == VECTOR or (write and q in COMPUTE_QUEUES)
    if history.write_number > knows[writer] and not (writer == q and ordered):
        return history.write_pc
    if write:
        for reader in range(QUEUES):
            if history.read_number[reader] > knows[reader] and not (reader == q and q in COMPUTE_QUEUES):
                return history.read_pc[reader]
    return -1
