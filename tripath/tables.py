"""A program as flat arrays, for compiled code; and what its instructions amount to when each is retired so many times."""

from dataclasses import dataclass

import numpy as np

from tripath.isa import BYTES_PER_ADDRESS, TABLE, Memory, Unit
from tripath.program import Program

OPERANDS = 10
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


def tabulate(program: Program) -> Tables:
    """Arrays of a program."""
    n = len(program.instructions)
    tables = Tables(
        opcode=np.zeros(n, np.int64), unit=np.zeros(n, np.int64), operands=np.zeros((n, OPERANDS), np.int64),
        waits=np.zeros((n, 2), np.int64), signals=np.zeros((n, 2), np.int64),
        accesses=np.full((n, ACCESSES, 5), -1, np.int64),
    )  # fmt: skip
    for number, instruction in enumerate(program.instructions):
        spec = instruction.spec
        tables.opcode[number], tables.unit[number] = spec.opcode, spec.unit
        values = list(instruction.operands.values())
        tables.operands[number, : len(values)] = values
        tables.waits[number, : len(instruction.waits)] = instruction.waits
        tables.signals[number, : len(instruction.signals)] = instruction.signals
        footprints = [(f, False) for f in spec.reads] + [(f, True) for f in spec.writes]
        for slot, (footprint, write) in enumerate(footprints):
            memory = spec.operands[footprint.operand].memory
            assert memory is not None
            tables.accesses[number, slot] = (
                memory, write, instruction.operands[footprint.operand],
                footprint.rows(instruction.operands), footprint.size(instruction.operands),
            )  # fmt: skip
    return tables


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


def address_steps(program: Program) -> np.ndarray:
    """Addresses that each C_NEXT and A_NEXT moves (int64 [n]): registers used in the loop's body that have a stride at its
    level, registers that follow the ring."""
    strides: dict[int, set[int]] = {}
    ring: dict[int, set[int]] = {}
    used: list[set[int]] = []
    for instruction in program.instructions:
        o, spec = instruction.operands, instruction.spec
        if instruction.mnemonic == "A_STEP":
            strides.setdefault(o["level"], set()).add(o["register"])
        elif instruction.mnemonic == "A_RING":
            ring.setdefault(o["ring"], set()).add(o["register"])
        queued = spec.unit is not Unit.FRONTEND
        used.append({o[name] for name, operand in spec.operands.items() if queued and operand.address})
    steps = np.zeros(len(program.instructions), np.int64)
    for start, end in program.loop_ends().items():
        level = program.instructions[end].operands["level"]
        steps[end] = len(set().union(*used[start:end]) & strides.get(level, set()))
    for number, instruction in enumerate(program.instructions):
        if instruction.mnemonic == "A_NEXT":
            steps[number] = len(ring.get(instruction.operands["ring"], set()))
    return steps


def event_counts(program: Program, retired: np.ndarray) -> dict[str, int]:
    """Event counts of a run in which instruction i retired `retired[i]` times: the counts that all paths must share.

    Keys: `instructions`, `instructions.<MNEMONIC>`, `macs`, `vector_lanes`, `hbm_read_bytes`, `hbm_write_bytes`.
    """
    tables = tabulate(program)
    moved = hbm_bytes_per_instruction(tables)
    counts = {"instructions": int(retired.sum())}
    for opcode, spec in sorted(TABLE.items()):
        number = int(retired[tables.opcode == opcode].sum())
        if number:
            counts[f"instructions.{spec.mnemonic}"] = number
    operands = [(instruction.spec, instruction.operands) for instruction in program.instructions]
    times = [int(count) for count in retired]
    counts["macs"] = sum(spec.macs(values) * n for (spec, values), n in zip(operands, times, strict=True))
    counts["vector_lanes"] = sum(spec.lanes(values) * n for (spec, values), n in zip(operands, times, strict=True))
    counts["hbm_read_bytes"] = int((moved * retired)[tables.unit == Unit.DMA_IN].sum())
    counts["hbm_write_bytes"] = int((moved * retired)[tables.unit == Unit.DMA_OUT].sum())
    return counts
