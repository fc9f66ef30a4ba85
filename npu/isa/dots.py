"""Dot products of one row of activations with eight columns of weights, by the fixed tree.

The tree adds element i to element i + n/2, n halving from the length of a block (a power of two) to 1. Its first additions run
side by side within a column. Once a column has eight partial sums, two columns share a register, so that the eight results
come out of one. Numba does not make this of loops, so the vector instructions are written out.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from npu.unowned import INTERPRETED

COLUMNS = 8
BLOCK_SIZES = tuple(1 << power for power in range(8))
_INT32, _INT64, _FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()


@intrinsic
def _column_dots(_, size, acts, place, weights, columns, dots):
    def generate(context, builder, signature, arguments):
        count, _, place, _, stop, _ = arguments
        arrays = (context.make_array(kind)(context, builder, value) for kind, value in zip(signature.args, arguments, strict=True)
                  if isinstance(kind, types.Array))  # fmt: skip
        row, first_weights, first_dots = (array.data for array in arrays)
        begin, step = ir.Constant(_INT64, 0), ir.Constant(_INT64, COLUMNS)
        done = builder.append_basic_block("done")
        switch = builder.switch(count, done)
        for each in BLOCK_SIZES:
            case = builder.append_basic_block(f"blocks_of_{each}")
            switch.add_case(ir.Constant(_INT64, each), case)
            with builder.goto_block(case):
                with cgutils.for_range_slice(builder, begin, stop, step, inc=True) as (column, _):
                    own = builder.gep(first_weights, [builder.mul(column, ir.Constant(_INT64, each))])
                    _store_dots(builder, each, builder.gep(row, [place]), own, builder.gep(first_dots, [column]))
                builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(size, acts, place, weights, columns, dots), generate


def _store_dots(builder: Any, size: int, row: Any, columns: Any, out: Any) -> None:  # noqa: ANN401  llvmlite states no types
    """Emit the products and their trees; `lanes` is the width of a register, of which each column in it has `sums`."""

    def load(pointer: Any) -> Any:  # noqa: ANN401
        return builder.load(builder.bitcast(pointer, ir.VectorType(_FLOAT, size).as_pointer()), align=4)

    def pick(x: Any, y: Any, lanes: Sequence[int]) -> Any:  # noqa: ANN401
        return builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(_INT32, len(lanes)), list(lanes)))

    acts, lanes = load(row), size
    parts = [
        builder.fmul(acts, load(builder.gep(columns, [ir.Constant(_INT64, column * size)])))
        for column in range(COLUMNS)
    ]
    while lanes > COLUMNS:
        lanes //= 2
        low, high = range(lanes), range(lanes, 2 * lanes)
        parts = [builder.fadd(pick(part, part, low), pick(part, part, high)) for part in parts]
    sums = lanes
    while sums > 1:
        low = [first + lane for first in range(0, 2 * lanes, sums) for lane in range(sums // 2)]
        high = [lane + sums // 2 for lane in low]
        pairs = zip(parts[::2], parts[1::2], strict=True)
        parts, sums = [builder.fadd(pick(x, y, low), pick(x, y, high)) for x, y in pairs], sums // 2
    while len(parts) > 1:
        lanes *= 2
        parts = [pick(x, y, range(lanes)) for x, y in zip(parts[::2], parts[1::2], strict=True)]
    builder.store(parts[0], builder.bitcast(out, ir.VectorType(_FLOAT, COLUMNS).as_pointer()), align=4)


@njit(cache=True)
def column_dots(size, acts, place, weights, columns, dots):
    """dots[c] := the float32 sum by the tree of acts[place + i] * weights[c * size + i], for i below `size`, which is one of
    BLOCK_SIZES, and c below `columns`, which is a multiple of COLUMNS. All arrays are flat float32."""
    if INTERPRETED:
        for column in range(columns):
            products = acts[place : place + size] * weights[column * size : (column + 1) * size]
            while products.size > 1:
                half = products.size // 2
                products = np.add(products[:half], products[half:])
            dots[column] = products[0]
    else:
        _column_dots(size, acts, place, weights, columns, dots)  # pyright: ignore[reportCallIssue]  Numba hands the context in
