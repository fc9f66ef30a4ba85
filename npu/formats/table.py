"""Number formats as rows of facts; every property is derived from a row."""

from dataclasses import dataclass

import numpy as np

from npu.errors import TripathError

MX_BLOCK = 32
SCALE_BYTES = 1
SCALE_BIAS = 127
STORED_BITS = (4, 6, 8, 16, 32)
"""Widths of an element that `rounding` packs into bytes and reads back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """One element format, alone or with a power-of-two scale (E8M0) shared by a block.

    The grid of an element is `quantum * n`, where the quantum is 2^(max(exponent, min_exponent) - mantissa_bits): a
    floating format has a range of exponents, an integer format has one (it is all "subnormal"). `max_exponent` is the
    exponent of `max_value`, the largest finite magnitude. Source: OCP Microscaling Formats (MX) v1.0, sections 5 and 6.
    Integer formats are symmetric here: the most negative code is not used (OCP leaves that to the implementation).

    Block-scaled formats saturate at `max_value`; the others overflow to infinity as IEEE 754 says. `infinity` tells
    whether the all-ones exponent is set aside for infinities and NaN: E5M2 has such codes and rounding never makes them.

    Raises:
        TripathError: a width that storage does not hold.
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
    infinity: bool = False

    def __post_init__(self) -> None:
        if self.bits not in STORED_BITS:
            known = ", ".join(map(str, STORED_BITS))
            raise TripathError(f"formats: {self.name}: storage holds elements of {known} bits, got {self.bits}")

    def fills_bytes(self, elements: int) -> bool:
        """So many elements take whole bytes."""
        return elements * self.bits % 8 == 0

    def record_bytes(self, elements: int) -> int:
        """Bytes of one stored block of `elements`: the scale byte, if any, then the packed elements.

        Raises:
            TripathError: the elements take no whole bytes.
        """
        if not self.fills_bytes(elements):
            raise TripathError(
                f"formats: {elements} elements of {self.name} take {elements * self.bits} bits, no whole bytes"
            )
        return (SCALE_BYTES if self.block_scaled else 0) + elements * self.bits // 8

    def row_bytes(self, elements: int, block: int = MX_BLOCK) -> int:
        """Bytes of `elements` consecutive elements stored as blocks of `block`."""
        return elements // block * self.record_bytes(block)

    @property
    def infinity_code(self) -> int:
        """Code of positive infinity, where the format has one: the all-ones exponent, mantissa 0."""
        return ((1 << (self.bits - 1 - self.mantissa_bits)) - 1) << self.mantissa_bits

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
        if self.infinity:
            values[magnitude == self.infinity_code] = np.inf
        return np.where(codes >> (self.bits - 1), -values, values).astype(np.float32)


_ROWS = (
    Format(name="fp32", code=0, bits=32, mantissa_bits=23, min_exponent=-126, max_exponent=127,
           max_value=float(np.finfo(np.float32).max), infinity=True),
    Format(name="bf16", code=1, bits=16, mantissa_bits=7, min_exponent=-126, max_exponent=127,
           max_value=float.fromhex("0x1.fep127"), infinity=True),
    Format(name="mxint8", code=2, bits=8, mantissa_bits=6, min_exponent=0, max_exponent=0,
           max_value=127 / 64, integer=True, block_scaled=True),
    Format(name="mxint4", code=3, bits=4, mantissa_bits=2, min_exponent=0, max_exponent=0,
           max_value=7 / 4, integer=True, block_scaled=True),
    Format(name="mxfp8_e4m3", code=4, bits=8, mantissa_bits=3, min_exponent=-6, max_exponent=8,
           max_value=448.0, block_scaled=True),
    Format(name="mxfp8_e5m2", code=5, bits=8, mantissa_bits=2, min_exponent=-14, max_exponent=15,
           max_value=57344.0, block_scaled=True, infinity=True),
    Format(name="mxfp6_e2m3", code=6, bits=6, mantissa_bits=3, min_exponent=0, max_exponent=2,
           max_value=7.5, block_scaled=True),
    Format(name="mxfp6_e3m2", code=7, bits=6, mantissa_bits=2, min_exponent=-2, max_exponent=4,
           max_value=28.0, block_scaled=True),
    Format(name="mxfp4_e2m1", code=8, bits=4, mantissa_bits=1, min_exponent=0, max_exponent=2,
           max_value=6.0, block_scaled=True),
    Format(name="fp16", code=9, bits=16, mantissa_bits=10, min_exponent=-14, max_exponent=15,
           max_value=65504.0, infinity=True),
)  # fmt: skip

FORMATS: dict[str, Format] = {row.name: row for row in _ROWS}
FORMAT_OF_CODE: dict[int, Format] = {row.code: row for row in _ROWS}

# The same facts as arrays over the format code, for compiled code.
FP32, BF16, FP16 = (FORMATS[name].code for name in ("fp32", "bf16", "fp16"))
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
