"""The work of a diffusion language model by phase, as operations that a device executes one after another.

Two pieces of software: `torch` is the published reference implementation in eager PyTorch (LLaDA's modelling code with flash
attention; BF16), `numpy` is dllm/reference.py (FP32). Elementwise passes are counted as the software makes them.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dllm.devices import numpy_graph
from dllm.devices.operation import Operation, Shape
from dllm.devices.products import Product
from dllm.model import ModelSpec
from dllm.operators import (
    ALL_TRAITS,
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
    Sum,
)
from dllm.workload import Workload
from npu.errors import TripathError

PHASES = ("prefill", "refine", "lm_head", "sampling", "softmax", "norm", "step")
"""prefill: forward of the whole canvas; refine: of one block against cached keys; lm_head, sampling, softmax: on the block;
norm: one RMSNorm over the canvas; step: prefill, lm_head and sampling. Forward means without the LM head."""

BF16_BYTES = 2
SAMPLING_BYTES = {"bf16": 2, "fp32": 4, "fp64": 8}
EXP_FLOPS = 20
"""Floating operations of an exponential: range reduction and a polynomial of degree 8 (assumed)."""
GENERATOR_FLOPS = 10
"""Of a counter-based random number, turned into a float (assumed: its integer operations run beside)."""


def steps_of(workload: Workload, prompt_length: int) -> Iterator[tuple[int, int]]:
    """(rows forwarded, rows of keys) of every denoising step: `none` all, `prefix` from the block on, `dual` the block.

    The first step of a block forwards the whole canvas (Fast-dLLM, arXiv:2505.22618). Where the cache is appended, the prompt is
    forwarded once, and a clean forward of every block follows its steps.

    Raises:
        TripathError: data decide which rows a step forwards.
    """
    if workload.caches.by_data is not None:
        raise TripathError(f"workload.cache={workload.cache}: device models do not know the rows that data choose")
    canvas = prompt_length + workload.generation_length
    if workload.caches.appends:
        yield prompt_length, prompt_length
        for end in range(prompt_length + workload.block_length, canvas + 1, workload.block_length):
            taken = zip(workload.step_loops(1), workload.scheduled_loops(1, workload.block_length), strict=True)
            for loop, steps in taken:
                yield from [(loop.length if loop.alone else workload.block_length, end)] * steps
            yield workload.block_length, end
        return
    for block in range(workload.blocks):
        start = prompt_length + block * workload.block_length
        for step in range(workload.steps_per_block):
            rows = workload.caches.rows(block, step).of(start, workload.block_length, canvas)
            yield rows.stop - rows.start, canvas


def phase_operations(
    software: str, model: ModelSpec, phase: str, shape: Shape, sampling_format: str
) -> list[Operation]:
    """Operations of a phase; `sampling_format` is that of the probabilities (torch only)."""
    model.network.check(OPERATORS_OF[software], f"a device that runs {software}", traits=ALL_TRAITS)
    if phase == "step":
        parts = ("prefill", "lm_head", "sampling")
        return [row for part in parts for row in phase_operations(software, model, part, shape, sampling_format)]
    if software == "numpy":
        return numpy_graph.BY_PHASE[phase](model, shape)
    if phase in ("sampling", "softmax"):
        return TORCH_SAMPLING[phase](shape.batch * shape.block * model.vocab, sampling_format)
    return TORCH[phase](model, shape)


def _gemm(rows: int, k: int, n: int, *, bias: bool = False) -> Operation:
    product = Product(rows=rows, columns=n, contraction=k)
    moved = product.moved_bytes + BF16_BYTES * n * bias
    return Operation(engine="matrix_bf16", work=product.flops, moved_bytes=moved, product=product)


def _passes(elements: int, bytes_each: int, launches: int) -> Operation:
    return Operation(
        engine="vector_fp32", work=launches * elements, moved_bytes=elements * bytes_each, launches=launches
    )


def _norm(rows: int, hidden: int) -> Operation:
    """To FP32, square, mean, scale, back to BF16, times weight: seven kernels, 34 bytes an element."""
    return _passes(rows * hidden, 34, 7)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """A forward of `rows` of each of `batch` sequences against `keys`."""

    batch: int
    rows: int
    keys: int

    @property
    def all_rows(self) -> int:
        """Rows of all sequences."""
        return self.batch * self.rows


def _rotary(op: Rope, p: Pass) -> list[Operation]:
    """To FP32, times cosine, halves swapped, times sine, sum, back: for Q and for K."""
    return [_passes(p.all_rows * (op.heads + op.kv_heads) * op.head_dim, 56, 14)]


def _head_norms(op: HeadNorm, p: Pass) -> list[Operation]:
    values = [op.kv_heads] if op.values else []
    return [_norm(p.all_rows, heads * op.head_dim) for heads in (op.heads, op.kv_heads, *values)]


def _attention(op: Attention, p: Pass) -> list[Operation]:
    """K and V into the cache, then flash attention."""
    keys = p.keys if op.window is None else min(p.keys, p.rows + op.window)  # kernels skip tiles outside of all windows
    moved = BF16_BYTES * p.batch * (2 * p.rows * op.query_width + 2 * keys * op.kv_width)
    work = 2 * op.macs_per_row_and_key * p.all_rows * keys
    return [_passes(2 * p.all_rows * op.kv_width, 4, 2), Operation(engine="matrix_bf16", work=work, moved_bytes=moved)]


def _gated_mlp(op: GatedMlp, p: Pass) -> list[Operation]:
    up = _gemm(p.all_rows, op.width, op.inner)
    return [up, up, _passes(p.all_rows * op.inner, 10, 2), _gemm(p.all_rows, op.inner, op.width)]


def touched_experts(op: Moe, rows: int) -> float:
    """Experts that rows take one of, if each takes any with the same chance."""
    experts = op.experts
    return experts.count * (1 - (1 - experts.chosen / experts.count) ** rows)


def _moe(op: Moe, p: Pass) -> list[Operation]:
    """Router in FP32, choice, then for each expert with rows: gather, three products, SiLU and product, scatter."""
    experts, rows, touched = op.experts, p.all_rows, touched_experts(op, p.all_rows)
    taken, width, inner = rows * experts.chosen, op.width, experts.inner
    router = Operation(
        engine="vector_fp32", work=2 * rows * width * experts.count,
        moved_bytes=4 * (rows * width + width * experts.count + rows * experts.count),
    )  # fmt: skip
    products = Operation(
        engine="matrix_bf16", work=6 * taken * width * inner, launches=math.ceil(3 * touched),
        moved_bytes=BF16_BYTES * (3 * touched * width * inner + taken * (3 * width + 3 * inner)),
    )  # fmt: skip
    between = _passes(taken * inner, 10, math.ceil(2 * touched))
    around = _passes(taken * width, 10, math.ceil(3 * touched))
    shared = GatedMlp(width=width, inner=experts.shared)
    own_norm = [_norm(rows, width), _passes(rows * width, 4, 1)] if experts.router_norm else []
    factors = [_passes(taken, 6, 2)] if experts.factors else []
    return [
        *own_norm, router, *factors, _passes(rows * experts.count, 16, 6), products, between, around,
        *(_gated_mlp(shared, p) if experts.shared else []), *([_passes(rows * width, 6, 1)] if experts.shared else []),
    ]  # fmt: skip


def _linear(op: Linear, p: Pass) -> list[Operation]:
    """One product for each part; a bias goes into its epilogue."""
    return [_gemm(p.all_rows, op.inputs, outputs, bias=bool(op.bias)) for _, outputs in op.parts]


def _lm_head(op: LmHead, p: Pass) -> list[Operation]:
    """A cap is to FP32, quotient, tanh, product, back."""
    logits = _gemm(p.all_rows, op.width, op.vocab)
    return [logits] if op.softcap is None else [logits, _passes(p.all_rows * op.vocab, 32, 5)]


def _self_conditioning(op: SelfConditioning, p: Pass) -> list[Operation]:
    """Distributions times the embedding, its scale, norm, MLP, sum and norm."""
    mlp = GatedMlp(width=op.width, inner=op.inner, activation=op.activation)
    return [
        _gemm(p.all_rows, op.vocab, op.width), _passes(p.all_rows * op.width, 4, 1), _norm(p.all_rows, op.width),
        *_gated_mlp(mlp, p), _passes(p.all_rows * op.width, 6, 1), _norm(p.all_rows, op.width),
    ]  # fmt: skip


TORCH_OPERATORS: Mapping[type[Operator], Callable[[Any, Pass], list[Operation]]] = {
    Embedding: lambda op, p: [_passes(p.all_rows * op.width, 4, 1)] * (1 if op.scale == 1 else 2),
    Norm: lambda op, p: [_norm(p.all_rows, op.width)],
    Channelwise: lambda op, p: [_passes(p.all_rows * op.width, 4, 1)] * len(op.steps),
    Linear: _linear, HeadNorm: _head_norms, Rope: _rotary, Attention: _attention, GatedMlp: _gated_mlp, Moe: _moe,
    Sum: lambda op, p: [
        *(row for branch in op.branches for row in _torch(branch, p)),
        *[_passes(p.all_rows * op.width, 6, 1)] * (len(op.branches) - 1),
    ],
    Residual: lambda op, p: [
        _passes(p.all_rows * op.width, 6, 1), *([_passes(p.all_rows * op.width, 4, 1)] if op.scaled else []),
    ],
    SelfConditioning: _self_conditioning,
    LmHead: _lm_head,
}  # fmt: skip
"""The launches of eager PyTorch for each operator."""
OPERATORS_OF: Mapping[str, Mapping[type[Operator], Any]] = {"torch": TORCH_OPERATORS, "numpy": numpy_graph.OPERATORS}
"""By software."""


def _torch(operators: Sequence[Operator], p: Pass) -> list[Operation]:
    return [row for each in operators for row in TORCH_OPERATORS[type(each)](each, p)]


def torch_forward(model: ModelSpec, batch: int, rows: int, keys: int, *, clean: bool = False) -> list[Operation]:
    """One forward of `rows` of each of `batch` sequences against `keys`, LM head left out; a `clean` one is of finished
    tokens."""
    network, shape = model.network, Pass(batch=batch, rows=rows, keys=keys)
    layers = [row for group in network.groups for row in _torch(group.pattern, shape) * group.repeat]
    conditioning = () if clean else network.conditioning
    return [*_torch((*network.stem, *conditioning), shape), *layers * network.cycles]


def torch_lm_head(model: ModelSpec, rows: int) -> list[Operation]:
    """Final norm and LM head of `rows`."""
    return _torch(model.network.head, Pass(batch=1, rows=rows, keys=0))


def torch_softmax(elements: int, format: str) -> list[Operation]:
    """softmax(logits.to(format)): a conversion, then three reads (maximum, sum, result) and a write."""
    size = SAMPLING_BYTES[format]
    engine = "vector_fp64" if format == "fp64" else "vector_fp32"
    convert = [] if format == "bf16" else [_passes(elements, BF16_BYTES + size, 1)]
    work = (2 * EXP_FLOPS + 6) * elements  # the exponential is taken for the sum and again for the result
    return [*convert, Operation(engine=engine, work=work, moved_bytes=4 * size * elements)]


def torch_sampling(elements: int, format: str) -> list[Operation]:
    """argmax, softmax, gather of the confidence, and the small kernels that choose and write tokens (LLaDA's generate)."""
    return [_passes(elements, BF16_BYTES, 1), *torch_softmax(elements, format), _passes(0, 0, 12)]


def torch_gumbel(elements: int) -> list[Operation]:
    """Gumbel noise as LLaDA's generate adds it above temperature 0, in FP64: exp(logits) / (-log(uniform)) ** temperature.

    Conversion, uniform numbers, logarithm, negation, power, exponential and division are a kernel each: 10 + 8 + 4 x 16 + 24
    bytes. A logarithm and an exponential are one polynomial, a power is two. The argmax then reads FP64.
    """
    work = (4 * EXP_FLOPS + GENERATOR_FLOPS) * elements
    noise = Operation(engine="vector_fp64", work=work, moved_bytes=106.0 * elements, launches=7)
    return [noise, _passes(elements, SAMPLING_BYTES["fp64"] - BF16_BYTES, 1)]


TORCH: Mapping[str, Callable[[ModelSpec, Shape], list[Operation]]] = {
    "prefill": lambda m, s: torch_forward(m, s.batch, s.canvas, s.canvas, clean=True),
    "refine": lambda m, s: torch_forward(m, s.batch, s.rows or s.block, s.canvas),
    "lm_head": lambda m, s: torch_lm_head(m, s.batch * s.block),
    "norm": lambda m, s: [_norm(s.batch * s.canvas, m.hidden)],
}
TORCH_SAMPLING: Mapping[str, Callable[[int, str], list[Operation]]] = {
    "sampling": torch_sampling, "softmax": torch_softmax,
}  # fmt: skip
