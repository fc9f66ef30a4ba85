"""A model as a list of operators: groups of layers, each a pattern that repeats, and every operator one row of facts.

A row says once which weights an operator has (their shapes, their names in a checkpoint, what they are stored for), and how many
multiply-accumulates it takes. Compiler, HBM image, loaders, references, device graphs and training walk the same list, each with
one function for each operator. The list is read in order: `Norm` takes the residual stream, every other operator what the one
before it left, and `Residual` adds that to the stream.
"""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias, get_args

from npu.errors import TripathError


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


def _matrix(name: str, parts: tuple[tuple[str, int], ...], inputs: int) -> Weight:
    return Weight(name, Role.MATRIX, tuple(Part(f"{part}.weight", (rows, inputs)) for part, rows in parts))


def _vector(name: str, role: Role, part: str, width: int) -> Weight:
    return Weight(name, role, (Part(part, (width,)),))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Operator:
    @property
    def weights(self) -> tuple[Weight, ...]:
        """Weights, in the order in which their parts are stored; none unless an operator says so."""
        return ()

    @property
    def macs_per_row(self) -> int:
        """Multiply-accumulates of one row on the array, attention's products left out."""
        return sum(math.prod(weight.shape) for weight in self.weights if weight.role is Role.MATRIX)


@dataclass(frozen=True, kw_only=True, slots=True)
class Embedding(_Operator):
    """x := table[tokens]."""

    vocab: int
    width: int

    @property
    def weights(self) -> tuple[Weight, ...]:
        """The table."""
        return (Weight("embedding", Role.TABLE, (Part("wte.weight", (self.vocab, self.width)),)),)


@dataclass(frozen=True, kw_only=True, slots=True)
class Norm(_Operator):
    """h := x / sqrt(mean(x^2) + epsilon) * weight, over the residual stream."""

    name: str
    part: str
    width: int
    epsilon: float

    @property
    def weights(self) -> tuple[Weight, ...]:
        """The factor of each channel."""
        return (_vector(self.name, Role.NORM, f"{self.part}.weight", self.width),)


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear(_Operator):
    """h := h W^T, plus a bias where it has one; the outputs of several parts stand side by side.

    `parts`: name and outputs of each; `bias`: name of the tensor of biases, empty: there is none.
    """

    name: str
    parts: tuple[tuple[str, int], ...]
    inputs: int
    bias: str = ""

    @property
    def outputs(self) -> int:
        """Width of the result."""
        return sum(outputs for _, outputs in self.parts)

    @property
    def weights(self) -> tuple[Weight, ...]:
        """The matrix, and the biases behind it."""
        matrix = _matrix(self.name, self.parts, self.inputs)
        if not self.bias:
            return (matrix,)
        return matrix, Weight(self.bias, Role.BIAS, tuple(Part(f"{part}.bias", (rows,)) for part, rows in self.parts))


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadNorm(_Operator):
    """RMS norm of each head of Q and of K, with a factor for each channel of a head."""

    heads: int
    kv_heads: int
    head_dim: int
    epsilon: float

    @property
    def weights(self) -> tuple[Weight, ...]:
        """The factors of Q's channels and of K's."""
        return tuple(_vector(name, Role.NORM, f"{name}.weight", self.head_dim) for name in ("q_norm", "k_norm"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Rope(_Operator):
    """Rotary embedding of each head of Q and of K: channel j turns with channel j + head_dim / 2."""

    heads: int
    kv_heads: int
    head_dim: int
    theta: float


class Mask(Enum):
    """Keys that a row attends to."""

    FULL = "full"
    """Those of the whole canvas."""
    BLOCK_CAUSAL = "block_causal"
    """Those up to the end of the row's block; blocks count from the first token of the sequence."""
    CAUSAL = "causal"
    """Those up to the row's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention(_Operator):
    """h := softmax(q K^T / sqrt(head_dim)) V over the keys that `mask` admits, after K and V of the rows are cached."""

    heads: int
    kv_heads: int
    head_dim: int
    mask: Mask = Mask.FULL

    @property
    def query_width(self) -> int:
        """Elements of one row of Q, and of the result."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Elements of one row of K, and of one of V."""
        return self.kv_heads * self.head_dim

    @property
    def macs_per_row_and_key(self) -> int:
        """Multiply-accumulates of one row with one key, and of its weight with the value."""
        return 2 * self.query_width


@dataclass(frozen=True, kw_only=True, slots=True)
class GatedMlp(_Operator):
    """h := (silu(h W_gate^T) * (h W_up^T)) W_down^T."""

    width: int
    inner: int

    @property
    def weights(self) -> tuple[Weight, ...]:
        """The three matrices."""
        return (
            _matrix("w_gate", (("ff_proj", self.inner),), self.width),
            _matrix("w_up", (("up_proj", self.inner),), self.width),
            _matrix("w_down", (("ff_out", self.width),), self.inner),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Residual(_Operator):
    """x := x + h."""

    width: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LmHead(_Operator):
    """logits := h W^T."""

    vocab: int
    width: int

    @property
    def weights(self) -> tuple[Weight, ...]:
        """The matrix."""
        return (_matrix("lm_head", (("ff_out", self.vocab),), self.width),)


Operator: TypeAlias = Embedding | Norm | Linear | HeadNorm | Rope | Attention | GatedMlp | Residual | LmHead
OPERATORS: tuple[type[Operator], ...] = get_args(Operator)
"""Every kind of operator: each walker of the list has a function for all of them, which a test demands."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Layers of one pattern, one after the other; where a model has several groups, all but one have a `name`."""

    repeat: int
    pattern: tuple[Operator, ...]
    name: str = ""

    def tensor(self, weight: str) -> str:
        """The machine's name of a weight of these layers."""
        return f"{self.name}.{weight}" if self.name else weight


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """A tensor that the machine keeps: a weight of all layers of a group, or (`layers` None) of what is outside of layers."""

    name: str
    weight: Weight
    layers: range | None = None

    def of_layers(self) -> Iterator[tuple[int | None, int | None]]:
        """Index in the tensor and number of each layer; once None and None where it is outside of layers."""
        yield from enumerate(self.layers) if self.layers is not None else ((None, None),)


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """A whole model: what comes before the layers, the groups of layers, and what makes logits of the last stream."""

    stem: tuple[Operator, ...]
    groups: tuple[Group, ...]
    head: tuple[Operator, ...]

    def weights(self) -> Iterator[Stored]:
        """Every tensor that the machine keeps, in the order of HBM."""
        found = [Stored(name=weight.name, weight=weight) for each in self.stem for weight in each.weights]
        for group, layers in self.numbered():
            found += [
                Stored(name=group.tensor(weight.name), weight=weight, layers=layers)
                for each in group.pattern for weight in each.weights
            ]  # fmt: skip
        found += [Stored(name=weight.name, weight=weight) for each in self.head for weight in each.weights]
        yield from sorted(found, key=lambda stored: stored.weight.role.value)

    def numbered(self) -> Iterator[tuple[Group, range]]:
        """Each group with the numbers of its layers."""
        first = 0
        for group in self.groups:
            yield group, range(first, first + group.repeat)
            first += group.repeat

    def layers(self) -> Iterator[tuple[int, tuple[Operator, ...]]]:
        """Number and operators of each layer."""
        yield from ((layer, group.pattern) for group, layers in self.numbered() for layer in layers)

    def check(
        self, known: Collection[type[Operator]], walker: str, masks: Collection[Mask] = frozenset({Mask.FULL})
    ) -> None:
        """Refuse a model of which a walker does not know every operator and attention mask.

        Raises:
            TripathError: naming the operator or the mask.
        """
        for each in (*self.stem, *(each for group in self.groups for each in group.pattern), *self.head):
            if type(each) not in known:
                raise TripathError(f"model: {walker} lacks the operator {type(each).__name__}")
            if isinstance(each, Attention) and each.mask not in masks:
                raise TripathError(f"model.attention_mask: {walker} lacks the mask {each.mask.value}")
