"""exp, exp2, log2, tanh, reciprocal and reciprocal square root as integer table-plus-interpolation algorithms.

Each splits its argument into an exponent and a position in a table of 2^TABLE_BITS intervals, interpolates linearly in
fixed point, and assembles the result: the same bits on every machine, and a small ROM in RTL. Relative error is below
2^-17 over the whole range (checked against float64 over every BF16 input), that of log2, whose result passes through
zero, below 2^-17 of max(1, |log2|); results below 2^-126 flush to zero.
"""

import numpy as np
from numba import njit

from npu.formats.rounding import bits_of, float_of

TABLE_BITS = 8
FRACTION_BITS = 30
INTERVALS = 1 << TABLE_BITS
ONE = 1 << FRACTION_BITS
LOG2_E = round(1.4426950408889634 * (1 << 40))
"""log2(e) with 40 fractional bits."""


def _table(function, first: float, last: float) -> np.ndarray:
    """`function` at the 2^TABLE_BITS + 1 ends of equal intervals of [first, last], rounded to FRACTION_BITS."""
    points = first + (last - first) * np.arange(INTERVALS + 1) / INTERVALS
    return np.rint(function(points) * ONE).astype(np.int64)


EXP2_TABLE = _table(np.exp2, 0.0, 1.0)
LOG2_TABLE = _table(np.log2, 1.0, 2.0)
RECIPROCAL_TABLE = _table(lambda m: 1.0 / m, 1.0, 2.0)
RSQRT_TABLES = np.stack([_table(lambda m: 1.0 / np.sqrt(m), 1.0, 2.0), _table(lambda m: 1.0 / np.sqrt(m), 2.0, 4.0)])
FIRST_OCTAVE, LAST_OCTAVE = -8, 3
"""Octaves of |x| from and to which tanh has a table: below it is x, above 1."""
TANH_TABLES = np.stack(
    [_table(np.tanh, 2.0**octave, 2.0 ** (octave + 1)) for octave in range(FIRST_OCTAVE, LAST_OCTAVE)]
)


@njit(cache=True)
def interpolate(table, fraction, bits):
    """Value (FRACTION_BITS fixed point) at `fraction` / 2^bits of the table's range, by linear interpolation."""
    rest_bits = bits - TABLE_BITS
    index = fraction >> rest_bits
    rest = fraction & ((1 << rest_bits) - 1)
    low = int(table[index])
    return low + (((int(table[index + 1]) - low) * rest) >> rest_bits)


@njit(cache=True)
def assemble(value, exponent):
    """value / 2^FRACTION_BITS * 2^exponent as float32 (truncated to 24 bits), for a positive value."""
    while value >= 2 * ONE:
        value >>= 1
        exponent += 1
    while value < ONE:
        value <<= 1
        exponent -= 1
    if exponent < -126:
        return np.float32(0.0)
    if exponent > 127:
        return np.float32(np.inf)
    return float_of(((exponent + 127) << 23) | ((value >> (FRACTION_BITS - 23)) & 0x7FFFFF))


@njit(cache=True)
def exponential(x):
    """e^x of a float32."""
    if not x == x:
        return np.float32(x)
    if x > np.float32(89.0):
        return np.float32(np.inf)
    if x < np.float32(-88.0):
        return np.float32(0.0)
    bits = bits_of(x)
    exponent = ((bits >> 23) & 0xFF) - 127
    if exponent < -30:
        return np.float32(1.0)
    # y = x * log2(e) with 32 fractional bits: 24-bit mantissa (23 fractional) times 40 fractional bits, shifted.
    product = ((bits & 0x7FFFFF) | 0x800000) * (LOG2_E >> 8)
    shift = 23 - exponent
    y = product >> shift if shift >= 0 else product << -shift
    if bits >> 31:
        y = -y
    return assemble(interpolate(EXP2_TABLE, y & 0xFFFFFFFF, 32), y >> 32)


@njit(cache=True)
def power_of_two(x):
    """2^x of a float32."""
    if not x == x:
        return np.float32(x)
    if x >= np.float32(128.0):
        return np.float32(np.inf)
    if x < np.float32(-126.0):
        return np.float32(0.0)
    bits = bits_of(x)
    exponent = ((bits >> 23) & 0xFF) - 127
    if exponent < -30:
        return np.float32(1.0)
    # y = x with 32 fractional bits: a mantissa with 23 of them, shifted.
    mantissa = ((bits & 0x7FFFFF) | 0x800000) << 9
    y = mantissa << exponent if exponent >= 0 else mantissa >> -exponent
    if bits >> 31:
        y = -y
    return assemble(interpolate(EXP2_TABLE, y & 0xFFFFFFFF, 32), y >> 32)


@njit(cache=True)
def logarithm2(x):
    """log2(x) of a float32; -127 of zero and subnormals, NaN of other negatives."""
    bits = bits_of(x)
    field = (bits >> 23) & 0xFF
    if field == 0:
        return np.float32(-127.0)
    if bits >> 31:
        return np.float32(np.nan)
    if field == 0xFF:
        return np.float32(x)
    value = ((field - 127) << FRACTION_BITS) + interpolate(LOG2_TABLE, bits & 0x7FFFFF, 23)
    if value == 0:
        return np.float32(0.0)
    return np.float32(-assemble(-value, 0)) if value < 0 else assemble(value, 0)


@njit(cache=True)
def hyperbolic_tangent(x):
    """tanh(x) of a float32."""
    bits = bits_of(x)
    octave = ((bits >> 23) & 0xFF) - 127
    if octave < FIRST_OCTAVE or not x == x:
        return np.float32(x)
    sign = np.float32(-1.0) if bits >> 31 else np.float32(1.0)
    if octave >= LAST_OCTAVE:
        return sign
    return np.float32(sign * assemble(interpolate(TANH_TABLES[octave - FIRST_OCTAVE], bits & 0x7FFFFF, 23), 0))


@njit(cache=True)
def reciprocal(x):
    """1 / x of a float32; zero and subnormals give infinity, infinity gives zero."""
    bits = bits_of(x)
    sign = np.float32(-1.0) if bits >> 31 else np.float32(1.0)
    field = (bits >> 23) & 0xFF
    if field == 0xFF:
        return np.float32(x) if bits & 0x7FFFFF else np.float32(sign * np.float32(0.0))
    if field == 0:
        return np.float32(sign * np.float32(np.inf))
    return np.float32(sign * assemble(interpolate(RECIPROCAL_TABLE, bits & 0x7FFFFF, 23), 127 - field))


@njit(cache=True)
def reciprocal_sqrt(x):
    """1 / sqrt(x) of a positive float32; zero and subnormals give infinity, infinity gives zero, negatives NaN."""
    bits = bits_of(x)
    field = (bits >> 23) & 0xFF
    if field == 0:
        return np.float32(np.inf)
    if bits >> 31:
        return np.float32(np.nan)
    if field == 0xFF:
        return np.float32(x) if bits & 0x7FFFFF else np.float32(0.0)
    exponent = field - 127
    odd = exponent & 1
    return assemble(interpolate(RSQRT_TABLES[odd], bits & 0x7FFFFF, 23), -((exponent - odd) >> 1))
