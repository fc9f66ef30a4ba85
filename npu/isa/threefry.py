"""Random numbers as functions of a key and a counter, without state: the same bits whatever the order in which they are drawn.

Threefry-2x32 with 20 rounds (Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011): additions,
rotations and exclusive ors of 32 bits, no product. The first of its two words counts.
"""

import numpy as np
from numba import njit

from npu.isa.transcendental import FRACTION_BITS, LOG2_E, LOG2_TABLE, assemble, interpolate, logarithm2

WORD = 0xFFFFFFFF
PARITY = 0x1BD11BDA
ROTATIONS = np.array([13, 15, 26, 6, 17, 29, 16, 24])
ROUNDS = 20
SMALL = 1 << 24
"""Words below it, a share of 2^-8, take their logarithm from the series."""


@njit(cache=True)
def threefry(key_0, key_1, counter_0, counter_1):
    """Both words of a counter of two words under a key of two, all int64 from 0 to 2^32 - 1."""
    key_2 = PARITY ^ key_0 ^ key_1
    x, y = (counter_0 + key_0) & WORD, (counter_1 + key_1) & WORD
    for number in range(ROUNDS):
        turn = ROTATIONS[number % 8]
        x = (x + y) & WORD
        y = (((y << turn) & WORD) | (y >> (32 - turn))) ^ x
        if number % 4 == 3:
            group = number // 4 + 1
            key_0, key_1, key_2 = key_1, key_2, key_0
            x = (x + key_0) & WORD
            y = (y + key_1 + group) & WORD
    return x, y


@njit(cache=True)
def random_word(key_0, key_1, entry, stream):
    """The word of a counter (`entry`, `stream`) under a key of two int32: an int64 from 0 to 2^32 - 1. Of each the lowest 32 bits
    count."""
    word, _ = threefry(np.int64(key_0) & WORD, np.int64(key_1) & WORD, entry & WORD, stream & WORD)
    return word


@njit(cache=True)
def uniform(word):
    """A float32 between 0 and 1, both excluded: the 23 highest bits of a word, and a half, over 2^23."""
    return np.float32(np.float32(2 * (word >> 9) + 1) * np.float32(2.0**-24))


@njit(cache=True)
def below(word, bound):
    """An integer from 0 to `bound` - 1: the word times `bound`, of which 2^32 is one."""
    return np.int32((word * bound) >> 32)


@njit(cache=True)
def gumbel2(word):
    """-log2(-log2(1 - t)) with t = (word + 1/2) / 2^32, as float32: Gumbel noise over ln 2, up to a constant.

    The inner logarithm is small where the noise is large, and must be right there: below t = 2^-8 it is (t + t^2 / 2) log2(e),
    above it comes from the table.
    """
    twice = 2 * word + 1  # t with 33 fractional bits
    if word < SMALL:
        value, exponent = (twice + ((twice * twice) >> 34)) * (LOG2_E >> 8), FRACTION_BITS - 65
    else:
        rest, high = (1 << 33) - twice, 32
        while rest >> high == 0:
            high -= 1
        fraction = (rest << (32 - high)) & WORD
        value, exponent = ((33 - high) << FRACTION_BITS) - interpolate(LOG2_TABLE, fraction, 32), 0
    return np.float32(-logarithm2(assemble(value, exponent)))
