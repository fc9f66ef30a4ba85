"""Tolerances: each has a reason, and none may be laxer than the maximum of its kind."""

import math

import pytest

from npu.errors import TripathError
from tests.conftest import compose_experiment
from tripath.validation import IDEAL, KINDS, MAXIMUM_TOLERANCE, Discrepancy, Reference, Settings, Tolerance


def tolerance(value):
    return Tolerance(value=value, reason="stated")


def settings(**changes):
    values = {"fail_on": list(KINDS), "estimate": tolerance(0.1), "fidelity": {}, **changes}
    return Settings(**values)


def test_every_kind_has_a_maximum_that_excludes_the_meaningless():
    assert set(MAXIMUM_TOLERANCE) == set(KINDS)
    assert MAXIMUM_TOLERANCE["count"] == MAXIMUM_TOLERANCE["bound"] == 0.0
    assert all(0.0 <= value <= 0.5 for value in MAXIMUM_TOLERANCE.values())


def test_shipped_tolerances_are_within_their_maximum_and_give_reasons():
    shipped = compose_experiment().settings
    assert set(shipped.fail_on) == set(KINDS)
    assert shipped.estimate.value <= 0.1
    for row in [shipped.estimate, *shipped.fidelity.values()]:
        assert len(row.reason.split()) >= 5
    assert {"token_agreement", "logit_kl"} <= set(shipped.fidelity) <= set(IDEAL)
    random = compose_experiment(
        "model.checkpoint=synthetic", "workload.prompt=null", "workload.prompt_length=8"
    ).settings
    assert set(random.fidelity) == set(shipped.fidelity) - {"token_agreement"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_tolerance_beyond_the_maximum_is_refused(kind):
    row = {"metric": "m", "scope": "s", "kind": kind, "expected": 1.0, "expected_source": "a", "observed": 1.0,
           "observed_source": "b", "reason": "r"}  # fmt: skip
    Discrepancy(**row, tolerance=MAXIMUM_TOLERANCE[kind])
    for value in (math.nextafter(MAXIMUM_TOLERANCE[kind], 1.0), -0.01, math.nan, math.inf):
        with pytest.raises(TripathError, match="tolerance"):
            Discrepancy(**row, tolerance=value)


def test_settings_refuse_lax_tolerances_before_anything_runs():
    with pytest.raises(TripathError, match=r"validation\.estimate: tolerance 0.2 is outside of 0 to 0.15"):
        settings(estimate=tolerance(0.2))
    with pytest.raises(TripathError, match=r"validation\.fidelity\.logit_kl: tolerance"):
        settings(fidelity={"logit_kl": tolerance(0.9)})
    with pytest.raises(TripathError, match=r"cycle\.seconds: tolerance"):
        Reference(metric="cycle.seconds", expected=1.0, source="s", tolerance=0.3, reason="r")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: settings(fail_on=["counts"]), "unknown 'counts'"),
        (lambda: settings(fidelity={"bleu": tolerance(0.1)}), "unknown metric 'bleu'"),
        (lambda: Tolerance(value=0.1, reason=" "), "written reason"),
        (lambda: Reference(metric="seconds", expected=1.0, source="s", tolerance=0.1, reason="r"), "no full name"),
        (lambda: Discrepancy(metric="m", scope="s", kind="guess", expected=1.0, expected_source="a", observed=1.0,
                             observed_source="b", tolerance=0.0, reason="r"), "unknown kind 'guess'"),
    ],
)  # fmt: skip
def test_malformed_settings_are_named(make, message):
    with pytest.raises(TripathError, match=message):
        make()
