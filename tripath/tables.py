"""A program as flat arrays, for compiled code; and what its instructions amount to when each is retired so many times."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from tripath.isa import BY_MNEMONIC, BYTES_PER_ADDRESS, TABLE, Memory, Unit
from tripath.program import Program, fact_of_program
from tripath.registers import SET_UP, Register, set_up

OPERANDS = 10
FRONTEND, A_NEXT = Unit.FRONTEND, BY_MNEMONIC["A_NEXT"].opcode
ACCESSES = 5
QUEUE_OF_UNIT = np.array([-1, 0, 1, 1, 2, 3], np.int64)
"""Queue of each unit (`hardware.QUEUED_UNITS`): scalar instructions share that of the vector unit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """Columns of `Tables.accesses`."""

    MEMORY = 0
    WRITE = 1
    REGISTER = 2
    ROWS = 3
    SIZE = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Tables:
    """One row per instruction, int64: `opcode`, `unit` [n]; `operands` [n, 10] in the order of the table; `waits`,
    `signals` [n, 2] (0: none); `accesses` [n, 5, 5] with the columns of `Access` (memory -1: none), where an access is
    ROWS runs of SIZE addresses through an address register."""

    opcode: np.ndarray
    unit: np.ndarray
    operands: np.ndarray
    waits: np.ndarray
    signals: np.ndarray
    accesses: np.ndarray


@fact_of_program
def tabulate(program: Program) -> Tables:
    """Arrays of a program."""
    opcode, unit, operands, waits, signals, accesses = ([] for _ in range(6))
    absent = [-1] * 5
    for instruction in program.instructions:
        spec, values = instruction.spec, instruction.operands
        opcode.append(spec.opcode)
        unit.append(spec.unit)
        operands.append([*values.values(), *[0] * (OPERANDS - len(values))])
        waits.append([*instruction.waits, 0, 0][:2])
        signals.append([*instruction.signals, 0, 0][:2])
        touched = [
            [spec.operands[footprint.operand].memory, write, values[footprint.operand], footprint.rows(values),
             footprint.size(values)]
            for footprints, write in ((spec.reads, False), (spec.writes, True)) for footprint in footprints
        ]  # fmt: skip
        accesses.append([*touched, *[absent] * (ACCESSES - len(touched))])
    columns = [np.array(column, np.int64) for column in (opcode, unit, operands, waits, signals, accesses)]
    for column in columns:
        column.setflags(write=False)
    return Tables(opcode=columns[0], unit=columns[1], operands=columns[2], waits=columns[3], signals=columns[4],
                  accesses=columns[5])  # fmt: skip


@fact_of_program
def address_registers(program: Program) -> dict[int, Register]:
    """The address registers by number, as the program's set-up leaves them."""
    result: dict[int, Register] = {}
    for place, instruction in enumerate(program.instructions):
        if instruction.mnemonic in SET_UP:
            set_up(result, instruction, place)
    return result


def hbm_bytes_per_instruction(tables: Tables) -> np.ndarray:
    """Bytes that each instruction moves to or from HBM (int64 [n])."""
    in_hbm = tables.accesses[:, :, Access.MEMORY] == Memory.HBM
    return (in_hbm * tables.accesses[:, :, Access.ROWS] * tables.accesses[:, :, Access.SIZE]).sum(axis=1)


def sram_bytes_per_instruction(tables: Tables) -> np.ndarray:
    """Bytes that each instruction reads from or writes to on-chip memories (int64 [n])."""
    size = np.array([BYTES_PER_ADDRESS[memory] for memory in Memory])
    memory = tables.accesses[:, :, Access.MEMORY]
    moved = tables.accesses[:, :, Access.ROWS] * tables.accesses[:, :, Access.SIZE] * size[memory]
    return np.where(memory > Memory.HBM, moved, 0).sum(axis=1)


@fact_of_program
def address_steps(program: Program) -> np.ndarray:
    """Addresses that each C_NEXT and A_NEXT moves (int64 [n]): registers used in the loop's body that have a stride at its
    level, registers that follow the ring."""
    registers, tables = address_registers(program), tabulate(program)
    at_level: dict[int, set[int]] = {}
    on_ring: Counter[int] = Counter()
    for number, register in registers.items():
        on_ring[register.ring] += 1
        for level in register.strides:
            at_level.setdefault(level, set()).add(number)
    used: list[set[int]] = []
    for instruction in program.instructions:
        o, spec = instruction.operands, instruction.spec
        queued = spec.unit is not FRONTEND
        used.append({o[name] for name in spec.addresses} if queued else set())
    steps = np.zeros(len(used), np.int64)
    for start, end in program.loop_ends().items():
        level = int(tables.operands[end, 0])
        steps[end] = len(set().union(*used[start:end]) & at_level.get(level, set()))
    for number in np.flatnonzero(tables.opcode == A_NEXT):
        steps[number] = on_ring[int(tables.operands[number, 0])]
    return steps


@fact_of_program
def _work(program: Program) -> tuple[np.ndarray, np.ndarray]:
    """MACs and vector lanes of each instruction, as Python's integers: their sums over a run may need more than 64 bits."""
    pairs = [(i.spec.macs(i.operands), i.spec.lanes(i.operands)) for i in program.instructions]
    macs, lanes = np.array(pairs, object).T
    return macs, lanes


def event_counts(program: Program, retired: np.ndarray) -> dict[str, int]:
    """Event counts of a run in which instruction i retired `retired[i]` times: the counts that all paths must share.

    Keys: `instructions`, `instructions.<MNEMONIC>`, `macs`, `vector_lanes`, `hbm_read_bytes`, `hbm_write_bytes`.
    """
    tables = tabulate(program)
    moved = hbm_bytes_per_instruction(tables)
    counts = {"instructions": int(retired.sum())}
    by_opcode = np.zeros(256, np.int64)
    np.add.at(by_opcode, tables.opcode, retired)
    counts |= {
        f"instructions.{TABLE[opcode].mnemonic}": int(by_opcode[opcode])
        for opcode in np.flatnonzero(by_opcode).tolist()
    }
    for name, work in zip(("macs", "vector_lanes"), _work(program), strict=True):
        counts[name] = int((work * retired.astype(object)).sum())
    counts["hbm_read_bytes"] = int((moved * retired)[tables.unit == Unit.DMA_IN].sum())
    counts["hbm_write_bytes"] = int((moved * retired)[tables.unit == Unit.DMA_OUT].sum())
    return counts
