"""The matrix unit: block-scaled tile products with partial sums that stay in the array."""

import numpy as np
from numba import njit

from npu.formats import FORMAT_OF_CODE
from npu.formats.rounding import halves, load_block, quantise_block, round_bf16
from npu.isa.spec import MATRIX_ROWS, VECTOR_ROWS, Footprint, OpClass, Operands, Unit, instruction, touch, unsigned
from npu.unowned import unowned

LANES = 16
"""Columns of weights whose dot products run side by side: what the compiler makes SIMD instructions of."""


@njit(cache=True)
def panel_dots(acts, place, panel, size, products, dots):
    """dots[c] := sum over i of acts[place + i] * panel[i, c] in float32 by the fixed tree: element i meets element i + n/2, n
    halving (size a power of two). The panel lies flat, LANES columns a row; `products` is scratch like it."""
    for i in range(size):
        for c in range(LANES):
            products[i * LANES + c] = acts[place + i] * panel[i * LANES + c]
    while size > 1:
        size //= 2
        for i in range(size * LANES):
            products[i] = products[i] + products[size * LANES + i]
    for c in range(LANES):
        dots[c] = products[c]


@njit(cache=True)
def panel_dots_32(acts, place, w, dots):
    """`panel_dots` for blocks of 32, written out: no sum leaves the registers, which makes it three times as fast."""
    a = acts[place : place + 32]
    for c in range(LANES):
        p0 = a[0] * w[c] + a[16] * w[16 * LANES + c]
        p1 = a[1] * w[LANES + c] + a[17] * w[17 * LANES + c]
        p2 = a[2] * w[2 * LANES + c] + a[18] * w[18 * LANES + c]
        p3 = a[3] * w[3 * LANES + c] + a[19] * w[19 * LANES + c]
        p4 = a[4] * w[4 * LANES + c] + a[20] * w[20 * LANES + c]
        p5 = a[5] * w[5 * LANES + c] + a[21] * w[21 * LANES + c]
        p6 = a[6] * w[6 * LANES + c] + a[22] * w[22 * LANES + c]
        p7 = a[7] * w[7 * LANES + c] + a[23] * w[23 * LANES + c]
        p8 = a[8] * w[8 * LANES + c] + a[24] * w[24 * LANES + c]
        p9 = a[9] * w[9 * LANES + c] + a[25] * w[25 * LANES + c]
        pa = a[10] * w[10 * LANES + c] + a[26] * w[26 * LANES + c]
        pb = a[11] * w[11 * LANES + c] + a[27] * w[27 * LANES + c]
        pc = a[12] * w[12 * LANES + c] + a[28] * w[28 * LANES + c]
        pd = a[13] * w[13 * LANES + c] + a[29] * w[29 * LANES + c]
        pe = a[14] * w[14 * LANES + c] + a[30] * w[30 * LANES + c]
        pf = a[15] * w[15 * LANES + c] + a[31] * w[31 * LANES + c]
        even = ((p0 + p8) + (p4 + pc)) + ((p2 + pa) + (p6 + pe))
        odd = ((p1 + p9) + (p5 + pd)) + ((p3 + pb) + (p7 + pf))
        dots[c] = even + odd


@njit(cache=True)
def _add_products(
    matrix, vector, accumulator, weights, weights_stride, acts, acts_stride, rows, cols, blocks, size, weight_format,
    act_format, block_stride, scratch,
):  # fmt: skip
    """The body of `m_mm`, with memory for quantised activations and their scales, a panel of weights and what lies between."""
    matrix, vector, accumulator, scratch = unowned(matrix), unowned(vector), unowned(accumulator), unowned(scratch)
    wide, records = size * LANES, blocks * rows
    scales, quantised, rest = scratch[: 2 * records], scratch[2 * records :], scratch[records * (size + 2) :]
    column, panel, rest = rest[:size], rest[size : size + wide], rest[size + wide :]
    dots, once, twice, products = rest[:LANES], rest[LANES : 2 * LANES], rest[2 * LANES : 3 * LANES], rest[3 * LANES :]
    if cols % LANES:
        panel[:] = np.float32(0.0)
    for b in range(blocks):
        for row in range(rows):
            source, block_of = acts + row * acts_stride + b * size, b * rows + row
            exponent = quantise_block(vector, source, size, act_format, quantised, block_of * size)
            scales[2 * block_of], scales[2 * block_of + 1] = halves(exponent)
    for first in range(0, cols, LANES):
        lanes = min(LANES, cols - first)
        for b in range(blocks):
            for c in range(lanes):
                place = weights + (first + c) * weights_stride + b * block_stride
                once[c], twice[c] = halves(load_block(matrix, place, size, weight_format, column))
                for i in range(size):
                    panel[i * LANES + c] = column[i]
            for row in range(rows):
                block_of = b * rows + row
                place, third, fourth = block_of * size, scales[2 * block_of], scales[2 * block_of + 1]
                if size == 32:
                    panel_dots_32(quantised, place, panel, dots)
                else:
                    panel_dots(quantised, place, panel, size, products, dots)
                for c in range(lanes):
                    accumulator[row, first + c] += dots[c] * once[c] * twice[c] * third * fourth


def _weight_run(o: Operands) -> int:
    """Bytes from the first to the last byte of one column of weights."""
    block = 1 << o["block"]
    return (o["k"] // block - 1) * o["block_stride"] + FORMAT_OF_CODE[o["weight_format"]].record_bytes(block)


@instruction(
    opcode=0x10,
    unit=Unit.MATRIX,
    op_class=OpClass.TILE_PRODUCT,
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
    # One allocation: it takes as long as a few dot products.
    wide = size * LANES
    floats = blocks * rows * (size + 2) + size + wide + 3 * LANES + (0 if size == 32 else wide)
    _add_products(
        matrix, vector, accumulator, weights, weights_stride, acts, acts_stride, rows, cols, blocks, size, weight_format,
        act_format, block_stride, np.empty(floats, np.float32),
    )  # fmt: skip


@instruction(
    opcode=0x11,
    unit=Unit.MATRIX,
    op_class=OpClass.TILE_OUT,
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


@instruction(opcode=0x12, unit=Unit.MATRIX, op_class=OpClass.SYNC)
def m_sync():
    """Nothing but its semaphores: a token may be taken or given between two loops."""
