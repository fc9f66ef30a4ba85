"""A model as a list of operators: groups of layers, each a pattern that repeats, and every operator one row of facts.

A row says once which weights an operator has (their shapes, their names in a checkpoint, what they are stored for), and how many
multiply-accumulates it takes. Compiler, HBM image, loaders, references, device graphs and training walk the same list, each with
one function for each operator. The list is read in order: `Norm` takes the residual stream, every other operator what the one
before it left, and `Residual` adds that to the stream.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias, get_args

import numpy as np

from npu.choices import check_choices, one_of, within
from npu.errors import TripathError


@dataclass(frozen=True, kw_only=True, slots=True)
class Scaling:
    """How the angles of a rotary embedding are stretched beyond the context that a model was first trained on.

    Attributes:
        kind: linear: every angle by 1 / `factor`. llama3: long waves so, short ones not, between them a line over the waves that
            a pair of channels has in the context. yarn: the same, the line over the number of the pair.
        factor: The context grows by so much.
        original_context: Tokens of the context before.
        low: A pair of at most so many waves in that context is wholly stretched (llama3: low_freq_factor, yarn: beta_slow).
        high: A pair of at least so many is not stretched (llama3: high_freq_factor, yarn: beta_fast).
    """

    kind: str = field(metadata=one_of(("linear", "llama3", "yarn")))
    factor: float = field(metadata=within(1.0, 1024.0))
    original_context: int = field(default=8192, metadata=within(1, 1 << 24))
    low: float = field(default=1.0, metadata=within(1e-3, 1e6))
    high: float = field(default=4.0, metadata=within(1e-3, 1e6))

    def __post_init__(self) -> None:
        check_choices("model.rope_scaling", self)
        if self.low >= self.high:
            raise TripathError(f"model.rope_scaling.low: {self.low} is not below model.rope_scaling.high {self.high}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rotation:
    """Angles of a rotary embedding: pair j of n channels turns by theta^(-2j / n) a token, unless `scaling` stretches it."""

    theta: float
    scaling: Scaling | None = None

    def frequencies(self, channels: int) -> np.ndarray:
        """Angle of a token's step for each pair of so many channels, float64 [channels / 2]."""
        plain, scaling = self.theta ** (-np.arange(0, channels, 2) / channels), self.scaling
        if scaling is None:
            return plain
        context = scaling.original_context
        match scaling.kind:
            case "linear":
                return plain / scaling.factor
            case "llama3":  # arXiv:2407.21783 and the checkpoints' rope_scaling
                kept = (context * plain / (2 * np.pi) - scaling.low) / (scaling.high - scaling.low)
            case "yarn":  # arXiv:2309.00071: the pairs of so many waves, rounded outwards
                first, last = (
                    channels * np.log(context / (waves * 2 * np.pi)) / (2 * np.log(self.theta))
                    for waves in (scaling.high, scaling.low)
                )
                first, last = max(np.floor(first), 0), min(np.ceil(last), channels - 1)
                kept = 1 - (np.arange(len(plain)) - first) / max(last - first, 0.001)
            case other:
                raise AssertionError(f"{other} is no kind of scaling")
        kept = np.clip(kept, 0.0, 1.0)
        return kept * plain + (1 - kept) * plain / scaling.factor


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


class Trait(Enum):
    """What an operator may do beside what every walker of it knows."""

    BLOCK_CAUSAL = "block-causal attention"
    CAUSAL = "causal attention"
    PARTIAL_ROTARY = "a rotation of some channels of a head alone"
    TIED = "an LM head that is the embedding"


ALL_TRAITS = frozenset(Trait)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Operator:
    @property
    def traits(self) -> frozenset[Trait]:
        """What it does beside what every walker knows."""
        return frozenset()

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
    """Rotary embedding of each head of Q and of K: channel j turns with channel j + rotary_dim / 2.

    The first `rotary_dim` channels of a head turn, the others stay.
    """

    heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    rotation: Rotation

    @property
    def traits(self) -> frozenset[Trait]:
        """Whether some channels stay."""
        return frozenset({Trait.PARTIAL_ROTARY}) if self.rotary_dim != self.head_dim else frozenset()

    @property
    def frequencies(self) -> np.ndarray:
        """Angle of a token's step for each pair of channels, float64 [rotary_dim / 2]."""
        return self.rotation.frequencies(self.rotary_dim)


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
    def traits(self) -> frozenset[Trait]:
        """What the mask asks for."""
        match self.mask:
            case Mask.FULL:
                return frozenset()
            case Mask.BLOCK_CAUSAL:
                return frozenset({Trait.BLOCK_CAUSAL})
            case Mask.CAUSAL:
                return frozenset({Trait.CAUSAL})

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
    """logits := h W^T; where it is `tied`, W is the table of the embedding, kept once more for the array."""

    vocab: int
    width: int
    tied: bool = False

    @property
    def part(self) -> str:
        """Name of W."""
        return "wte" if self.tied else "ff_out"

    @property
    def traits(self) -> frozenset[Trait]:
        """Whether W is another operator's."""
        return frozenset({Trait.TIED}) if self.tied else frozenset()

    @property
    def weights(self) -> tuple[Weight, ...]:
        """The matrix."""
        return (_matrix("lm_head", ((self.part, self.vocab),), self.width),)


Operator: TypeAlias = Embedding | Norm | Linear | HeadNorm | Rope | Attention | GatedMlp | Residual | LmHead
OPERATORS: tuple[type[Operator], ...] = get_args(Operator)
"""Every kind of operator: each walker of the list has a function for all of them, which a test demands."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Layers of one pattern, one after the other; where a model has several groups, all but one have a `name`."""

    repeat: int
    pattern: tuple[Operator, ...]
    name: str = ""

    def around_attention(self) -> tuple[tuple[Operator, ...], Attention, tuple[Operator, ...]]:
        """The operators of a layer before attention, attention, and those behind it."""
        (at,) = (number for number, each in enumerate(self.pattern) if isinstance(each, Attention))
        attention = self.pattern[at]
        assert isinstance(attention, Attention)
        return self.pattern[:at], attention, self.pattern[at + 1 :]

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

    def check(self, known: Collection[type[Operator]], walker: str, traits: Collection[Trait] = frozenset()) -> None:
        """Refuse a model of which a walker does not know every operator and trait.

        Raises:
            TripathError: naming the operator or the trait.
        """
        for each in (*self.stem, *(each for group in self.groups for each in group.pattern), *self.head):
            if type(each) not in known:
                raise TripathError(f"model: {walker} lacks the operator {type(each).__name__}")
            for trait in sorted(each.traits - set(traits), key=lambda trait: trait.value):
                raise TripathError(f"model: {walker} lacks {trait.value}")

    def parts(self) -> Iterator[Sequence[Operator]]:
        """What a pass computes at a time: the stem, of each pattern what comes before and behind attention, and the head."""
        yield self.stem
        for group in self.groups:
            before, _, behind = group.around_attention()
            yield from (before, behind)
        yield self.head


def norms_of(operators: Sequence[Operator]) -> list[Norm]:
    """The norms of operators, in their order."""
    return [each for each in operators if isinstance(each, Norm)]


def most_norms(network: Network) -> int:
    """Norms of the part of a network that has most."""
    return max(len(norms_of(part)) for part in network.parts())
