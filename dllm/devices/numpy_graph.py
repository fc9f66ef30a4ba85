"""What dllm/reference.py does, call by call: products by BLAS, contractions by einsum, passes over arrays, in FP32.

Engines: `gemm` (FLOP/s); `pack`, `pack_row` (bytes and rows of weights a second that BLAS copies into its own layout before
a product); `scores`, `mix` (FLOP/s of the contractions of attention); `exp`, `sum`, `max`, `argmax` (elements/s); `pass`
(bytes/s of an elementwise call); `broadcast_row` (rows/s that meet a broadcast operand, over the bytes of a row). Those that
end in `_seconds` are the cost of one thing more: a call of a reduction beyond that of an elementwise one (`mean` beyond
that), a row that is reduced, an element that `where` chooses. einsum leaves the scores interleaved, [rows, keys, heads] in
memory: a reduction over keys then runs in rows of `heads` elements.
"""

from collections.abc import Callable, Mapping

from dllm.devices.operation import Operation, Shape
from dllm.model import ModelSpec

FP32_BYTES = 4


def gemm(rows: int, k: int, n: int, resident_bytes: float) -> list[Operation]:
    """x[rows, k] @ w[n, k].T; `resident_bytes`: weights of the whole phase, which come round again in the next call."""
    return [
        Operation(engine="gemm", work=2.0 * rows * k * n),
        Operation(engine="pass", work=2 * FP32_BYTES * rows * n, launches=0, resident_bytes=2 * FP32_BYTES * rows * n),
        Operation(engine="pack", work=FP32_BYTES * k * n, launches=0, resident_bytes=resident_bytes),
        Operation(engine="pack_row", work=n, launches=0, resident_bytes=resident_bytes),
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
    return [*passes(rows * width, unary=1, live=live), row]


def norm(rows: int, hidden: int) -> list[Operation]:
    """x / sqrt(mean(x * x) + epsilon) * weight: x, quotient and result live."""
    return [
        *passes(rows * hidden, unary=1), *reduction("sum", rows, hidden, 2), *passes(rows, unary=3),
        Operation(engine="mean_seconds", work=1, launches=0), *broadcast(rows, hidden, 3), *broadcast(rows, hidden, 3),
    ]  # fmt: skip


def softmax(rows: int, width: int) -> list[Operation]:
    """Maximum, difference, exponential, sum, quotient of `rows` of `width` elements: four arrays live."""
    return [
        *reduction("max", rows, width, 4), *broadcast(rows, width, 4), elementwise("exp", rows * width, 4),
        *reduction("sum", rows, width, 4), *broadcast(rows, width, 4),
    ]  # fmt: skip


def rotate(rows: int, heads: int, head_dim: int) -> list[Operation]:
    """Product with the cosine, halves negated and joined, product with the sine, sum."""
    n, heads = rows * heads * head_dim, rows * heads
    products = [*broadcast(heads, head_dim), *broadcast(heads, head_dim)]
    return [*products, *passes(n // 2, unary=1), *passes(n, unary=1, binary=1)]


def forward(model: ModelSpec, rows: int, keys: int) -> list[Operation]:
    """One forward of `rows` of one sequence against `keys`, LM head left out."""
    h, q, kv, f = model.hidden, model.query_width, model.kv_width, model.ffn
    weights = FP32_BYTES * model.layers * model.layer_macs_per_row
    pairs = rows * keys * model.heads
    contraction = 2.0 * pairs * model.head_dim
    layer = [
        *norm(rows, h), *norm(rows, h),
        *(row for k, n in ((h, q), (h, kv), (h, kv), (q, h), (h, f), (h, f), (f, h)) for row in gemm(rows, k, n, weights)),
        *rotate(rows, model.heads, model.head_dim), *rotate(rows, model.kv_heads, model.head_dim),
        *passes(rows * kv, unary=2), *passes(keys * q, unary=2),
        Operation(engine="scores", work=contraction), *passes(pairs, unary=1), *softmax(rows * keys, model.heads),
        Operation(engine="mix", work=contraction),
        # SiLU: absolute value, sign, exponential, comparison, choice, product, sum, quotient; then times the gate
        elementwise("exp", rows * f, 5), *passes(rows * f, unary=4, binary=3, live=5),
        Operation(engine="choice_seconds", work=rows * f), *passes(rows * h, binary=2),
    ]  # fmt: skip
    tables = [*passes(rows * model.head_dim, unary=6)]
    return [*tables, *passes(rows * h, unary=1), *(layer * model.layers)]


def lm_head(model: ModelSpec, rows: int) -> list[Operation]:
    """Final norm and LM head of `rows`."""
    return [*norm(rows, model.hidden), *gemm(rows, model.hidden, model.vocab, FP32_BYTES * model.hidden * model.vocab)]


def sampling(model: ModelSpec, rows: int) -> list[Operation]:
    """argmax, softmax, choice of the confidence."""
    return [*reduction("argmax", rows, model.vocab, 4), *softmax(rows, model.vocab)]


BY_PHASE: Mapping[str, Callable[[ModelSpec, Shape], list[Operation]]] = {
    "prefill": lambda m, s: forward(m, s.canvas, s.canvas) * s.batch,
    "refine": lambda m, s: forward(m, s.rows or s.block, s.canvas) * s.batch,
    "lm_head": lambda m, s: lm_head(m, s.block) * s.batch,
    "sampling": lambda m, s: sampling(m, s.block) * s.batch,
    "softmax": lambda m, s: softmax(s.block, m.vocab) * s.batch,
    "norm": lambda m, s: norm(s.canvas, m.hidden) * s.batch,
}
