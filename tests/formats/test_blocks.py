"""MX blocks against other people's implementations: torchao for the floating formats, gfloat for MXINT8."""

import warnings

import gfloat
import gfloat.formats
import numpy as np
import pytest

from npu.formats import FORMATS
from npu.formats.rounding import decode_rows, encode_rows

ROWS, BLOCK = 4000, 32
FLOATING = ["mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp4_e2m1"]


@pytest.fixture(scope="module")
def torchao():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own notices while torchao is imported
        from torchao.prototype.mx_formats import mx_tensor
    return mx_tensor


def torchao_name(name):
    import torch

    return {
        "mxfp8_e4m3": torch.float8_e4m3fn, "mxfp8_e5m2": torch.float8_e5m2, "mxfp6_e2m3": "fp6_e2m3",
        "mxfp6_e3m2": "fp6_e3m2", "mxfp4_e2m1": torch.float4_e2m1fn_x2,
    }[name]  # fmt: skip


def blocks():
    """Blocks of many magnitudes and spreads, with zeros, ties, subnormals of the element grids, and powers of two."""
    rng = np.random.default_rng(5)
    spread = rng.integers(0, 12, (ROWS, 1))
    rows = rng.normal(size=(ROWS, BLOCK)) * np.exp2(-rng.uniform(0, 1, (ROWS, BLOCK)) * spread)
    ties = np.round(rows[::3] * 64) / 64  # few significant bits: exact ties on every grid
    rows[::3] = ties
    rows[1::7] = np.exp2(np.floor(rng.uniform(-6, 6, (len(rows[1::7]), BLOCK)))) * rng.choice(
        [-1, 1], (len(rows[1::7]), BLOCK)
    )
    rows *= np.exp2(rng.integers(-100, 100, (ROWS, 1)).astype(float))
    rows[rng.random((ROWS, BLOCK)) < 0.05] = 0
    rows[0] = 0
    return rows.astype(np.float32)


def stored(rows, fmt):
    memory, values = np.zeros(len(rows) * fmt.record_bytes(BLOCK), np.uint8), np.zeros_like(rows)
    encode_rows(rows, fmt.code, BLOCK, memory)
    decode_rows(memory, fmt.code, BLOCK, values)
    return memory.reshape(len(rows), -1), values


@pytest.mark.parametrize("name", FLOATING)
def test_floating_blocks_equal_torchao_bit_for_bit(name, torchao):
    """Scale bytes, packed codes and values, with torchao's FLOOR scaling, which is OCP's rule."""
    import torch

    fmt, rows = FORMATS[name], blocks()
    memory, values = stored(rows, fmt)
    scales, expected = exchange(torchao, rows, name)
    _, codes = torchao.to_mx(torch.tensor(rows), torchao_name(name), BLOCK, torchao.ScaleCalculationMode.FLOOR)
    np.testing.assert_array_equal(memory[:, 0], scales)
    if fmt.bits != 6:  # torchao keeps FP6 codes one to a byte
        np.testing.assert_array_equal(memory[:, 1:], codes.view(torch.uint8).numpy())
    np.testing.assert_array_equal(values, expected)
    assert (np.signbit(values) == np.signbit(expected)).all()


def exchange(torchao, rows, name):
    """Scale bytes and values of torchao."""
    import torch

    scale, codes = torchao.to_mx(torch.tensor(rows), torchao_name(name), BLOCK, torchao.ScaleCalculationMode.FLOOR)
    return scale.view(torch.uint8).numpy()[:, 0], torchao.to_dtype(
        codes, scale, torchao_name(name), BLOCK, torch.float32
    ).numpy()


@pytest.mark.parametrize("name", FLOATING)
def test_deviation_from_torchao_a_nan_does_not_spread_over_its_block(name, torchao):
    fmt, rows = FORMATS[name], blocks()[:8]
    clean = rows.copy()
    rows[:, 3], clean[:, 3] = np.nan, 0
    assert (exchange(torchao, rows, name)[0] == 255).all()
    np.testing.assert_array_equal(stored(rows, fmt)[1], stored(clean, fmt)[1])


@pytest.mark.parametrize("name", FLOATING)
def test_an_infinity_counts_as_exponent_128_as_in_torchao(name, torchao):
    rows = blocks()[:8]
    rows[:, 3] = np.inf
    memory, values = stored(rows, FORMATS[name])
    scales, expected = exchange(torchao, rows, name)
    np.testing.assert_array_equal(memory[:, 0], scales)
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("name", FLOATING)
def test_deviation_from_torchao_the_smallest_scale_divides_as_it_multiplies(name, torchao):
    """Blocks below 2^(emax - 126) have the scale 2^-127; torchao divides them by 2^-126, and so halves them."""
    fmt = FORMATS[name]
    rows = (blocks()[1:200] * np.exp2(-20.0)).astype(np.float32)
    rows = rows / np.abs(rows).max(axis=1, keepdims=True) * np.float32(2.0 ** (fmt.max_exponent - 128))
    memory, values = stored(rows, fmt)
    scales, halved = exchange(torchao, rows, name)
    assert not memory[:, 0].any()
    assert not scales.any()
    largest = np.abs(rows).max()
    np.testing.assert_allclose(values, rows, atol=largest * 2.0 ** -(fmt.mantissa_bits + 1))
    assert np.abs(halved).max() <= 0.6 * largest


def test_mxint8_blocks_equal_gfloat_except_for_the_most_negative_code():
    fmt, info = FORMATS["mxint8"], gfloat.formats.format_info_mxint8
    rows = blocks()[:600]
    _, values = stored(rows, fmt)
    for row, value in zip(rows.astype(np.float64), values, strict=True):
        scale = gfloat.compute_scale_amax(0, row) if row.any() else 2.0**-127
        expected = np.array(list(gfloat.decode_block(info, gfloat.encode_block(info, scale, row / scale))))
        np.testing.assert_array_equal(value, np.maximum(expected, -fmt.max_value * scale))
