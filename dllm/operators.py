"""A model as a list of operators: groups of layers, each a pattern that repeats, and every operator one row of facts.

A row says once which weights an operator has (their shapes, their names in a checkpoint, what they are stored for), and how many
multiply-accumulates it takes. Compiler, HBM image, loaders, references, device graphs and training walk the same list, each with
one function for each operator. The list is read in order: `Norm` takes the residual stream unless it says otherwise, every other
operator what the one before it left, and `Residual` adds that to the stream.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias, get_args

import numpy as np

from dllm.rotary import Rotation
from npu.choices import check_choices, one_of, within
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


def _matrix(name: str, parts: tuple[tuple[str, int], ...], inputs: int) -> Weight:
    return Weight(name, Role.MATRIX, tuple(Part(f"{part}.weight", (rows, inputs)) for part, rows in parts))


def _vector(name: str, role: Role, part: str, width: int) -> Weight:
    return Weight(name, role, (Part(part, (width,)),))


class Activation(Enum):
    """What a gated MLP does to its gate."""

    SILU = "silu"
    """x sigmoid(x)."""
    GELU_TANH = "gelu_tanh"
    """x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2 (arXiv:1606.08415)."""


GELU_CUBIC, GELU_SLOPE = 0.044715, math.sqrt(2 / math.pi)
"""The numbers of `Activation.GELU_TANH`."""


class Trait(Enum):
    """What an operator may do beside what every walker of it knows."""

    BLOCK_CAUSAL = "block-causal attention"
    CAUSAL = "causal attention"
    PARTIAL_ROTARY = "a rotation of some channels of a head alone"
    TIED = "an LM head that is the embedding"
    WINDOW = "sliding windows"
    SHARED_KV = "values that are the projection of keys"


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
        return sum(math.prod(weight.shape) for weight in self.weights if weight.role.on_array)


@dataclass(frozen=True, kw_only=True, slots=True)
class Embedding(_Operator):
    """x := table[tokens] * scale."""

    vocab: int
    width: int
    scale: float = 1.0

    @property
    def weights(self) -> tuple[Weight, ...]:
        """The table."""
        return (Weight("embedding", Role.TABLE, (Part("wte.weight", (self.vocab, self.width)),)),)


@dataclass(frozen=True, kw_only=True, slots=True)
class Norm(_Operator):
    """h := x / sqrt(mean(x^2) + epsilon) * weight, over the residual stream, or `of_result` over what the last operator left."""

    name: str
    part: str
    width: int
    epsilon: float
    of_result: bool = False

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
    """RMS norm of each head of Q and of K, with a factor for each channel of a head; of `values` of V too, without factors.

    Where V is `shared`, it is what K was before its norm."""

    heads: int
    kv_heads: int
    head_dim: int
    epsilon: float
    values: bool = False
    shared: bool = False

    @property
    def traits(self) -> frozenset[Trait]:
        """Whether V is K."""
        return frozenset({Trait.SHARED_KV}) if self.shared else frozenset()

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


class Heads:
    """The widths of Q, K and V, for what has `heads` of `head_dim` elements and `kv_heads` of K and V."""

    __slots__ = ()
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def query_width(self) -> int:
        """Elements of one row of Q, and of the result."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Elements of one row of K, and of one of V."""
        return self.kv_heads * self.head_dim


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention(_Operator, Heads):
    """h := softmax(q K^T * scale) V over the keys that `mask` admits, after K and V of the rows are cached.

    Where there is a `window` w, keys fewer than w places before the row count, or before its block where rows see their whole
    block; a row of a full mask sees as many behind it.
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    mask: Mask = Mask.FULL
    window: int | None = None

    @property
    def traits(self) -> frozenset[Trait]:
        """What mask and window ask for."""
        windows = frozenset() if self.window is None else frozenset({Trait.WINDOW})
        match self.mask:
            case Mask.FULL:
                return windows
            case Mask.BLOCK_CAUSAL:
                return windows | {Trait.BLOCK_CAUSAL}
            case Mask.CAUSAL:
                return windows | {Trait.CAUSAL}

    @property
    def macs_per_row_and_key(self) -> int:
        """Multiply-accumulates of one row with one key, and of its weight with the value."""
        return 2 * self.query_width


@dataclass(frozen=True, kw_only=True, slots=True)
class GatedMlp(_Operator):
    """h := (activation(h W_gate^T) * (h W_up^T)) W_down^T."""

    width: int
    inner: int
    activation: Activation = Activation.SILU

    @property
    def weights(self) -> tuple[Weight, ...]:
        """The three matrices."""
        return (
            _matrix("w_gate", (("ff_proj", self.inner),), self.width),
            _matrix("w_up", (("up_proj", self.inner),), self.width),
            _matrix("w_down", (("ff_out", self.width),), self.inner),
        )


class Scoring(Enum):
    """How a router's logits become the scores of experts."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


@dataclass(frozen=True, kw_only=True, slots=True)
class Experts:
    """A mixture of experts: gated MLPs of which each row takes a few, and a router that chooses them.

    A row takes the experts of the highest scores, to which a learned bias may be added for the choice alone. Where experts form
    groups, it chooses among those of the `kept_groups` groups whose two best add up to most.

    Attributes:
        count: Experts.
        chosen: Those that a row takes.
        inner: Width of an expert in elements, a multiple of 32.
        score: softmax (over all experts) or sigmoid.
        bias: Scores have a bias for the choice; weights have none.
        groups: Groups of neighbouring experts.
        kept_groups: Groups among whose experts a row chooses.
        normalised: The weights of a row's experts are divided by their sum.
        scale: A factor for all weights.
        shared: Width of an expert that every row takes with weight 1; 0: there is none.
        factors: Each expert has a learned factor of its weight.
        router_norm: The router reads the residual stream, by an RMS norm of its own whose factors are divided by
            sqrt(model.hidden), and not what the experts read.
        beside_ffn: The gated MLP (`ffn`) runs beside the experts; each of the two has a norm before and a norm behind it.
        first_layer: Layers before it have one gated MLP (`ffn`) instead.
    """

    count: int = field(metadata=within(2, 4096))
    chosen: int = field(metadata=within(1, 16))
    inner: int = field(metadata=within(32, 1 << 20))
    score: str = field(default="softmax", metadata=one_of([each.value for each in Scoring]))
    bias: bool = False
    groups: int = field(default=1, metadata=within(1, 1024))
    kept_groups: int = field(default=1, metadata=within(1, 1024))
    normalised: bool = True
    scale: float = field(default=1.0, metadata=within(1e-3, 1e3))
    shared: int = field(default=0, metadata=within(0, 1 << 20))
    factors: bool = False
    router_norm: bool = False
    beside_ffn: bool = False
    first_layer: int = field(default=0, metadata=within(0, 4096))

    def __post_init__(self) -> None:
        check_choices("model.experts", self)
        size, rest = divmod(self.count, self.groups)
        rules = [
            (not rest, "groups", f"{self.groups} does not divide model.experts.count {self.count}"),
            (self.groups == 1 or size > 1, "groups", "a group needs two experts"),
            (self.kept_groups <= self.groups, "kept_groups", f"{self.kept_groups} of {self.groups} groups"),
            (self.chosen <= self.kept_groups * size, "chosen", f"a row chooses among {self.kept_groups * size} experts"),
        ]  # fmt: skip
        if self.beside_ffn and self.first_layer:
            rules.append((False, "first_layer", f"{self.first_layer} stands beside model.experts.beside_ffn"))
        for holds, key, rule in rules:
            if not holds:
                raise TripathError(f"model.experts.{key}: {rule}")
        for key in ("inner", "shared"):
            if getattr(self, key) % 32:
                raise TripathError(
                    f"model.experts.{key}: must be a multiple of the MX block of 32, got {getattr(self, key)}"
                )

    @property
    def scoring(self) -> Scoring:
        """How logits become scores."""
        return Scoring(self.score)


@dataclass(frozen=True, kw_only=True, slots=True)
class Moe(_Operator):
    """h := sum over the experts that a row takes of weight * expert(h), plus that of the shared one; each is a gated MLP."""

    width: int
    experts: Experts
    epsilon: float = 0.0
    activation: Activation = Activation.SILU

    @property
    def norm(self) -> Norm:
        """The router's own norm."""
        return Norm(name="router_norm", part="router.norm", width=self.width, epsilon=self.epsilon)

    @property
    def weights(self) -> tuple[Weight, ...]:
        """The router with its bias, its norm and factors of experts; gate, up and down of all experts, each below the other;
        those of the shared expert."""
        experts = self.experts
        numbers, inner = range(experts.count), experts.inner
        router = Weight("router", Role.ROUTER, (Part("router.weight", (experts.count, self.width)),))
        bias = (_vector("router_bias", Role.BIAS, "router.expert_bias", experts.count),) if experts.bias else ()
        norm = self.norm.weights if experts.router_norm else ()
        factors = (_vector("expert_factors", Role.BIAS, "router.factors", experts.count),) if experts.factors else ()
        own = (("gate", "ff_proj", inner, self.width), ("up", "up_proj", inner, self.width),
               ("down", "ff_out", self.width, inner))  # fmt: skip
        stacked = [
            _matrix(f"expert_{name}", tuple((f"experts.{number}.{part}", rows) for number in numbers), inputs)
            for name, part, rows, inputs in own
        ]  # fmt: skip
        shared = [
            _matrix(f"shared_{name}", ((f"shared_experts.{part}", rows),), inputs)
            for name, part, rows, inputs in (
                ("gate", "ff_proj", experts.shared, self.width), ("up", "up_proj", experts.shared, self.width),
                ("down", "ff_out", self.width, experts.shared),
            ) if experts.shared
        ]  # fmt: skip
        return (router, *bias, *norm, *factors, *stacked, *shared)

    @property
    def macs_per_row(self) -> int:
        """Those of the router, and of the experts that a row takes."""
        experts = self.experts
        return self.width * (experts.count + 3 * (experts.chosen * experts.inner + experts.shared))


@dataclass(frozen=True, kw_only=True, slots=True)
class Residual(_Operator):
    """x := x + h, times a learned number of the layer where it is `scaled`; where it is `clean_scaled`, passes over finished
    tokens (`Network.conditioning`) have a number of their own."""

    width: int
    scaled: bool = False
    clean_scaled: bool = False

    @property
    def weights(self) -> tuple[Weight, ...]:
        """The number of the layer, and that of clean passes."""
        if not self.scaled:
            return ()
        names = ("layer_scale", "clean_layer_scale")[: 1 + self.clean_scaled]
        return (Weight("layer_scale", Role.SCALAR, tuple(Part(f"{name}.weight", (1,)) for name in names)),)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sum(_Operator):
    """h := the sum of what the branches make of the residual stream, each a list of operators that begins with a norm."""

    branches: tuple[tuple["Operator", ...], ...]
    width: int

    @property
    def weights(self) -> tuple[Weight, ...]:
        """Those of all branches."""
        return tuple(weight for branch in self.branches for each in branch for weight in each.weights)

    @property
    def macs_per_row(self) -> int:
        """Those of all branches."""
        return sum(each.macs_per_row for branch in self.branches for each in branch)


@dataclass(frozen=True, kw_only=True, slots=True)
class LmHead(_Operator):
    """logits := h W^T; where it is `tied`, W is the table of the embedding, kept once more for the array.

    Where there is a `softcap` c, logits become c tanh(logits / c).
    """

    vocab: int
    width: int
    tied: bool = False
    softcap: float | None = None

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


@dataclass(frozen=True, kw_only=True, slots=True)
class SelfConditioning(_Operator):
    """x := e / rms(e) with e = x + down(activation(gate(n)) * up(n)), n = rms norm of the soft token.

    The soft token of a row is the embedding that its distribution of the step before expects: `scale` times the sum of p_v E_v
    over the vocabulary, zero at a block's first step (Chen et al., arXiv:2208.04202, as DiffusionGemma has it).
    """

    vocab: int
    width: int
    inner: int
    epsilon: float
    scale: float
    activation: Activation = Activation.SILU

    @property
    def norm(self) -> Norm:
        """That of the soft token."""
        return Norm(name="soft_norm", part="self_conditioning.norm", width=self.width, epsilon=self.epsilon)

    @property
    def weights(self) -> tuple[Weight, ...]:
        """The norm, the three matrices of the MLP, and the embedding as what is added up."""
        own = (("gate", "ff_proj", self.inner, self.width), ("up", "up_proj", self.inner, self.width),
               ("down", "ff_out", self.width, self.inner))  # fmt: skip
        return (
            *self.norm.weights,
            *(_matrix(f"soft_{name}", ((f"self_conditioning.{part}", rows),), inputs) for name, part, rows, inputs in own),
            Weight("soft_embedding", Role.MIXTURE, (Part("wte.weight", (self.vocab, self.width)),)),
        )  # fmt: skip


Operator: TypeAlias = (
    Embedding
    | Norm
    | Linear
    | HeadNorm
    | Rope
    | Attention
    | GatedMlp
    | Moe
    | Sum
    | Residual
    | SelfConditioning
    | LmHead
)
OPERATORS: tuple[type[Operator], ...] = get_args(Operator)
"""Every kind of operator: each walker of the list has a function for all of them, which a test demands."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Layers of one pattern, one after the other; where a model has several groups, all but one have a `name`.

    `geometry` is the name of the kind of their attention (`dllm.model.Geometry`).
    """

    repeat: int
    pattern: tuple[Operator, ...]
    name: str = ""
    geometry: str = ""

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
    layers: Sequence[int] | None = None

    def of_layers(self) -> Iterator[tuple[int | None, int | None]]:
        """Index in the tensor and number of each layer; once None and None where it is outside of layers."""
        yield from enumerate(self.layers) if self.layers is not None else ((None, None),)


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """A whole model: what comes before the layers, the groups of layers, and what makes logits of the last stream.

    The groups follow each other `cycles` times, with other weights each time. `conditioning` follows the stem where a block is
    denoised; clean passes, over a prompt or a finished block, do without it.
    """

    stem: tuple[Operator, ...]
    groups: tuple[Group, ...]
    head: tuple[Operator, ...]
    cycles: int = 1
    conditioning: tuple[Operator, ...] = ()

    def weights(self) -> Iterator[Stored]:
        """Every tensor that the machine keeps, in the order of HBM."""
        before = (*self.stem, *self.conditioning)
        found = [Stored(name=weight.name, weight=weight) for each in before for weight in each.weights]
        for group, layers in self.numbered():
            found += [
                Stored(name=group.tensor(weight.name), weight=weight, layers=layers)
                for each in group.pattern for weight in each.weights
            ]  # fmt: skip
        found += [Stored(name=weight.name, weight=weight) for each in self.head for weight in each.weights]
        yield from sorted(found, key=lambda stored: stored.weight.role.value)

    def numbered(self) -> Iterator[tuple[Group, Sequence[int]]]:
        """Each group with the numbers of its layers."""
        first, cycle = 0, sum(group.repeat for group in self.groups)
        for group in self.groups:
            yield group, [first + turn * cycle + layer for turn in range(self.cycles) for layer in range(group.repeat)]
            first += group.repeat

    def layers(self) -> Iterator[tuple[int, tuple[Operator, ...]]]:
        """Number and operators of each layer, in their order."""
        numbered = ((layer, group.pattern) for group, layers in self.numbered() for layer in layers)
        yield from sorted(numbered, key=lambda each: each[0])

    def check(self, known: Collection[type[Operator]], walker: str, traits: Collection[Trait] = frozenset()) -> None:
        """Refuse a model of which a walker does not know every operator and trait.

        Raises:
            TripathError: naming the operator or the trait.
        """
        listed = (
            *self.stem,
            *self.conditioning,
            *(each for group in self.groups for each in group.pattern),
            *self.head,
        )
        for each in (*listed, *leaves(listed)):
            if type(each) not in known:
                raise TripathError(f"model: {walker} lacks the operator {type(each).__name__}")
            for trait in sorted(each.traits - set(traits), key=lambda trait: trait.value):
                raise TripathError(f"model: {walker} lacks {trait.value}")

    @property
    def layer_macs_per_row(self) -> int:
        """Multiply-accumulates on the array of one row in all layers, attention's products left out."""
        once = sum(group.repeat * sum(each.macs_per_row for each in group.pattern) for group in self.groups)
        return self.cycles * once

    def parts(self) -> Iterator[Sequence[Operator]]:
        """What a pass computes at a time: the stem and what conditions it, of each pattern what comes before and behind
        attention, and the head."""
        yield self.stem
        yield self.conditioning
        for group in self.groups:
            before, _, behind = group.around_attention()
            yield from (before, behind)
        yield self.head


def leaves(operators: Iterable[Operator]) -> Iterator[Operator]:
    """Operators in order, those of its branches in place of a sum."""
    for each in operators:
        if isinstance(each, Sum):
            yield from (leaf for branch in each.branches for leaf in leaves(branch))
        else:
            yield each


def norms_of(operators: Sequence[Operator]) -> list[Norm]:
    """The norms of operators, in their order; those of a router and of a soft token are among them."""
    found: list[Norm] = []
    for each in leaves(operators):
        if isinstance(each, Norm):
            found.append(each)
        elif isinstance(each, SelfConditioning) or (isinstance(each, Moe) and each.experts.router_norm):
            found.append(each.norm)
    return found


def most_norms(network: Network) -> int:
    """Norms of the part of a network that has most."""
    return max(len(norms_of(part)) for part in network.parts())
