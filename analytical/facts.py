"""Per-instruction facts that the closed forms use: what each costs by the hardware's description, and what it touches."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from analytical.memory import memory_facts, occupied_cycles
from tripath.hardware import QUEUED_UNITS, HardwareConfig
from tripath.isa import BY_MNEMONIC, TABLE, Memory, Unit
from tripath.program import Program, fact_of_program
from tripath.structure import LOOPS
from tripath.tables import FRONTEND, QUEUE_OF_UNIT, Register, address_registers, address_steps, tabulate

FRONT_END = -1
DMA = (QUEUED_UNITS.index("dma_in"), QUEUED_UNITS.index("dma_out"))
_BEYOND = 1 << 40
_COMPUTE, _DMA = (Unit.MATRIX, Unit.VECTOR, Unit.SCALAR), (Unit.DMA_IN, Unit.DMA_OUT)
_HBM, _MATRIX = int(Memory.HBM), int(Memory.MATRIX)


@dataclass(frozen=True, kw_only=True, slots=True)
class Touch:
    """One access of an instruction: addresses [first, last), the stride of each loop level, in one on-chip memory."""

    memory: int
    write: bool
    first: int
    last: int
    strides: Mapping[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """Arrays over instructions: `queue` (-1: front end), `interval` (cycles that the unit is occupied), `latency`,
    `front_end` (cycles to issue); `ideal` is the interval with the memory at peak bandwidth; `touches` and semaphores."""

    queue: list[int]
    interval: list[float]
    ideal: list[float]
    latency: list[float]
    front_end: list[float]
    waits: list[tuple[int, ...]]
    signals: list[tuple[int, ...]]
    touches: list[list[Touch]]
    granule: dict[int, int]
    depth: list[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Facts:
    """What of the costs is the program's alone: `left_by_break` marks the loop heads whose loop has a C_BREAK_IF; `runs`
    holds, of instructions that reach HBM, whether all runs start at multiples of a common power of two, and which."""

    queue: list[int]
    waits: list[tuple[int, ...]]
    signals: list[tuple[int, ...]]
    touches: list[list[Touch]]
    left_by_break: set[int]
    runs: dict[int, tuple[int, int, int]]


@fact_of_program
def _facts(program: Program) -> _Facts:
    tables, registers, ends = tabulate(program), address_registers(program), program.loop_ends()
    accesses, breaks = tables.accesses.tolist(), np.flatnonzero(tables.opcode == BY_MNEMONIC["C_BREAK_IF"].opcode)
    levels = tables.operands[:, 0].tolist()
    touches, runs = [], {}
    for number, row in enumerate(accesses):
        touched = []
        for memory, write, name, rows, size in row:
            if memory < 0 or memory == _MATRIX:
                continue
            register = registers[name]
            if memory == _HBM:
                runs[number] = _run(register, rows, size)
            else:
                touched.append(Touch(memory=memory, write=bool(write), first=register.base, last=register.base + size,
                                     strides=register.strides))  # fmt: skip
        touches.append(touched)
    return _Facts(
        queue=QUEUE_OF_UNIT[tables.unit].tolist(), touches=touches, runs=runs,
        waits=[tuple(s for s in row if s) for row in tables.waits.tolist()],
        signals=[tuple(s for s in row if s) for row in tables.signals.tolist()],
        left_by_break={
            start for start, end in ends.items()
            if any(start < place < end and levels[place] == levels[start] for place in breaks.tolist())
        },
    )  # fmt: skip


def _run(register: Register, rows: int, size: int) -> tuple[int, int, int]:
    """Separate runs of an access to HBM, bytes of each, and the largest power of two at whose multiples all begin."""
    if register.row_stride == size:
        rows, size = 1, rows * size
    starts = register.base
    for stride in (*register.strides.values(), register.row_stride if rows > 1 else 0):
        starts |= stride
    return rows, size, starts & -starts if starts else _BEYOND


def costs_of(program: Program, hardware: HardwareConfig) -> Costs:
    """Facts of every instruction of a program on a machine."""
    tables, facts, memory, frontend = tabulate(program), _facts(program), memory_facts(hardware), hardware.frontend
    interval, ideal, latency, front_end = (np.zeros(len(tables.opcode)) for _ in range(4))
    front_end[:] = np.where(tables.unit == FRONTEND, frontend.control_cycles, frontend.issue_cycles)
    for opcode in np.unique(tables.opcode).tolist():
        spec, where = TABLE[opcode], tables.opcode == opcode
        if spec.mnemonic in LOOPS:  # what leaving costs is paid on entry: each happens once
            front_end[where] = frontend.loop_cycles + frontend.exit_cycles - frontend.next_cycles
        elif spec.mnemonic == "C_NEXT":
            front_end[where] = frontend.next_cycles
        elif spec.unit in _COMPUTE:
            interval[where] = ideal[where] = hardware.interval_cycles(spec.mnemonic)
            latency[where] = hardware.latency_cycles(spec.mnemonic)
        elif spec.unit in _DMA:
            latency[where] = 1  # of a sync
    front_end[list(facts.left_by_break)] = frontend.loop_cycles
    front_end += frontend.address_step_cycles * address_steps(program)
    burst = hardware.hbm.burst_bytes
    for number, (rows, size, step) in facts.runs.items():
        # Bursts of a run: exact where it begins with one, else the mean over where it may begin.
        bursts = rows * (-(-size // burst) if step % burst == 0 else 1 + (size - 1) / burst)
        interval[number] = occupied_cycles(memory, bursts, rows, size)
        ideal[number] = rows * size / memory.peak
        tail = memory.write_latency if facts.queue[number] == DMA[1] else memory.read_latency
        latency[number] = interval[number] + tail
    return Costs(
        queue=facts.queue, interval=interval.tolist(), ideal=ideal.tolist(), latency=latency.tolist(),
        front_end=front_end.tolist(), waits=facts.waits, signals=facts.signals, touches=facts.touches,
        granule={Memory.VECTOR: hardware.vlen, Memory.FP: 1, Memory.INT: 1},
        depth=[hardware.queue_depth[name] for name in QUEUED_UNITS],
    )  # fmt: skip
