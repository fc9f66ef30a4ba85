"""Per-instruction facts that the closed forms use: what each costs by the hardware's description."""

from dataclasses import dataclass

import numpy as np

from analytical.memory import Pattern, cycles_of, memory_facts
from npu.hardware import QUEUED_UNITS, HardwareConfig
from npu.isa import TABLE, Memory, OpClass, Unit
from npu.isa.spec import ControlKind
from npu.program import Program, fact_of_program, loop_tree
from npu.program.host import host_cycles
from npu.program.tables import QUEUE_OF_UNIT, Access, Register, address_registers, address_steps, tabulate

DMA = (QUEUED_UNITS.index("dma_in"), QUEUED_UNITS.index("dma_out"))
_BEYOND = 1 << 40
_DMA = (Unit.DMA_IN, Unit.DMA_OUT)


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """Arrays over instructions (float64 [n]): `interval` (cycles that the unit is occupied), `ideal` (the same with the memory
    at peak bandwidth), `port` (cycles that the write-out port is), `latency`, `front_end` (cycles to issue, and those of the
    host), `host` (cycles for which the front end waits for it)."""

    interval: np.ndarray
    ideal: np.ndarray
    port: np.ndarray
    latency: np.ndarray
    front_end: np.ndarray
    host: np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True)
class _Facts:
    """Facts of a program on which its costs depend, whatever the machine: the `opcodes` that occur, and which of them each
    instruction has; the heads of loops that are left early; the `patterns` of accesses to HBM by queue, and the instructions that
    have each."""

    opcodes: list[int]
    which: np.ndarray
    left_early: list[int]
    patterns: dict[tuple[int, Pattern], list[int]]


@fact_of_program
def queues(program: Program) -> np.ndarray:
    """Queue of each instruction, -1 for the front end (int64 [n])."""
    return QUEUE_OF_UNIT[tabulate(program).unit]


@fact_of_program
def _facts(program: Program) -> _Facts:
    tables, registers, queue = tabulate(program), address_registers(program), queues(program)
    opcodes, which = np.unique(tables.opcode, return_inverse=True)
    patterns: dict[tuple[int, Pattern], list[int]] = {}
    moves = (tables.accesses[:, :, Access.MEMORY] == Memory.HBM) & (queue >= 0)[:, None]
    for number, slot in np.argwhere(moves).tolist():
        _, _, name, rows, size = tables.accesses[number, slot].tolist()
        patterns.setdefault((int(queue[number]), _pattern(registers[name], rows, size)), []).append(number)
    return _Facts(
        opcodes=opcodes.tolist(), which=which, patterns=patterns,
        left_early=[loop.head for loop in loop_tree(program).loops if loop.leaves_early],
    )  # fmt: skip


def _pattern(register: Register, rows: int, size: int) -> Pattern:
    """The separate runs of an access to HBM, and the largest power of two at whose multiples all begin."""
    if register.row_stride == size:
        rows, size = 1, rows * size
    stride = register.row_stride if rows > 1 else 0
    starts = register.base | stride
    for each in register.strides.values():
        starts |= each
    return Pattern(rows, size, abs(stride), starts & -starts if starts else _BEYOND)


def costs_of(program: Program, hardware: HardwareConfig) -> Costs:
    """Facts of every instruction of a program on a machine."""
    facts = _facts(program)
    rows = np.array([_of_opcode(opcode, hardware) for opcode in facts.opcodes], float)
    interval, port, latency, front_end = rows[facts.which].T.copy()
    ideal = interval.copy()
    front_end[facts.left_early] = hardware.frontend.loop_cycles
    host = host_cycles(program, hardware).astype(float)
    front_end += hardware.frontend.address_step_cycles * address_steps(program) + host
    memory = {queue: memory_facts(hardware, write=queue == DMA[1]) for queue in DMA}
    for (queue, pattern), numbers in facts.patterns.items():
        interval[numbers], latency[numbers] = cycles_of(memory[queue], pattern)
        ideal[numbers] = pattern.rows * pattern.size / memory[queue].peak
    return Costs(interval=interval, ideal=ideal, port=port, latency=latency, front_end=front_end, host=host)


def _of_opcode(opcode: int, hardware: HardwareConfig) -> tuple[float, float, float, float]:
    """Cycles of the unit, of the write-out port, of latency and of the front end; DMA as if it moved nothing (a sync)."""
    spec, frontend = TABLE[opcode], hardware.frontend
    if spec.control is ControlKind.LOOP:  # what leaving costs is paid on entry: each happens once
        return 0, 0, 0, frontend.loop_cycles + frontend.exit_cycles - frontend.next_cycles
    if spec.control is not None:
        return 0, 0, 0, frontend.control_cycles_of(spec.control)
    if spec.unit in _DMA:
        return 0, 0, 1, frontend.issue_cycles
    interval, latency = hardware.interval_cycles(spec.mnemonic), hardware.latency_cycles(spec.mnemonic)
    if hardware.writes_out_beside and spec.op_class is OpClass.TILE_OUT:
        return 0, interval, latency, frontend.issue_cycles
    return interval, 0, latency, frontend.issue_cycles
