"""A LLaDA-style transformer over a left-padded batch, with fake quantisation of weights, activations, KV and logits.

Rounding points are those of docs/numerics.md where `lanes` is bf16; the order of FP32 sums and the functions exp, 1/x
and 1/sqrt(x) are torch's, so bits may differ from the executor's.

Shape suffixes: B sequences, R rows computed, T tokens of the canvas, H KV heads, G query heads per KV head, D head_dim.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from accuracy.quality.quantise import fake_quantise
from accuracy.quality.schemes import KvScheme, Side, SideRules, hadamard
from dllm.model import ModelSpec
from dllm.workload import Numerics
from npu.formats import FORMATS, MX_BLOCK

LOWEST = -float.fromhex("0x1.fep127")
"""A masked score: the lowest finite BF16."""
_PREFIX = "model.transformer."


@dataclass(frozen=True, kw_only=True, slots=True)
class Arithmetic:
    """Formats of weights, of activations at the array, of the KV cache and of the logits, as in `conf/numerics`.

    `lanes` is what the vector unit rounds to between operations (bf16 as on the machine, or fp32), `sampling` what
    confidences are computed in (bf16: as on the machine; fp32; fp64). `token_block` are the tokens of a block that runs
    along tokens (the machine: min(block_size, block length)), `block_size` the elements of any other; `key_tile` the keys
    merged at a time (None: all at once).
    """

    weights: str = "fp32"
    activations: str = "fp32"
    kv: str = "fp32"
    logits: str = "fp32"
    lanes: str = "fp32"
    sampling: str = "fp32"
    token_block: int = 8
    block_size: int = MX_BLOCK
    key_tile: int | None = None
    kv_scheme: KvScheme = field(default_factory=KvScheme)

    @classmethod
    def of(cls, numerics: Numerics, block_length: int) -> "Arithmetic":
        """The arithmetic of a program of these numerics, its keys merged all at once."""
        return cls(
            weights=numerics.weights, activations=numerics.activations, kv=numerics.kv, logits=numerics.logits, lanes="bf16",
            sampling=numerics.confidences, token_block=min(numerics.block_size, block_length),
            block_size=numerics.block_size, kv_scheme=KvScheme.of(numerics),
        )  # fmt: skip


Calibration = list[dict[str, tuple[Tensor, Tensor]]]
"""Per layer, for `k` and `v`: channel maxima and means of a calibration set, [1, H, 1, D] each."""


Probe = Callable[[int, Tensor, Tensor], None]


@dataclass(kw_only=True)
class Batch:
    """A left-padded batch on the way through the decoder: which tokens are real, RoPE tables, and the cache.

    `probe`, where given, is called in every layer: see `StudyModel.forward`.
    """

    real: Tensor
    cosine: Tensor
    sine: Tensor
    sides: list[dict[str, Side]]
    loaded: list[dict[str, Tensor]]
    probe: Probe | None = None


class StudyModel:
    """Weights in their format, and the forward pass. `tensors` are float32 under LLaDA's names."""

    def __init__(
        self, spec: ModelSpec, tensors: Mapping[str, np.ndarray], arithmetic: Arithmetic | None = None,
        calibration: Calibration | None = None,
    ) -> None:  # fmt: skip
        self.spec, self.arithmetic, self.calibration = spec, arithmetic or Arithmetic(), calibration
        self.lanes = _rounding(self.arithmetic.lanes)
        self.noise: Callable[[Tensor, bool], Tensor] | None = None
        """Perturbs FP32 results before they are rounded (whether they are sums of products, or exp, 1/x, 1/sqrt(x) and
        what these multiply): tests bound with it what other orders of sums and other tables may do."""
        self.weights: dict[str, Tensor] = {}
        for name, value in tensors.items():
            weight = torch.from_numpy(np.array(value, np.float32))
            short = name.removeprefix(_PREFIX).removesuffix(".weight")
            in_lanes = weight.ndim == 1 or short == "wte"  # norms, biases and the embedding never enter the array
            self.weights[short] = (
                self.lanes(weight)
                if in_lanes
                else fake_quantise(weight, self.arithmetic.weights, block=self.arithmetic.block_size)
            )
        self.rotation = (
            self.lanes(hadamard(spec.head_dim)) if self.arithmetic.kv_scheme.smoother == "hadamard" else None
        )

    def new_batch(self, first_B: Tensor, canvas: int) -> Batch:
        """An empty cache for sequences whose first real token is `first_B`, on a canvas of `canvas` tokens."""
        half = self.spec.head_dim // 2
        frequency = self.spec.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
        real = torch.arange(canvas) >= first_B[:, None]
        position = (torch.arange(canvas) - first_B[:, None]).clamp(min=0)
        angle = position[:, None, :, None] * frequency
        cosine, sine = (self.lanes(table.to(torch.float32)) for table in (angle.cos(), angle.sin()))
        layers = range(self.spec.layers)
        return Batch(real=real, cosine=cosine, sine=sine, sides=[{} for _ in layers], loaded=[{} for _ in layers])

    def forward(self, tokens_BT: Tensor, rows: slice, batch: Batch, *, block: int = 0) -> Tensor:
        """Hidden states [B, R, hidden] of `rows`; K and V of `rows` are overwritten in the cache (all rows: warm step).

        `batch.probe(layer, attended, exact)` gets the attention output [B, R, width] and the one that an unquantised
        cache gives for the same Q, K and V.
        """
        x = self.weights["wte"][tokens_BT[:, rows]]
        for layer in range(self.spec.layers):
            name = f"blocks.{layer}."
            h = self._norm(x, name + "attn_norm") * batch.real[:, rows, None]
            attended = self._attention(h, layer, rows, batch, block)
            x = self.lanes(x + self._linear(attended, name + "attn_out"))
            h = self._norm(x, name + "ff_norm")
            gate, up = self._linear(h, name + "ff_proj"), self._linear(h, name + "up_proj")
            sigmoid = self._rounded(1 / self.lanes(1 + self._rounded((-gate).exp())))
            x = self.lanes(x + self._linear(self.lanes(self.lanes(sigmoid * gate) * up), name + "ff_out"))
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm, LM head and the logits' way through HBM: [B, R, vocab]."""
        logits = self._linear(self._norm(hidden, "ln_f"), "ff_out")
        return self.lanes(fake_quantise(logits, self.arithmetic.logits, block=self.arithmetic.block_size))

    def _rounded(self, x: Tensor, *, product: bool = False) -> Tensor:
        """An FP32 result, whose last bits are not the executor's, as the lanes keep it."""
        return self.lanes(x if self.noise is None else self.noise(x, product))

    def _norm(self, x: Tensor, weight: str) -> Tensor:
        factor = (x.square().mean(-1, keepdim=True) + self.spec.rms_eps).rsqrt()
        return self.lanes(self._rounded(x * factor) * self.weights[weight])

    def _linear(self, x: Tensor, weight: str) -> Tensor:
        acts = fake_quantise(x, self.arithmetic.activations, block=self.arithmetic.block_size)
        return self._rounded(acts @ self.weights[weight].T, product=True)

    def _projected(self, h: Tensor, weight: str, real_BR: Tensor) -> Tensor:
        """Q, K or V, with its bias if it has one; rows of padding stay zero."""
        bias, x = self.weights.get(weight + ".bias"), self._linear(h, weight)
        return x if bias is None else self.lanes(x + bias) * real_BR[..., None]

    def _rotate(self, x: Tensor, batch: Batch, rows: slice) -> Tensor:
        """RoPE by halves on [B, heads, R, D]; rows of padding become zero."""
        cosine, sine = batch.cosine[:, :, rows], batch.sine[:, :, rows]
        low, high = x.chunk(2, dim=-1)
        turned = torch.cat([low * cosine - high * sine, high * cosine + low * sine], -1)
        return self.lanes(turned * batch.real[:, None, rows, None])

    def _rules(self, layer: int, side: str) -> SideRules:
        a, scheme = self.arithmetic, self.arithmetic.kv_scheme
        wanted = scheme.keys if side == "k" else scheme.values
        static = scheme.smoother == "static"
        assert not static or self.calibration is not None, "the static scheme needs a calibration"
        return SideRules(
            scheme=scheme, format=a.kv, axis=scheme.k_axis if side == "k" else scheme.v_axis,
            token_block=a.token_block, smoothed=wanted and scheme.smooths, pairs=side == "k" and scheme.pre_rope,
            block_size=a.block_size, lanes=self._rounded,
            calibrated=self.calibration[layer][side] if static and self.calibration else None,
        )  # fmt: skip

    def _attention(self, h: Tensor, layer: int, rows: slice, batch: Batch, block: int) -> Tensor:
        spec, scheme, name = self.spec, self.arithmetic.kv_scheme, f"blocks.{layer}."
        q, k, v = (
            self._projected(h, name + part, batch.real[:, rows]).unflatten(-1, (-1, spec.head_dim)).transpose(1, 2)
            for part in ("q_proj", "k_proj", "v_proj")
        )
        q = self.lanes(self._rotate(q, batch, rows) * spec.head_dim**-0.5)
        if not scheme.pre_rope:
            k = self._rotate(k, batch, rows)
        turn_k, turn_v = (self.rotation if wanted else None for wanted in (scheme.keys, scheme.values))
        turned = (q, k, v)
        if turn_k is not None:
            turned = (self._rounded(q @ turn_k, product=True), self._rounded(k @ turn_k, product=True), turned[2])
        if turn_v is not None:
            turned = (*turned[:2], self._rounded(v @ turn_v, product=True))
        sides, loaded = batch.sides[layer], batch.loaded[layer]
        for side, value in zip("kv", turned[1:], strict=True):
            if side not in sides:
                shape = (value.shape[0], value.shape[1], batch.real.shape[1], value.shape[3])
                sides[side] = Side(self._rules(layer, side), value.new_zeros(shape), batch.real)
            self._load(loaded, side, sides[side], sides[side].write(value, rows, block=block), batch)
        attended = self._read(turned[0], loaded["k"], loaded["v"], batch.real, sides["k"].s)
        keys, values = sides["k"], sides["v"]
        group = spec.heads // spec.kv_heads
        if values.s is not None:
            attended = self.lanes(attended * values.s.repeat_interleave(group, 1))
        if values.m is not None:
            attended = self.lanes(attended + values.m.repeat_interleave(group, 1))
        if turn_v is not None:
            attended = self._rounded(attended @ turn_v.T, product=True)
        if batch.probe is not None:
            raw = self._rotate(keys.raw, batch, slice(None)) if scheme.pre_rope else keys.raw
            exact = _exact_attention(turned[0], raw, values.raw, batch.real)
            exact = exact if turn_v is None else exact @ turn_v.T
            batch.probe(layer, attended, exact)
        return attended.transpose(1, 2).flatten(2)

    def _load(self, loaded: dict[str, Tensor], side: str, kept: Side, changed: slice, batch: Batch) -> None:
        """What the array sees of the rows that changed: as stored, or rotated on load where keys lie before RoPE."""
        if side == "v" or not self.arithmetic.kv_scheme.pre_rope:
            loaded[side] = kept.stored
            return
        values = kept.stored[:, :, changed]
        if kept.m is not None and kept.s is not None:
            values = self.lanes(values + self.lanes(kept.m / kept.s))
        if side not in loaded:
            loaded[side] = torch.zeros_like(kept.stored)
        loaded[side][:, :, changed] = self._rotate(values, batch, changed)

    def _read(self, q_BhRD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, real_BT: Tensor, s: Tensor | None) -> Tensor:
        """Attention output [B, heads, R, D] by the machine's online softmax over tiles of keys."""
        a, canvas = self.arithmetic, real_BT.shape[1]
        q = _grouped(q_BhRD, k_BHTD.shape[1])
        if s is not None:
            q = self.lanes(q * s)
        q = fake_quantise(q, a.activations, block=a.block_size)
        mask = torch.where(real_BT, 0.0, LOWEST)[:, None, None]
        tile = a.key_tile or canvas
        largest, total, out = torch.tensor(LOWEST), torch.tensor(0.0), torch.tensor(0.0)
        for stop in range(canvas % tile or tile, canvas + 1, tile):
            part = slice(max(0, stop - tile), stop)
            scores = self._rounded(q @ k_BHTD[:, :, part].transpose(-1, -2), product=True) + mask[..., part]
            new = torch.maximum(largest, scores.amax(-1, keepdim=True))
            weight = self._rounded(self.lanes(scores - new).exp())
            correction, largest = (largest - new).exp(), new
            total = total * correction + weight.sum(-1, keepdim=True)
            block = a.token_block if FORMATS[a.activations].block_scaled else 1
            weight = fake_quantise(weight, a.activations, block=block)
            partial = self._rounded(weight @ v_BHTD[:, :, part], product=True)
            out = self.lanes(self._rounded(out * correction) + partial)
        return self._rounded(out * (1 / total)).unflatten(2, (-1, q_BhRD.shape[2])).flatten(1, 2)


def _exact_attention(q_BhRD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, real_BT: Tensor) -> Tensor:
    """Attention output of unquantised K and V in FP32 ([B, heads, R, D]); q is scaled already."""
    scores = _grouped(q_BhRD, k_BHTD.shape[1]) @ k_BHTD.transpose(-1, -2)
    weight = scores.masked_fill(~real_BT[:, None, None], LOWEST).softmax(-1)
    return (weight @ v_BHTD).unflatten(2, (-1, q_BhRD.shape[2])).flatten(1, 2)


def _grouped(q_BhRD: Tensor, kv_heads: int) -> Tensor:
    """The query heads of one KV head side by side: [B, H, G R, D]."""
    return q_BhRD.unflatten(1, (kv_heads, -1)).flatten(2, 3)


def _rounding(format: str) -> Callable[[Tensor], Tensor]:
    return lambda x: fake_quantise(x, format)
