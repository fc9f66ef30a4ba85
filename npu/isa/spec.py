"""The definition of an instruction: a decorator turns a function into a row of the instruction table.

The decorated function is the manual entry (its docstring), the encoding (its operands), the facts (unit, footprints,
work) and the semantics (its body). Bodies use only what Numba compiles.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from functools import lru_cache

from numba import njit

from npu.errors import ProgramError

WORD_BITS = 128
HEADER_BITS = 32
SEMAPHORE_BITS = 6
ADDRESS_REGISTERS = 1024
REGISTER_BITS = (ADDRESS_REGISTERS - 1).bit_length()
LOOP_LEVELS = 16
INTEGER_REGISTERS = 16
RINGS = 16
SEMAPHORES = (1 << SEMAPHORE_BITS) - 1


class Unit(IntEnum):
    """Where an instruction spends its time. Scalar instructions share the queue of the vector unit."""

    FRONTEND = 0
    MATRIX = 1
    VECTOR = 2
    SCALAR = 3
    DMA_IN = 4
    DMA_OUT = 5


class ControlKind(IntEnum):
    """The effect of a front-end instruction on control flow or addresses, for code that follows the control flow of a program.

    Operands by name: LOOP has `level`, `length`, and `trips` or the `register` that holds them (in units of 2^`unit`, if
    it has one); NEXT and BREAK `level`; TRIPS `register`, `base`, `factor`, `level`; COUNT `register`, `at`, `most`; BASE,
    STEP, ROWS and RING set up the address `register`; ADVANCE has `ring`; HOST `rows`, `sent`, `taken`.
    """

    LOOP = 1
    NEXT = 2
    BREAK = 3
    TRIPS = 4
    BASE = 5
    STEP = 6
    ROWS = 7
    RING = 8
    ADVANCE = 9
    END = 10
    COUNT = 11
    HOST = 12


SET_UP = frozenset({ControlKind.BASE, ControlKind.STEP, ControlKind.ROWS, ControlKind.RING})
"""Kinds that set up an address register."""


class Memory(IntEnum):
    """Memories, and the size of one address in each: a byte in HBM and Matrix SRAM, an element elsewhere."""

    HBM = 0
    MATRIX = 1
    VECTOR = 2
    FP = 3
    INT = 4


class OpClass(StrEnum):
    """The kind of operation of a queued instruction, whatever its operands. Timing presets, energy and the RTL depend on it."""

    SYNC = "SYNC"
    TILE_PRODUCT = "TILE_PRODUCT"
    TILE_OUT = "TILE_OUT"
    ELEMENTWISE = "ELEMENTWISE"
    """An operation of FP32 in each lane."""
    TRANSCENDENTAL = "TRANSCENDENTAL"
    """A table with interpolation in each lane."""
    RANDOM = "RANDOM"
    """Rounds of a counter-based generator in each lane."""
    LANE_MOVE = "LANE_MOVE"
    """Lanes are filled, compared, selected or rounded: no arithmetic of FP32."""
    REDUCE = "REDUCE"
    """A tree over lanes that rounds nothing: maximum, count."""
    REDUCE_SUM = "REDUCE_SUM"
    """A tree of additions."""
    TOP_K = "TOP_K"
    SCALAR = "SCALAR"
    SCALAR_MOVE = "SCALAR_MOVE"
    LOAD = "LOAD"
    STORE = "STORE"


TIMED_UNITS = (Unit.MATRIX, Unit.VECTOR, Unit.SCALAR)
"""Units whose instructions take the cycles that a preset says; those of a DMA unit follow from bytes."""

BYTES_PER_ADDRESS = {Memory.HBM: 1, Memory.MATRIX: 1, Memory.VECTOR: 2, Memory.FP: 4, Memory.INT: 4}


@dataclass(frozen=True, kw_only=True, slots=True)
class Operand:
    """One field of an instruction: an address register (of a memory, maybe with its row stride) or an immediate."""

    bits: int
    memory: Memory | None = None
    address: bool = False
    rows: bool = False
    signed: bool = False


def unsigned(bits: int) -> Operand:
    """An immediate of `bits` bits."""
    return Operand(bits=bits)


def signed(bits: int) -> Operand:
    """A two's complement immediate of `bits` bits."""
    return Operand(bits=bits, signed=True)


def _address(memory: Memory | None, *, rows: bool = False) -> Operand:
    return Operand(bits=REGISTER_BITS, memory=memory, address=True, rows=rows)


HBM, HBM_ROWS = _address(Memory.HBM), _address(Memory.HBM, rows=True)
MATRIX_ROWS = _address(Memory.MATRIX, rows=True)
VECTOR, VECTOR_ROWS = _address(Memory.VECTOR), _address(Memory.VECTOR, rows=True)
FP, INT = _address(Memory.FP), _address(Memory.INT)
INDEX = _address(None)
"""An address register read as a plain integer (for instance the position of a chunk in the vocabulary)."""

Operands = Mapping[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """Addresses that an instruction touches through one operand: `rows` runs of `size` addresses, a row stride apart."""

    operand: str
    size: Callable[[Operands], int]
    rows: Callable[[Operands], int] = lambda _: 1


def touch(operand: str, size: str | int, rows: str | int = 1) -> Footprint:
    """A footprint whose size and rows are constants or immediates of the instruction."""

    def value(source: str | int) -> Callable[[Operands], int]:
        return (lambda o: o[source]) if isinstance(source, str) else (lambda _: source)

    return Footprint(operand=operand, size=value(size), rows=value(rows))


@dataclass(frozen=True, kw_only=True, slots=True)
class InstructionSpec:
    """A row of the instruction table."""

    mnemonic: str
    opcode: int
    unit: Unit
    control: ControlKind | None
    operands: Mapping[str, Operand]
    memories: tuple[str, ...]
    reads: tuple[Footprint, ...]
    writes: tuple[Footprint, ...]
    macs: Callable[[Operands], int]
    lanes: Callable[[Operands], int]
    legal: Callable[[Operands], bool]
    body: Callable[..., None]
    manual: str
    op_class: OpClass | None

    @property
    def addresses(self) -> list[str]:
        """Names of the operands that are address registers."""
        return [name for name, operand in self.operands.items() if operand.address]


TABLE: dict[int, InstructionSpec] = {}
BY_MNEMONIC: dict[str, InstructionSpec] = {}
MEMORY_NAMES = ("hbm", "matrix", "vector", "fp", "integer", "accumulator", "control")


def instruction(
    *,
    opcode: int,
    unit: Unit,
    control: ControlKind | None = None,
    operands: Mapping[str, Operand] | None = None,
    reads: tuple[Footprint, ...] = (),
    writes: tuple[Footprint, ...] = (),
    macs: Callable[[Operands], int] = lambda _: 0,
    lanes: Callable[[Operands], int] = lambda _: 0,
    legal: Callable[[Operands], bool] = lambda _: True,
    op_class: OpClass | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Enter the decorated function into the instruction table and hand back its compiled form.

    Raises:
        ProgramError: the row contradicts itself or another row (refused when the table is loaded).
    """
    fields = dict(operands or {})

    def register(function: Callable[..., None]) -> Callable[..., None]:
        mnemonic = function.__name__.upper()
        parameters = list(inspect.signature(function).parameters)
        memories = tuple(name for name in parameters if name in MEMORY_NAMES)
        expected = list(memories)
        for name, operand in fields.items():
            expected += [name, f"{name}_stride"] if operand.rows else [name]
        if parameters != expected:
            raise ProgramError(f"isa: parameters of {mnemonic} are {parameters}, its operands say {expected}")
        if opcode in TABLE or mnemonic in BY_MNEMONIC or not 0 < opcode < 256:
            raise ProgramError(f"isa: opcode {opcode:#x} of {mnemonic} is taken or out of range")
        if (unit is Unit.FRONTEND) != (control is not None):
            raise ProgramError(f"isa: {mnemonic} of unit {unit.name} has control kind {control}")
        bits = sum(operand.bits for operand in fields.values())
        if bits > WORD_BITS - HEADER_BITS:
            raise ProgramError(f"isa: operands of {mnemonic} need {bits} bits, limit {WORD_BITS - HEADER_BITS}")
        for footprint in (*reads, *writes):
            if footprint.operand not in fields or not fields[footprint.operand].address:
                raise ProgramError(f"isa: footprint of {mnemonic} names {footprint.operand!r}, which is no address")
        if (unit is Unit.FRONTEND) != (op_class is None):
            raise ProgramError(f"isa: {mnemonic} of unit {unit.name} has operation class {op_class}")
        spec = InstructionSpec(
            mnemonic=mnemonic, opcode=opcode, unit=unit, control=control, operands=fields, memories=memories,
            reads=reads, writes=writes, macs=macs, lanes=lanes, legal=legal, body=njit(cache=True)(function),
            manual=inspect.cleandoc(function.__doc__ or ""), op_class=op_class,
        )  # fmt: skip
        TABLE[opcode] = BY_MNEMONIC[mnemonic] = spec
        return spec.body

    return register


@dataclass(frozen=True, kw_only=True, slots=True)
class Instruction:
    """One instruction: mnemonic, operand values (register numbers or immediates), semaphores to wait on and to signal."""

    mnemonic: str
    operands: Mapping[str, int] = field(default_factory=dict)
    waits: tuple[int, ...] = ()
    signals: tuple[int, ...] = ()

    @property
    def spec(self) -> InstructionSpec:
        """Its row of the table."""
        return BY_MNEMONIC[self.mnemonic]

    def encode(self) -> int:
        """The 128-bit word.

        Raises:
            ProgramError: an operand is missing, unknown, or does not fit its field.
        """
        spec = self.spec
        if set(self.operands) != set(spec.operands):
            raise ProgramError(f"{self.mnemonic}: operands are {sorted(self.operands)}, not {sorted(spec.operands)}")
        word = spec.opcode
        if len(self.waits) > 2 or len(self.signals) > 2:
            raise ProgramError(f"{self.mnemonic}: at most two waits and two signals, got {self.waits} {self.signals}")
        for position, group in ((8, self.waits), (20, self.signals)):
            for offset, semaphore in enumerate(group):
                if not 1 <= semaphore <= SEMAPHORES:
                    raise ProgramError(f"{self.mnemonic}: semaphore {semaphore} is not within 1..{SEMAPHORES}")
                word |= semaphore << (position + SEMAPHORE_BITS * offset)
        position = HEADER_BITS
        for name, operand in spec.operands.items():
            value = int(self.operands[name])
            low, high = (-(1 << (operand.bits - 1)), (1 << (operand.bits - 1)) - 1) if operand.signed else (
                0, (1 << operand.bits) - 1)  # fmt: skip
            if not low <= value <= high:
                raise ProgramError(f"{self.mnemonic}: operand {name} = {value} does not fit {operand.bits} bits")
            word |= (value & ((1 << operand.bits) - 1)) << position
            position += operand.bits
        if not spec.legal(self.operands):
            raise ProgramError(f"{self.mnemonic}: illegal operands {dict(self.operands)}")
        return word

    @classmethod
    @lru_cache(maxsize=1 << 15)
    def decode(cls, word: int) -> "Instruction":
        """Instruction of a 128-bit word; the same object for the same word, since programs of a sweep share most of theirs.

        Raises:
            ProgramError: unknown opcode, illegal operands, or bits set outside the fields.
        """
        spec = TABLE.get(word & 0xFF)
        if spec is None:
            raise ProgramError(f"program: unknown opcode {word & 0xFF:#x}")
        waits, signals = (
            tuple(s for offset in (0, SEMAPHORE_BITS) if (s := (word >> (position + offset)) & SEMAPHORES))
            for position in (8, 20)
        )
        operands, position = {}, HEADER_BITS
        for name, operand in spec.operands.items():
            value = (word >> position) & ((1 << operand.bits) - 1)
            if operand.signed and value >> (operand.bits - 1):
                value -= 1 << operand.bits
            operands[name] = value
            position += operand.bits
        result = cls(mnemonic=spec.mnemonic, operands=operands, waits=waits, signals=signals)
        if result.encode() != word:
            raise ProgramError(f"program: {spec.mnemonic} has bits set outside its fields")
        return result
