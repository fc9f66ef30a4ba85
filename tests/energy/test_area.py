"""Areas and powers against published synthesis: what was fitted is fitted, what was left out is predicted."""

import dataclasses
import itertools
from statistics import median

import pytest

from benchmarks import fit_areas
from npu.energy import matrix_unit_um2, operand, vector_unit_um2, vector_unit_watts
from npu.energy.area import area_terms, macros_um2
from npu.errors import TripathError
from npu.formats import FORMATS
from tests.conftest import compose_experiment
from tripath.validation import check_areas, read_areas

VECTOR = {512: (0.731, 0.38172), 2048: (2.931, 1.52453)}
"""mm2 and watts at 1 GHz by VLEN: the same source."""


@pytest.fixture(scope="module")
def technology():
    return compose_experiment().technology


def matrix(technology, mlen, blen, weights="mxint4", activations="mxint4"):
    weights, activations = (operand(FORMATS[name]) for name in (weights, activations))
    return matrix_unit_um2(technology, mlen=mlen, blen=blen, weights=weights, activations=activations)


PUBLISHED = read_areas("published")
FITTED = [row for row in PUBLISHED if row.source == "matrix.csv"]


def test_the_files_that_are_fitted_and_those_that_are_not_share_no_row():
    assert len(FITTED) == 58
    others = [row for row in PUBLISHED if row.source == "others.csv"]

    def what(row):
        return row.mlen, row.blen, row.activations, row.weights

    assert not {what(row) for row in FITTED} & {what(row) for row in others}


@pytest.mark.parametrize("integer", [True, False])
def test_the_coefficients_are_the_fit_of_the_published_points(technology, integer):
    names = fit_areas.INTEGER if integer else fit_areas.FLOAT
    rows = [row for row in FITTED if fit_areas.is_integer(row) == integer]
    assert [technology[name] for name in names] == pytest.approx(fit_areas.fit(rows), rel=0.005)


def test_the_core_is_the_fit_of_its_rows(technology):
    assert [technology[name] for name in fit_areas.CORE] == pytest.approx(fit_areas.fit_cores(), rel=0.005)


@pytest.mark.parametrize("label", fit_areas.GROUPS)
@pytest.mark.parametrize("integer", [True, False])
def test_an_array_whose_point_shape_or_format_the_fit_did_not_see_is_predicted(integer, label):
    rows = [row for row in FITTED if fit_areas.is_integer(row) == integer]
    errors = [abs(each) for row in fit_areas.left_out(rows, fit_areas.GROUPS[label]).values() for each in row]
    assert median(errors) <= 0.03
    assert max(errors) <= 0.10


def test_what_no_coefficient_was_fitted_to_is_predicted(technology):
    """By the rows themselves: 64x16 and 32x16 within 2 %, 1024x4 in the other corner by the stated factor within 10 %, cores within 3 %."""
    errors = {row.scope: row.relative_error for row in check_areas(PUBLISHED, technology)}
    unseen = {scope: error for scope, error in errors.items() if scope.startswith("others")}
    assert [abs(error) <= band for error, band in zip(unseen.values(), (0.02, 0.02, 0.10), strict=True)] == [True] * 3
    cores = [error for scope, error in errors.items() if scope.startswith("cores") and " 32x" in scope]
    assert len(cores) == 7
    assert max(map(abs, cores)) <= 0.03


def test_the_other_corner_is_a_factor(technology):
    """237,000 um2 of 1024 x 4 MXINT4 in the predictive corner (arXiv:2601.20706), which no coefficient was fitted to."""
    predictive = compose_experiment("technology=asap7").technology
    assert matrix(technology, 64, 8) / matrix(predictive, 64, 8) == pytest.approx(1.67, rel=0.001)
    assert matrix(predictive, 1024, 4) == pytest.approx(237_000, rel=0.10)


HEADER = "activations,kv,weights,mlen,blen,area_um2"
GOOD = "mxint4,mxint8,mxint4,32,4,21241"


def test_a_file_of_ones_own_is_one_discrepancy_a_row(tmp_path, technology):
    file = tmp_path / "areas.csv"
    file.write_text(f"# a remark\n{HEADER}\n{GOOD}\n\nmxfp_e3m2,mxfp_e2m1,mxfp_e2m1,128,4,1e5\n", encoding="utf-8")
    rows = check_areas(read_areas(str(file)), technology)
    assert [row.expected for row in rows] == [21241, 1e5]
    assert rows[0].passed
    assert [row.tolerance for row in rows] == [0.10, 0.25], "beyond MLEN 64 the band is wider"
    assert "line 3: mxint4/mxint8/mxint4 32x4" in rows[0].scope


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER, "no rows"),
        ("a,b\n1,2", "must have the columns activations, kv"),
        (f"{HEADER}\n{GOOD},1", "line 2: needs a value for each column"),
        (f"{HEADER}\n{GOOD[:-6]}", "line 2: needs a value for each column"),
        (f"{HEADER}\n{GOOD.replace('mxint8', 'int8')}", "line 2: unknown format 'int8', one of mxintN, mxfp_eEmM"),
        (f"#\n{HEADER}\n{GOOD.replace('32', 'wide')}", "line 3: mlen must be an integer from 1 to 65536, got 'wide'"),
        (f"{HEADER}\n{GOOD.replace('21241', '-1')}", "line 2: area_um2 must be a positive number, got '-1'"),
        (f"{HEADER}\n{GOOD.replace('21241', 'nan')}", "line 2: area_um2 must be a positive number, got 'nan'"),
    ],
)  # fmt: skip
def test_bad_files_are_one_line_with_the_place(tmp_path, text, message):
    file = tmp_path / "areas.csv"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(TripathError, match=f"validation.areas: .*{message}") as caught:
        compose_experiment("experiment=areas", f"validation.areas={file}")
    assert "\n" not in str(caught.value)


def test_a_memory_is_an_array_of_macros():
    """By hand: 64 KiB behind 64 bits are 8,192 words, eight macros of 1,024 x 64; a port of 160 bits takes two macros of 80 side by side."""
    assert macros_um2(64 * 1024, 64) == pytest.approx(8 * 2359.86)
    assert macros_um2(20 * 1024, 160) == pytest.approx(2 * 2884.27)


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


def test_a_second_set_of_accumulators_takes_the_area_of_the_outputs(technology):
    """docs/energy.md: an output of b bits takes 206.5 + 7.72 b um2; 32 x 32 of them, of 4 + 4 bits. Nothing else grows."""
    hardware = compose_experiment("hardware=npu_datacenter").hardware
    other = dataclasses.replace(hardware, accumulator_sets=2)

    def areas(machine, pair):
        found = {}
        for term in area_terms(technology, machine, [pair]):
            found[term.block] = found.get(term.block, 0.0) + term.mm2
        return found

    one, two = (areas(each, ("mxint4", "mxint4")) for each in (hardware, other))
    assert two["matrix"] - one["matrix"] == pytest.approx(32 * 32 * (206.5 + 7.72 * 8) * 1e-6)
    assert {name: two[name] for name in two if name != "matrix"} == {
        name: one[name] for name in one if name != "matrix"
    }
    assert areas(hardware, ("bf16", "bf16"))["matrix"] < areas(other, ("bf16", "bf16"))["matrix"]
    (term,) = [
        term for term in area_terms(technology, other, [("mxint4", "mxint4")]) if "array_set_share" in term.numbers
    ]
    assert technology.provenance(*term.numbers) == "assumed"


def test_a_wider_write_out_takes_a_column_of_outputs_and_a_fused_exponential_a_share_of_the_lanes(technology):
    """32 outputs of 206.5 + 7.72 (4 + 4) um2 for each of three more columns; 5 % of 1,024 lanes of 1,429.5 um2. Assumed, both."""
    hardware = compose_experiment("hardware=npu_datacenter").hardware

    def areas(**changes):
        found = {}
        for term in area_terms(technology, dataclasses.replace(hardware, **changes), [("mxint4", "mxint4")]):
            found[term.block] = found.get(term.block, 0.0) + term.mm2
            if not set(term.numbers).isdisjoint({"array_column_share", "vector_chain_share"}):
                assert technology.provenance(*term.numbers) == "assumed"
        return found

    before, wider, fused = areas(), areas(write_out_columns=4), areas(fused_exponential=True)
    assert wider["matrix"] - before["matrix"] == pytest.approx(3 * 32 * (206.5 + 7.72 * 8) * 1e-6)
    assert fused["vector"] - before["vector"] == pytest.approx(0.05 * 1024 * 1429.5 * 1e-6)
    assert sum(wider.values()) - sum(before.values()) == pytest.approx(wider["matrix"] - before["matrix"])
    assert sum(fused.values()) - sum(before.values()) == pytest.approx(fused["vector"] - before["vector"])


def test_asap7_is_n7_with_areas_of_the_rtl(technology):
    synthesised = compose_experiment("technology=asap7").technology
    assert synthesised is not None
    changed = {name for name in technology.numbers if technology.numbers[name] != synthesised.numbers[name]}
    assert changed == {"vector_lane_um2", "scalar_unit_um2", "frontend_um2", "array_corner"}
    changed.remove("array_corner")
    assert {synthesised.numbers[name]["provenance"] for name in changed} == {"synthesis"}
