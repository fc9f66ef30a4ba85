"""Per-instruction facts that the closed forms use: what each costs by the hardware's description, and what it touches."""

from dataclasses import dataclass

import numpy as np

from analytical.memory import memory_facts, occupied_cycles
from tripath.hardware import QUEUED_UNITS, HardwareConfig
from tripath.isa import TABLE, Memory, Unit
from tripath.program import Program
from tripath.tables import QUEUE_OF_UNIT, Access, address_steps, tabulate

FRONT_END = -1
DMA = (QUEUED_UNITS.index("dma_in"), QUEUED_UNITS.index("dma_out"))
_BEYOND = 1 << 40


@dataclass(frozen=True, kw_only=True, slots=True)
class Touch:
    """One access of an instruction: addresses [first, last), the stride of each loop level, in one on-chip memory."""

    memory: int
    write: bool
    first: int
    last: int
    strides: dict[int, int]


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


def costs_of(program: Program, hardware: HardwareConfig) -> Costs:
    """Facts of every instruction of a program on a machine."""
    tables, registers = tabulate(program), _registers(program)
    queue = [int(QUEUE_OF_UNIT[unit]) for unit in tables.unit]
    memory = memory_facts(hardware)
    frontend, steps, ends = hardware.frontend, address_steps(program), program.loop_ends()
    interval, ideal, latency, front_end = ([0.0] * len(queue) for _ in range(4))
    for number, instruction in enumerate(program.instructions):
        spec = TABLE[int(tables.opcode[number])]
        front_end[number] = frontend.control_cycles if spec.unit is Unit.FRONTEND else frontend.issue_cycles
        if spec.mnemonic in ("C_LOOP", "C_LOOP_R"):  # what leaving costs is paid on entry: each happens once
            front_end[number] = frontend.loop_cycles
            if not any(row.mnemonic == "C_BREAK_IF" and row.operands["level"] == instruction.operands["level"]
                       for row in program.instructions[number : ends[number]]):  # fmt: skip
                front_end[number] += frontend.exit_cycles - frontend.next_cycles
        elif spec.mnemonic == "C_NEXT":
            front_end[number] = frontend.next_cycles
        front_end[number] += frontend.address_step_cycles * steps[number]
        if spec.unit in (Unit.MATRIX, Unit.VECTOR, Unit.SCALAR):
            interval[number] = ideal[number] = hardware.interval_cycles(spec.mnemonic)
            latency[number] = hardware.latency_cycles(spec.mnemonic)
        elif spec.unit in (Unit.DMA_IN, Unit.DMA_OUT):
            bursts, rows, size = _traffic(tables.accesses[number], registers, hardware.hbm.burst_bytes)
            if not bursts:  # a sync
                latency[number] = 1
                continue
            interval[number] = occupied_cycles(memory, bursts, rows, size)
            ideal[number] = rows * size / memory.peak
            tail = memory.write_latency if spec.unit is Unit.DMA_OUT else memory.read_latency
            latency[number] = interval[number] + tail
    return Costs(
        queue=queue, interval=interval, ideal=ideal, latency=latency, front_end=front_end,
        waits=[tuple(int(s) for s in row if s) for row in tables.waits],
        signals=[tuple(int(s) for s in row if s) for row in tables.signals],
        touches=[_touches(row, registers) for row in tables.accesses],
        granule={Memory.VECTOR: hardware.vlen, Memory.FP: 1, Memory.INT: 1},
        depth=[hardware.queue_depth[name] for name in QUEUED_UNITS],
    )  # fmt: skip


def _registers(program: Program) -> dict[int, tuple[int, dict[int, int], int]]:
    """Base, stride by loop level, and row stride of every address register."""
    result: dict[int, tuple[int, dict[int, int], int]] = {}
    for instruction in program.instructions:
        o = instruction.operands
        match instruction.mnemonic:
            case "A_BASE":
                result[o["register"]] = (o["base"], {}, 0)
            case "A_STEP":
                result[o["register"]][1][o["level"]] = o["stride"]
            case "A_ROWS":
                base, strides, _ = result[o["register"]]
                result[o["register"]] = (base, strides, o["stride"])
    return result


def _touches(accesses: np.ndarray, registers: dict[int, tuple[int, dict[int, int], int]]) -> list[Touch]:
    """Accesses of one instruction to the memories whose rows and entries interlock."""
    result = []
    for access in accesses:
        if access[Access.MEMORY] < Memory.VECTOR:
            continue
        base, strides, _ = registers[int(access[Access.REGISTER])]
        result.append(Touch(memory=int(access[Access.MEMORY]), write=bool(access[Access.WRITE]), first=base,
                            last=base + int(access[Access.SIZE]), strides=strides))  # fmt: skip
    return result


def _traffic(
    accesses: np.ndarray, registers: dict[int, tuple[int, dict[int, int], int]], burst: int
) -> tuple[float, int, int]:
    """Bursts in HBM of one DMA instruction (exact for aligned runs, the mean over phases for others), separate runs, and
    bytes of each."""
    for access in accesses:
        if access[Access.MEMORY] != Memory.HBM:
            continue
        base, strides, pitch = registers[int(access[Access.REGISTER])]
        rows, size = int(access[Access.ROWS]), int(access[Access.SIZE])
        if pitch == size:
            rows, size = 1, rows * size
        aligned = all(value % burst == 0 for value in (base, *strides.values(), pitch if rows > 1 else 0))
        return rows * (-(-size // burst) if aligned else 1 + (size - 1) / burst), rows, size
    return 0.0, 0, 0
