"""Formats against ml_dtypes and gfloat: elements exhaustively, blocks against an independent vectorised formula."""

import gfloat
import gfloat.formats
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tripath.formats import FORMATS
from tripath.formats.rounding import (
    decode_rows,
    element_code,
    encode_rows,
    exponent_of,
    float_of,
    round_bf16,
    round_element,
)

SCALED = [fmt for fmt in FORMATS.values() if fmt.block_scaled]
GFLOAT = {"mxint8": gfloat.formats.format_info_ocp_int8, "mxfp8_e4m3": gfloat.formats.format_info_ocp_e4m3}


def test_bf16_rounding_equals_ml_dtypes_around_every_bf16_value():
    patterns = (np.arange(1 << 16, dtype=np.uint32)[:, None] << 16) + np.array(
        [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32
    )
    values = patterns.reshape(-1).view(np.float32)
    with np.errstate(invalid="ignore"):
        expected = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    finite = ~np.isnan(values)
    observed = np.array([round_bf16(value) for value in values[finite]], np.float32)
    np.testing.assert_array_equal(observed.view(np.uint32), expected[finite].view(np.uint32))
    assert all(np.isnan(round_bf16(value)) for value in values[~finite][::997])


@pytest.mark.parametrize("name", ["mxint8", "mxfp8_e4m3"])
def test_element_values_equal_gfloat_for_every_code(name):
    fmt, info = FORMATS[name], GFLOAT[name]
    for code, value in enumerate(fmt.element_values()):
        np.testing.assert_equal(float(value), gfloat.decode_float(info, code).fval)


def test_mxint4_values_are_int4_with_two_fraction_bits():
    expected = np.arange(16, dtype=np.int8).astype(ml_dtypes.int4).astype(np.float32) / 4
    np.testing.assert_array_equal(FORMATS["mxint4"].element_values(), expected)


def test_e4m3_rounding_equals_ml_dtypes_for_every_bf16_input():
    fmt = FORMATS["mxfp8_e4m3"]
    values = (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)
    values = values[np.isfinite(values)]
    clipped = np.clip(values, -fmt.max_value, fmt.max_value)
    expected = clipped.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    observed = np.array([round_element(value, fmt.code) for value in values], np.float32)
    np.testing.assert_array_equal(observed, expected)
    codes = np.array([element_code(value, fmt.code) for value in observed], np.uint8)
    np.testing.assert_array_equal(fmt.element_values()[codes], expected)


def test_int8_rounding_equals_gfloat_except_for_the_most_negative_code():
    """Deviation: the most negative code is not used, so that a format is symmetric (OCP MX 5.3.4 leaves it open)."""
    fmt, info = FORMATS["mxint8"], GFLOAT["mxint8"]
    values = (np.arange(0, 1 << 16, 3, dtype=np.uint32) << 16).view(np.float32)
    for value in values[np.isfinite(values)]:
        expected = max(gfloat.round_float(info, float(value), gfloat.RoundMode.TiesToEven, sat=True), -fmt.max_value)
        assert float(round_element(value, fmt.code)) == expected


def block_formula(rows, fmt, block):
    """OCP MX 6.3 in float64: shared exponent floor(log2 max) - emax, elements rounded on their grid and saturated."""
    shape = rows.shape
    blocks = rows.reshape(-1, block).astype(np.float64)
    largest = np.abs(blocks).max(axis=1)
    with np.errstate(divide="ignore"):
        exponent = np.where(largest > 0, np.floor(np.log2(largest)) - fmt.max_exponent, -127)
    # A subnormal float32 has no exponent field of its own: it counts as 2^-127.
    exponent = np.where((largest > 0) & (largest < 2.0**-126), -127 - fmt.max_exponent, exponent)
    exponent = np.clip(exponent, -127, 127)
    scaled = blocks / 2.0 ** exponent[:, None]
    with np.errstate(divide="ignore"):
        local = np.where(scaled == 0, fmt.min_exponent, np.floor(np.log2(np.abs(scaled))))
    quantum = 2.0 ** (np.clip(local, fmt.min_exponent, None) - fmt.mantissa_bits)
    rounded = np.clip(np.rint(scaled / quantum) * quantum, -fmt.max_value, fmt.max_value)
    return (rounded * 2.0 ** exponent[:, None]).reshape(shape)


@pytest.mark.parametrize("fmt", SCALED, ids=lambda fmt: fmt.name)
@pytest.mark.parametrize("block", [8, 16, 32])
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_blocks_equal_the_ocp_formula(fmt, block, data):
    finite = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
    rows = data.draw(arrays(np.float32, (2, 2 * block), elements=finite))
    memory, observed = np.zeros(2 * fmt.row_bytes(2 * block, block), np.uint8), np.zeros_like(rows)
    encode_rows(rows, fmt.code, block, memory)
    decode_rows(memory, fmt.code, block, observed)
    np.testing.assert_array_equal(observed, block_formula(rows, fmt, block).astype(np.float32))


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda fmt: fmt.name)
def test_stored_values_are_a_fixed_point(fmt):
    rows = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)
    memory, once, twice = np.zeros(8 * fmt.row_bytes(64), np.uint8), np.zeros_like(rows), np.zeros_like(rows)
    encode_rows(rows, fmt.code, 32, memory)
    decode_rows(memory, fmt.code, 32, once)
    again = np.zeros_like(memory)
    encode_rows(once, fmt.code, 32, again)
    decode_rows(again, fmt.code, 32, twice)
    np.testing.assert_array_equal(once, twice)


def test_non_finite_inputs_follow_the_stated_rule():
    fmt = FORMATS["mxint8"]
    rows = np.array([[np.inf, -np.inf, np.nan, 1.0] + [0.0] * 28], np.float32)
    memory, observed = np.zeros(fmt.row_bytes(32), np.uint8), np.zeros_like(rows)
    encode_rows(rows, fmt.code, 32, memory)
    decode_rows(memory, fmt.code, 32, observed)
    assert observed[0, 0] > 1e38
    assert observed[0, 1] == -observed[0, 0]
    assert observed[0, 2] == 0.0


def test_exponent_is_floor_log2():
    for value in np.float32([1.0, 1.5, 2.0, 0.75, 3.9e-30, 1e30]):
        assert exponent_of(value) == int(np.floor(np.log2(np.float64(value))))
    assert float_of(0x3F800000) == 1.0
