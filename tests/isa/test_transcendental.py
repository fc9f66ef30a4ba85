"""exp, reciprocal and rsqrt against float64, over every BF16 input."""

import numpy as np
import pytest

from tripath.isa.transcendental import exponential, reciprocal, reciprocal_sqrt

LIMIT = 2.0**-17
ALL = (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)
FINITE = ALL[np.isfinite(ALL)]


@pytest.mark.parametrize(
    ("function", "truth", "inputs"),
    [
        (exponential, np.exp, FINITE[(FINITE > -87) & (FINITE < 88.5)]),
        (reciprocal, lambda x: 1 / x, FINITE[(np.abs(FINITE) >= 2.0**-126) & (np.abs(FINITE) < 2.0**126)]),
        (reciprocal_sqrt, lambda x: 1 / np.sqrt(x), FINITE[FINITE >= 2.0**-126]),
    ],
    ids=["exp", "reciprocal", "rsqrt"],
)
def test_relative_error_is_within_the_stated_bound_everywhere(function, truth, inputs):
    observed = np.array([function(value) for value in inputs], np.float64)
    expected = truth(inputs.astype(np.float64))
    assert np.max(np.abs(observed / expected - 1)) < LIMIT


def test_exponential_is_monotonic_and_flushes():
    inputs = np.sort(FINITE)
    values = np.array([exponential(value) for value in inputs])
    assert np.all(values[1:] >= values[:-1])
    assert exponential(np.float32(-3.0e38)) == 0
    assert np.isposinf(exponential(np.float32(100.0)))
    assert exponential(np.float32(0.0)) == 1


def test_special_values():
    assert np.isposinf(reciprocal(np.float32(0.0)))
    assert np.isneginf(reciprocal(np.float32(-0.0)))
    assert reciprocal(np.float32(np.inf)) == 0
    assert np.isposinf(reciprocal_sqrt(np.float32(0.0)))
    assert np.isnan(reciprocal_sqrt(np.float32(-1.0)))
    assert reciprocal_sqrt(np.float32(np.inf)) == 0
    assert np.isnan(exponential(np.float32(np.nan)))
    assert np.isnan(reciprocal(np.float32(np.nan)))
    assert np.isnan(reciprocal_sqrt(np.float32(np.nan)))
