"""Words of the golden vectors: memory contents as hexadecimal digits, most significant first, in ascending addresses."""

import re

import numpy as np

DIGITS = {"hbm": 2, "matrix": 2, "vector": 4, "fp": 8, "integer": 8, "accumulator": 8}
NAN = "nan"
"""A NaN, whatever its sign and payload (the contract leaves them open outside HBM)."""


def to_words(memory, values):
    """Text of some entries of a memory; bytes stand without spaces."""
    digits = DIGITS[memory]
    if digits == 2:
        return values.tobytes().hex()
    bits = np.ascontiguousarray(values).view(np.uint32)
    if memory == "vector":
        assert not np.any(bits & 0xFFFF), "Vector SRAM holds BF16"
        bits = bits >> 16  # a copy: what is printed stays as it is
    numbers = values.astype(np.float64)
    return " ".join(
        NAN if number != number else f"{word:0{digits}x}" for word, number in zip(bits.tolist(), numbers.tolist())
    )


def from_words(memory, text):
    """Entries of a memory from their text."""
    if DIGITS[memory] == 2:
        return np.frombuffer(bytes.fromhex(text), np.uint8)
    words = [int(word, 16) for word in re.sub(NAN, "7fc0" if memory == "vector" else "7fc00000", text).split()]
    bits = np.array(words, np.uint32) << (16 if memory == "vector" else 0)
    return bits.view(np.int32 if memory == "integer" else np.float32)
