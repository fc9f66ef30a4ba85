"""The DMA units: two-dimensional descriptors between HBM and the SRAMs, with conversion on the way.

Values in HBM are stored as blocks (`formats.rounding`): a scale byte where the format has one, then packed elements.
"""

import numpy as np
from numba import njit

from npu.formats import FORMAT_OF_CODE
from npu.formats.rounding import (
    bits_of,
    float_of,
    load_block,
    quantise_block,
    record_bytes,
    round_bf16,
    scaled,
    store_block,
)
from npu.isa.spec import (
    FP,
    HBM,
    HBM_ROWS,
    INT,
    MATRIX_ROWS,
    VECTOR_ROWS,
    Footprint,
    OpClass,
    Operands,
    Unit,
    instruction,
    touch,
    unsigned,
)

ROWS, COLS, BLOCK, FORMAT = unsigned(16), unsigned(20), unsigned(3), unsigned(4)


def _row_bytes(o: Operands) -> int:
    """Bytes of one row of `cols` elements stored as blocks."""
    return FORMAT_OF_CODE[o["format"]].row_bytes(o["cols"], 1 << o["block"])


def _column_bytes(o: Operands) -> int:
    """Bytes of `cols` blocks, one a column."""
    return o["cols"] * FORMAT_OF_CODE[o["format"]].record_bytes(1 << o["block"])


def _storable(o: Operands) -> bool:
    """The format is known, and a block of it takes whole bytes."""
    return o["format"] in FORMAT_OF_CODE and FORMAT_OF_CODE[o["format"]].fills_bytes(1 << o["block"])


def _legal(o: Operands) -> bool:
    return _storable(o) and o["cols"] % (1 << o["block"]) == 0 and o["rows"] * o["cols"] > 0


@njit(cache=True)
def load_word(memory, address):
    """Signed 32-bit little-endian word at a byte address."""
    word = np.int64(0)
    for byte in range(4):
        word |= np.int64(memory[address + byte]) << (8 * byte)
    return word - (np.int64(1) << 32) if word >> 31 else word


@instruction(opcode=0x50, unit=Unit.DMA_IN, op_class=OpClass.LOAD,
             operands={"dst": MATRIX_ROWS, "src": HBM_ROWS, "rows": ROWS, "row_bytes": unsigned(24)},
             reads=(touch("src", "row_bytes", "rows"),), writes=(touch("dst", "row_bytes", "rows"),),
             legal=lambda o: o["rows"] * o["row_bytes"] > 0)  # fmt: skip
def h_load_m(hbm, matrix, dst, dst_stride, src, src_stride, rows, row_bytes):
    """matrix[dst; rows, row_bytes] := hbm[src; rows, row_bytes], bytes unchanged."""
    for row in range(rows):
        to, source = matrix[dst + row * dst_stride :], hbm[src + row * src_stride :]
        for i in range(row_bytes):
            to[i] = source[i]


@instruction(opcode=0x51, unit=Unit.DMA_IN, op_class=OpClass.LOAD,
             operands={"dst": VECTOR_ROWS, "src": HBM_ROWS, "rows": ROWS, "cols": COLS, "format": FORMAT, "block": BLOCK},
             reads=(Footprint(operand="src", rows=lambda o: o["rows"], size=_row_bytes),),
             writes=(touch("dst", "cols", "rows"),), legal=_legal)  # fmt: skip
def h_load_v(hbm, vector, dst, dst_stride, src, src_stride, rows, cols, format, block):
    """vector[dst; rows, cols] := hbm[src; rows, cols] de-quantised from `format`, rounded to BF16."""
    size = 1 << block
    elements = np.empty(size, np.float32)
    for row in range(rows):
        address = src + row * src_stride
        for b in range(cols // size):
            exponent = load_block(hbm, address, size, format, elements)
            address += record_bytes(size, format)
            for i in range(size):
                vector[dst + row * dst_stride + b * size + i] = round_bf16(scaled(elements[i], exponent))


@instruction(opcode=0x52, unit=Unit.DMA_IN, op_class=OpClass.LOAD, operands={"dst": FP, "src": HBM, "n": unsigned(16)},
             reads=(Footprint(operand="src", size=lambda o: 4 * o["n"]),), writes=(touch("dst", "n"),))  # fmt: skip
def h_load_f(hbm, fp, dst, src, n):
    """fp[dst] := n FP32 values of hbm[src]."""
    for i in range(n):
        fp[dst + i] = float_of(load_word(hbm, src + 4 * i) & 0xFFFFFFFF)


@instruction(opcode=0x53, unit=Unit.DMA_IN, op_class=OpClass.LOAD, operands={"dst": INT, "src": HBM, "n": unsigned(16)},
             reads=(Footprint(operand="src", size=lambda o: 4 * o["n"]),), writes=(touch("dst", "n"),))  # fmt: skip
def h_load_i(hbm, integer, dst, src, n):
    """integer[dst] := n int32 values of hbm[src]."""
    for i in range(n):
        integer[dst + i] = load_word(hbm, src + 4 * i)


@instruction(opcode=0x54, unit=Unit.DMA_IN, op_class=OpClass.LOAD,
             operands={"dst": VECTOR_ROWS, "table": HBM_ROWS, "index": INT, "cols": COLS, "rows": ROWS},
             reads=(Footprint(operand="table", rows=lambda o: o["rows"], size=lambda o: 2 * o["cols"]),
                    touch("index", "rows")),
             writes=(touch("dst", "cols", "rows"),), legal=lambda o: o["cols"] * o["rows"] > 0)  # fmt: skip
def h_gather_v(hbm, vector, integer, dst, dst_stride, table, table_stride, index, cols, rows):
    """vector[dst; rows, cols] := rows of the BF16 table at hbm[table], row r being number integer[index + r]."""
    for row in range(rows):
        source = table + int(integer[index + row]) * table_stride
        for i in range(cols):
            word = int(hbm[source + 2 * i]) | (int(hbm[source + 2 * i + 1]) << 8)
            vector[dst + row * dst_stride + i] = float_of(word << 16)


@instruction(opcode=0x55, unit=Unit.DMA_IN, op_class=OpClass.LOAD,
             operands={"dst": MATRIX_ROWS, "src": HBM_ROWS, "rows": ROWS, "cols": COLS, "format": FORMAT, "block": BLOCK},
             reads=(Footprint(operand="src", rows=lambda o: o["rows"], size=_row_bytes),),
             writes=(Footprint(operand="dst", rows=lambda o: o["cols"], size=lambda o: 2 * o["rows"]),),
             legal=_legal)  # fmt: skip
def h_load_t(hbm, matrix, dst, dst_stride, src, src_stride, rows, cols, format, block):
    """matrix[dst; cols, rows] := the transpose of hbm[src; rows, cols], de-quantised from `format` to BF16 (2 bytes each).

    The load of a cache whose blocks do not run along the contracted axis.
    """
    size = 1 << block
    elements = np.empty(size, np.float32)
    for row in range(rows):
        address = src + row * src_stride
        for b in range(cols // size):
            exponent = load_block(hbm, address, size, format, elements)
            address += record_bytes(size, format)
            for i in range(size):
                word = bits_of(round_bf16(scaled(elements[i], exponent))) >> 16
                place = dst + (b * size + i) * dst_stride + 2 * row
                matrix[place] = word & 0xFF
                matrix[place + 1] = word >> 8


@instruction(opcode=0x5F, unit=Unit.DMA_IN, op_class=OpClass.SYNC)
def h_load_sync():
    """Nothing but its semaphores: a token may be taken or given between two loops."""


@instruction(opcode=0x60, unit=Unit.DMA_OUT, op_class=OpClass.STORE,
             operands={"dst": HBM_ROWS, "src": VECTOR_ROWS, "rows": ROWS, "cols": COLS, "format": FORMAT, "block": BLOCK},
             reads=(touch("src", "cols", "rows"),),
             writes=(Footprint(operand="dst", rows=lambda o: o["rows"], size=_row_bytes),), legal=_legal)  # fmt: skip
def h_store_v(hbm, vector, dst, dst_stride, src, src_stride, rows, cols, format, block):
    """hbm[dst; rows, cols] := vector[src; rows, cols] quantised to `format`, blocks along the columns (channels)."""
    size = 1 << block
    elements = np.empty(size, np.float32)
    for row in range(rows):
        address = dst + row * dst_stride
        for b in range(cols // size):
            exponent = quantise_block(vector, src + row * src_stride + b * size, size, format, elements, 0)
            store_block(hbm, address, elements, exponent, size, format)
            address += record_bytes(size, format)


@instruction(opcode=0x61, unit=Unit.DMA_OUT, op_class=OpClass.STORE,
             operands={"dst": HBM, "src": VECTOR_ROWS, "cols": COLS, "format": FORMAT, "block": BLOCK},
             reads=(Footprint(operand="src", rows=lambda o: 1 << o["block"], size=lambda o: o["cols"]),),
             writes=(Footprint(operand="dst", size=_column_bytes),),
             legal=lambda o: _storable(o) and o["cols"] > 0)  # fmt: skip
def h_store_t(hbm, vector, dst, src, src_stride, cols, format, block):
    """hbm[dst] := `cols` blocks, block c being the 2^block rows (tokens) of column c of vector[src], quantised.

    The store that chooses the token axis: one group of a V cache.
    """
    size = 1 << block
    column, elements = np.empty(size, np.float32), np.empty(size, np.float32)
    for col in range(cols):
        for i in range(size):
            column[i] = vector[src + col + i * src_stride]
        exponent = quantise_block(column, 0, size, format, elements, 0)
        store_block(hbm, dst + col * record_bytes(size, format), elements, exponent, size, format)


@instruction(opcode=0x62, unit=Unit.DMA_OUT, op_class=OpClass.STORE,
             operands={"dst": HBM, "src": INT, "n": unsigned(16)},
             reads=(touch("src", "n"),), writes=(Footprint(operand="dst", size=lambda o: 4 * o["n"]),))  # fmt: skip
def h_store_i(hbm, integer, dst, src, n):
    """hbm[dst] := n int32 values of integer[src]."""
    for i in range(n):
        word = int(integer[src + i])
        for byte in range(4):
            hbm[dst + 4 * i + byte] = (word >> (8 * byte)) & 0xFF


@instruction(opcode=0x6F, unit=Unit.DMA_OUT, op_class=OpClass.SYNC)
def h_store_sync():
    """Nothing but its semaphores: a token may be taken or given between two loops."""
