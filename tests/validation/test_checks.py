"""The checks on hand-made results: what agrees passes, and one wrong figure is reported by its name."""

import dataclasses
import math

import pytest

from npu.errors import TripathError
from npu.metrics import Result
from tripath.validation import KINDS, Discrepancy, Reference, Settings, Tolerance, validate

COUNTS = {"instructions": 10, "instructions.M_MM": 7, "instructions.V_EXP_V": 3, "macs": 640, "hbm_read_bytes": 96}


def result(simulator, metrics, counts=COUNTS, program="p", trace="t"):
    return Result(simulator=simulator, program_digest=program, trace_digest=trace, metrics=metrics, counts=dict(counts))


def results():
    return {
        "analytical": result(
            "analytical", {"lower_bound_cycles": 90, "estimated_cycles": 104, "busy_cycles.matrix": 70.0}
        ),
        "cycle": result("cycle", {"makespan_cycles": 100, "busy_cycles.matrix": 70, "busy_cycles.dma_in": 5}),
        "accuracy": result("accuracy", {"token_agreement": 0.9, "logit_kl": 0.01}),
    }


def settings(**changes):
    values = {
        "fail_on": list(KINDS), "estimate": Tolerance(value=0.05, reason="r"),
        "fidelity": {
            "token_agreement": Tolerance(value=0.25, reason="r"), "logit_kl": Tolerance(value=0.1, reason="r"),
        },
        **changes,
    }  # fmt: skip
    return Settings(**values)


def with_metric(everything, path, name, value):
    changed = dataclasses.replace(everything[path], metrics={**everything[path].metrics, name: value})
    return {**everything, path: changed}


def with_counts(everything, path, counts):
    return {**everything, path: dataclasses.replace(everything[path], counts=counts)}


def failed(rows):
    return {(row.kind, row.metric) for row in rows if not row.passed}


def test_agreeing_results_pass_every_kind_of_check():
    rows = validate(results(), settings())
    assert not failed(rows)
    assert {row.kind for row in rows} == {"count", "bound", "estimate", "fidelity"}
    assert sum(row.kind == "count" for row in rows) == 3 * len(COUNTS) + 1


@pytest.mark.parametrize("path", ["analytical", "cycle", "accuracy"])
@pytest.mark.parametrize("name", COUNTS)
def test_one_wrong_count_is_reported_by_its_name_against_both_others(path, name):
    wrong = {**COUNTS, name: COUNTS[name] + 1}
    rows = [row for row in validate(with_counts(results(), path, wrong), settings()) if not row.passed]
    assert {row.metric for row in rows} == {name}
    assert len(rows) == 2
    assert all(path in (row.expected_source, row.observed_source) for row in rows)


def test_an_opcode_that_one_path_never_saw_counts_as_zero_there():
    without = {name: value for name, value in COUNTS.items() if name != "instructions.V_EXP_V"}
    rows = validate(with_counts(results(), "cycle", without), settings())
    assert failed(rows) == {("count", "instructions.V_EXP_V")}
    assert {(row.expected, row.observed) for row in rows if not row.passed} == {(3, 0)}


def test_a_family_of_counts_that_a_path_does_not_know_is_not_compared():
    without = {name: value for name, value in COUNTS.items() if not name.startswith("macs")}
    rows = validate(with_counts(results(), "accuracy", without), settings())
    assert not failed(rows)
    assert sum(row.metric == "macs" for row in rows) == 1


@pytest.mark.parametrize(
    ("path", "name", "value", "expected"),
    [
        ("analytical", "lower_bound_cycles", 101, {("bound", "makespan_cycles")}),
        ("analytical", "estimated_cycles", 106, {("estimate", "makespan_cycles")}),
        ("analytical", "estimated_cycles", 94, {("estimate", "makespan_cycles")}),
        ("analytical", "busy_cycles.matrix", 71.0, {("count", "busy_cycles.matrix")}),
        ("cycle", "busy_cycles.matrix", 69, {("count", "busy_cycles.matrix")}),
        ("cycle", "makespan_cycles", 89, {("bound", "makespan_cycles"), ("estimate", "makespan_cycles")}),
        ("accuracy", "token_agreement", 0.74, {("fidelity", "token_agreement")}),
        ("accuracy", "logit_kl", 0.11, {("fidelity", "logit_kl")}),
        ("accuracy", "logit_kl", math.nan, {("fidelity", "logit_kl")}),
        ("cycle", "makespan_cycles", math.inf, {("bound", "makespan_cycles"), ("estimate", "makespan_cycles")}),
    ],
)
def test_one_wrong_metric_fails_its_check_and_no_other(path, name, value, expected):
    assert failed(validate(with_metric(results(), path, name, value), settings())) == expected


def test_what_ran_no_program_stands_beside_any_and_may_be_held_to_a_reference():
    quality = result("quality", {"exact_match": 0.8}, counts={}, program="", trace="of its own")
    asked = {"metric": "quality.exact_match", "source": "s", "tolerance": 0.1, "reason": "r"}
    rows = {
        expected: validate(
            {**results(), "quality": quality}, settings(references=[Reference(**asked, expected=expected)])
        )
        for expected in (0.8, 0.5)
    }
    assert not failed(rows[0.8])
    assert failed(rows[0.5]) == {("reference", "exact_match")}
    assert len(rows[0.8]) == len(validate(results(), settings())) + 1


@pytest.mark.parametrize("field", ["program_digest", "trace_digest"])
def test_results_of_different_programs_or_traces_are_never_compared(field):
    changed = {**results(), "cycle": dataclasses.replace(results()["cycle"], **{field: "other"})}
    with pytest.raises(TripathError, match=f"different {field.replace('_', ' ')}.*cycle other"):
        validate(changed, settings())


@pytest.mark.parametrize("paths", [("analytical",), ("cycle",), ("accuracy",), ("analytical", "accuracy")])
def test_checks_need_only_the_paths_they_compare(paths):
    rows = validate({name: results()[name] for name in paths}, settings())
    assert not failed(rows)
    expected = {"count": len(paths) > 1, "fidelity": "accuracy" in paths}
    assert {row.kind for row in rows} == {kind for kind, there in expected.items() if there}


def reference(**changes):
    values = {"metric": "cycle.makespan_cycles", "expected": 110.0, "source": "table 3", "tolerance": 0.1}
    values["reason"] = "r"
    return Reference(**{**values, **changes})


def test_a_reference_is_held_within_its_band_and_names_its_source():
    rows = validate(results(), settings(references=[reference(), reference(expected=112.0)]))
    within, beyond = (row for row in rows if row.kind == "reference")
    assert within.passed
    assert not beyond.passed
    assert within.expected_source == "table 3"
    assert within.relative_error == pytest.approx(-10 / 110)


def test_a_reference_for_a_path_that_did_not_run_is_left_out_and_an_unknown_metric_refused():
    only = {"analytical": results()["analytical"]}
    assert not validate(only, settings(references=[reference()]))
    with pytest.raises(TripathError, match="cycle has no metric watts"):
        validate(results(), settings(references=[reference(metric="cycle.watts")]))


def test_relative_error_is_signed_and_falls_back_to_the_observed_value():
    row = {"metric": "m", "scope": "s", "kind": "fidelity", "expected_source": "a", "observed_source": "b",
           "tolerance": 0.5, "reason": "r"}  # fmt: skip
    assert Discrepancy(**row, expected=-4.0, observed=-5.0).relative_error == -0.25
    assert Discrepancy(**row, expected=0.0, observed=0.25).relative_error == 0.25
