"""A model as a list of operators: groups of layers, each a pattern that repeats, and every operator one row of facts.

A row says once which weights an operator has (their shapes, their names in a checkpoint, what they are stored for), and how many
multiply-accumulates it takes. Compiler, HBM image, loaders, references, device graphs and training walk the same list, each with
one function for each operator. The list is read in order: `Norm` takes the residual stream unless it says otherwise, every other
operator what the one before it left, and `Residual` adds that to the stream.
"""

import math
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias, get_args

import numpy as np

from dllm.experts import Experts
from dllm.rotary import Rotation
from dllm.weights import Part, Role, Weight, gated_matrices, matrix, vector


class Activation(Enum):
    """The activation that a gated MLP applies to its gate."""

    SILU = "silu"
    """x sigmoid(x)."""
    GELU_TANH = "gelu_tanh"
    """x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2 (arXiv:1606.08415)."""


GELU_CUBIC, GELU_SLOPE = 0.044715, math.sqrt(2 / math.pi)
"""The numbers of `Activation.GELU_TANH`."""


class Trait(Enum):
    """A trait of an operator that not every walker supports."""

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
        """Its traits, beyond what every walker supports."""
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
        return (vector(self.name, Role.NORM, f"{self.part}.weight", self.width),)


class Step(Enum):
    """An operation on each channel by itself."""

    SCALE = "scale"
    """Times a learned factor."""
    SHIFT = "shift"
    """Plus a learned term."""
    TANH = "tanh"
    """Its hyperbolic tangent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Channelwise(_Operator):
    """h := its `steps`, one after the other, of what the last operator left.

    Every walker knows each step, so an operator that consists of steps needs no function of its own. Beside a step stands the
    name of its tensor in the part (empty: it has none).
    """

    name: str
    part: str
    width: int
    steps: tuple[tuple[Step, str], ...]

    @property
    def weights(self) -> tuple[Weight, ...]:
        """A number for each channel and learned step."""
        roles = {Step.SCALE: Role.NORM, Step.SHIFT: Role.BIAS}
        return tuple(
            vector(f"{self.name}_{tensor}", roles[step], f"{self.part}.{tensor}", self.width)
            for step, tensor in self.steps
            if step in roles
        )


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
        whole = matrix(self.name, self.parts, self.inputs)
        if not self.bias:
            return (whole,)
        return whole, Weight(self.bias, Role.BIAS, tuple(Part(f"{part}.bias", (rows,)) for part, rows in self.parts))


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
        """SHARED_KV if V is K."""
        return frozenset({Trait.SHARED_KV}) if self.shared else frozenset()

    @property
    def weights(self) -> tuple[Weight, ...]:
        """The factors of Q's channels and of K's."""
        return tuple(vector(name, Role.NORM, f"{name}.weight", self.head_dim) for name in ("q_norm", "k_norm"))


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
        """PARTIAL_ROTARY if some channels of a head do not turn."""
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
        """The traits of its mask and its window."""
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
        return gated_matrices("w", "", self.inner, self.width)


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
        bias = (vector("router_bias", Role.BIAS, "router.expert_bias", experts.count),) if experts.bias else ()
        norm = self.norm.weights if experts.router_norm else ()
        factors = (vector("expert_factors", Role.BIAS, "router.factors", experts.count),) if experts.factors else ()
        own = (("gate", "ff_proj", inner, self.width), ("up", "up_proj", inner, self.width),
               ("down", "ff_out", self.width, inner))  # fmt: skip
        stacked = [
            matrix(f"expert_{name}", tuple((f"experts.{number}.{part}", rows) for number in numbers), inputs)
            for name, part, rows, inputs in own
        ]  # fmt: skip
        shared = gated_matrices("shared", "shared_experts.", experts.shared, self.width) if experts.shared else ()
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
        """TIED if W is the table of the embedding."""
        return frozenset({Trait.TIED}) if self.tied else frozenset()

    @property
    def weights(self) -> tuple[Weight, ...]:
        """The matrix."""
        return (matrix("lm_head", ((self.part, self.vocab),), self.width),)


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
        return (
            *self.norm.weights, *gated_matrices("soft", "self_conditioning.", self.inner, self.width),
            Weight("soft_embedding", Role.MIXTURE, (Part("wte.weight", (self.vocab, self.width)),)),
        )  # fmt: skip


Operator: TypeAlias = (
    Embedding
    | Norm
    | Channelwise
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
