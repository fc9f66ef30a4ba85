"""The table of the estimate's errors, from hand-made reports of a sweep."""

import csv
import json

import pytest
import yaml

from tripath.sweeps.estimates import main, percentile, read_estimates, write


def report(folder, number, makespan, estimated, model="tiny", execution="decoupled"):
    """What a job leaves, as far as it is read here."""
    place = folder / str(number)
    place.mkdir(parents=True)
    metrics = {"cycle.makespan_cycles": makespan, "cycle.busy_cycles.matrix": 0.6 * makespan, "cycle.busy_cycles.vector": 1,
               "cycle.stall_cycles.matrix.queue": 0.1 * makespan, "cycle.stall_cycles.matrix.bandwidth": 0.3 * makespan}  # fmt: skip
    other = {"analytical.estimated_cycles": estimated, "analytical.lower_bound_cycles": 0.8 * makespan}
    simulators = {"cycle": {"metrics": metrics}, "analytical": {"metrics": other}}
    (place / "report.json").write_text(json.dumps({"simulators": simulators}))
    config = {
        "model": {"name": model},
        "workload": {"cache": "dual", "batch": number},
        "hardware": {"execution": execution},
    }
    (place / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.95, 95), (1.0, 100), (0.001, 1)])
def test_a_percentile_is_the_smallest_value_that_enough_do_not_exceed(share, expected):
    assert percentile(list(range(100, 0, -1)), share) == expected


def test_errors_are_listed_by_group_and_the_worst_runs_named(tmp_path):
    for number, error in enumerate((0.01, -0.02, 0.03, -0.04, 0.05, 0.06), 1):
        report(tmp_path, number, 1000.0, 1000.0 * (1 + error), execution="serial" if number == 1 else "decoupled")
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "report.json").write_text(json.dumps({"simulators": {}}))  # without both paths: left out
    text = write(tmp_path)
    assert "| all | 6 | 3.00% | 6.00% | 6.00% | 0.80 to 0.80 |" in text
    assert "| tiny, serial | 1 | 1.00% | 1.00% | 1.00% | 0.80 to 0.80 |" in text
    worst = [line for line in text.splitlines() if line.startswith(("| +", "| -"))]
    assert [line.split(" | ")[0] for line in worst] == ["| +6.00%", "| +5.00%", "| -4.00%", "| +3.00%", "| -2.00%"]
    assert "matrix 60% | bandwidth 30% | decoupled | 6 |" in worst[0]
    with (tmp_path / "estimates.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["error"]) for row in rows] == pytest.approx([0.01, -0.02, 0.03, -0.04, 0.05, 0.06])
    assert (tmp_path / "estimates.png").stat().st_size > 5_000
    assert len(read_estimates(tmp_path)) == 6


def test_a_folder_without_runs_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}: no run of analytical and cycle below (NUMBER/report.json)\n"
