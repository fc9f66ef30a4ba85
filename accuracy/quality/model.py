"""A LLaDA-style transformer over a left-padded batch, with fake quantisation of weights, activations, KV and logits.

Rounding points are those of docs/numerics.md where `lanes` is bf16; the order of FP32 sums and the functions exp, 1/x
and 1/sqrt(x) are torch's, so bits may differ from the executor's.

Shape suffixes: B sequences, R rows computed, T tokens of the canvas, H KV heads, G query heads per KV head, D head_dim.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from accuracy.quality.quantise import fake_quantise
from accuracy.quality.schemes import Batch, Side, hadamard
from dllm.constants import LOWEST
from dllm.experts import Scoring
from dllm.families import PREFIX
from dllm.layout import check_smoothing
from dllm.model import ModelSpec
from dllm.numerics import SIDES, Numerics
from dllm.operators import (
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
    Trait,
)
from dllm.policies import Smoother
from dllm.rotary import Rotation
from npu.errors import TripathError
from npu.formats import FORMATS, MX_BLOCK

UNQUANTISED = Numerics(weights="fp32", activations="fp32", kv="fp32", logits="fp32", router="fp32", confidences="fp32")
"""Everything in FP32."""

Calibration = list[dict[str, tuple[Tensor, Tensor]]]
"""Per layer, for `keys` and `values`: channel maxima and means of a calibration set, [1, H, 1, D] each."""


class StudyModel:
    """Weights in their format, and the forward pass.

    Attributes:
        lanes: Format to which the vector unit rounds between operations.
        noise: Perturbs FP32 results before they are rounded (whether they are sums of products, or exp, 1/x, 1/sqrt(x) and
            what these multiply): tests bound with it what other orders of sums and other tables may do.
    """

    def __init__(
        self, spec: ModelSpec, tensors: Mapping[str, np.ndarray], numerics: Numerics = UNQUANTISED,
        block_length: int = MX_BLOCK, *, lanes: str = "fp32", key_tile: int | None = None,
        calibration: Calibration | None = None, quantised: Sequence[str] = SIDES,
    ) -> None:  # fmt: skip
        """Round the weights.

        `tensors` are float32 under LLaDA's names; `block_length` is that of the generation; `lanes` a format, bf16 on the
        machine; `key_tile` the keys merged at a time (None: all at once); of the cache the sides `quantised` are in its
        format, the others in BF16.
        """
        self.spec, self.numerics, self.block_length = spec, numerics, block_length
        self.key_tile, self.calibration, self.quantised = key_tile, calibration, quantised
        self.network = spec.network
        self.network.check(
            COMPUTE, "the reference path", traits={Trait.CAUSAL, Trait.TIED, Trait.WINDOW, Trait.SHARED_KV}
        )
        check_smoothing(spec, numerics.smoothing)
        if spec.head_dim % MX_BLOCK:
            raise TripathError(
                f"model.head_dim: the quality path needs whole blocks of {MX_BLOCK}, got {spec.head_dim}"
            )
        self.lanes = _rounding(lanes)
        self.noise: Callable[[Tensor, bool], Tensor] | None = None
        self.weights: dict[str, Tensor] = {}
        named = {name.removeprefix(PREFIX).removesuffix(".weight"): value for name, value in tensors.items()}
        if spec.tied_embeddings:
            named["ff_out"] = named["wte"]  # kept once more, for the array
        for short, value in named.items():
            weight = torch.from_numpy(np.array(value, np.float32))
            if short.endswith("layer_scale"):  # a number in FP SRAM
                self.weights[short] = weight
                continue
            in_lanes = weight.ndim == 1 or short == "wte"  # norms, biases and the embedding never enter the array
            kept = numerics.router if short.endswith(".router") else numerics.weights
            self.weights[short] = (
                self.lanes(weight) if in_lanes else fake_quantise(weight, kept, block=numerics.block_size)
            )
        self.rotation = self.lanes(hadamard(spec.head_dim)) if numerics.smoothing.mixed else None

    def new_batch(self, first_B: Tensor, canvas: int) -> Batch:
        """An empty cache for sequences whose first real token is `first_B`, on a canvas of `canvas` tokens."""
        real = torch.arange(canvas) >= first_B[:, None]
        position = (torch.arange(canvas) - first_B[:, None]).clamp(min=0)
        tables: dict[Rotation, tuple[Tensor, Tensor]] = {}
        for each in self.spec.geometries:
            angle = position[:, None, :, None] * torch.tensor(each.rotation.frequencies(each.turned_channels))
            cosine, sine = (self.lanes(table.to(torch.float32)) for table in (angle.cos(), angle.sin()))
            tables[each.rotation] = cosine, sine
        layers = range(self.spec.layers)
        return Batch(real=real, tables=tables, sides=[{} for _ in layers], loaded=[{} for _ in layers])

    def forward(
        self, tokens_BT: Tensor, rows: slice, batch: Batch, *, block: int = 0, soft: Tensor | None = None
    ) -> Tensor:
        """Hidden states [B, R, hidden] of `rows`; K and V of `rows` are overwritten in the cache (all rows: warm step).

        `soft` [B, R, hidden] are soft tokens of a self-conditioned model; None: all tokens are finished ones.

        `batch.probe(layer, attended, exact)` gets the attention output [B, R, width] and the one that an unquantised
        cache gives for the same Q, K and V.
        """
        real = batch.real[:, rows, None]
        flow = Flow(
            model=self, batch=batch, tokens=tokens_BT, rows=rows, block=block, x=torch.zeros(0), real=real, soft=soft
        )
        flow.run(self.network.stem)
        if soft is not None:
            flow.run(self.network.conditioning)
        for layer, pattern in self.network.layers():
            flow.layer, flow.prefix = layer, f"blocks.{layer}."
            flow.run(pattern)
        return flow.x

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm, LM head and the logits' way through HBM: [B, R, vocab]."""
        nothing = torch.zeros(0)
        flow = Flow(model=self, batch=None, tokens=nothing, rows=slice(None), block=0, x=hidden)
        flow.run(self.network.head)
        return self.lanes(fake_quantise(flow.h[0], self.numerics.logits, block=self.numerics.block_size))

    def rounded(self, x: Tensor, *, product: bool = False) -> Tensor:
        """An FP32 result, whose last bits are not the executor's, as the lanes keep it."""
        return self.lanes(x if self.noise is None else self.noise(x, product))

    def norm(self, x: Tensor, weight: str | None, epsilon: float, scale: float = 1.0) -> Tensor:
        """RMS norm along the last axis, rounded as the lanes round it; no weight: without factors, which `scale` multiplies."""
        factor = (x.square().mean(-1, keepdim=True) + epsilon).rsqrt()
        normed = self.rounded(x * factor)
        return normed if weight is None else self.lanes(normed * self.lanes(self.weights[weight] * scale))

    def linear(self, x: Tensor, weight: str) -> Tensor:
        """A product on the array."""
        acts = fake_quantise(x, self.numerics.activations, block=self.numerics.block_size)
        return self.rounded(acts @ self.weights[weight].T, product=True)

    def activate(self, gate: Tensor, activation: Activation) -> Tensor:
        """Apply the activation of a gated MLP to its gate, operation by operation."""
        match activation:
            case Activation.SILU:
                sigmoid = self.rounded(1 / self.lanes(1 + self.rounded((-gate).exp())))
                return self.lanes(sigmoid * gate)
            case Activation.GELU_TANH:
                cubic, slope = (self.scalar(value) for value in (GELU_CUBIC, GELU_SLOPE))
                bent = self.lanes(1 + self.lanes(self.lanes(gate * gate) * cubic))
                turned = self.rounded(self.lanes(self.lanes(bent * gate) * slope).tanh())
                return self.lanes(self.lanes(1 + turned) * gate) / 2

    def scalar(self, value: float) -> float:
        """A constant as FP SRAM keeps it."""
        return float(np.float32(value))

    def rotate(self, x: Tensor, batch: Batch, rows: slice, rotation: Rotation | None = None) -> Tensor:
        """RoPE by halves on [B, heads, R, D], by the model's angles or those of some layers; rows of padding become zero."""
        cosine, sine = (table[:, :, rows] for table in batch.tables[rotation or self.spec.rotation])
        low, high = x.chunk(2, dim=-1)
        turned = torch.cat([low * cosine - high * sine, high * cosine + low * sine], -1)
        return self.lanes(turned * batch.real[:, None, rows, None])

    def _side(self, layer: int, side: str, value: Tensor, batch: Batch) -> Side:
        """An empty cache for rows like `value` [B, heads, R, D]."""
        static = self.numerics.smoothing.smoother is Smoother.STATIC
        assert not static or self.calibration is not None, "the static scheme needs a calibration"
        raw = value.new_zeros(value.shape[0], value.shape[1], batch.real.shape[1], value.shape[3])
        return Side(
            side, self.numerics, raw, batch.real, block_length=self.block_length, lanes=self.rounded,
            format=self.numerics.kv if side in self.quantised else "bf16",
            calibrated=self.calibration[layer][side] if static and self.calibration else None,
        )  # fmt: skip

    def attend(
        self, op: Attention, heads: tuple[Tensor, Tensor, Tensor], layer: int, rows: slice, batch: Batch, block: int
    ) -> Tensor:
        """Attention output [B, R, width] of Q, K, V [B, heads, R, D], Q scaled; K and V go through the cache."""
        smoothing = self.numerics.smoothing
        q, k, v = heads
        turn_k, turn_v = (self.rotation if side in smoothing.mixed else None for side in SIDES)
        turned = (q, k, v)
        if turn_k is not None:
            turned = (self.rounded(q @ turn_k, product=True), self.rounded(k @ turn_k, product=True), turned[2])
        if turn_v is not None:
            turned = (*turned[:2], self.rounded(v @ turn_v, product=True))
        sides, loaded = batch.sides[layer], batch.loaded[layer]
        due = batch.reuse.due(layer, turned[2], sides["values"].raw if sides else None)
        for side, value in zip(SIDES, turned[1:], strict=True):
            if side not in sides:
                sides[side] = self._side(layer, side, value, batch)
            changed = sides[side].write(value, rows, block=block, due_BT=None if due is None else due[side])
            self._load(loaded, side, sides[side], changed, batch)
        keys, values = (sides[side] for side in SIDES)
        cached = loaded["keys"] if keys.s is None else loaded["keys"] * keys.s
        visible = batch.reuse.seen(layer, turned[0], cached, self._visible(op, rows, batch))
        attended = self._read(turned[0], loaded["keys"], loaded["values"], visible, keys.s)
        group = op.heads // op.kv_heads
        if values.s is not None:
            attended = self.lanes(attended * values.s.repeat_interleave(group, 1))
        if values.m is not None:
            attended = self.lanes(attended + values.m.repeat_interleave(group, 1))
        if turn_v is not None:
            attended = self.rounded(attended @ turn_v.T, product=True)
        if batch.probe is not None:
            raw = self.rotate(keys.raw, batch, slice(None)) if smoothing.pre_rope else keys.raw
            exact = _exact_attention(turned[0], raw, values.raw, visible)
            exact = exact if turn_v is None else exact @ turn_v.T
            if due is not None:  # of the other rows the policy computes nothing
                attended, exact = (each * due["keys"][:, None, rows, None] for each in (attended, exact))
            batch.probe(layer, attended, exact)
        return attended.transpose(1, 2).flatten(2)

    def _visible(self, op: Attention, rows: slice, batch: Batch) -> Tensor:
        """Keys that rows see, of each sequence [B, R or 1, T]."""
        real_B1T, places = batch.real[:, None], torch.arange(batch.real.shape[1])
        if op.window is not None:
            inside = places > places[rows, None] - op.window
            real_B1T = real_B1T & inside
            if op.mask is Mask.FULL:
                real_B1T = real_B1T & (places < places[rows, None] + op.window)
        match op.mask:
            case Mask.FULL:
                return real_B1T
            case Mask.CAUSAL:
                return real_B1T & (places <= places[rows, None])
            case Mask.BLOCK_CAUSAL:
                raise AssertionError("refused with the model's traits")

    def _load(self, loaded: dict[str, Tensor], side: str, kept: Side, changed: slice, batch: Batch) -> None:
        """Load the changed rows for the array: as stored, or rotated on load where keys are cached before RoPE."""
        if side == "values" or not self.numerics.smoothing.pre_rope:
            loaded[side] = kept.stored
            return
        values = kept.stored[:, :, changed]
        if kept.m is not None and kept.s is not None:
            values = self.lanes(values + self.lanes(kept.m / kept.s))
        if side not in loaded:
            loaded[side] = torch.zeros_like(kept.stored)
        loaded[side][:, :, changed] = self.rotate(values, batch, changed)

    def _read(self, q_BhRD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, visible_BRT: Tensor, s: Tensor | None) -> Tensor:
        """Attention output [B, heads, R, D] by the machine's online softmax over tiles of keys."""
        numerics, canvas = self.numerics, visible_BRT.shape[2]
        q = _grouped(q_BhRD, k_BHTD.shape[1])
        if s is not None:
            q = self.lanes(q * s)
        q = fake_quantise(q, numerics.activations, block=numerics.block_size)
        mask = torch.where(_of_queries(visible_BRT, q.shape[2]), 0.0, LOWEST)
        tile = self.key_tile or canvas
        largest, total, out = torch.tensor(LOWEST), torch.tensor(0.0), torch.tensor(0.0)
        for stop in range(canvas % tile or tile, canvas + 1, tile):
            part = slice(max(0, stop - tile), stop)
            scores = self.rounded(q @ k_BHTD[:, :, part].transpose(-1, -2), product=True) + mask[..., part]
            new = torch.maximum(largest, scores.amax(-1, keepdim=True))
            weight = self.rounded(self.lanes(scores - new).exp())
            correction, largest = (largest - new).exp(), new
            total = total * correction + weight.sum(-1, keepdim=True)
            block = numerics.token_block(self.block_length) if FORMATS[numerics.activations].block_scaled else 1
            weight = fake_quantise(weight, numerics.activations, block=block)
            partial = self.rounded(weight @ v_BHTD[:, :, part], product=True)
            out = self.lanes(self.rounded(out * correction) + partial)
        return self.rounded(out * (1 / total)).unflatten(2, (-1, q_BhRD.shape[2])).flatten(1, 2)


@dataclass(kw_only=True)
class Flow:
    """A forward on its way through the operators: the residual stream `x`, and `h`, which the last operator left.

    `h` has a tensor [B, R, width] for each part of the last result (Q, K and V stand apart); `real` [B, R, 1] is 0 for rows
    of padding; `soft` [B, R, hidden] are soft tokens, None in a pass over finished tokens.
    """

    model: StudyModel
    batch: Batch | None
    tokens: Tensor
    rows: slice
    block: int
    x: Tensor
    h: list[Tensor] = field(default_factory=list)
    layer: int = 0
    prefix: str = ""
    real: Tensor = field(default_factory=lambda: torch.ones(()))
    soft: Tensor | None = None

    def run(self, operators: Sequence[Operator]) -> None:
        """Compute one operator after the other."""
        for operator in operators:
            COMPUTE[type(operator)](operator, self)


def _heads(x: Tensor, head_dim: int) -> Tensor:
    """Heads side by side as [B, heads, R, D]."""
    return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def _embed(op: Embedding, f: Flow) -> None:
    f.x = f.model.weights["wte"][f.tokens[:, f.rows]]
    if op.scale != 1:
        f.x = f.model.lanes(f.x * f.model.scalar(op.scale))


def _norm(op: Norm, f: Flow) -> None:
    if op.of_result:
        f.h = [f.model.norm(f.h[0], f.prefix + op.part, op.epsilon)]
    else:
        f.h = [f.model.norm(f.x, f.prefix + op.part, op.epsilon) * f.real]


def _channelwise(op: Channelwise, f: Flow) -> None:
    model, (h,) = f.model, f.h
    for step, tensor in op.steps:
        name = f"{f.prefix}{op.part}.{tensor}".removesuffix(".weight")
        match step:
            case Step.SCALE:
                h = model.lanes(h * model.weights[name])
            case Step.SHIFT:
                h = model.lanes(h + model.weights[name]) * f.real
            case Step.TANH:
                h = model.rounded(h.tanh())
    f.h = [h]


def _linear(op: Linear, f: Flow) -> None:
    """The parts, each with its bias, which rows of padding do without."""
    model, (h,) = f.model, f.h
    f.h = [model.linear(h, f.prefix + part) for part, _ in op.parts]
    if op.bias:
        f.h = [
            model.lanes(x + model.weights[f"{f.prefix}{part}.bias"]) * f.real
            for x, (part, _) in zip(f.h, op.parts, strict=True)
        ]


def _head_norm(op: HeadNorm, f: Flow) -> None:
    q, k, *values = f.h
    v = k if op.shared else values[0]
    q, k = (
        f.model.norm(x.unflatten(-1, (-1, op.head_dim)), f.prefix + name, op.epsilon).flatten(-2)
        for x, name in ((q, "q_norm"), (k, "k_norm"))
    )
    if op.values:
        v = f.model.norm(v.unflatten(-1, (-1, op.head_dim)), None, op.epsilon).flatten(-2)
    f.h = [q, k, v]


def _rope(op: Rope, f: Flow) -> None:
    """Q, and K unless the cache keeps it as it was; Q is scaled for attention here, as the machine does."""
    model, batch = f.model, f.batch
    assert batch is not None
    q, k, v = (_heads(x, op.head_dim) for x in f.h)
    q = model.lanes(model.rotate(q, batch, f.rows, op.rotation) * model.spec.scores_scale)
    f.h = [q, k if model.numerics.smoothing.pre_rope else model.rotate(k, batch, f.rows, op.rotation), v]


def _attention(op: Attention, f: Flow) -> None:
    q, k, v = f.h
    assert f.batch is not None
    f.h = [f.model.attend(op, (q, k, v), f.layer, f.rows, f.batch, f.block)]


def _gated(model: StudyModel, h: Tensor, activation: Activation, prefix: str) -> Tensor:
    gate, up = model.linear(h, f"{prefix}ff_proj"), model.linear(h, f"{prefix}up_proj")
    return model.linear(model.lanes(model.activate(gate, activation) * up), f"{prefix}ff_out")


def _gated_mlp(op: GatedMlp, f: Flow) -> None:
    f.h = [_gated(f.model, f.h[0], op.activation, f.prefix)]


def _moe(op: Moe, f: Flow) -> None:
    """Scores, choice and weights as the lanes keep them; results are added expert by expert, in order."""
    model, experts, (h,) = f.model, op.experts, f.h
    gates, taken = _route(op, f, h)
    result = torch.zeros_like(h)
    if experts.shared:
        result = _gated(model, h, op.activation, f"{f.prefix}shared_experts.")
    for expert in taken.flatten(0, -2).any(0).nonzero().flatten().tolist():
        rows = taken[..., expert]
        own = _gated(model, h[rows], op.activation, f"{f.prefix}experts.{expert}.")
        own = model.lanes(own * gates[rows][:, expert, None])
        result[rows] = model.lanes(result[rows] + own)
    f.h = [result]


def _route(op: Moe, f: Flow, h: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [B, R, experts], and true where a row, which is no padding, takes an expert."""
    model, experts, numerics = f.model, op.experts, f.model.numerics
    if experts.router_norm:
        h = model.norm(f.x, f.prefix + op.norm.part, op.norm.epsilon, model.scalar(op.width**-0.5))
    acts = fake_quantise(h, numerics.router, block=numerics.block_size)
    logits = model.rounded(acts @ model.weights[f"{f.prefix}router"].T, product=True)
    match experts.scoring:
        case Scoring.SOFTMAX:
            raised = model.rounded(model.lanes(logits - logits.amax(-1, keepdim=True)).exp())
            scores = model.rounded(raised * (1 / raised.sum(-1, keepdim=True)))
        case Scoring.SIGMOID:
            scores = model.rounded(1 / model.lanes(1 + model.rounded((-logits).exp())))
    ranks = model.lanes(scores + model.weights[f"{f.prefix}router.expert_bias"]) if experts.bias else scores
    if experts.groups > 1:
        by_group = ranks.unflatten(-1, (experts.groups, -1))
        best = model.lanes(by_group.topk(2, -1).values.sum(-1))
        kept = _largest(best, experts.kept_groups)
        ranks = by_group.masked_fill(~kept[..., None], -torch.inf).flatten(-2)
    taken = _largest(ranks, experts.chosen) & (f.real > 0)
    gates = scores * taken
    if experts.normalised:
        gates = model.rounded(gates * (1 / (gates.sum(-1, keepdim=True) + 1e-20)))
    gates = model.lanes(gates * experts.scale)
    return model.lanes(gates * model.weights[f"{f.prefix}router.factors"]) if experts.factors else gates, taken


def _sum(op: Sum, f: Flow) -> None:
    results = []
    for branch in op.branches:
        f.run(branch)
        results.append(f.h[0])
    f.h = [results[0]]
    for result in results[1:]:
        f.h = [f.model.lanes(f.h[0] + result)]


def _largest(x: Tensor, count: int) -> Tensor:
    """True at the `count` largest of the last axis; of equal ones the first."""
    order = x.sort(dim=-1, descending=True, stable=True).indices[..., :count]
    return torch.zeros_like(x, dtype=torch.bool).scatter(-1, order, True)


def _residual(op: Residual, f: Flow) -> None:
    assert f.batch is not None
    f.x = f.model.lanes(f.x + f.batch.reuse.result(f.layer, f.h[0]))
    if op.scaled:
        name = "clean_layer_scale" if op.clean_scaled and f.soft is None else "layer_scale"
        f.x = f.model.lanes(f.x * f.model.weights[f.prefix + name])


def _self_conditioning(op: SelfConditioning, f: Flow) -> None:
    assert f.soft is not None
    f.h = [f.model.norm(f.soft, op.norm.part, op.epsilon)]
    told = f.model.lanes(f.x + _gated(f.model, f.h[0], op.activation, "self_conditioning."))
    f.x = f.model.norm(told, None, op.epsilon)


def _lm_head(op: LmHead, f: Flow) -> None:
    model, logits = f.model, f.model.linear(f.h[0], "ff_out")
    if op.softcap is not None:
        logits = model.lanes(logits * model.scalar(1 / op.softcap))
        logits = model.lanes(model.rounded(logits.tanh()) * model.scalar(op.softcap))
    f.h = [logits]


COMPUTE: Mapping[type[Operator], Callable[[Any, Flow], None]] = {
    Embedding: _embed, Norm: _norm, Channelwise: _channelwise, Linear: _linear, HeadNorm: _head_norm, Rope: _rope,
    Attention: _attention, GatedMlp: _gated_mlp, Moe: _moe, Sum: _sum, Residual: _residual,
    SelfConditioning: _self_conditioning, LmHead: _lm_head,
}  # fmt: skip
"""Functions that compute each operator in the formats of a program."""


def _exact_attention(q_BhRD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, visible_BRT: Tensor) -> Tensor:
    """Attention output of unquantised K and V in FP32 ([B, heads, R, D]); q is scaled already."""
    scores = _grouped(q_BhRD, k_BHTD.shape[1]) @ k_BHTD.transpose(-1, -2)
    weight = scores.masked_fill(~_of_queries(visible_BRT, scores.shape[2]), LOWEST).softmax(-1)
    return (weight @ v_BHTD).unflatten(2, (-1, q_BhRD.shape[2])).flatten(1, 2)


def _grouped(q_BhRD: Tensor, kv_heads: int) -> Tensor:
    """The query heads of one KV head side by side: [B, H, G R, D]."""
    return q_BhRD.unflatten(1, (kv_heads, -1)).flatten(2, 3)


def _of_queries(visible_BRT: Tensor, queries: int) -> Tensor:
    """The keys that each of the query heads side by side sees: [B, 1, G R or 1, T]."""
    rows = visible_BRT.shape[1]
    return visible_BRT.repeat(1, queries // rows if rows > 1 else 1, 1)[:, None]


def _rounding(format: str) -> Callable[[Tensor], Tensor]:
    return lambda x: fake_quantise(x, format)
