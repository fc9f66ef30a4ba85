"""The estimate and the bound on machines far from the shipped ones, drawn at random: what docs/validation.md says of its domain."""

from benchmarks.estimate_grid import trials
from tripath.sweeps.estimates import percentile

RUNS = 16


def test_on_random_machines_the_estimate_is_near_and_the_bound_holds():
    found = list(trials(seed=2026, runs=RUNS))
    assert len(found) == RUNS
    for trial in found:
        assert trial.bound <= trial.makespan, trial
    errors = sorted(abs(trial.error) for trial in found)
    assert percentile(errors, 0.5) <= 0.03
    assert percentile(errors, 0.95) <= 0.15
    assert errors[-1] <= 0.30
