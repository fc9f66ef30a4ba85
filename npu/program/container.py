"""The compiled program: instruction words, the HBM map, phases, and its digest; as bytes and as text, both read back."""

import hashlib
import json
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, wraps
from typing import Concatenate, ParamSpec, TypeVar

import numpy as np

from npu.errors import ProgramError
from npu.formats import FORMATS
from npu.isa import Instruction, assemble, disassemble
from npu.program.bounds import check_bounds
from npu.program.looptree import LoopTree
from npu.program.structure import check_header, check_structure

MAGIC = b"TRIPATH1"
MALFORMED = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RecursionError)
"""Exceptions that a malformed header may raise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """A tensor in HBM: row-major, its last axis cut into stored blocks of `block` elements."""

    name: str
    address: int
    shape: tuple[int, ...]
    format: str
    block: int
    writable: bool

    @property
    def row_bytes(self) -> int:
        """Bytes of one row (the last axis)."""
        if self.format == "int32":
            return 4 * self.shape[-1]
        return FORMATS[self.format].row_bytes(self.shape[-1], self.block)

    def stride_bytes(self, axis: int) -> int:
        """Bytes between neighbours along `axis` (any but the last)."""
        return self.row_bytes * math.prod(self.shape[axis + 1 : -1])

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole tensor."""
        return self.row_bytes * math.prod(self.shape[:-1])


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """Instructions `start` to `stop` (exclusive) belong to the phase `name`; debug information, outside the digest."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Program:
    """A generation as the NPU runs it.

    `words` is uint64 [n, 2] (low half first); `geometry` holds the widths it was compiled for (blen, mlen, vlen) and the
    SRAM bytes that it uses; `layout` holds what a host must know to fill HBM and to read the tokens back.
    """

    words: np.ndarray
    hbm: tuple[Tensor, ...]
    geometry: dict[str, int]
    layout: dict[str, int]
    phases: tuple[Phase, ...]

    def __post_init__(self) -> None:
        check_structure(
            self.instructions, loop_tree(self), self.geometry
        )  # decoding checks the legality of each instruction

    def __getstate__(self) -> dict[str, object]:
        """Everything but the facts, which whoever loads it computes anew."""
        return {name: value for name, value in self.__dict__.items() if name != _FACTS}

    @cached_property
    def instructions(self) -> tuple[Instruction, ...]:
        """The decoded instructions, each checked for legality."""
        return tuple(Instruction.decode(int(low) | (int(high) << 64)) for low, high in self.words)

    def check_bounds(self) -> None:
        """Raise unless every access of every trip lies inside its memory.

        Raises:
            ProgramError: naming the instruction, the addresses and the limit.
        """
        check_bounds(self.instructions, loop_tree(self), self.geometry, self.hbm_bytes)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of words, HBM map, geometry and layout, as 64 hexadecimal digits."""
        return hashlib.sha256(self._header(phases=False) + self.words.astype("<u8").tobytes()).hexdigest()

    @property
    def hbm_bytes(self) -> int:
        """Size of the HBM image."""
        return max((tensor.address + tensor.size_bytes for tensor in self.hbm), default=0)

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name."""
        return next(tensor for tensor in self.hbm if tensor.name == name)

    def phase_of(self) -> np.ndarray:
        """Index into `phase_names` for every instruction (int64 [n])."""
        names, result = self.phase_names, np.full(len(self.words), -1)
        result[:1] = 0
        for phase in self.phases:
            result[phase.start : phase.stop] = names.index(phase.name)
        known = np.maximum.accumulate(np.where(result >= 0, np.arange(len(result)), 0))
        return result[known]

    @property
    def phase_names(self) -> list[str]:
        """Names of the phases in order of first appearance; what stands outside of any belongs to the one before."""
        return list(dict.fromkeys(["setup", *(phase.name for phase in self.phases)]))

    def _header(self, *, phases: bool = True) -> bytes:
        header: dict[str, object] = {
            "hbm": [asdict(tensor) for tensor in self.hbm], "geometry": self.geometry, "layout": self.layout,
        }  # fmt: skip
        if phases:
            header["phases"] = [asdict(phase) for phase in self.phases]
        return json.dumps(header, sort_keys=True, separators=(",", ":")).encode()

    def to_bytes(self) -> bytes:
        """The container: magic, header length, word count, header (JSON), words, SHA-256 of all before it."""
        header = self._header()
        body = MAGIC + struct.pack("<II", len(header), len(self.words)) + header + self.words.astype("<u8").tobytes()
        return body + hashlib.sha256(body).digest()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Program":
        """Program of a container.

        Raises:
            ProgramError: not a container, truncated, corrupted, or holding an illegal program.
        """
        if data[: len(MAGIC)] != MAGIC:
            raise ProgramError("program file: not a tripath program (magic number missing)")
        start = len(MAGIC) + 8
        if len(data) < start + 32:
            raise ProgramError(f"program file: truncated at {len(data)} bytes")
        header_bytes, count = struct.unpack("<II", data[len(MAGIC) : start])
        size = start + header_bytes + 16 * count + 32
        if len(data) != size:
            raise ProgramError(f"program file: truncated or overlong, {len(data)} bytes where {size} are announced")
        if hashlib.sha256(data[:-32]).digest() != data[-32:]:
            raise ProgramError("program file: corrupted (checksum differs)")
        words = np.frombuffer(data, "<u8", 2 * count, start + header_bytes).reshape(count, 2)
        return cls._of_header(data[start : start + header_bytes], words)

    @classmethod
    def _of_header(cls, text: bytes | str, words: np.ndarray) -> "Program":
        try:
            header = json.loads(text)
            check_header(header)
            program = cls(
                words=words.astype(np.uint64),
                hbm=tuple(Tensor(**{**row, "shape": tuple(row["shape"])}) for row in header["hbm"]),
                geometry=dict(header["geometry"]), layout=dict(header["layout"]),
                phases=tuple(Phase(**row) for row in header["phases"]),
            )  # fmt: skip
            program.check_bounds()
        except ProgramError:
            raise
        except MALFORMED as error:
            raise ProgramError(f"program file: malformed header ({type(error).__name__}: {error})") from None
        return program

    def to_text(self) -> str:
        """Assembler text with the header as `.header` lines; `from_text` reads it back."""
        lines = ["; tripath program", f"; digest {self.digest}"]
        lines += [f".header {line}" for line in json.dumps(json.loads(self._header()), indent=1).splitlines()]
        notes = {phase.start: f"phase {phase.name}" for phase in self.phases}
        return "\n".join(lines) + "\n" + disassemble(self.instructions, notes)

    @classmethod
    def from_text(cls, text: str) -> "Program":
        """Program of assembler text.

        Raises:
            ProgramError: malformed text, with the line number.
        """
        lines = text.splitlines()
        header = "\n".join(line.removeprefix(".header ") for line in lines if line.startswith(".header "))
        code = "\n".join("" if line.startswith(".header ") else line for line in lines)
        return cls._of_header(header, words_of(assemble(code)))


_FACTS = "_facts"
T = TypeVar("T")
P = ParamSpec("P")


def fact_of_program(function: Callable[Concatenate[Program, P], T]) -> Callable[Concatenate[Program, P], T]:
    """Compute a function of the program, and of what else can be hashed, once for each program. Its result is shared, so
    nobody may change it."""

    @wraps(function)
    def once(program: Program, *others: P.args, **named: P.kwargs) -> T:
        facts = program.__dict__.setdefault(_FACTS, {})
        key = function, *others, *named.items()
        if key not in facts:
            facts[key] = function(program, *others, **named)
        return facts[key]

    return once


@fact_of_program
def loop_tree(program: Program) -> LoopTree:
    """The loops of a program.

    Raises:
        ProgramError: they are no tree.
    """
    return LoopTree.of(program.instructions)


def words_of(instructions: Sequence[Instruction]) -> np.ndarray:
    """Instruction words (uint64 [n, 2], low half first)."""
    encoded = [instruction.encode() for instruction in instructions]
    mask = (1 << 64) - 1
    return np.array([(word & mask, word >> 64) for word in encoded], np.uint64).reshape(-1, 2)
