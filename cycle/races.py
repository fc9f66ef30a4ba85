"""The race check: semaphores, queue order and interlocks order every two accesses to the same bytes, whatever the latencies.

Loops without semaphores are walked whole, of others two iterations (three where a ring of buffers advances), in program
order. Each instruction knows,
per queue, up to which instruction everything is complete before it starts (a vector clock: what its queue knew, what the
front end knew, what the tokens it took brought along). Every read must know the last write of each byte to be complete,
every write also the last reads; matrix and vector instructions of one queue are ordered by the unit itself.
"""

import math
import mmap
import sys
from collections import namedtuple
from dataclasses import dataclass

import numpy as np
from numba import njit

from cycle.code import COMPUTE_QUEUES
from npu.errors import ProgramError
from npu.hardware import QUEUED_UNITS
from npu.isa import Memory
from npu.isa.control import address_of, c_break_if, control_step, new_control
from npu.isa.spec import SEMAPHORES, ControlKind
from npu.program import Program, loop_tree
from npu.program.tables import QUEUE_OF_UNIT, tabulate

GRANULE = (1, 16, 4, 1, 1)
"""Addresses per shadow cell, by memory; buffers start at multiples of it."""
ITERATIONS = 2
ALL = 1 << 40
MAX_TOKENS = 64
FINE, RACE, STUCK, NO_BODY = range(4)
QUEUES = len(QUEUED_UNITS)
LOOP, BREAK = int(ControlKind.LOOP), int(ControlKind.BREAK)
_MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0
"""No promise of memory for what is never touched (mman.h; Python names it from 3.13 on)."""

Shadow = namedtuple("Shadow", "write_queue write_number read_number write_pc read_pc")
"""Per cell: queue and number of the last write, numbers of the last read by each queue, and which instructions."""


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
    writable = max((t.address + t.size_bytes for t in program.hbm if t.writable), default=1)
    sizes = [
        writable,
        *(
            program.geometry[f"{name}_bytes"] // size
            for name, size in (("matrix", 1), ("vector", 2), ("fp", 4), ("int", 4))
        ),
    ]
    shadows = tuple(_shadow(-(-size // granule)) for size, granule in zip(sizes, GRANULE, strict=True))
    limits = _limits(program)
    found = np.zeros(4, np.int64)
    status = _walk(
        tables.opcode, tables.control, QUEUE_OF_UNIT[tables.unit], tables.operands, tables.waits, tables.signals,
        tables.accesses, limits, new_control(), shadows[0], shadows[1], shadows[2], shadows[3], shadows[4],
        np.array(GRANULE), found,
    )  # fmt: skip
    if status == FINE:
        return None
    if status != RACE:
        what = {STUCK: "waits for ever", NO_BODY: "is none that the race check can follow"}[status]
        raise ProgramError(f"program: instruction {found[1]} ({program.instructions[found[1]].mnemonic}) {what}")
    return Race(first=int(found[0]), second=int(found[1]), memory=Memory(int(found[2])).name, address=int(found[3]))


def check_races(program: Program) -> None:
    """Raise if two accesses of a program are not ordered.

    Raises:
        ProgramError: naming both instructions, the memory and the address.
    """
    race = find_race(program)
    if race is not None:
        raise ProgramError(f"program: {race.describe(program)}")


def _shadow(cells: int) -> Shadow:
    return Shadow(
        _zeros(np.int8, cells), _zeros(np.int32, cells), _zeros(np.int32, cells, QUEUES), _zeros(np.int32, cells),
        _zeros(np.int32, cells, QUEUES),
    )  # fmt: skip


def _zeros(kind: type, *shape: int) -> np.ndarray:
    """Zeros that take memory only where they are written: of a KV cache of many GiB the walk sees two layers."""
    size = max(1, math.prod(shape)) * np.dtype(kind).itemsize
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    return np.frombuffer(pages, kind, math.prod(shape)).reshape(shape)


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
def _walk(
    opcode, kinds, queue, operands, waits, signals, accesses, limits, control, s0, s1, s2, s3, s4, granules, found
):
    knows = np.zeros((QUEUES, QUEUES), np.int64)
    front = np.zeros(QUEUES, np.int64)
    number = np.zeros(QUEUES, np.int64)
    tokens = np.zeros((SEMAPHORES + 1, MAX_TOKENS, QUEUES), np.int64)
    given, taken = np.zeros(SEMAPHORES + 1, np.int64), np.zeros(SEMAPHORES + 1, np.int64)
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
            if kind == BREAK:
                level = operands[pc, 0]
                flag = address_of(control, operands[pc, 1]) // granules[4]
                other = _conflict(s4, flag, -1, False, front)
                if other >= 0:
                    found[0], found[1], found[2], found[3] = other, pc, 4, flag
                    return RACE
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
        for access in range(5):
            memory = accesses[pc, access, 0]
            if memory < 0:
                continue
            shadow = _shadow_of(memory, s0, s1, s2, s3, s4)
            base = address_of(control, accesses[pc, access, 2])
            pitch = control.row_stride[accesses[pc, access, 2]]
            write = accesses[pc, access, 1] == 1
            for row in range(accesses[pc, access, 3]):
                first = (base + row * pitch) // granules[memory]
                last = (base + row * pitch + accesses[pc, access, 4] - 1) // granules[memory]
                for cell in range(first, last + 1):
                    if cell >= shadow.write_number.size:
                        break  # read-only part of HBM
                    other = _conflict(shadow, cell, q, write, knows[q])
                    if other >= 0:
                        found[0], found[1], found[2], found[3] = other, pc, memory, cell * granules[memory]
                        return RACE
        for access in range(5):
            memory = accesses[pc, access, 0]
            if memory < 0:
                continue
            shadow = _shadow_of(memory, s0, s1, s2, s3, s4)
            base = address_of(control, accesses[pc, access, 2])
            pitch = control.row_stride[accesses[pc, access, 2]]
            for row in range(accesses[pc, access, 3]):
                first = (base + row * pitch) // granules[memory]
                last = (base + row * pitch + accesses[pc, access, 4] - 1) // granules[memory]
                for cell in range(first, min(last + 1, shadow.write_number.size)):
                    if accesses[pc, access, 1] == 1:
                        shadow.write_queue[cell] = q
                        shadow.write_number[cell] = number[q]
                        shadow.write_pc[cell] = pc
                    else:
                        shadow.read_number[cell, q] = number[q]
                        shadow.read_pc[cell, q] = pc
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
def _shadow_of(memory, hbm, matrix, vector, fp, integer):
    """The shadow of a memory (Numba cannot index a tuple of tuples by a variable)."""
    if memory == 1:
        return matrix
    if memory == 2:
        return vector
    if memory == 3:
        return fp
    if memory == 4:
        return integer
    return hbm


@njit(cache=True)
def _conflict(shadow, cell, q, write, knows):
    """The instruction whose access to a cell is not known to be over, or -1. Units that compute order their own."""
    writer = shadow.write_queue[cell]
    if shadow.write_number[cell] > knows[writer] and not (writer == q and q in COMPUTE_QUEUES):
        return shadow.write_pc[cell]
    if write:
        for reader in range(QUEUES):
            if shadow.read_number[cell, reader] > knows[reader] and not (reader == q and q in COMPUTE_QUEUES):
                return shadow.read_pc[cell, reader]
    return -1
