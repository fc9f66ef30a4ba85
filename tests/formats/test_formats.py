"""Formats against ml_dtypes and gfloat: elements exhaustively, blocks against an independent vectorised formula."""

import dataclasses

import gfloat
import gfloat.formats
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from npu.errors import TripathError
from npu.formats import FORMATS
from npu.formats.rounding import (
    decode_rows,
    element_code,
    encode_rows,
    exponent_of,
    float_of,
    round_bf16,
    round_element,
)
from npu.formats.table import STORED_BITS, Format

SCALED = [fmt for fmt in FORMATS.values() if fmt.block_scaled]
GFLOAT = {
    "mxint8": gfloat.formats.format_info_ocp_int8, "mxfp8_e4m3": gfloat.formats.format_info_ocp_e4m3,
    "mxfp8_e5m2": gfloat.formats.format_info_ocp_e5m2, "mxfp6_e2m3": gfloat.formats.format_info_ocp_e2m3,
    "mxfp6_e3m2": gfloat.formats.format_info_ocp_e3m2, "mxfp4_e2m1": gfloat.formats.format_info_ocp_e2m1,
    "fp16": gfloat.formats.format_info_binary16, "bf16": gfloat.formats.format_info_bfloat16,
}  # fmt: skip
ML_DTYPES = {
    "mxfp8_e4m3": ml_dtypes.float8_e4m3fn, "mxfp8_e5m2": ml_dtypes.float8_e5m2,
    "mxfp6_e2m3": ml_dtypes.float6_e2m3fn, "mxfp6_e3m2": ml_dtypes.float6_e3m2fn,
    "mxfp4_e2m1": ml_dtypes.float4_e2m1fn,
}  # fmt: skip
BF16_INPUTS = (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)


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


def around_every_midpoint(values):
    """FP32 inputs at, just below and just above each value of a grid and each midpoint of neighbours, both signs."""
    grid = np.unique(np.abs(values[np.isfinite(values)])).astype(np.float32)
    points = np.concatenate([grid, ((grid[1:].astype(np.float64) + grid[:-1]) / 2).astype(np.float32)])
    points = np.concatenate([points, np.nextafter(points, np.float32(np.inf)), np.nextafter(points, np.float32(0))])
    return np.concatenate([points, -points])


@pytest.mark.parametrize("name", ["mxint8", *ML_DTYPES])
def test_element_values_equal_gfloat_for_every_code(name):
    fmt, info = FORMATS[name], GFLOAT[name]
    for code, value in enumerate(fmt.element_values()):
        np.testing.assert_equal(float(value), gfloat.decode_float(info, code).fval)


@pytest.mark.parametrize("name", ML_DTYPES)
def test_element_values_equal_ml_dtypes_for_every_code(name):
    codes = np.arange(1 << FORMATS[name].bits, dtype=np.uint8)
    expected = codes.view(ML_DTYPES[name]).astype(np.float32)
    np.testing.assert_array_equal(FORMATS[name].element_values(), expected)
    assert (np.signbit(FORMATS[name].element_values()) == np.signbit(expected))[~np.isnan(expected)].all()


def test_mxint4_values_are_int4_with_two_fraction_bits():
    expected = np.arange(16, dtype=np.int8).astype(ml_dtypes.int4).astype(np.float32) / 4
    np.testing.assert_array_equal(FORMATS["mxint4"].element_values(), expected)


@pytest.mark.parametrize("name", ML_DTYPES)
def test_rounding_equals_ml_dtypes_for_every_bf16_input_and_around_every_midpoint(name):
    """ml_dtypes makes infinities (E5M2) or NaN (E4M3) of what exceeds the range; MX saturates, so inputs are clipped."""
    fmt = FORMATS[name]
    values = np.concatenate([BF16_INPUTS[np.isfinite(BF16_INPUTS)], around_every_midpoint(fmt.element_values())])
    expected = np.clip(values, -fmt.max_value, fmt.max_value).astype(ML_DTYPES[name])
    observed = np.array([round_element(value, fmt.code) for value in values], np.float32)
    np.testing.assert_array_equal(observed, expected.astype(np.float32))
    codes = np.array([element_code(value, fmt.code) for value in observed], np.uint8)
    np.testing.assert_array_equal(codes, expected.view(np.uint8))


@pytest.mark.parametrize("name", ML_DTYPES)
def test_saturated_rounding_equals_gfloat(name):
    fmt, info = FORMATS[name], GFLOAT[name]
    values = np.concatenate([BF16_INPUTS[np.isfinite(BF16_INPUTS)][::5], around_every_midpoint(fmt.element_values())])
    expected = gfloat.round_ndarray(info, values.astype(np.float64), gfloat.RoundMode.TiesToEven, sat=True)
    observed = np.array([round_element(value, fmt.code) for value in values])
    np.testing.assert_array_equal(observed, expected)


def test_fp16_equals_numpy_and_gfloat_for_every_code_and_every_bf16_input():
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    info, code = GFLOAT["fp16"], FORMATS["fp16"].code
    observed = np.zeros((1, 1 << 16), np.float32)
    decode_rows(every.view(np.uint8), code, 32, observed)
    np.testing.assert_array_equal(observed[0], every.astype(np.float32))
    np.testing.assert_array_equal(observed[0][::7], gfloat.decode_ndarray(info, np.arange(1 << 16)[::7]))
    values = np.concatenate(
        [BF16_INPUTS, around_every_midpoint(every.astype(np.float32)), np.float32([65519.996, 65520])]
    )
    values = np.concatenate([values, np.zeros(-len(values) % 32, np.float32)])
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    memory = np.zeros(2 * len(values), np.uint8)
    encode_rows(values[None], code, 32, memory)
    stored = memory.view(np.float16)
    np.testing.assert_array_equal(stored, expected)
    codes, known = stored.view(np.uint16), ~np.isnan(expected)
    np.testing.assert_array_equal(codes[known], expected.view(np.uint16)[known])
    assert set(codes[~known]) == {0x7E00}, "a NaN is stored as the quiet one without a sign"


def test_bf16_storage_equals_ml_dtypes_for_every_code():
    every, observed = np.arange(1 << 16, dtype=np.uint16), np.zeros((1, 1 << 16), np.float32)
    decode_rows(every.view(np.uint8), FORMATS["bf16"].code, 32, observed)
    np.testing.assert_array_equal(observed[0], every.view(ml_dtypes.bfloat16).astype(np.float32))
    np.testing.assert_array_equal(observed[0][::7], gfloat.decode_ndarray(GFLOAT["bf16"], every[::7].astype(np.int64)))


@pytest.mark.parametrize("name", ["mxfp6_e2m3", "mxfp6_e3m2", "mxfp4_e2m1", "mxint4"])
def test_elements_below_a_byte_are_one_little_endian_string_of_bits(name):
    fmt = FORMATS[name]
    values = np.nan_to_num(fmt.element_values()[np.random.default_rng(0).permutation(1 << fmt.bits)][None])
    values = np.resize(values, (1, 64))
    values[values == -fmt.max_value * 8 / 7] = 0  # mxint4: the code that is not used
    values[0, 0], values[0, 32] = fmt.max_value, fmt.max_value  # so that the scale is 1
    memory = np.zeros(fmt.row_bytes(64), np.uint8)
    encode_rows(values, fmt.code, 32, memory)
    assert fmt.record_bytes(32) == 1 + 4 * fmt.bits
    for block, record in enumerate(memory.reshape(2, -1)):
        assert record[0] == 127
        bits = np.unpackbits(record[1:], bitorder="little").reshape(32, fmt.bits)
        codes = (bits * (1 << np.arange(fmt.bits))).sum(axis=1)
        np.testing.assert_array_equal(fmt.element_values()[codes], values[0, 32 * block : 32 * block + 32])
    observed = np.zeros_like(values)
    decode_rows(memory, fmt.code, 32, observed)
    np.testing.assert_array_equal(observed, values)


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


@pytest.mark.parametrize("bits", range(1, 40))
def test_a_row_with_a_width_that_storage_cannot_hold_is_refused_as_it_is_made(bits):
    row = {**{field.name: getattr(FORMATS["mxint8"], field.name) for field in dataclasses.fields(Format)}, "bits": bits}
    if bits in STORED_BITS:
        assert Format(**row).bits == bits
    else:
        with pytest.raises(
            TripathError, match=f"formats: mxint8: storage holds elements of 4, 6, 8, 16, 32 bits, got {bits}"
        ):
            Format(**row)
