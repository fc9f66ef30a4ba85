"""The matrix unit: block-scaled tile products with partial sums that stay in the array."""

import numpy as np
from numba import njit

from tripath.formats import FORMAT_OF_CODE
from tripath.formats.rounding import load_block, quantise_block, round_bf16, scaled
from tripath.isa.spec import MATRIX_ROWS, VECTOR_ROWS, Footprint, Operands, Unit, instruction, touch, unsigned


@njit(cache=True)
def dot_tree(a, b, products):
    """Sum of a[i] * b[i] in float32 by the fixed tree: element i meets element i + n/2, n halving (n a power of two)."""
    n = b.size
    for i in range(n):
        products[i] = a[i] * b[i]
    while n > 1:
        n //= 2
        for i in range(n):
            products[i] = products[i] + products[n + i]
    return products[0]


@njit(cache=True)
def dot_tree_32(a, b, products):
    """`dot_tree` for blocks of 32, with trip counts that the compiler knows."""
    for i in range(16):
        products[i] = np.float32(a[i] * b[i]) + np.float32(a[16 + i] * b[16 + i])
    for i in range(8):
        products[i] = products[i] + products[8 + i]
    for i in range(4):
        products[i] = products[i] + products[4 + i]
    return (products[0] + products[2]) + (products[1] + products[3])


def _weight_run(o: Operands) -> int:
    """Bytes from the first to the last byte of one column of weights."""
    block = 1 << o["block"]
    return (o["k"] // block - 1) * o["block_stride"] + FORMAT_OF_CODE[o["weight_format"]].record_bytes(block)


@instruction(
    opcode=0x10,
    unit=Unit.MATRIX,
    operands={
        "weights": MATRIX_ROWS, "acts": VECTOR_ROWS, "rows": unsigned(8), "cols": unsigned(8), "k": unsigned(14),
        "block": unsigned(3), "weight_format": unsigned(4), "act_format": unsigned(4), "block_stride": unsigned(16),
    },
    reads=(Footprint(operand="weights", rows=lambda o: o["cols"], size=_weight_run), touch("acts", "k", "rows")),
    macs=lambda o: o["rows"] * o["cols"] * o["k"],
    legal=lambda o: o["k"] % (1 << o["block"]) == 0 and o["k"] * o["rows"] * o["cols"] > 0
    and o["weight_format"] in FORMAT_OF_CODE and o["act_format"] in FORMAT_OF_CODE,
)  # fmt: skip
def m_mm(
    matrix, vector, accumulator, weights, weights_stride, acts, acts_stride, rows, cols, k, block, weight_format,
    act_format, block_stride,
):  # fmt: skip
    """accumulator[rows, cols] += Q(vector[acts; rows, k]) @ matrix[weights; k, cols].

    Column c of the weights is k / 2^block stored blocks from weights + c * weights_stride, block_stride bytes apart.
    Activations are quantised at the array to act_format in blocks of the same length. A block's dot product is exact
    in integers for integer formats, else products are summed in FP32 by the fixed tree; it is then multiplied by the
    two block scales (weights first), and blocks accumulate in FP32 in ascending order of k.
    """
    size = 1 << block
    blocks = k // size
    act_elements = np.empty((rows, blocks, size), np.float32)
    act_exponents = np.empty((rows, blocks), np.int64)
    for row in range(rows):
        for b in range(blocks):
            act_exponents[row, b] = quantise_block(
                vector, acts + row * acts_stride + b * size, 1, size, act_format, act_elements[row, b]
            )
    weight_elements = np.empty(size, np.float32)
    products = np.empty(size, np.float32)
    for col in range(cols):
        for b in range(blocks):
            exponent = load_block(
                matrix, weights + col * weights_stride + b * block_stride, size, weight_format, weight_elements
            )
            for row in range(rows):
                if size == 32:
                    dot = dot_tree_32(act_elements[row, b], weight_elements, products)
                else:
                    dot = dot_tree(act_elements[row, b], weight_elements, products)
                term = scaled(scaled(dot, exponent), act_exponents[row, b])
                accumulator[row, col] = accumulator[row, col] + term


@instruction(
    opcode=0x11,
    unit=Unit.MATRIX,
    operands={"dst": VECTOR_ROWS, "rows": unsigned(8), "cols": unsigned(8)},
    writes=(touch("dst", "cols", "rows"),),
    legal=lambda o: o["rows"] * o["cols"] > 0,
)
def m_out(vector, accumulator, dst, dst_stride, rows, cols):
    """vector[dst; rows, cols] := accumulator rounded to BF16; the accumulators are cleared."""
    for row in range(rows):
        for col in range(cols):
            vector[dst + row * dst_stride + col] = round_bf16(accumulator[row, col])
            accumulator[row, col] = np.float32(0.0)


@instruction(opcode=0x12, unit=Unit.MATRIX)
def m_sync():
    """Nothing but its semaphores: a token may be taken or given between two loops."""
