"""One program: every command answers --help, a wrong name is refused with the nearest, two runs are compared, a doctor finds what is wrong."""

import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from npu.sources import PACKAGES
from tests.test_cli import tripath_command  # noqa: F401  a fixture
from tripath.__main__ import COMMANDS, command
from tripath.command import compare, doctor

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    ".".join(file.relative_to(ROOT).with_suffix("").parts)
    for package in PACKAGES
    for file in (ROOT / package).rglob("*.py")
    if '__name__ == "__main__"' in file.read_text()
)


def generated():
    places = ("docs/*.md", "accuracy/dispatch.py", "conf/hardware/timing/*", "rtl/*.sv")
    return {file: file.stat().st_mtime_ns for place in places for file in ROOT.glob(place)}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_that_runs_answers_help_and_does_nothing_else(module, tmp_path):
    before = generated()
    command = [sys.executable, "-W", "ignore::RuntimeWarning", "-m", module, "--help"]  # some packages import theirs
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: " in done.stdout or "tripath KEY=VALUE" in done.stdout or "Config groups" in done.stdout
    assert generated() == before
    assert not list(tmp_path.iterdir())


def test_every_command_answers_help_and_is_in_that_of_the_program(capsys, tripath_command):  # noqa: F811
    with pytest.raises(SystemExit) as ended:
        tripath_command("--help")
    assert not ended.value.code
    text = capsys.readouterr().out
    for name, (module, _) in COMMANDS.items():
        assert re.search(rf"^ *tripath {name}\b", text, re.MULTILINE), name
        if module:
            with pytest.raises(SystemExit) as ended:
                command([name, "--help"])
            assert ended.value.code == 0
            assert capsys.readouterr().out.startswith(f"usage: tripath {name} ")


@pytest.mark.parametrize(
    ("name", "near"), [("comapre", "compare"), ("sweeep", "sweep"), ("docter", "doctor"), ("xyzzy", "")]
)
def test_an_unknown_command_is_refused_with_the_nearest(name, near, capsys):
    assert command([name]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"error: arguments: no command '{name}'")
    assert ("did you mean" in error) == bool(near)
    assert f"did you mean '{near}'" in error or not near


def test_two_runs_are_compared(tripath_command, capsys):  # noqa: F811
    for folder, cache in (("a", "none"), ("b", "dual")):
        tripath_command(
            "experiment=quick",
            "paths=[analytical]",
            "tracking=off",
            f"workload.cache={cache}",
            f"hydra.run.dir={folder}",
        )
    capsys.readouterr()
    assert compare.main(["a", "b"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"workload\.cache +none +dual", text)
    cycles = [
        json.loads(Path(folder, "report.json").read_text())["simulators"]["analytical"]["metrics"][
            "analytical.estimated_cycles"
        ]
        for folder in "ab"
    ]
    row = next(line for line in text.splitlines() if line.startswith("analytical.estimated_cycles"))
    assert row.split()[-1] == f"{cycles[1] / cycles[0]:.3f}"
    assert float(row.split()[-1]) < 1
    assert compare.main(["a", "a"]) == 0
    same = capsys.readouterr().out
    assert "workload.cache" not in same
    assert {line.split()[-1] for line in same.splitlines() if line.startswith("analytical.")} == {"1.000"}


def test_what_is_no_run_is_refused(tmp_path, capsys):
    assert compare.main([str(tmp_path), str(tmp_path)]) == 2
    assert "no record of a run" in capsys.readouterr().err
    assert compare.main(["absent", "absent"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.system
def test_two_configurations_are_run_and_compared(tmp_path):
    quick = "experiment=quick paths=[analytical]"
    done = subprocess.run(
        [sys.executable, "-m", "tripath", "compare", quick, f"{quick} hardware.hbm.channels=4"], cwd=tmp_path,
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"hardware\.hbm\.channels +\d+ +4", done.stdout)
    assert not list(tmp_path.iterdir())
    done = subprocess.run(
        [sys.executable, "-m", "tripath", "compare", quick, "hardware.blem=3"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no such key" in done.stderr


def finding(text, what):
    return next(line for line in text.splitlines() if what in line)


def test_a_doctor_finds_nothing_wrong_here_and_names_the_places(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert doctor.main([]) == 0, capsys.readouterr().out
    text = capsys.readouterr().out
    assert "nothing is wrong" in text
    assert os.environ["TRIPATH_CACHE"] in finding(text, "results")
    assert f"{tmp_path}/mlruns/mlflow.db" in finding(text, "tracking")
    assert "none stands" in finding(text, "cluster")


def test_a_doctor_finds_each_fault(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")

    def wrong(*arguments):
        status = doctor.main(arguments)
        lines = capsys.readouterr().out.splitlines()
        return status, [line.split()[1] for line in lines if line.startswith("WRONG")]

    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / "mlflow.db").write_bytes(b"no database at all, but longer than a header of one is" * 40)
    assert wrong() == (1, ["tracking"])
    other = tmp_path / "other"
    other.mkdir()
    with sqlite3.connect(other / "mlflow.db") as database:
        database.execute("create table runs (name text)")
    database.close()
    assert wrong(f"--store={other}") == (0, [])
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    assert wrong(f"--store={other}") == (1, ["compilation"])
    monkeypatch.delenv("NUMBA_DISABLE_JIT")
    monkeypatch.setenv("TRIPATH_CACHE", "/proc/nowhere")
    assert wrong(f"--store={other}") == (1, ["results"])
    monkeypatch.delenv("TRIPATH_CACHE")
    monkeypatch.setattr(doctor, "NEEDED", ("numpy", "no-such-library"))
    assert wrong(f"--store={other}") == (1, ["no-such-library"])
    monkeypatch.setattr(doctor, "NEEDED", ("numpy",))
    monkeypatch.setattr(doctor, "LEAST_SHARED_BYTES", 1 << 60)
    status, found = wrong(f"--store={other}")
    assert (status, found) == (1, ["shared"])
