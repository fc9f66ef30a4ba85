"""Areas and powers against published synthesis: what was fitted is fitted, what was left out is predicted."""

import itertools

import numpy as np
import pytest

from npu.energy import matrix_unit_um2, vector_unit_um2, vector_unit_watts
from tests.conftest import compose_experiment

MXINT4 = {(64, 4): 30_566, (64, 8): 69_312, (64, 16): 174_302, (1024, 4): 237_000}
"""um2 of matrix units (MLEN, BLEN): arXiv:2601.20706, 7 nm, commercial synthesis."""
E4M3 = {(64, 4): 207_730}
VECTOR = {512: (0.731, 0.38172), 2048: (2.931, 1.52453)}
"""mm2 and watts at 1 GHz by VLEN: the same source."""


@pytest.fixture(scope="module")
def technology():
    return compose_experiment().technology


def matrix(technology, mlen, blen, weights="mxint4", activations="mxint4"):
    return matrix_unit_um2(technology, mlen=mlen, blen=blen, weights=weights, activations=activations)


def fit(points):
    """Least relative squares of MLEN x BLEN, BLEN and BLEN^2: the law of `matrix_terms`, fitted anew."""
    rows = np.array([[m * b, b, b * b] for m, b in points], float)
    areas = np.array(list(points.values()), float)
    return np.linalg.lstsq(rows / areas[:, None], np.ones(len(areas)), rcond=None)[0]


@pytest.mark.parametrize(("shape", "area"), MXINT4.items())
def test_published_integer_arrays(technology, shape, area):
    assert matrix(technology, *shape) == pytest.approx(area, rel=0.01)


def test_published_float_array(technology):
    assert matrix(technology, 64, 4, "mxfp8_e4m3", "mxfp8_e4m3") == pytest.approx(E4M3[64, 4], rel=0.001)


def test_the_coefficients_are_the_fit_of_the_published_points(technology):
    names = ("mac_mxint4_um2", "matrix_row_um2", "matrix_output_um2")
    assert [technology[name] for name in names] == pytest.approx(fit(MXINT4), rel=0.005)


@pytest.mark.parametrize("left_out", [(64, 4), (64, 8), (64, 16)])
def test_an_array_that_the_fit_did_not_see_is_predicted(left_out):
    mlen, blen = left_out
    seen = {shape: area for shape, area in MXINT4.items() if shape != left_out}
    assert fit(seen) @ [mlen * blen, blen, blen**2] == pytest.approx(MXINT4[left_out], rel=0.05)


@pytest.mark.parametrize(("vlen", "published"), VECTOR.items())
def test_published_vector_units(technology, vlen, published):
    assert vector_unit_um2(technology, vlen=vlen) * 1e-6 == pytest.approx(published[0], rel=0.01)
    assert vector_unit_watts(technology, vlen=vlen, clock_hz=1e9) == pytest.approx(published[1], rel=0.01)


@pytest.mark.parametrize(("seen", "left_out"), list(itertools.permutations(VECTOR)))
def test_one_vector_unit_predicts_the_other(seen, left_out):
    for one, other in zip(VECTOR[seen], VECTOR[left_out], strict=True):
        assert one / seen * left_out == pytest.approx(other, rel=0.01), "the law has one coefficient: a lane"


def test_more_of_anything_never_takes_less(technology):
    for mlen, blen in itertools.product((32, 64, 512, 8192), (4, 16, 128)):
        assert matrix(technology, mlen, blen) < matrix(technology, 2 * mlen, blen)
        assert matrix(technology, mlen, blen) < matrix(technology, mlen, 2 * blen)
    order = ["mxint4", "mxint8", "mxfp4_e2m1", "mxfp6_e2m3", "mxfp8_e4m3", "bf16", "fp16", "fp32"]
    sizes = [matrix(technology, 64, 4, name, name) for name in order]
    assert sizes == sorted(sizes)
    assert matrix(technology, 64, 4, "mxint4", "mxint8") == pytest.approx(matrix(technology, 64, 4, "mxint8", "mxint4"))


def test_asap7_is_n7_with_areas_of_the_rtl(technology):
    synthesised = compose_experiment("technology=asap7").technology
    assert synthesised is not None
    changed = {name for name in technology.numbers if technology.numbers[name] != synthesised.numbers[name]}
    assert changed == {"vector_lane_um2", "scalar_unit_um2", "frontend_um2"}
    assert {synthesised.numbers[name]["provenance"] for name in changed} == {"synthesis"}
