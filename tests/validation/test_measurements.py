"""Measurements from a file: they come back as written, bad ones are named, and each is held against its prediction."""

import json
import sys

import pytest

from npu.errors import TripathError
from npu.metrics import Result
from tests.conftest import compose_experiment
from tripath.command import cli
from tripath.validation import Tolerance, check_measurements, read_measurements
from tripath.validation.measurements import Measurement, Simulated, write_measurements

HEADER = "device,model,phase,batch,canvas,block,seconds,source"
GOOD = "a100,llada_8b,step,1,272,16,0.0300,a lab"
TOLERANCE = Tolerance(value=0.1, reason="stated")


def written(folder, *rows, header=HEADER):
    file = folder / "measured.csv"
    file.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return str(file)


def test_what_is_written_is_read_back(tmp_path):
    rows = [
        Measurement(device="a100", model="llada_8b", phase="step", batch=2, canvas=300, block=32, seconds=1 / 3,
                    source='the "lab", Friday', line=2),
        Measurement(device="host", model="probe", phase="norm", batch=1, canvas=9, block=1, seconds=1e-9, source="me", line=3),
    ]  # fmt: skip
    file = tmp_path / "rows.csv"
    file.write_text(write_measurements(rows), encoding="utf-8")
    assert read_measurements(str(file)) == rows


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ([GOOD], HEADER.replace(",source", ""), "must have the columns device, model"),
        ([GOOD], HEADER + ",weather", "must have the columns"),
        ([], HEADER, "no rows"),
        ([GOOD, "a100,llada_8b,step,1,272"], HEADER, "line 3: needs a value for each"),
        ([GOOD + ",more"], HEADER, "line 2: needs a value for each"),
        ([GOOD.replace("0.0300", "fast")], HEADER, "line 2: seconds must be a positive number, got 'fast'"),
        ([GOOD.replace("0.0300", "-1")], HEADER, "seconds must be a positive number"),
        ([GOOD.replace("0.0300", "inf")], HEADER, "seconds must be a positive number"),
        ([GOOD.replace(",1,", ",one,")], HEADER, "line 2: batch must be an integer of at least 1, got 'one'"),
        ([GOOD.replace("272,16", "16,272")], HEADER, "block 272 exceeds canvas 16"),
        ([GOOD.replace("a100", "a1000")], HEADER, "line 2: unknown device 'a1000', one of a100, h100, a6000, host, npu_small"),
        ([GOOD.replace("step", "lunch")], HEADER, "line 2: unknown phase 'lunch', one of prefill"),
        ([GOOD.replace("llada_8b", "gpt")], HEADER, "model: no option 'gpt', one of diffusiongemma_26b_a4b, dream_7b"),
    ],
)  # fmt: skip
def test_bad_files_are_one_line_with_the_place(tmp_path, rows, header, message):
    with pytest.raises(TripathError, match=r"validation\.measurements: .*" + message) as caught:
        compose_experiment(f"validation.measurements={written(tmp_path, *rows, header=header)}")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line():
    with pytest.raises(TripathError, match=r"validation.measurements: cannot read absent.csv"):
        compose_experiment("validation.measurements=absent.csv")


def run(canvas=40):
    metrics = {"seconds": 2.0, "phase_cycles.ffn": 5e8}
    result = Result(simulator="cycle", program_digest="p", trace_digest="t", metrics=metrics, counts={})
    return Simulated(
        hardware="board", clock_hz=1e9, model="wordmath", batch=1, canvas=canvas, block=8, results={"cycle": result}
    )


def test_rows_of_the_simulated_hardware_are_held_against_the_run():
    def row(phase, seconds):
        return Measurement(
            device="board", model="wordmath", phase=phase, batch=1, canvas=40, block=8, seconds=seconds, source="s"
        )

    rows = [row("generation", 2.1), row("ffn", 0.9)]
    found = check_measurements(rows, {}, {}, run(), TOLERANCE)
    assert [(f.observed, f.passed, f.kind) for f in found] == [(2.0, True, "reference"), (0.5, False, "reference")]
    with pytest.raises(TripathError, match="no row belongs to this run"):
        check_measurements(rows, {}, {}, run(canvas=48), TOLERANCE)
    with pytest.raises(TripathError, match="unknown phase 'lunch' of board"):
        check_measurements([row("lunch", 1.0)], {}, {}, run(), TOLERANCE)


def command(monkeypatch, folder, *arguments):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["tripath", "paths=[]", "tracking=off", "hydra.run.dir=out", *arguments])
    return cli.run()


def test_the_command_needs_no_model_of_the_run(monkeypatch, tmp_path, capsys):
    """Of the command, not of the model: figures 5 and 60 % above the model's own prediction, with 15 % allowed."""

    def rows():
        return json.loads((tmp_path / "out" / "report.json").read_text())["discrepancies"]

    command(monkeypatch, tmp_path, f"validation.measurements={written(tmp_path, GOOD)}")
    near, far = 1.05 * rows()[0]["observed"], 1.6 * rows()[0]["observed"]
    file = written(tmp_path, GOOD.replace("0.0300", repr(near)), GOOD.replace("0.0300", repr(far)))
    assert command(monkeypatch, tmp_path, f"validation.measurements={file}") == 1, "a wrong figure fails the run"
    assert [(row["kind"], row["expected"], row["verdict"]) for row in rows()] == [
        ("reference", near, "passed"), ("reference", far, "failed"),
    ]  # fmt: skip
    assert command(monkeypatch, tmp_path, f"validation.measurements={written(tmp_path, 'nonsense')}") == 2
    assert capsys.readouterr().err.count("\n") == 1
