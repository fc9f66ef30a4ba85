"""The matrix unit: block-scaled tile products with partial sums that stay in the array."""

import numpy as np
from numba import njit

from npu.formats import FORMAT_OF_CODE
from npu.formats.rounding import halves, load_elements, quantise_block, round_bf16, stored_exponent
from npu.isa.dots import COLUMNS, column_dots
from npu.isa.spec import MATRIX_ROWS, VECTOR_ROWS, Footprint, OpClass, Operands, Unit, instruction, touch, unsigned
from npu.unowned import unowned


@njit(cache=True)
def _add_products(
    matrix, vector, accumulator, weights, weights_stride, acts, acts_stride, rows, cols, blocks, size, weight_format,
    act_format, block_stride, scratch,
):  # fmt: skip
    """The body of `m_mm`, with memory for quantised activations and their scales, and for what a block of all columns becomes."""
    matrix, vector, accumulator, scratch = unowned(matrix), unowned(vector), unowned(accumulator), unowned(scratch)
    records, whole = blocks * rows, padded(cols)
    scales, quantised, rest = scratch[: 2 * records], scratch[2 * records :], scratch[records * (size + 2) :]
    columns, rest = rest[: whole * size], rest[whole * size :]
    once, twice, dots = rest[:whole], rest[whole : 2 * whole], rest[2 * whole : 3 * whole]
    columns[cols * size :] = np.float32(0.0)
    for b in range(blocks):
        for row in range(rows):
            source, block_of = acts + row * acts_stride + b * size, b * rows + row
            exponent = quantise_block(vector, source, size, act_format, quantised, block_of * size)
            scales[2 * block_of], scales[2 * block_of + 1] = halves(exponent)
    for b in range(blocks):
        place = weights + b * block_stride
        for c in range(cols):
            once[c], twice[c] = halves(stored_exponent(matrix, place + c * weights_stride, weight_format))
        load_elements(matrix, place, weights_stride, cols, size, weight_format, columns)
        for row in range(rows):
            block_of = b * rows + row
            third, fourth = scales[2 * block_of], scales[2 * block_of + 1]
            column_dots(size, quantised, block_of * size, columns, whole, dots)
            for c in range(cols):
                accumulator[row, c] += dots[c] * once[c] * twice[c] * third * fourth


@njit(cache=True)
def padded(cols):
    """Columns, with those that fill the last COLUMNS up."""
    return (cols + COLUMNS - 1) // COLUMNS * COLUMNS


def _weight_run(o: Operands) -> int:
    """Bytes from the first to the last byte of one column of weights."""
    block = 1 << o["block"]
    return (o["k"] // block - 1) * o["block_stride"] + FORMAT_OF_CODE[o["weight_format"]].record_bytes(block)


def _legal(o: Operands) -> bool:
    """Formats are known, a block of weights takes whole bytes, and there is work in whole blocks."""
    known = o["weight_format"] in FORMAT_OF_CODE and o["act_format"] in FORMAT_OF_CODE
    return (
        known
        and FORMAT_OF_CODE[o["weight_format"]].fills_bytes(1 << o["block"])
        and o["k"] % (1 << o["block"]) == 0
        and o["k"] * o["rows"] * o["cols"] > 0
    )


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
    legal=_legal,
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
    floats = blocks * rows * (size + 2) + padded(cols) * (
        size + 3
    )  # one allocation: it takes as long as a few dot products
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
