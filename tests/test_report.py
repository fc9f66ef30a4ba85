"""Files of a run: the schema that scripts rely on, and a page that is safe to open."""

import base64
import dataclasses
import hashlib
import json
import math
import re

import pytest

from npu.metrics import UNITS, Result, Table
from npu.program import Program
from tests.conftest import compiled, compose_experiment
from tripath.experiment import Generated, Outcome
from tripath.paths.row import Picture
from tripath.report import pictures
from tripath.report.headline import headline, verdicts
from tripath.report.page import SCRIPT
from tripath.report.run_report import page_of, report_of, write_files
from tripath.validation import validate

HOSTILE = '<script>alert("x")</script> & [red]'


def make_outcome(experiment, paths=("analytical", "cycle"), generated=None):
    import analytical
    import cycle

    program, trace = compiled(experiment)
    modules = {"analytical": analytical, "cycle": cycle}
    results = {name: modules[name].simulate(program, hardware=experiment.hardware, trace=trace) for name in paths}
    return Outcome(
        program=program, results=results, wall_seconds=dict.fromkeys(paths, 0.5), generated=generated,
        discrepancies=validate(results, experiment.settings), fail_on=experiment.settings.fail_on,
    )  # fmt: skip


@pytest.fixture(scope="session")
def small_experiment():
    return compose_experiment("experiment=quick", "paths=[analytical,cycle]")


@pytest.fixture(scope="session")
def small_outcome(small_experiment):
    texts = Generated(
        prompts=[HOSTILE, "b"], texts=[HOSTILE, "c"], token_ids=[[5, 6], [7, 8]], tokens=[["<i>", "6"], ["7", "8"]],
        commit_steps=[[2, 1], [1, 0]], trip_counts=[2, 2],
    )  # fmt: skip
    return make_outcome(small_experiment, generated=texts)


def with_metric(outcome, path, **metrics):
    result = outcome.results[path]
    changed = dataclasses.replace(result, metrics={**result.metrics, **metrics})
    return dataclasses.replace(outcome, results={**outcome.results, path: changed})


def test_report_has_the_fields_that_scripts_rely_on(small_outcome):
    report = json.loads(json.dumps(report_of(small_outcome), allow_nan=False))
    assert report["schema_version"] == 1
    assert report["status"] == "passed"
    assert set(report["program"]) == {"digest", "words", "bytes"}
    assert report["program"]["words"] == len(small_outcome.program.words)
    assert set(report["simulators"]) == {"analytical", "cycle"}
    metrics = {**report["simulators"]["analytical"]["metrics"], **report["simulators"]["cycle"]["metrics"]}
    documented = {
        "analytical.lower_bound_cycles", "analytical.estimated_cycles", "cycle.makespan_cycles", "cycle.instructions",
        "cycle.phase_cycles.qkv", *(f"cycle.busy_cycles.{unit}" for unit in UNITS),
    }  # fmt: skip
    assert documented <= set(metrics)
    assert all(isinstance(value, (int, float)) for value in metrics.values())
    assert set(report["discrepancies"][0]) == {
        "metric", "scope", "kind", "expected", "expected_source", "observed", "observed_source", "relative_error",
        "tolerance", "verdict",
    }  # fmt: skip
    assert {row["verdict"] for row in report["discrepancies"]} == {"passed"}
    assert report["generation"]["token_ids"] == [5, 6]
    assert report["generation"]["trip_counts"] == [2, 2]
    assert [row["text"] for row in report["generation"]["sequences"]] == [HOSTILE, "c"]
    assert [row["commit_steps"] for row in report["generation"]["sequences"]] == [[2, 1], [1, 0]]
    assert [row["tokens"] for row in report["generation"]["sequences"]] == [["<i>", "6"], ["7", "8"]]


def test_what_is_not_finite_never_reaches_the_report(small_outcome, small_experiment):
    outcome = with_metric(small_outcome, "cycle", makespan_cycles=math.nan, oddity=math.inf)
    rows = validate(outcome.results, small_experiment.settings)
    outcome = dataclasses.replace(outcome, discrepancies=rows, generated=None)
    report = json.loads(json.dumps(report_of(outcome), allow_nan=False))
    assert report["status"] == "failed"
    assert report["generation"] is None
    assert not {"cycle.makespan_cycles", "cycle.oddity"} & set(report["simulators"]["cycle"]["metrics"])
    assert {row["verdict"] for row in report["discrepancies"] if row["observed"] is None} == {"failed"}


def test_only_the_chosen_kinds_fail_a_run(small_outcome, small_experiment):
    rows = validate(with_metric(small_outcome, "analytical", estimated_cycles=1).results, small_experiment.settings)
    strict = dataclasses.replace(small_outcome, discrepancies=rows)
    assert [row.kind for row in strict.failures] == ["estimate"]
    assert dataclasses.replace(strict, fail_on=["count"]).status == "passed"


def test_files_are_written_and_read_back(tmp_path, small_experiment, small_outcome):
    files = write_files(tmp_path / "run", small_experiment, small_outcome, configuration="a: 1\n", command="tripath")
    assert {file.name for file in files} == {file.name for file in (tmp_path / "run").iterdir()}
    assert [file.name for file in files][-1] == "report.json"
    program = Program.from_bytes((tmp_path / "run" / "program.bin").read_bytes())
    assert program.digest == small_outcome.program.digest
    assert (tmp_path / "run" / "program.asm").read_text() == small_outcome.program.to_text()
    for picture in ("roofline.png", "stalls.png", "timeline.png"):
        assert (tmp_path / "run" / picture).read_bytes().startswith(b"\x89PNG")


def test_the_page_escapes_text_and_loads_nothing(tmp_path, small_experiment, small_outcome):
    picture = tmp_path / "roofline.png"
    picture.write_bytes(b"png")
    page = page_of(small_experiment, small_outcome, [picture], f"prompt: {HOSTILE}", f"tripath {HOSTILE}")
    assert page.count("<script") == page.count(f"<script>{SCRIPT}</script>") == 1
    assert page.count("&lt;script&gt;") == 4
    assert set(re.findall(r'(?:src|href)="([a-z]+):', page)) == {"data"}
    assert "http" not in page.replace("http-equiv", "")
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'\"" in page
    assert small_outcome.program.digest in page


def test_a_page_and_pictures_exist_for_every_choice_of_paths(tmp_path, small_experiment):
    for paths, expected in (
        (("analytical",), {"roofline.png"}),
        (("cycle",), {"roofline.png", "stalls.png", "steps.png", "timeline.png"}),
    ):
        outcome = make_outcome(small_experiment, paths)
        files = write_files(tmp_path / paths[0], small_experiment, outcome, configuration="", command="tripath")
        drawn = {file for file in files if file.suffix == ".png"}
        assert {file.name for file in drawn} == expected
        assert {file.with_suffix(".svg") for file in drawn} <= set(files)


def test_tables_for_people_sum_equal_counts_up_and_name_a_failure(small_experiment, small_outcome):
    assert [row[0] for row in headline(small_experiment, small_outcome).rows] == ["analytical", "cycle"]
    rows = verdicts(small_outcome).rows
    equal = sum(row.kind == "count" for row in small_outcome.discrepancies)
    assert rows[0][0] == f"{equal} counts equal"
    assert len(rows) == 3
    cycle = small_outcome.results["cycle"]
    wrong = dataclasses.replace(cycle, counts={**cycle.counts, "macs": 1})
    discrepancies = validate({**small_outcome.results, "cycle": wrong}, small_experiment.settings)
    rows = verdicts(dataclasses.replace(small_outcome, discrepancies=discrepancies)).rows
    assert [row[0] for row in rows if row[-1] == "failed"] == ["macs: cycle vs analytical"]


def test_each_kind_of_step_stands_beside_its_own_bar(tmp_path, monkeypatch):
    """The second kind lacks the phase that is drawn first."""
    columns = ["step", "passes", "group", "phase", "cycles"]
    rows = [["prompt", 1, -1, "embed", 100], ["first token", 2, -1, "lm_head", 60], ["clean", 1, -1, "embed", 50]]
    result = Result(simulator="cycle", program_digest="", trace_digest="", metrics={}, counts={},
                    tables={"steps": Table(columns=columns, rows=rows)})  # fmt: skip
    drawn = []
    monkeypatch.setattr(pictures, "save", lambda figure, path: drawn.append(figure) or [path])
    pictures.OF_ONE_RESULT[Picture.STEPS](tmp_path / "steps.png", result)
    (axes,) = drawn[0].axes
    names = dict(zip(axes.get_yticks(), (label.get_text() for label in axes.get_yticklabels()), strict=True))
    widths = {names[bar.get_y() + bar.get_height() / 2]: bar.get_width() for bar in axes.patches}
    assert widths == {"prompt": 100, "first token\nmean of 2": 30, "clean": 50}
