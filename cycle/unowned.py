"""Arrays without reference counts for compiled code.

Numba counts references to an array's memory atomically whenever a view of it is made or handed on; in a loop that touches
rows of small tables this takes two thirds of the time. An array over memory that Numba does not own is not counted. The
caller must keep the original alive.
"""

import numpy as np
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.numpy_support import carray


@intrinsic
def _pointer(_, array):
    def generate(context, builder, signature, arguments):
        source = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.bitcast(source.data, cgutils.voidptr_t)

    return types.voidptr(array), generate


@njit(cache=True)
def unowned(array):
    """The same int64 values in C order, not counted."""
    return carray(_pointer(array), array.shape, np.int64)  # pyright: ignore[reportCallIssue]  Numba hands the context in
