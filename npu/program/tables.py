"""A program as flat arrays, for compiled code; and what its instructions amount to when each is retired so many times."""

from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np

from npu.isa import BYTES_PER_ADDRESS, TABLE, Memory
from npu.isa.spec import HEADER_BITS, SEMAPHORE_BITS, SET_UP, ControlKind, InstructionSpec, Operands
from npu.program.container import Program, fact_of_program, loop_tree
from npu.program.registers import Register, set_up

OPERANDS = 10
ACCESSES = max(len(spec.reads) + len(spec.writes) for spec in TABLE.values())
QUEUE_OF_UNIT = np.array([-1, 0, 1, 1, 2, 3], np.int64)
"""Queue of each unit (`hardware.QUEUED_UNITS`): scalar instructions share that of the vector unit."""
_SEMAPHORES = (8, 14, 20, 26)
_ADDRESSES = np.zeros((256, OPERANDS), bool)
"""By opcode, which operands are address registers."""
for _spec in TABLE.values():
    _ADDRESSES[_spec.opcode, : len(_spec.operands)] = [operand.address for operand in _spec.operands.values()]


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
    """Arrays of a program.

    Raises:
        ProgramError: a word is no legal instruction.
    """
    instructions, (low, high) = program.instructions, program.words.T
    opcode, semaphores = (
        (low & np.uint64(0xFF)).astype(np.int64),
        [_field(low, high, at, SEMAPHORE_BITS) for at in _SEMAPHORES],
    )
    unit, control, macs, lanes = np.zeros((4, len(instructions)), np.int64)
    operands = np.zeros((len(instructions), OPERANDS), np.int64)
    accesses = np.full((len(instructions), ACCESSES, 5), -1, np.int64)
    for number in np.flatnonzero(np.bincount(opcode)).tolist():
        spec, own = TABLE[number], np.flatnonzero(opcode == number)
        unit[own], control[own] = spec.unit, spec.control or 0
        place, immediates = HEADER_BITS, []
        for column, operand in enumerate(spec.operands.values()):
            values = _field(low[own], high[own], place, operand.bits)
            operands[own, column] = values - ((values >> (operand.bits - 1) << operand.bits) if operand.signed else 0)
            immediates += [] if operand.address else [operands[own, column]]
            place += operand.bits
        footprints = [*((each, False) for each in spec.reads), *((each, True) for each in spec.writes)]
        if spec.control is None or footprints:
            # What an instruction touches and works depends on its immediates alone, of which there are few kinds.
            kinds = list(zip(*(column.tolist() for column in immediates), strict=True)) or [()] * len(own)
            first = dict(zip(kinds, own.tolist(), strict=True))
            worked = {kind: _work(spec, instructions[one].operands) for kind, one in first.items()}
            work = np.array([worked[kind] for kind in kinds], np.int64)
            macs[own], lanes[own] = work[:, 0], work[:, 1]
            for slot, (footprint, write) in enumerate(footprints):
                memory, register = spec.operands[footprint.operand].memory, list(spec.operands).index(footprint.operand)
                assert memory is not None
                accesses[own, slot, Access.MEMORY], accesses[own, slot, Access.WRITE] = memory, write
                accesses[own, slot, Access.REGISTER] = operands[own, register]
                accesses[own, slot, Access.ROWS :] = work[:, 2 + 2 * slot : 4 + 2 * slot]
    waits, signals = np.stack(semaphores[:2], axis=1), np.stack(semaphores[2:], axis=1)
    for columns in (opcode, unit, control, operands, waits, signals, accesses, macs, lanes):
        columns.setflags(write=False)
    return Tables(
        opcode=opcode, unit=unit, control=control, operands=operands, waits=waits, signals=signals, accesses=accesses, macs=macs,
        lanes=lanes,
    )  # fmt: skip


def _field(low: np.ndarray, high: np.ndarray, place: int, bits: int) -> np.ndarray:
    """An unsigned field of words, by its place (int64 [n])."""
    if place >= 64:
        found = high >> np.uint64(place - 64)
    elif place + bits <= 64:
        found = low >> np.uint64(place)
    else:
        found = low >> np.uint64(place) | high << np.uint64(64 - place)
    return (found & np.uint64((1 << bits) - 1)).astype(np.int64)


def _work(spec: InstructionSpec, values: Operands) -> list[int]:
    """MACs and lanes of an instruction, then rows and size of each access."""
    footprints = (*spec.reads, *spec.writes)
    sizes = [number for each in footprints for number in (each.rows(values), each.size(values))]
    return [spec.macs(values), spec.lanes(values), *sizes]


@fact_of_program
def address_registers(program: Program) -> dict[int, Register]:
    """The address registers by number, as the program's set-up leaves them."""
    result: dict[int, Register] = {}
    for place in np.flatnonzero(np.isin(tabulate(program).control, list(SET_UP))).tolist():
        set_up(result, program.instructions[place], place)
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
    tables, on_ring = tabulate(program), Counter(register.ring for register in registers.values())
    inside = np.array([loops[-1].head if loops else -1 for loops in around], np.int64)
    used = _ADDRESSES[tables.opcode] & (tables.control == 0)[:, None] & (inside >= 0)[:, None]
    moved: dict[int, set[int]] = defaultdict(set)  # by what closes a loop
    pairs = {*zip(np.repeat(inside, used.sum(axis=1)).tolist(), tables.operands[used].tolist(), strict=True)}
    for head, name in pairs:
        strides = registers[name].strides if name in registers else {}
        for loop in around[head + 1] if strides else ():
            if loop.level in strides:
                moved[loop.next].add(name)
    steps = np.zeros(len(program.words), np.int64)
    for number, those in moved.items():
        steps[number] = len(those)
    for number in np.flatnonzero(tables.control == ControlKind.ADVANCE).tolist():
        steps[number] = on_ring[program.instructions[number].operands["ring"]]
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
