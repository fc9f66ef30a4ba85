"""The weights of operators: the tensors that the machine keeps, made of parts of a checkpoint, and where each is used."""

from dataclasses import dataclass
from enum import Enum


class Role(Enum):
    """Where a weight is used, in the order in which weights lie in HBM."""

    TABLE = 0
    """Rows that are gathered by token."""
    NORM = 1
    """A factor for each channel, on the lanes."""
    BIAS = 2
    """A term for each channel, on the lanes."""
    MATRIX = 3
    """Contracted by the array along its last axis, which its blocks follow."""
    ROUTER = 4
    """As MATRIX, in the format of what chooses experts."""
    SCALAR = 5
    """Single numbers, in FP SRAM."""
    MIXTURE = 6
    """Rows that are added up with weights: contracted by the array along its first axis, a slice of rows at a time."""

    @property
    def on_array(self) -> bool:
        """Contracted by the array."""
        return self in (Role.MATRIX, Role.ROUTER, Role.MIXTURE)


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor of a checkpoint: its name inside its layer (or outside of all), and its shape."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor that the machine keeps: the parts of a checkpoint, one below the other."""

    name: str
    role: Role
    parts: tuple[Part, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and inputs, or the one axis of a vector."""
        first = self.parts[0].shape
        return (sum(part.shape[0] for part in self.parts), *first[1:])


def matrix(name: str, parts: tuple[tuple[str, int], ...], inputs: int) -> Weight:
    """A matrix of so many inputs, the outputs of its parts one below the other."""
    return Weight(name, Role.MATRIX, tuple(Part(f"{part}.weight", (rows, inputs)) for part, rows in parts))


def vector(name: str, role: Role, part: str, width: int) -> Weight:
    """A weight of one axis, which is one part."""
    return Weight(name, role, (Part(part, (width,)),))


def gated_matrices(name: str, part: str, inner: int, width: int) -> tuple[Weight, ...]:
    """Gate, up and down of a gated MLP, whose names begin so."""
    return (
        matrix(f"{name}_gate", ((f"{part}ff_proj", inner),), width),
        matrix(f"{name}_up", ((f"{part}up_proj", inner),), width),
        matrix(f"{name}_down", ((f"{part}ff_out", width),), inner),
    )
