"""exp, exp2, log2, reciprocal and rsqrt against float64, over every BF16 input."""

import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from npu.formats.rounding import round_bf16
from npu.isa.transcendental import (
    exponential,
    hyperbolic_tangent,
    logarithm2,
    power_of_two,
    reciprocal,
    reciprocal_sqrt,
)

LIMIT = 2.0**-17
ALL = (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)
FINITE = ALL[np.isfinite(ALL)]
NUMERICS = Path(__file__).parents[2] / "docs" / "numerics.md"


@pytest.mark.parametrize(
    ("function", "truth", "inputs"),
    [
        (exponential, np.exp, FINITE[(FINITE > -87) & (FINITE < 88.5)]),
        (power_of_two, np.exp2, FINITE[(FINITE >= -126) & (FINITE < 128)]),
        (reciprocal, lambda x: 1 / x, FINITE[(np.abs(FINITE) >= 2.0**-126) & (np.abs(FINITE) < 2.0**126)]),
        (reciprocal_sqrt, lambda x: 1 / np.sqrt(x), FINITE[FINITE >= 2.0**-126]),
        (hyperbolic_tangent, np.tanh, FINITE[np.abs(FINITE) > 0]),
    ],
    ids=["exp", "exp2", "reciprocal", "rsqrt", "tanh"],
)
def test_relative_error_is_within_the_stated_bound_everywhere(function, truth, inputs):
    observed = np.array([function(value) for value in inputs], np.float64)
    expected = truth(inputs.astype(np.float64))
    assert np.max(np.abs(observed / expected - 1)) < LIMIT


def test_log2_is_within_the_stated_bound_everywhere():
    """Of inputs with more bits too: a dense sweep of an octave and of the neighbourhood of 1, where the result is small."""
    inputs = np.concatenate([FINITE[FINITE >= 2.0**-126], np.linspace(1, 2, 9999), np.linspace(0.99, 1.01, 999)])
    inputs = inputs.astype(np.float32)
    observed = np.array([logarithm2(value) for value in inputs], np.float64)
    expected = np.log2(inputs.astype(np.float64))
    assert np.max(np.abs(observed - expected) / np.maximum(1, np.abs(expected))) < LIMIT


def test_log2_and_exp2_are_exact_inverses_on_powers_of_two():
    for exponent in range(-126, 128):
        assert logarithm2(np.float32(2.0**exponent)) == exponent
        assert power_of_two(np.float32(exponent)) == np.float32(2.0**exponent)


def test_exponential_is_monotonic_and_flushes():
    inputs = np.sort(FINITE)
    values = np.array([exponential(value) for value in inputs])
    assert np.all(values[1:] >= values[:-1])
    assert exponential(np.float32(-3.0e38)) == 0
    assert np.isposinf(exponential(np.float32(100.0)))
    assert exponential(np.float32(0.0)) == 1


def test_tanh_is_odd_and_monotonic_and_ends_at_one():
    inputs = np.sort(FINITE)
    values = np.array([hyperbolic_tangent(value) for value in inputs])
    assert np.all(values[1:] >= values[:-1])
    np.testing.assert_array_equal([hyperbolic_tangent(-value) for value in inputs], -values)
    assert [hyperbolic_tangent(np.float32(x)) for x in (np.inf, -np.inf, 8.0, 2.0**-9)] == [1, -1, 1, 2.0**-9]
    assert np.isnan(hyperbolic_tangent(np.float32(np.nan)))


def test_special_values():
    assert np.isposinf(reciprocal(np.float32(0.0)))
    assert np.isneginf(reciprocal(np.float32(-0.0)))
    assert reciprocal(np.float32(np.inf)) == 0
    assert np.isposinf(reciprocal_sqrt(np.float32(0.0)))
    assert np.isnan(reciprocal_sqrt(np.float32(-1.0)))
    assert reciprocal_sqrt(np.float32(np.inf)) == 0
    assert np.isnan(exponential(np.float32(np.nan)))
    assert np.isnan(power_of_two(np.float32(np.nan)))
    assert np.isposinf(power_of_two(np.float32(128.0)))
    assert power_of_two(np.float32(-127.0)) == 0
    assert power_of_two(np.float32(-1e-20)) == 1
    assert [logarithm2(np.float32(x)) for x in (0.0, -0.0, 1e-40)] == [-127.0] * 3
    assert np.isnan(logarithm2(np.float32(-1.0)))
    assert np.isnan(logarithm2(np.float32(np.nan)))
    assert np.isposinf(logarithm2(np.float32(np.inf)))
    assert np.isnan(reciprocal(np.float32(np.nan)))
    assert np.isnan(reciprocal_sqrt(np.float32(np.nan)))


@pytest.mark.parametrize(
    ("name", "function", "truth", "inputs"),
    [
        ("exp", exponential, np.exp, FINITE),
        ("exp2", power_of_two, np.exp2, FINITE),
        ("log2", logarithm2, np.log2, FINITE[FINITE >= 2.0**-126]),
        ("reciprocal", reciprocal, lambda x: 1 / x, FINITE[np.abs(FINITE) >= 2.0**-126]),
        ("rsqrt", reciprocal_sqrt, lambda x: 1 / np.sqrt(x), FINITE[FINITE >= 2.0**-126]),
        ("tanh", hyperbolic_tangent, np.tanh, FINITE),
    ],
)
def test_the_documented_errors_in_bf16_ulps_are_the_measured_ones(name, function, truth, inputs):
    with np.errstate(over="ignore"):
        exact = truth(inputs.astype(np.float64))
    observed = np.array([round_bf16(function(value)) for value in inputs], np.float64)
    normal = (np.abs(exact) >= 2.0**-126) & (np.abs(exact) < 2.0**128 - 2.0**119)
    error = np.abs(observed[normal] - exact[normal]) / np.exp2(np.floor(np.log2(np.abs(exact[normal]))) - 7)
    with np.errstate(over="ignore"):
        nearest = exact.astype(ml_dtypes.bfloat16).astype(np.float64)
    flushed = np.count_nonzero((observed == 0) & (nearest != 0))
    row = f"| {name} | {normal.sum():,} | {error.max():.5f} | {np.sum((nearest != observed)[normal])} | {flushed} |"
    assert re.findall(rf"^\| {name} \|.*$", NUMERICS.read_text(), re.MULTILINE) == [row]
    beyond = ~normal & (np.abs(exact) > 1)
    assert np.all(np.isinf(observed[beyond]))
