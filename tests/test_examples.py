"""The examples run as their pages say, on shipped data, outside the package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from npu.errors import TripathError
from tests.conftest import compose_experiment
from tests.test_cli import tripath_command  # noqa: F401  a fixture
from tripath.command import cli

ROOT = Path(__file__).parents[1]
OWN = ROOT / "examples" / "own"
QUICK = ("--config-dir", str(OWN), "experiment=quick", "hydra.run.dir=run")


def test_the_library_example_runs(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "examples" / "library.py")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "failed: none" in done.stdout
    assert (tmp_path / "channels.png").read_bytes().startswith(b"\x89PNG")


def test_hardware_of_one_s_own(tripath_command, tmp_path):  # noqa: F811
    assert tripath_command(*QUICK, "hardware=npu_mine", "paths=[analytical,cycle]")[0] == cli.PASSED
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    mine, small = report["simulators"]["cycle"]["metrics"], compose_experiment("experiment=quick").hardware
    assert mine["cycle.matrix_utilisation"] == pytest.approx(mine["cycle.macs_per_cycle"] / (16 * small.mlen))


def test_a_path_of_one_s_own_stands_beside_the_others(tripath_command, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.syspath_prepend(str(OWN))
    arguments = (*QUICK, "simulator=roof", "+simulator.roof.module=roof", "paths=[analytical,roof]")
    status, output, errors = tripath_command(*arguments)
    assert (status, errors) == (cli.PASSED, "")
    assert "roof" in output
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    roof, known = (report["simulators"][name]["metrics"] for name in ("roof", "analytical"))
    shown = next(row for row in report["discrepancies"] if row["metric"] == "macs")
    hardware = compose_experiment("experiment=quick").hardware
    assert roof["roof.makespan_cycles"] >= shown["expected"] / (hardware.blen * hardware.mlen) / 0.8
    assert roof["roof.makespan_cycles"] <= known["analytical.lower_bound_cycles"] / 0.8
    counts = [
        row for row in report["discrepancies"] if row["observed_source"] == "roof" or row["expected_source"] == "roof"
    ]
    assert {row["metric"] for row in counts} >= {"macs", "hbm_read_bytes", "instructions"}
    assert {row["verdict"] for row in counts} == {"passed"}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "roof: roofs" in page
    again = tripath_command(*arguments)[1]
    assert "from the cache" in again
    changed = tripath_command(*arguments, "simulator.roof.efficiency=0.4", "paths=[roof]")
    assert changed[0] == cli.PASSED
    slower = json.loads((tmp_path / "run" / "report.json").read_text())["simulators"]["roof"]["metrics"]
    assert slower["roof.makespan_cycles"] == pytest.approx(2 * roof["roof.makespan_cycles"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["+simulator.mine.module=absent_module", "paths=[mine]"], "simulator.mine.module: no function simulate in absent_module"),
        (["+simulator.mine.module=json", "paths=[mine]"], "simulator.mine.module: no function simulate in json"),
        (["+simulator.cycle.module=json", "paths=[cycle]"], "simulator.cycle: unknown option 'module'"),
        (["+simulator.mine.speed=1", "paths=[cycle]"], "simulator.mine: no such simulator"),
        (["paths=[roof]"], "paths: unknown 'roof', one of"),
    ],
)  # fmt: skip
def test_a_path_that_is_none_is_one_line(tripath_command, arguments, message):  # noqa: F811
    status, _, errors = tripath_command("experiment=quick", *arguments)
    assert (status, errors.count("\n")) == (cli.BAD_INPUT, 1)
    assert errors.startswith(f"error: {message}")


def test_an_experiment_is_composed_as_the_command_line_does():
    from tripath.command.composition import compose_experiment as public

    assert public("experiment=quick", "hardware.vlen=128") == compose_experiment(
        "experiment=quick", "hardware.vlen=128"
    )
    with pytest.raises(TripathError, match=r"hardware\.vlen"):
        public("hardware.vlen=7")
