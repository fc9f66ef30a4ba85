"""Number formats as rows of facts; every property is derived from a row."""

from dataclasses import dataclass

import numpy as np

MX_BLOCK = 32
SCALE_BYTES = 1
SCALE_BIAS = 127


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """One element format, alone or with a power-of-two scale (E8M0) shared by a block.

    The grid of an element is `quantum * n`, where the quantum is 2^(max(exponent, min_exponent) - mantissa_bits): a
    floating format has a range of exponents, an integer format has one (it is all "subnormal"). `max_exponent` is the
    exponent of `max_value`, the largest finite magnitude. Source: OCP Microscaling Formats (MX) v1.0, sections 5 and 6.
    Integer formats are symmetric here: the most negative code is not used (OCP leaves that to the implementation).
    """

    name: str
    code: int
    bits: int
    mantissa_bits: int
    min_exponent: int
    max_exponent: int
    max_value: float
    integer: bool = False
    block_scaled: bool = False

    def record_bytes(self, elements: int) -> int:
        """Bytes of one stored block of `elements`: the scale byte, if any, then the packed elements."""
        return (SCALE_BYTES if self.block_scaled else 0) + elements * self.bits // 8

    def row_bytes(self, elements: int, block: int = MX_BLOCK) -> int:
        """Bytes of `elements` consecutive elements stored as blocks of `block`."""
        return elements // block * self.record_bytes(block)

    def element_values(self) -> np.ndarray:
        """Value of every element code (float32, [2^bits]); only for formats of at most 8 bits."""
        codes = np.arange(1 << self.bits)
        if self.integer:
            half = 1 << (self.bits - 1)
            return (((codes + half) % (2 * half)) - half).astype(np.float32) * np.float32(2.0**-self.mantissa_bits)
        magnitude = codes & ((1 << (self.bits - 1)) - 1)
        field, mantissa = magnitude >> self.mantissa_bits, magnitude & ((1 << self.mantissa_bits) - 1)
        exponent = np.maximum(field, 1) - 1 + self.min_exponent
        significand = mantissa + np.where(field > 0, 1 << self.mantissa_bits, 0)
        values = np.ldexp(significand.astype(np.float64), exponent - self.mantissa_bits)
        values[values > self.max_value] = np.nan
        return np.where(codes >> (self.bits - 1), -values, values).astype(np.float32)


_ROWS = (
    Format(name="fp32", code=0, bits=32, mantissa_bits=23, min_exponent=-126, max_exponent=127,
           max_value=float(np.finfo(np.float32).max)),
    Format(name="bf16", code=1, bits=16, mantissa_bits=7, min_exponent=-126, max_exponent=127,
           max_value=float.fromhex("0x1.fep127")),
    Format(name="mxint8", code=2, bits=8, mantissa_bits=6, min_exponent=0, max_exponent=0,
           max_value=127 / 64, integer=True, block_scaled=True),
    Format(name="mxint4", code=3, bits=4, mantissa_bits=2, min_exponent=0, max_exponent=0,
           max_value=7 / 4, integer=True, block_scaled=True),
    Format(name="mxfp8_e4m3", code=4, bits=8, mantissa_bits=3, min_exponent=-6, max_exponent=8,
           max_value=448.0, block_scaled=True),
)  # fmt: skip

FORMATS: dict[str, Format] = {row.name: row for row in _ROWS}
FORMAT_OF_CODE: dict[int, Format] = {row.code: row for row in _ROWS}

# The same facts as arrays over the format code, for compiled code.
FP32, BF16 = FORMATS["fp32"].code, FORMATS["bf16"].code
BITS = np.array([row.bits for row in _ROWS], np.int64)
MANTISSA_BITS = np.array([row.mantissa_bits for row in _ROWS], np.int64)
MIN_EXPONENT = np.array([row.min_exponent for row in _ROWS], np.int64)
MAX_EXPONENT = np.array([row.max_exponent for row in _ROWS], np.int64)
MAX_VALUE = np.array([row.max_value for row in _ROWS], np.float32)
IS_INTEGER = np.array([row.integer for row in _ROWS], np.bool_)
IS_BLOCK_SCALED = np.array([row.block_scaled for row in _ROWS], np.bool_)
ELEMENT_VALUES = np.zeros((len(_ROWS), 256), np.float32)
for _row in _ROWS:
    if _row.bits <= 8:
        ELEMENT_VALUES[_row.code, : 1 << _row.bits] = _row.element_values()
