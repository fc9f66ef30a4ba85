"""Arrays without reference counts for compiled code.

Numba counts references to an array's memory atomically whenever a view of it is made or handed on; in a loop that touches
rows of small tables this takes two thirds of the time. An array over memory that Numba does not own is not counted. The
caller must keep the original alive: what a function is handed lives as long as its call, what it allocates only until it is named
for the last time. So an array of its own is handed on, and stripped there.
"""

from numba import config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

INTERPRETED = bool(config.DISABLE_JIT)  # pyright: ignore[reportAttributeAccessIssue]  set when Numba is loaded


@intrinsic
def _unowned(_, value):
    def strip(context, builder, kind, content):
        if isinstance(kind, types.BaseTuple):
            members = zip(kind.types, cgutils.unpack_tuple(builder, content), strict=True)  # pyright: ignore[reportAttributeAccessIssue]
            return context.make_tuple(builder, kind, [strip(context, builder, *member) for member in members])
        if not isinstance(kind, types.Array):
            return content
        array = context.make_array(kind)(context, builder, content)
        array.meminfo = cgutils.get_null_value(array.meminfo.type)
        array.parent = cgutils.get_null_value(array.parent.type)
        return array._getvalue()  # noqa: SLF001  Numba's own way to a proxy's value

    def generate(context, builder, signature, arguments):
        return strip(context, builder, signature.args[0], arguments[0])

    return value(value), generate


@njit(cache=True)
def unowned(value):
    """The same array, or the same named tuple with the arrays in it, not counted."""
    if INTERPRETED:
        return value
    return _unowned(value)  # pyright: ignore[reportCallIssue]  Numba hands the context in
