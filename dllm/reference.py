"""The unquantised model in plain NumPy float32: what the executor is compared with. It knows no ISA.

Shape suffixes: S tokens of the canvas, R rows recomputed, H heads, D head_dim, V vocabulary. Architecture: LLaDA
(arXiv:2502.09992).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dllm.experts import Experts, Scoring
from dllm.families import tensor_name
from dllm.model import ModelSpec
from dllm.operators import (
    ALL_TRAITS,
    GELU_CUBIC,
    GELU_SLOPE,
    Activation,
    Attention,
    Channelwise,
    Embedding,
    GatedMlp,
    HeadNorm,
    Linear,
    LmHead,
    Mask,
    Moe,
    Norm,
    Operator,
    Residual,
    Rope,
    SelfConditioning,
    Step,
    Sum,
)
from dllm.rotary import Rotation

Cache = list[dict[str, np.ndarray]]
"""Per layer: `k` (after RoPE) and `v`, float32 [S, kv_heads, head_dim]; empty until the first forward."""


def rms_norm(x: np.ndarray, weight: np.ndarray, epsilon: float) -> np.ndarray:
    """X / sqrt(mean(x^2) + epsilon) * weight along the last axis."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(epsilon)) * weight


def softmax(x: np.ndarray) -> np.ndarray:
    """Softmax along the last axis."""
    shifted = np.exp(x - x.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def silu(x: np.ndarray) -> np.ndarray:
    """X * sigmoid(x), without overflow for any finite x."""
    small = np.exp(-np.abs(x))
    return x * np.where(x >= 0, np.float32(1), small) / (1 + small)


def rope_tables(positions: np.ndarray, frequencies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines [R, 1, channels] of angles position * frequency, both halves alike."""
    angle = np.outer(positions, frequencies)
    cosine, sine = (np.concatenate([f(angle)] * 2, -1)[:, None].astype(np.float32) for f in (np.cos, np.sin))
    return cosine, sine


def rotate(x_RHD: np.ndarray, cosine: np.ndarray, sine: np.ndarray) -> np.ndarray:
    """Rotary embedding in the rotate-half form: channel j turns with channel j + n / 2 of the n that the tables have."""
    turned, kept = np.split(x_RHD, [cosine.shape[-1]], axis=-1)
    low, high = np.split(turned, 2, axis=-1)
    return np.concatenate([turned * cosine + np.concatenate([-high, low], -1) * sine, kept], -1)


@dataclass(kw_only=True)
class Stream:
    """One forward on its way through the operators: the residual stream `x`, and `h`, which the last operator left.

    `x` is float32 [R, hidden]; `h` has an array [R, width] for each part of the last operator's result (Q, K and V stand
    apart). `weights` has the parts of the layer (or of what stands outside of all) by name; `rows` of `tokens` [S], at
    `positions`, are computed; `kept` is the layer's KV cache, of which rows see the keys where `visible` [R or 1, S] is true
    (None: all); the window of a row counts from its place in `begins` [R] (None: its position); `angles` are RoPE's tables.
    `soft` [R, hidden] are the rows' soft tokens; a `clean` pass is one over finished tokens.
    """

    tokens: np.ndarray
    rows: slice
    positions: np.ndarray
    x: np.ndarray
    h: list[np.ndarray] = field(default_factory=list)
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    kept: dict[str, np.ndarray] = field(default_factory=dict)
    visible: np.ndarray | None = None
    begins: np.ndarray | None = None
    soft: np.ndarray | None = None
    clean: bool = False
    angles: dict[tuple[int, Rotation], tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """X (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2."""
    return x * (1 + np.tanh(np.float32(GELU_SLOPE) * (x + np.float32(GELU_CUBIC) * x**3))) / 2


ACTIVATIONS: Mapping[Activation, Callable[[np.ndarray], np.ndarray]] = {
    Activation.SILU: silu, Activation.GELU_TANH: gelu_tanh,
}  # fmt: skip
"""Activations of gated MLPs."""


def _embed(op: Embedding, s: Stream) -> None:
    s.x = s.weights["wte.weight"][s.tokens[s.rows]]
    if op.scale != 1:
        s.x = s.x * np.float32(op.scale)


def _norm(op: Norm, s: Stream) -> None:
    source = s.h[0] if op.of_result else s.x
    s.h = [rms_norm(source, s.weights[f"{op.part}.weight"], op.epsilon)]


def _channelwise(op: Channelwise, s: Stream) -> None:
    (h,) = s.h
    for step, tensor in op.steps:
        match step:
            case Step.SCALE:
                h = h * s.weights[f"{op.part}.{tensor}"]
            case Step.SHIFT:
                h = h + s.weights[f"{op.part}.{tensor}"]
            case Step.TANH:
                h = np.tanh(h)
    s.h = [h]


def _linear(op: Linear, s: Stream) -> None:
    (h,) = s.h
    s.h = [h @ s.weights[f"{part}.weight"].T for part, _ in op.parts]
    if op.bias:
        s.h = [value + s.weights[f"{part}.bias"] for value, (part, _) in zip(s.h, op.parts, strict=True)]


def _heads(x: np.ndarray, head_dim: int) -> np.ndarray:
    """Heads side by side [R, heads * head_dim] as [R, heads, head_dim]."""
    return x.reshape(len(x), -1, head_dim)


def _head_norm(op: HeadNorm, s: Stream) -> None:
    q, k, *values = s.h
    v = k if op.shared else values[0]
    q, k = (
        rms_norm(_heads(x, op.head_dim), s.weights[f"{name}.weight"], op.epsilon).reshape(x.shape)
        for x, name in ((q, "q_norm"), (k, "k_norm"))
    )
    if op.values:
        v = rms_norm(_heads(v, op.head_dim), np.ones(op.head_dim, np.float32), op.epsilon).reshape(v.shape)
    s.h = [q, k, v]


def _rope(op: Rope, s: Stream) -> None:
    if (key := (op.rotary_dim, op.rotation)) not in s.angles:
        s.angles[key] = rope_tables(s.positions, op.frequencies)
    tables, (q, k, v) = s.angles[key], s.h
    s.h = [*(rotate(_heads(x, op.head_dim), *tables).reshape(x.shape) for x in (q, k)), v]


def _attention(op: Attention, s: Stream) -> None:
    q_RHD, *own = (_heads(x, op.head_dim) for x in s.h)
    for name, value in zip("kv", own, strict=True):
        if name not in s.kept:
            s.kept[name] = np.zeros((len(s.tokens), op.kv_heads, op.head_dim), np.float32)
        s.kept[name][s.rows] = value
    k_SHD, v_SHD = (np.repeat(s.kept[name], op.heads // op.kv_heads, axis=1) for name in "kv")
    scores_HRS = np.einsum("rhd,shd->hrs", q_RHD, k_SHD) * np.float32(op.scale)
    for seen in (s.visible, _inside(op, s)):
        if seen is not None:
            scores_HRS = np.where(seen, scores_HRS, np.float32(-np.inf))
    s.h = [np.einsum("hrs,shd->rhd", softmax(scores_HRS), v_SHD).reshape(len(q_RHD), -1)]


def _inside(op: Attention, s: Stream) -> np.ndarray | None:
    """The keys [R, S] inside of the window of each row; None: there is none."""
    if op.window is None:
        return None
    begins, keys = s.positions if s.begins is None else s.begins, np.arange(len(s.tokens))
    inside = keys > begins[:, None] - op.window
    return inside & (keys < begins[:, None] + op.window) if op.mask is Mask.FULL else inside


def _gated(h: np.ndarray, weights: Mapping[str, np.ndarray], activation: Activation, prefix: str = "") -> np.ndarray:
    """A gated MLP whose parts begin with `prefix`."""
    gate, up, down = (weights[f"{prefix}{part}.weight"].T for part in ("ff_proj", "up_proj", "ff_out"))
    return (ACTIVATIONS[activation](h @ gate) * (h @ up)) @ down


def _gated_mlp(op: GatedMlp, s: Stream) -> None:
    s.h = [_gated(s.h[0], s.weights, op.activation)]


def route(
    experts: Experts, logits_RE: np.ndarray, bias: np.ndarray | None, positions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The experts that rows at `positions` [R] take, the best first, and their weights: [R, chosen] each.

    Of equal scores the expert of the lower number counts as the better one.
    """
    match experts.scoring:
        case Scoring.SOFTMAX:
            scores = softmax(logits_RE)
        case Scoring.SIGMOID:
            scores = 1 / (1 + np.exp(-logits_RE))
    ranks = scores.copy() if bias is None else scores + bias
    if experts.groups > 1:
        by_group = ranks.reshape(len(ranks), experts.groups, -1)
        best = np.sort(by_group, axis=-1)[..., -2:].sum(-1)
        kept = np.argsort(-best, axis=-1, kind="stable")[:, : experts.kept_groups]
        among = np.zeros_like(best, bool)
        np.put_along_axis(among, kept, values=True, axis=-1)
        ranks = np.where(among[..., None], by_group, -np.inf).reshape(ranks.shape)
    if experts.block_capacity:
        blocks = positions // experts.block_tokens
        for block in np.unique(blocks):
            best = ranks[blocks == block].max(axis=0)
            left_out = np.argsort(-best, kind="stable")[experts.block_capacity :]
            ranks[np.ix_(blocks == block, left_out)] = -np.inf
    chosen = np.argsort(-ranks, axis=-1, kind="stable")[:, : experts.chosen]
    weights = np.take_along_axis(scores, chosen, axis=-1)
    if experts.normalised:
        weights = weights / (weights.sum(-1, keepdims=True) + np.float32(1e-20))
    return chosen, weights * np.float32(experts.scale)


def _moe(op: Moe, s: Stream) -> None:
    (h,), experts = s.h, op.experts
    result = _gated(h, s.weights, op.activation, "shared_experts.") if experts.shared else np.zeros_like(h)
    seen = h
    if experts.router_norm:
        seen = rms_norm(s.x, s.weights[f"{op.norm.part}.weight"] * np.float32(op.width**-0.5), op.norm.epsilon)
    logits, bias = seen @ s.weights["router.weight"].T, s.weights.get("router.expert_bias")
    chosen, weights = route(experts, logits, bias, s.positions)
    if experts.factors:
        weights = weights * s.weights["router.factors"][chosen]
    for expert in np.unique(chosen):
        rows, places = np.nonzero(chosen == expert)
        own = _gated(h[rows], s.weights, op.activation, f"experts.{expert}.")
        result[rows] += weights[rows, places, None] * own
    s.h = [result]


def _sum(op: Sum, s: Stream) -> None:
    results = []
    for branch in op.branches:
        for operator in branch:
            COMPUTE[type(operator)](operator, s)
        results.append(s.h[0])
    s.h = [sum(results[1:], start=results[0])]


def _residual(op: Residual, s: Stream) -> None:
    s.x = s.x + s.h[0]
    if op.scaled:
        s.x = s.x * s.weights["clean_layer_scale.weight" if s.clean and op.clean_scaled else "layer_scale.weight"]


def _self_conditioning(op: SelfConditioning, s: Stream) -> None:
    assert s.soft is not None
    normed = rms_norm(s.soft, s.weights[f"{op.norm.part}.weight"], op.epsilon)
    told = s.x + _gated(normed, s.weights, op.activation, "self_conditioning.")
    s.x = rms_norm(told, np.ones(op.width, np.float32), op.epsilon)


def _lm_head(op: LmHead, s: Stream) -> None:
    logits = s.h[0] @ s.weights[f"{op.part}.weight"].T
    if op.softcap is not None:
        logits = np.float32(op.softcap) * np.tanh(logits / np.float32(op.softcap))
    s.h = [logits]


COMPUTE: Mapping[type[Operator], Callable[[Any, Stream], None]] = {
    Embedding: _embed, Norm: _norm, Channelwise: _channelwise, Linear: _linear, HeadNorm: _head_norm, Rope: _rope,
    Attention: _attention, GatedMlp: _gated_mlp, Moe: _moe, Sum: _sum, Residual: _residual,
    SelfConditioning: _self_conditioning, LmHead: _lm_head,
}  # fmt: skip
"""The function of each operator."""


def _named(operators: Sequence[Operator], layer: int | None = None) -> tuple[Sequence[Operator], dict[str, str]]:
    """Operators of a layer (None: outside of all), and the tensor of each part that they read."""
    parts = [part.name for each in operators for weight in each.weights for part in weight.parts]
    return operators, {part: tensor_name(part, layer) for part in parts}


class ReferenceModel:
    """The operators of a model over one sequence without padding; positions count from its first token.

    `tensors` are float32 under our names (`model.transformer.blocks.0.q_proj.weight`, ...).
    """

    def __init__(self, spec: ModelSpec, tensors: Mapping[str, np.ndarray]) -> None:
        self.spec, self.network, self._tensors = spec, spec.network, tensors
        self.network.check(COMPUTE, "the NumPy reference", traits=ALL_TRAITS)
        self._stem, self._head = _named(self.network.stem), _named(self.network.head)
        self._conditioning = _named(self.network.conditioning)
        self._layers = [_named(pattern, number) for number, pattern in self.network.layers()]

    def new_cache(self) -> Cache:
        """An empty KV cache."""
        return [{} for _ in self._layers]

    def forward(
        self,
        tokens: np.ndarray,
        rows: slice = slice(None),
        cache: Cache | None = None,
        visible: np.ndarray | None = None,
        begins: np.ndarray | None = None,
        *,
        soft: np.ndarray | None = None,
        clean: bool = False,
    ) -> np.ndarray:
        """Hidden states [R, hidden] of `rows` before the final norm; every row attends to all of `tokens` [S], or to those
        where `visible` [R or 1, S] is true. Windows count from the places `begins` [R], or from the rows themselves.
        A self-conditioned model reads the soft tokens `soft` [R, hidden] too (None: zeros), but not in a `clean` pass.

        K and V of `rows` are overwritten in `cache`, those of the other tokens stay as they are: a warm step passes all
        rows, a refine step the rows its cache policy recomputes. Without a cache `rows` must be all that can be seen.
        """
        cache = self.new_cache() if cache is None else cache
        positions = np.arange(len(tokens))[rows]
        soft = np.zeros((len(positions), self.spec.hidden), np.float32) if soft is None else soft
        stream = Stream(tokens=tokens, rows=rows, positions=positions, x=np.zeros(0, np.float32), begins=begins, soft=soft,
                        clean=clean)  # fmt: skip
        self._run(stream, *self._stem)
        if not clean:
            self._run(stream, *self._conditioning)
        for layer, kept in zip(self._layers, cache, strict=True):
            stream.kept, stream.visible = kept, visible
            self._run(stream, *layer)
        return stream.x

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """Final norm and LM head: [R, vocab]."""
        nothing = np.zeros(0, np.int64)
        stream = Stream(tokens=nothing, rows=slice(None), positions=nothing, x=hidden)
        self._run(stream, *self._head)
        return stream.h[0]

    def soft_tokens(self, shares_RV: np.ndarray) -> np.ndarray | None:
        """The embeddings [R, hidden] that distributions over the vocabulary expect; None where no operator reads them."""
        for each in self.network.conditioning:
            assert isinstance(each, SelfConditioning)
            return shares_RV @ self._tensors[tensor_name("wte.weight")] * np.float32(each.scale)
        return None

    def _run(self, stream: Stream, operators: Sequence[Operator], names: Mapping[str, str]) -> None:
        stream.weights = {part: self._tensors[name] for part, name in names.items()}
        for operator in operators:
            COMPUTE[type(operator)](operator, stream)
