"""A program as flat arrays, for compiled code; and what its instructions amount to when each is retired so many times."""

from array import array
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import numpy as np

from npu.isa import BYTES_PER_ADDRESS, TABLE, Instruction, Memory
from npu.isa.spec import ControlKind
from npu.program.container import Program, fact_of_program, loop_tree
from npu.program.registers import Register, set_up

OPERANDS = 10
ACCESSES = max(len(spec.reads) + len(spec.writes) for spec in TABLE.values())
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
    """One row per instruction, int64: `opcode`, `unit`, `control` (a ControlKind, 0: none) [n]; `operands` [n, 10] in the order
    of the table; `waits`, `signals` [n, 2] (0: none); `accesses` [n, ACCESSES, 5] with the columns of `Access` (memory -1: none),
    where an access is ROWS runs of SIZE addresses through an address register; `macs`, `lanes` [n]: the work of each."""

    opcode: np.ndarray
    unit: np.ndarray
    control: np.ndarray
    operands: np.ndarray
    waits: np.ndarray
    signals: np.ndarray
    accesses: np.ndarray
    macs: np.ndarray
    lanes: np.ndarray


@fact_of_program
def tabulate(program: Program) -> Tables:
    """Arrays of a program."""
    rows = b"".join([_row(low | high << 64) for low, high in program.words.tolist()])
    table = np.frombuffer(rows, np.int64).reshape(len(program.words), -1)
    edges = np.cumsum([1, 1, 1, OPERANDS, 2, 2, 5 * ACCESSES, 1]).tolist()
    opcode, unit, control, operands, waits, signals, accesses, macs, lanes = (
        np.ascontiguousarray(columns) for columns in np.split(table, edges, axis=1)
    )
    for columns in (opcode, unit, control, operands, waits, signals, accesses, macs, lanes):
        columns.setflags(write=False)
    return Tables(
        opcode=opcode[:, 0], unit=unit[:, 0], control=control[:, 0], operands=operands, waits=waits, signals=signals,
        accesses=accesses.reshape(-1, ACCESSES, 5), macs=macs[:, 0], lanes=lanes[:, 0],
    )  # fmt: skip


@lru_cache(maxsize=1 << 15)
def _row(word: int) -> bytes:
    """The row of an instruction's word (int64): programs of a sweep share most of theirs."""
    instruction = Instruction.decode(word)
    spec, values = instruction.spec, instruction.operands
    touched = [
        [spec.operands[footprint.operand].memory, write, values[footprint.operand], footprint.rows(values),
         footprint.size(values)]
        for footprints, write in ((spec.reads, False), (spec.writes, True)) for footprint in footprints
    ]  # fmt: skip
    row = [spec.opcode, spec.unit, spec.control or 0, *values.values(), *[0] * (OPERANDS - len(values))]
    row += [*instruction.waits, 0, 0][:2] + [*instruction.signals, 0, 0][:2]
    row += chain(*touched, [-1] * (5 * (ACCESSES - len(touched))))
    return array("q", [*row, spec.macs(values), spec.lanes(values)]).tobytes()


@fact_of_program
def address_registers(program: Program) -> dict[int, Register]:
    """The address registers by number, as the program's set-up leaves them."""
    result: dict[int, Register] = {}
    for place, instruction in enumerate(program.instructions):
        set_up(result, instruction, place)
    return result


@fact_of_program
def bytes_per_instruction(program: Program, memory: Memory) -> np.ndarray:
    """Bytes that each instruction reads from and writes to a memory (int64 [n])."""
    return bytes_moved(program, memory, written=False) + bytes_moved(program, memory, written=True)


@fact_of_program
def bytes_moved(program: Program, memory: Memory, *, written: bool) -> np.ndarray:
    """Bytes that each instruction writes to a memory, or those that it reads (int64 [n])."""
    accesses = tabulate(program).accesses
    inside = (accesses[:, :, Access.MEMORY] == memory) & (accesses[:, :, Access.WRITE] == written)
    addresses = (inside * accesses[:, :, Access.ROWS] * accesses[:, :, Access.SIZE]).sum(axis=1)
    return addresses * BYTES_PER_ADDRESS[memory]


@fact_of_program
def address_steps(program: Program) -> np.ndarray:
    """Addresses that each instruction moves which closes a loop or advances a ring (int64 [n]): registers used in the loop's
    body that have a stride at its level, registers that follow the ring."""
    registers, around = address_registers(program), loop_tree(program).around
    names = {spec.mnemonic: spec.addresses for spec in TABLE.values()}
    on_ring = Counter(register.ring for register in registers.values())
    moved: dict[int, set[int]] = defaultdict(set)  # by what closes a loop
    steps = np.zeros(len(program.words), np.int64)
    for number, instruction in enumerate(program.instructions):
        o, spec = instruction.operands, instruction.spec
        if spec.control is ControlKind.ADVANCE:
            steps[number] = on_ring[o["ring"]]
        elif spec.control is None:
            for name in names[spec.mnemonic]:
                strides = registers[o[name]].strides if o[name] in registers else {}
                for loop in around[number] if strides else ():
                    if loop.level in strides:
                        moved[loop.next].add(o[name])
    for number, those in moved.items():
        steps[number] = len(those)
    return steps


def event_counts(program: Program, retired: np.ndarray) -> dict[str, int]:
    """Event counts of a run in which instruction i retired `retired[i]` times: the counts that all paths must share.

    Keys: `instructions`, `instructions.<MNEMONIC>`, `macs`, `vector_lanes`, `hbm_read_bytes`, `hbm_write_bytes`.
    """
    tables = tabulate(program)
    counts = {"instructions": int(retired.sum())}
    by_opcode = np.zeros(256, np.int64)
    np.add.at(by_opcode, tables.opcode, retired)
    counts |= {
        f"instructions.{TABLE[opcode].mnemonic}": int(by_opcode[opcode])
        for opcode in np.flatnonzero(by_opcode).tolist()
    }
    for name, work in (("macs", tables.macs), ("vector_lanes", tables.lanes)):
        works = np.flatnonzero(work)  # as Python's integers: a sum over a run may need more than 64 bits
        counts[name] = int((work[works].astype(object) * retired[works].astype(object)).sum())
    for name, written in (("hbm_read_bytes", False), ("hbm_write_bytes", True)):
        counts[name] = int((bytes_moved(program, Memory.HBM, written=written) * retired).sum())
    return counts
