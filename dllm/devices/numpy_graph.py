"""The calls of dllm/reference.py: products by BLAS, contractions by einsum, and passes over arrays, in FP32.

Engines: `gemm` (FLOP/s); `pack`, `repack` (bytes/s of weights that BLAS copies into its own layout before a product, in its first
pass over the rows and in later ones); `scores`, `mix` (FLOP/s of the contractions of attention); `exp`, `sum`, `max`, `argmax`
(elements/s); `pass` (bytes/s of an elementwise call); `broadcast_row` (rows/s that meet a broadcast operand, by the bytes of a
row). Engines that end in `_seconds` are the cost of one more item: a call of a reduction or with a broadcast operand, beyond that
of an elementwise call (`mean` beyond a reduction); a `split`; a call whose code and data are `cold`; a row that is reduced or
`joined`; an element that `where` chooses. einsum leaves the scores interleaved, [rows, keys, heads] in memory, so a reduction
over keys runs in rows of `heads` elements.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dllm.devices.operation import Operation, Shape
from dllm.model import ModelSpec
from dllm.operators import (
    Activation,
    Attention,
    Channelwise,
    Embedding,
    GatedMlp,
    HeadNorm,
    Linear,
    LmHead,
    Moe,
    Norm,
    Operator,
    Residual,
    Rope,
    SelfConditioning,
    Step,
    Sum,
)

FP32_BYTES = 4


PASS_WIDTH, PASS_STEP = 384, 8
"""Columns of weights that OpenBLAS copies in one pass over their rows at most, and a multiple that it keeps to (SGEMM_DEFAULT_Q
and SGEMM_DEFAULT_UNROLL_M of Haswell and Zen in its param.h; driver/level3/level3.c)."""


KERNEL_ROWS = 4
"""Rows that its kernel computes at a time (SGEMM_DEFAULT_UNROLL_N); one or two that are left take about as long as four."""


def first_pass(k: int) -> int:
    """Of `k` columns of weights those that OpenBLAS copies first: all, half, or a full pass."""
    if k <= PASS_WIDTH or k >= 2 * PASS_WIDTH:
        return min(k, PASS_WIDTH)
    return -(-(k // 2) // PASS_STEP) * PASS_STEP


def gemm(rows: int, k: int, n: int, resident_bytes: float) -> list[Operation]:
    """x[rows, k] @ w[n, k].T; `resident_bytes`: weights of the whole phase, which come round again in the next call.

    Copying weights takes passes over the rows of w. The first finds them where the call before left them. A later one finds in
    addition what the hardware fetched beside the columns of the pass before, if w is small enough to have stayed.
    """
    own, first, computed = FP32_BYTES * k * n, first_pass(k), -(-rows // KERNEL_ROWS) * KERNEL_ROWS
    later = Operation(
        engine="repack", work=own - FP32_BYTES * first * n, launches=0, resident_bytes=resident_bytes, own_bytes=own
    )
    return [
        Operation(engine="gemm", work=2.0 * computed * k * n),
        Operation(engine="pass", work=2 * FP32_BYTES * rows * n, launches=0, resident_bytes=2 * FP32_BYTES * rows * n),
        Operation(engine="pack", work=FP32_BYTES * first * n, launches=0, resident_bytes=resident_bytes),
        *([later] if first < k else []),
    ]


def passes(elements: int, unary: int = 0, binary: int = 0, live: int = 0) -> list[Operation]:
    """Elementwise calls with one and with two operands of `elements`, in an expression that keeps `live` arrays."""
    sizes = [FP32_BYTES * elements * arrays for arrays in [2] * unary + [3] * binary]
    return [
        Operation(engine="pass", work=size, resident_bytes=max(size, FP32_BYTES * elements * live)) for size in sizes
    ]


def elementwise(engine: str, elements: int, live: int) -> Operation:
    """An exponential of `elements`, or the reduction of so many, in an expression that keeps `live` arrays of them."""
    return Operation(engine=engine, work=elements, resident_bytes=FP32_BYTES * elements * live)


def reduction(engine: str, rows: int, width: int, live: int) -> list[Operation]:
    """`sum`, `max` or `argmax` along each of `rows`."""
    return [
        elementwise(engine, rows * width, live), Operation(engine="reduction_seconds", work=1, launches=0),
        Operation(engine="reduced_row_seconds", work=rows, launches=0),
    ]  # fmt: skip


def broadcast(rows: int, width: int, live: int = 0) -> list[Operation]:
    """An elementwise call in which each row meets one number, or one row meets all."""
    row = Operation(engine="broadcast_row", work=rows, launches=0, resident_bytes=FP32_BYTES * width)
    call = Operation(engine="broadcast_seconds", work=1, launches=0)
    return [*passes(rows * width, unary=1, live=live), row, call]


def norm(rows: int, hidden: int) -> list[Operation]:
    """x / sqrt(mean(x * x) + epsilon) * weight: x, quotient and result live."""
    return [
        *passes(rows * hidden, unary=1), *reduction("sum", rows, hidden, 2), *passes(rows, unary=3),
        Operation(engine="mean_seconds", work=1, launches=0), *broadcast(rows, hidden, 3), *broadcast(rows, hidden, 3),
    ]  # fmt: skip


SOFTMAX_LIVE = 4
"""Arrays of softmax that caches have to hold."""


def softmax(rows: int, width: int) -> list[Operation]:
    """Maximum, difference, exponential, sum, quotient of `rows` of `width` elements."""
    return [
        *reduction("max", rows, width, SOFTMAX_LIVE), *broadcast(rows, width, SOFTMAX_LIVE),
        elementwise("exp", rows * width, SOFTMAX_LIVE), *reduction("sum", rows, width, SOFTMAX_LIVE),
        *broadcast(rows, width, SOFTMAX_LIVE),
    ]  # fmt: skip


def rotate(rows: int, heads: int, head_dim: int) -> list[Operation]:
    """Two splits, product with the cosine, a half negated and joined, product with the sine, sum, joined with what stays."""
    n, heads = rows * heads * head_dim, rows * heads
    products = [*broadcast(heads, head_dim), *broadcast(heads, head_dim)]
    calls = [
        Operation(engine="split_seconds", work=2, launches=0), Operation(engine="joined_row_seconds", work=2 * heads, launches=0),
        Operation(engine="broadcast_row", work=heads, launches=0, resident_bytes=FP32_BYTES * head_dim // 2),
    ]  # fmt: skip
    return [*calls, *products, *passes(n // 2, unary=1), *passes(n, unary=2, binary=1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """A forward of `rows` of one sequence against `keys`; `weights_bytes` are those that come round again in the next."""

    rows: int
    keys: int
    weights_bytes: float


def _channelwise(op: Channelwise, p: Pass) -> list[Operation]:
    """A call for each step: with a row that meets all, or, of the hyperbolic tangent, as dear as an exponential."""
    found: list[Operation] = []
    for step, _ in op.steps:
        match step:
            case Step.SCALE | Step.SHIFT:
                found += broadcast(p.rows, op.width)
            case Step.TANH:
                found.append(elementwise("exp", p.rows * op.width, 2))
    return found


def _linear(op: Linear, p: Pass) -> list[Operation]:
    products = [row for _, outputs in op.parts for row in gemm(p.rows, op.inputs, outputs, p.weights_bytes)]
    biases = [row for _, outputs in op.parts for row in broadcast(p.rows, outputs)] if op.bias else []
    return [*products, *biases]


def _head_norms(op: HeadNorm, p: Pass) -> list[Operation]:
    values = [op.kv_heads] if op.values else []
    return [row for heads in (op.heads, op.kv_heads, *values) for row in norm(p.rows * heads, op.head_dim)]


def _rope(op: Rope, p: Pass) -> list[Operation]:
    """Q and K; the tables of angles are made once in a forward."""
    return [*rotate(p.rows, op.heads, op.head_dim), *rotate(p.rows, op.kv_heads, op.head_dim)]


def _attention(op: Attention, p: Pass) -> list[Operation]:
    """K and V into the cache and out of it for every query head, then the two contractions around softmax."""
    pairs = p.rows * p.keys * op.heads
    contraction = 2.0 * pairs * op.head_dim
    return [
        *passes(p.rows * op.kv_width, unary=2), *passes(p.keys * op.query_width, unary=2),
        Operation(engine="scores", work=contraction), *passes(pairs, unary=1), *softmax(p.rows * p.keys, op.heads),
        Operation(engine="mix", work=contraction),
    ]  # fmt: skip


def _gated_mlp(op: GatedMlp, p: Pass) -> list[Operation]:
    """SiLU is absolute value, sign, exponential, comparison, choice, product, sum, quotient; GELU a cube, two products with
    numbers, two sums, a hyperbolic tangent (counted as an exponential), a product and a half; then times the gate."""
    inner = p.rows * op.inner
    match op.activation:
        case Activation.SILU:
            gating = [*passes(inner, unary=4, binary=3, live=5), Operation(engine="choice_seconds", work=inner)]
        case Activation.GELU_TANH:
            gating = passes(inner, unary=5, binary=3, live=5)
    return [
        *gemm(p.rows, op.width, op.inner, p.weights_bytes), *gemm(p.rows, op.width, op.inner, p.weights_bytes),
        elementwise("exp", inner, 5), *gating, *gemm(p.rows, op.inner, op.width, p.weights_bytes),
    ]  # fmt: skip


def _moe(op: Moe, p: Pass) -> list[Operation]:
    """Router, choice by sorting, then for each expert that a row takes its gated MLP and the sum of weighted results."""
    experts, scores = op.experts, p.rows * op.experts.count
    touched = round(experts.count * (1 - (1 - experts.chosen / experts.count) ** p.rows))
    each = replace(p, rows=max(1, round(p.rows * experts.chosen / touched)))
    own = [
        *_gated_mlp(GatedMlp(width=op.width, inner=experts.inner, activation=op.activation), each),
        *passes(each.rows * op.width, unary=2, binary=2),
    ]  # fmt: skip
    beside = GatedMlp(width=op.width, inner=experts.shared, activation=op.activation)
    shared = _gated_mlp(beside, p) if experts.shared else []
    own_norm = [*norm(p.rows, op.width), *passes(op.width, unary=1)] if experts.router_norm else []
    factors = passes(p.rows * experts.chosen, binary=1) if experts.factors else []
    return [
        *own_norm, *factors,
        *gemm(p.rows, op.width, experts.count, p.weights_bytes), *softmax(p.rows, experts.count), *passes(scores, unary=4),
        *own * touched, *shared,
    ]  # fmt: skip


def _sum(op: Sum, p: Pass) -> list[Operation]:
    branches = [row for branch in op.branches for row in _calls(branch, p)]
    return [*branches, *passes(p.rows * op.width, binary=len(op.branches) - 1)]


def _lm_head(op: LmHead, p: Pass) -> list[Operation]:
    """A cap is a quotient, a hyperbolic tangent (counted as an exponential) and a product."""
    logits = p.rows * op.vocab
    cap = [] if op.softcap is None else [*passes(logits, unary=2), elementwise("exp", logits, 2)]
    return [*gemm(p.rows, op.width, op.vocab, p.weights_bytes), *cap]


def _self_conditioning(op: SelfConditioning, p: Pass) -> list[Operation]:
    """Distributions times the embedding, its scale, norm, MLP, sum and norm."""
    mlp = GatedMlp(width=op.width, inner=op.inner, activation=op.activation)
    return [
        *gemm(p.rows, op.vocab, op.width, p.weights_bytes), *passes(p.rows * op.width, unary=1), *norm(p.rows, op.width),
        *_gated_mlp(mlp, p), *passes(p.rows * op.width, binary=1), *norm(p.rows, op.width),
    ]  # fmt: skip


OPERATORS: Mapping[type[Operator], Callable[[Any, Pass], list[Operation]]] = {
    Embedding: lambda op, p: passes(p.rows * op.width, unary=1 if op.scale == 1 else 2),
    Norm: lambda op, p: norm(p.rows, op.width),
    Channelwise: _channelwise, Linear: _linear, HeadNorm: _head_norms, Rope: _rope, Attention: _attention, GatedMlp: _gated_mlp,
    Moe: _moe,
    Sum: _sum,
    Residual: lambda op, p: passes(p.rows * op.width, unary=int(op.scaled), binary=1),
    SelfConditioning: _self_conditioning,
    LmHead: _lm_head,
}  # fmt: skip
"""The calls of the reference model for each operator."""


def _calls(operators: Sequence[Operator], p: Pass) -> list[Operation]:
    """Between two visits of an operator the weights of others pass, so the code and the small data of its calls are cold."""
    rows = [row for each in operators for row in OPERATORS[type(each)](each, p)]
    return [*rows, Operation(engine="cold_seconds", work=sum(row.launches for row in rows), launches=0)]


def forward(model: ModelSpec, rows: int, keys: int, *, clean: bool = False) -> list[Operation]:
    """One forward of `rows` of one sequence against `keys`, LM head left out; a `clean` one is of finished tokens."""
    network = model.network
    macs = network.layer_macs_per_row
    shape = Pass(rows=rows, keys=keys, weights_bytes=FP32_BYTES * macs)
    tables = {
        (each.rotary_dim, each.rotation) for group in network.groups for each in group.pattern if isinstance(each, Rope)
    }
    layers = [row for group in network.groups for row in _calls(group.pattern, shape) * group.repeat]
    angles = [row for rotary_dim, _ in tables for row in passes(rows * rotary_dim, unary=6)]
    conditioning = () if clean else network.conditioning
    return [*angles, *_calls((*network.stem, *conditioning), shape), *layers * network.cycles]


def lm_head(model: ModelSpec, rows: int) -> list[Operation]:
    """Final norm and LM head of `rows`."""
    operators = model.network.head
    macs = sum(each.macs_per_row for each in operators)
    return _calls(operators, Pass(rows=rows, keys=0, weights_bytes=FP32_BYTES * macs))


def sampling(model: ModelSpec, rows: int) -> list[Operation]:
    """Noise added (a number, where none is drawn), argmax, softmax; the choice of the confidence is left out."""
    noisy = passes(rows * model.vocab, unary=1, live=SOFTMAX_LIVE)
    return [*noisy, *reduction("argmax", rows, model.vocab, SOFTMAX_LIVE), *softmax(rows, model.vocab)]


BY_PHASE: Mapping[str, Callable[[ModelSpec, Shape], list[Operation]]] = {
    "prefill": lambda m, s: forward(m, s.canvas, s.canvas, clean=True) * s.batch,
    "refine": lambda m, s: forward(m, s.rows or s.block, s.canvas) * s.batch,
    "lm_head": lambda m, s: lm_head(m, s.block) * s.batch,
    "sampling": lambda m, s: sampling(m, s.block) * s.batch,
    "softmax": lambda m, s: softmax(s.block, m.vocab) * s.batch,
    "norm": lambda m, s: norm(s.canvas, m.hidden) * s.batch,
}
