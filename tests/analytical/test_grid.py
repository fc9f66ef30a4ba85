"""The estimate and the bound far from what is shipped, drawn at random: what docs/validation.md says of the domain."""

import pytest

from benchmarks.estimate_grid import MACHINES, MODELS, trials
from tripath.sweeps.estimates import percentile

RUNS = 16


@pytest.mark.parametrize("grid", [MACHINES, MODELS], ids=["machines", "models"])
def test_the_estimate_is_near_and_the_bound_holds(grid):
    found = list(trials(seed=2026, runs=RUNS, grid=grid))
    assert len(found) == RUNS
    for trial in found:
        assert trial.bound <= trial.makespan, trial
    errors = sorted(abs(trial.error) for trial in found)
    assert percentile(errors, 0.5) <= 0.03
    assert percentile(errors, 0.95) <= 0.15
    assert errors[-1] <= 0.30
