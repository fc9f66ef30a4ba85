"""Rounding, block scaling, and the bytes of stored blocks: one function each, over rows of the format table.

All rounding is to nearest, ties to even. Block-scaled formats saturate at the largest finite magnitude (OCP MX v1.0,
6.3); BF16 and FP16 overflow to infinity as IEEE does. OCP leaves blocks with non-finite elements to the implementation:
here an infinity saturates and a NaN becomes zero.

Everything is plain scalar code that Numba compiles; with NUMBA_DISABLE_JIT=1 the same bodies run interpreted.
"""

import numpy as np
from numba import njit

from npu.formats.table import (
    BF16,
    BITS,
    ELEMENT_VALUES,
    FP16,
    FP32,
    IS_BLOCK_SCALED,
    IS_INTEGER,
    MANTISSA_BITS,
    MAX_EXPONENT,
    MAX_VALUE,
    MIN_EXPONENT,
    SCALE_BIAS,
)
from npu.unowned import unowned


@njit(cache=True)
def bits_of(x):
    """The 32 bits of a float32 as a non-negative integer."""
    return int(np.float32(x).view(np.uint32))


@njit(cache=True)
def float_of(bits):
    """The float32 of 32 bits."""
    return np.uint32(bits).view(np.float32)


@njit(cache=True)
def power_of_two(exponent):
    """2^exponent as float32, for exponents from -126 to 127."""
    return float_of((exponent + 127) << 23)


@njit(cache=True)
def exponent_of(x):
    """floor(log2(|x|)) of a normal float32; -127 for zero and subnormals; 128 for infinities and NaN."""
    return ((bits_of(x) >> 23) & 0xFF) - 127


@njit(cache=True)
def round_bf16(x):
    """`x` (float32) rounded to BF16, as a float32."""
    bits = bits_of(x)
    if (bits & 0x7FFFFFFF) > 0x7F800000:
        return float_of((bits | 0x00400000) & 0xFFFF0000)
    return float_of((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000)


@njit(cache=True)
def round_fp16(x):
    """`x` (float32) rounded to FP16 (IEEE binary16 with subnormals), as a float32."""
    magnitude = np.float32(abs(x))
    if not magnitude < np.float32(65520.0):  # the midpoint above the largest value rounds away; NaN stays NaN
        return np.float32(x) if not x == x else np.float32(np.inf if x > np.float32(0.0) else -np.inf)
    quantum = max(exponent_of(x), MIN_EXPONENT[FP16]) - MANTISSA_BITS[FP16]
    return np.float32(np.rint(np.float32(x * power_of_two(-quantum))) * power_of_two(quantum))


@njit(cache=True)
def block_exponent(largest, fmt):
    """Shared exponent of a block whose largest magnitude is `largest`: floor(log2(largest)) - emax, kept in E8M0."""
    if not largest > np.float32(0.0):
        return -SCALE_BIAS
    exponent = exponent_of(largest) - MAX_EXPONENT[fmt]
    return max(-SCALE_BIAS, min(SCALE_BIAS, exponent))


@njit(cache=True)
def halves(exponent):
    """Two powers of two whose product is 2^exponent, for exponents from -252 to 254."""
    half = exponent >> 1
    return power_of_two(half), power_of_two(exponent - half)


@njit(cache=True)
def scaled(x, exponent):
    """x * 2^exponent in float32, for exponents from -252 to 254 (two steps, each rounded: subnormals stay exact halves)."""
    once, twice = halves(exponent)
    return np.float32(np.float32(x * once) * twice)


@njit(cache=True)
def round_element(x, fmt):
    """`x` (float32, already divided by the block's scale) on the element grid of `fmt`, overflow as the format says."""
    if fmt == FP32:
        return np.float32(x)
    if fmt == BF16:
        return round_bf16(x)
    if fmt == FP16:
        return round_fp16(x)
    largest = MAX_VALUE[fmt]
    if not x == x:
        return np.float32(0.0)
    if x >= largest:
        return largest
    if x <= -largest:
        return np.float32(-largest)
    quantum = max(exponent_of(x), MIN_EXPONENT[fmt]) - MANTISSA_BITS[fmt]
    rounded = np.float32(np.rint(np.float32(x * power_of_two(-quantum))) * power_of_two(quantum))
    return min(max(rounded, np.float32(-largest)), largest)


@njit(cache=True)
def quantise_block(values, start, count, fmt, out, place):
    """Element values of the block `values[start : start + count]` into `out[place : place + count]` (float32, unscaled);
    returns its exponent.

    Formats without a scale have exponent 0.
    """
    first, to = (
        np.uint64(start),
        np.uint64(place),
    )  # without signs, no index can count from the end: the compiler uses SIMD
    if fmt == BF16:  # as below; without branches the compiler uses SIMD
        for i in range(count):
            out[to + np.uint64(i)] = round_bf16(values[first + np.uint64(i)])
        return 0
    if not IS_BLOCK_SCALED[fmt]:
        for i in range(count):
            out[to + np.uint64(i)] = round_element(values[first + np.uint64(i)], fmt)
        return 0
    largest = np.float32(0.0)
    for i in range(count):
        largest = max(largest, np.float32(abs(values[first + np.uint64(i)])))
    exponent = block_exponent(largest, fmt)
    usual = -126 <= exponent <= 126 and largest < np.float32(3.0e38)
    if usual and IS_INTEGER[fmt]:
        # The common case of round_element: one quantum for the whole block, no branches.
        unit = MANTISSA_BITS[fmt]
        up, down, top = power_of_two(-exponent), power_of_two(-unit), np.float32(MAX_VALUE[fmt] * power_of_two(unit))
        for i in range(count):
            steps = np.rint(np.float32(np.float32(values[first + np.uint64(i)] * up) * power_of_two(unit)))
            steps = steps if steps == steps else np.float32(0.0)  # NaN, as in round_element
            out[to + np.uint64(i)] = np.float32(min(max(np.float32(steps), np.float32(-top)), top) * down)
        return exponent
    if usual:
        # The same for floating elements, each with a quantum of its own.
        # A sum with 1.5 * 2^23 quanta has no bit below one: it is rounded there, and the difference is exact.
        up, top = power_of_two(-exponent), MAX_VALUE[fmt]
        lowest, shift = np.uint32(MIN_EXPONENT[fmt] + 127), np.uint32(23 - MANTISSA_BITS[fmt])
        for i in range(count):
            x = np.float32(values[first + np.uint64(i)] * up)
            bits = x.view(np.uint32)
            field = np.uint32(max(np.uint32((bits >> 23) & 0xFF), lowest) + shift)
            large = np.uint32((field << 23) | 0x400000).view(np.float32)
            rounded = np.float32(np.float32(x + large) - large)
            rounded = np.uint32(rounded.view(np.uint32) | (bits & 0x80000000)).view(np.float32)  # -0 stays
            rounded = rounded if rounded == rounded else np.float32(0.0)
            out[to + np.uint64(i)] = min(max(rounded, np.float32(-top)), top)
        return exponent
    for i in range(count):
        out[to + np.uint64(i)] = round_element(scaled(values[first + np.uint64(i)], -exponent), fmt)
    return exponent


@njit(cache=True)
def element_code(value, fmt):
    """Code of an element value that lies on the grid of a format of at most 8 bits, or of FP16."""
    bits, mantissa = BITS[fmt], MANTISSA_BITS[fmt]
    if IS_INTEGER[fmt]:
        return int(np.float32(value * power_of_two(mantissa))) & ((1 << bits) - 1)
    magnitude = np.float32(abs(value))
    if not magnitude <= MAX_VALUE[fmt]:  # FP16 only: infinity, or the quiet NaN without a sign
        return (int(bits_of(value) >> 31) << 15) | 0x7C00 if magnitude == magnitude else 0x7E00
    sign = int(bits_of(value) >> 31) << (bits - 1)
    exponent = max(exponent_of(magnitude), MIN_EXPONENT[fmt])
    steps = int(np.float32(magnitude * power_of_two(mantissa - exponent)))
    return sign | (steps + ((exponent - MIN_EXPONENT[fmt]) << mantissa))


@njit(cache=True)
def fp16_value(code):
    """Value (float32) of an FP16 code."""
    field, mantissa = (code >> 10) & 31, code & 1023
    sign = np.float32(-1.0) if code >> 15 else np.float32(1.0)
    if field == 31:
        return np.float32(np.nan) if mantissa else np.float32(sign * np.float32(np.inf))
    significand = np.float32(mantissa + (1024 if field else 0))
    return np.float32(sign * np.float32(significand * power_of_two(max(field, 1) - 25)))


@njit(cache=True)
def record_bytes(count, fmt):
    """Bytes of one stored block of `count` elements."""
    return (1 if IS_BLOCK_SCALED[fmt] else 0) + count * BITS[fmt] // 8


@njit(cache=True)
def store_block(memory, address, elements, exponent, count, fmt):
    """Write one block at `memory[address]`: scale byte, then packed elements.

    Elements of less than a byte form one little-endian string of bits: element i takes bits i * b to i * b + b - 1,
    bit 0 being the lowest of the first byte. So two 4-bit elements share a byte, low nibble first, and four 6-bit
    elements share three bytes.
    """
    if IS_BLOCK_SCALED[fmt]:
        memory[address] = exponent + SCALE_BIAS
        address += 1
    bits = BITS[fmt]
    if bits == 8:
        for i in range(count):
            memory[address + i] = element_code(elements[i], fmt)
    elif bits == 4:
        for i in range(0, count, 2):
            memory[address + i // 2] = element_code(elements[i], fmt) | (element_code(elements[i + 1], fmt) << 4)
    elif bits == 6:
        for i in range(0, count, 4):
            word = 0
            for j in range(4):
                word |= element_code(elements[i + j], fmt) << (6 * j)
            for byte in range(3):
                memory[address + i // 4 * 3 + byte] = (word >> (8 * byte)) & 0xFF
    elif fmt == FP16:
        for i in range(count):
            word = element_code(elements[i], fmt)
            memory[address + 2 * i] = word & 0xFF
            memory[address + 2 * i + 1] = word >> 8
    else:
        for i in range(count):
            word = bits_of(elements[i]) >> (32 - bits)
            for byte in range(bits // 8):
                memory[address + i * (bits // 8) + byte] = (word >> (8 * byte)) & 0xFF


@njit(cache=True)
def stored_exponent(memory, address, fmt):
    """Exponent of a stored block; 0 where the format has no scale."""
    return int(memory[address]) - SCALE_BIAS if IS_BLOCK_SCALED[fmt] else 0


@njit(cache=True)
def load_elements(memory, address, stride, blocks, count, fmt, out):
    """Element values of stored blocks, `stride` bytes apart, one after the other into `out` (float32, unscaled)."""
    memory, out = unowned(memory), unowned(out)
    bits, table, quantum = BITS[fmt], ELEMENT_VALUES[fmt], power_of_two(-MANTISSA_BITS[fmt])
    address += 1 if IS_BLOCK_SCALED[fmt] else 0
    for block in range(blocks):
        first, to = np.uint64(address + block * stride), np.uint64(block * count)  # see `quantise_block`
        if bits == 8 and IS_INTEGER[fmt]:  # as the table says, but with SIMD
            for i in range(count):
                code = np.int32(memory[first + np.uint64(i)])
                out[to + np.uint64(i)] = np.float32(np.int32((code ^ 128) - 128)) * quantum
        elif bits == 8:
            for i in range(count):
                out[to + np.uint64(i)] = table[memory[first + np.uint64(i)]]
        elif bits == 4 and IS_INTEGER[fmt]:
            for i in range(count // 2):
                packed = np.int32(memory[first + np.uint64(i)])
                out[to + np.uint64(2 * i)] = np.float32(np.int32(((packed & 15) ^ 8) - 8)) * quantum
                out[to + np.uint64(2 * i + 1)] = np.float32(np.int32(((packed >> 4) ^ 8) - 8)) * quantum
        elif bits == 4:
            for i in range(count // 2):
                packed = memory[first + np.uint64(i)]
                out[to + np.uint64(2 * i)] = table[packed & 15]
                out[to + np.uint64(2 * i + 1)] = table[packed >> 4]
        elif bits == 6:
            for i in range(0, count, 4):
                word, source = 0, first + np.uint64(i // 4 * 3)
                for byte in range(3):
                    word |= int(memory[source + np.uint64(byte)]) << (8 * byte)
                for j in range(4):
                    out[to + np.uint64(i + j)] = table[(word >> (6 * j)) & 63]
        elif fmt == FP16:
            for i in range(count):
                low, high = memory[first + np.uint64(2 * i)], memory[first + np.uint64(2 * i + 1)]
                out[to + np.uint64(i)] = fp16_value(int(low) | (int(high) << 8))
        elif bits == 16:
            for i in range(count):
                low, high = memory[first + np.uint64(2 * i)], memory[first + np.uint64(2 * i + 1)]
                out[to + np.uint64(i)] = float_of(
                    (np.uint32(high) << np.uint32(24)) | (np.uint32(low) << np.uint32(16))
                )
        else:
            for i in range(count):
                word, source = 0, first + np.uint64(bits // 8 * i)
                for byte in range(bits // 8):
                    word |= int(memory[source + np.uint64(byte)]) << (8 * byte)
                out[to + np.uint64(i)] = float_of(word << (32 - bits))


@njit(cache=True)
def load_block(memory, address, count, fmt, out):
    """Element values of a stored block into `out[:count]` (float32, unscaled); returns its exponent."""
    load_elements(memory, address, 0, 1, count, fmt, out)
    return stored_exponent(memory, address, fmt)


@njit(cache=True)
def encode_rows(values, fmt, block, memory):
    """Store `values` (float32, [rows, columns]) row by row as consecutive blocks along the columns into `memory`."""
    elements = np.zeros(block, np.float32)
    flat = values.ravel()
    size = record_bytes(block, fmt)
    for index in range(flat.size // block):
        exponent = quantise_block(flat, index * block, block, fmt, elements, 0)
        store_block(memory, index * size, elements, exponent, block, fmt)


@njit(cache=True)
def decode_rows(memory, fmt, block, values):
    """Inverse of `encode_rows`: fill `values` (float32, [rows, columns]) from stored blocks."""
    elements = np.zeros(block, np.float32)
    flat = values.ravel()
    size = record_bytes(block, fmt)
    for index in range(flat.size // block):
        exponent = load_block(memory, index * size, block, fmt, elements)
        for i in range(block):
            flat[index * block + i] = scaled(elements[i], exponent)
