"""A sweep in continuous integration: a drift from the baseline fails with its name, JUnit and Markdown say so."""

import csv
import importlib
import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import yaml
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser

from hydra_plugins.tripath_cluster import jobs_beside
from tests.test_cli import InlineCluster, tripath_command  # noqa: F401  a fixture
from tripath.command import cli
from tripath.sweeps import baseline
from tripath.sweeps.baseline import Baseline, Drift, by_metric, compare, facts_of, place_of, read_baseline, read_sweep
from tripath.sweeps.summary import Row
from tripath.sweeps.verdicts import cases_of, junit, markdown

SWEEP = ("--multirun", "tracking=off", "experiment=quick", "paths=[analytical]", "hardware.vlen=64,128")
KEPT = "validation.baseline=kept.json"
METRIC = "analytical.estimated_cycles"


WRITTEN = []
"""The baseline of a sweep, once one has run."""


@pytest.fixture
def kept(tripath_command, capsys):  # noqa: F811
    """The baseline of a sweep in kept.json."""
    if not WRITTEN:
        assert tripath_command(*SWEEP, "hydra.sweep.dir=first")[0] == cli.PASSED
        assert baseline.main(["first", "kept.json"]) == 0
        assert capsys.readouterr().out.endswith("kept.json: 2 jobs, 2 changes\n")
        WRITTEN.append(Path("kept.json").read_text())
    Path("kept.json").write_text(WRITTEN[0])
    return Path("kept.json")


def edited(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def suites_of(path):
    root = ET.parse(path).getroot()
    return root, {suite.get("name"): {case.get("name"): case for case in suite} for suite in root}


def test_what_has_not_changed_passes(tripath_command, tmp_path, kept):  # noqa: F811
    status, _, errors = tripath_command(*SWEEP, KEPT, "hydra.sweep.dir=second")
    assert (status, errors) == (cli.PASSED, "")
    root, suites = suites_of(tmp_path / "second" / "junit.xml")
    assert set(suites) == {"vlen=64", "vlen=128"}
    assert all({"run", "baseline"} <= set(cases) for cases in suites.values())
    assert root.get("failures") == root.get("errors") == "0"
    text = (tmp_path / "second" / "summary.md").read_text()
    assert text.startswith("# Sweep passed\n\n2 jobs, 0 not passed; drifts from the baseline: 0.")
    assert baseline.main(["second"]) == 0  # the file that it was compared with


def test_a_drift_names_the_metric_the_job_and_both_values(tripath_command, tmp_path, kept):  # noqa: F811
    old = json.loads(kept.read_text())["jobs"]["vlen=128"][METRIC]
    edited(kept, lambda content: content["jobs"]["vlen=128"].update({METRIC: 2 * old}))
    status, output, errors = tripath_command(*SWEEP, KEPT, "hydra.sweep.dir=second")
    assert status == cli.FAILED
    line = f"{METRIC}: was {2 * old:.12g}, is {old:.12g} (-50 %, tolerance"
    assert errors.startswith(f"error: baseline: {METRIC} -50 % in 1 of 2 jobs\nerror: vlen=128: {line}")
    assert errors.count("\n") == 2
    assert "1 passed, 1 failed" in output
    root, suites = suites_of(tmp_path / "second" / "junit.xml")
    assert root.get("failures") == "1"
    assert suites["vlen=128"]["baseline"].find("failure").get("message").startswith(line)
    assert len(suites["vlen=64"]["baseline"]) == 0
    assert f"- vlen=128: {line}" in (tmp_path / "second" / "summary.md").read_text()
    assert f"{METRIC} (baseline)" in (tmp_path / "second" / "sweep.csv").read_text()


def test_update_takes_the_new_values_and_keeps_the_tolerances(tripath_command, kept, capsys):  # noqa: F811
    def change(content):
        content["tolerances"] = {"analytical.*": 0.25}
        content["jobs"]["vlen=64"][METRIC] += 1
        content["jobs"]["vlen=64"]["program.digest"] = "another"

    edited(kept, change)
    assert tripath_command(*SWEEP, KEPT, "hydra.sweep.dir=second")[0] == cli.FAILED  # of the digest alone
    assert baseline.main(["second"]) == 0
    told = capsys.readouterr().out
    assert f"vlen=64: {METRIC}: was " in told
    assert "vlen=64: program.digest: was another, is " in told
    assert told.endswith("kept.json: 2 jobs, 2 changes\n")
    assert read_baseline("kept.json").tolerances == {"analytical.*": 0.25}
    assert tripath_command(*SWEEP, KEPT, "hydra.sweep.dir=third")[0] == cli.PASSED


def test_jobs_of_one_side_alone_are_drifts(tripath_command, tmp_path, kept):  # noqa: F811
    edited(kept, lambda content: content["jobs"].update(gone=content["jobs"].pop("vlen=64")))
    status, _, errors = tripath_command(*SWEEP, KEPT, "hydra.sweep.dir=second")
    assert status == cli.FAILED
    assert errors == (
        "error: baseline: 1 of the baseline gave no results\nerror: baseline: new: 1 of 2 jobs\n"
        "error: gone: in the baseline, but gave no results\nerror: vlen=64: not in the baseline\n"
    )
    _, suites = suites_of(tmp_path / "second" / "junit.xml")
    assert [name for name, cases in suites.items() if len(cases["baseline"])] == ["vlen=64", "gone"]


def test_a_job_that_breaks_is_an_error_of_junit_and_missing(tripath_command, tmp_path, kept):  # noqa: F811
    arguments = (*SWEEP[:-1], "hardware.vlen=64,128,7", KEPT, "hydra.sweep.dir=second")
    assert tripath_command(*arguments)[0] == cli.BAD_INPUT
    root, suites = suites_of(tmp_path / "second" / "junit.xml")
    assert (root.get("errors"), root.get("failures")) == ("1", "0")
    assert "hardware.vlen" in suites["vlen=7"]["run"].find("error").get("message")


BAD = [
    ("{", "is not JSON"),
    ("[]", "must have schema_version, tolerances and jobs alone"),
    ('{"jobs": {}}', "must have schema_version, tolerances and jobs alone"),
    ('{"schema_version": 2, "tolerances": {}, "jobs": {}}', "schema_version must be 1, got 2"),
    ('{"schema_version": 1, "tolerances": [], "jobs": {}}', "tolerances must be a table, got []"),
    ('{"schema_version": 1, "tolerances": {"a": -1}, "jobs": {}}', "the tolerance of a must be from 0 to below 1, got -1"),
    ('{"schema_version": 1, "tolerances": {"a": NaN}, "jobs": {}}', "the tolerance of a must be from 0"),
    ('{"schema_version": 1, "tolerances": {}, "jobs": {"a": 1}}', "job 'a' must be a table of metrics, got 1"),
    ('{"schema_version": 1, "tolerances": {}, "jobs": {"a": {"b": null}}}', "b of job 'a' must be a number or a text, got None"),
    (None, "cannot read kept.json (No such file or directory)"),
    (b"\xff", "is not JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), BAD)
def test_a_bad_baseline_is_one_line_before_anything_runs(tripath_command, tmp_path, content, message):  # noqa: F811
    if content is not None:
        (tmp_path / "kept.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    before = InlineCluster.made
    status, _, errors = tripath_command(*SWEEP, KEPT, "hydra.sweep.dir=second")
    assert (status, errors.count("\n"), InlineCluster.made) == (cli.BAD_INPUT, 1, before)
    assert errors.startswith("error: validation.baseline: ")
    assert message in errors
    assert not (tmp_path / "second").exists()


def test_a_baseline_is_that_of_a_whole_sweep(tripath_command):  # noqa: F811
    status, _, errors = tripath_command("experiment=quick", "paths=[analytical]", "validation.baseline=ci")
    assert (status, errors.count("\n")) == (cli.BAD_INPUT, 1)
    assert "validation.baseline: is that of a sweep" in errors
    status, _, errors = tripath_command(*SWEEP[:-1], "validation.baseline=null,ci")
    assert status == cli.BAD_INPUT
    assert "validation.baseline: are the same for all jobs" in errors


@pytest.mark.parametrize("arguments", [[], ["a", "b", "c"], ["absent"], ["."]])
def test_update_of_no_sweep_is_one_line(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    assert baseline.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_update_wants_a_file_where_nothing_was_compared(tripath_command, capsys):  # noqa: F811
    assert tripath_command(*SWEEP, "hydra.sweep.dir=first")[0] == cli.PASSED
    assert baseline.main(["first"]) == 2
    assert "was compared with no baseline; give FILE" in capsys.readouterr().err


def test_whole_numbers_are_equal_and_fractions_nearly():
    kept = Baseline(jobs={"a": {"cycles": 10**9, "share": 0.5, "kl": 1e-4, "digest": "x"}}, tolerances={"k*": 0.1})
    same = {"cycles": 10**9, "share": 0.5 * (1 + 1e-7), "kl": 1.09e-4, "digest": "x"}
    assert compare(kept, {"a": same}) == []
    for metric, new in (("cycles", 10**9 + 1), ("share", 0.50001), ("kl", 1.2e-4), ("digest", "y"), ("digest", 1)):
        drifts = compare(kept, {"a": {**same, metric: new}})
        assert [(drift.metric, drift.new) for drift in drifts] == [(metric, new)]


def test_a_metric_that_vanishes_or_appears_is_a_drift():
    kept = Baseline(jobs={"a": {"x": 1, "y": 2}})
    drifts = compare(kept, {"a": {"y": 2, "z": 3}})
    assert list(map(str, drifts)) == ["x: was 1, is not there", "z: not in the baseline, is 3"]


def test_a_summary_comes_first_by_metric_the_largest_first():
    old = {"small": 1000, "large": 200, "text": "a", "gone": 1}
    kept = Baseline(jobs=dict.fromkeys("abcd", old))
    found = {
        "a": {**old, "small": 1002}, "b": {**old, "small": 1007, "large": 190}, "c": {**old, "text": "b"},
        "d": {key: value for key, value in old.items() if key != "gone"}, "e": old,
    }  # fmt: skip
    assert by_metric(compare(kept, found), len(found)) == [
        "text is new or another in 1 of 5 jobs", "gone is gone in 1 of 5 jobs", "new: 1 of 5 jobs",
        "large -5 % in 1 of 5 jobs", "small +0.2 to +0.7 % in 2 of 5 jobs",
    ]  # fmt: skip
    assert by_metric(compare(kept, {}), 0) == ["4 of the baseline gave no results"]
    assert by_metric([], 3) == []


def test_a_first_baseline_says_new_once(tripath_command, capsys):  # noqa: F811
    assert tripath_command(*SWEEP, "hydra.sweep.dir=first")[0] == cli.PASSED
    assert baseline.main(["first", "kept.json"]) == 0
    assert capsys.readouterr().out == "new: 2 of 2 jobs\nkept.json: 2 jobs, 2 changes\n"


def test_the_summary_is_ahead_of_the_details(tripath_command, tmp_path, kept):  # noqa: F811
    edited(kept, lambda content: content["jobs"]["vlen=64"].update({METRIC: 1}))
    _, _, errors = tripath_command(*SWEEP, KEPT, "hydra.sweep.dir=second")
    lines = errors.splitlines()
    assert lines[0].startswith(f"error: baseline: {METRIC} +")
    assert lines[0].endswith("% in 1 of 2 jobs")
    assert lines[1].startswith(f"error: vlen=64: {METRIC}: was 1, is")
    text = (tmp_path / "second" / "summary.md").read_text()
    assert text.index("## Drifts by metric") < text.index("## Drifts\n")
    assert "% in 1 of 2 jobs" in (tmp_path / "second" / "report.html").read_text()


def report(**checks):
    rows = [
        {"metric": "m", "scope": "all", "kind": kind, "expected": 1, "expected_source": "theory", "observed": 2,
         "observed_source": "cycle", "relative_error": 1.0, "tolerance": 0.0, "verdict": verdict}
        for kind, verdict in checks.items()
    ]  # fmt: skip
    return {"program": None, "simulators": {"cycle": {"metrics": {"cycle.x": 2.0}, "wall_seconds": 9.0}}, "devices": {},
            "discrepancies": rows, "generation": None}  # fmt: skip


def test_facts_leave_wall_times_out():
    assert facts_of(report(count="passed", bound="failed")) == {"cycle.x": 2, "checks.count": 1, "checks.bound": 1}


def test_junit_has_a_case_for_each_kind_and_its_counts_match():
    rows = [
        Row(number=0, swept={"a.b": "<1>\x00"}, verdict="failed", fail_on=["count"], wall_seconds={"cycle": 1.5},
            report=report(count="failed", bound="failed", estimate="passed")),
        Row(number=1, swept={"a.b": "2"}, verdict="bad input", error="a.b: must be | 1"),
    ]  # fmt: skip
    assert [(case.check, case.outcome) for case in cases_of(rows[0])] == [
        ("run", None), ("count", "failure"), ("bound", "skipped"), ("estimate", None),
    ]  # fmt: skip
    drifts = [Drift(job="b=2"), Drift(job="gone")]
    root = ET.fromstring(junit(rows, drifts))
    suites = list(root)
    assert [suite.get("name") for suite in suites] == ["b=<1>?", "b=2", "gone"]
    tags = {"failures": "failure", "errors": "error", "skipped": "skipped", "tests": "testcase"}
    for element in (root, *suites):
        for name, tag in tags.items():
            assert int(element.get(name)) == len(list(element.iter(tag)))
    assert float(root.get("time")) == 1.5
    assert root.find(".//failure").text == "m (all): cycle has 2, theory 1, tolerance 0"
    text = markdown(rows, drifts, None)
    assert r"a.b: must be \| 1" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace(r"\|", "").count("|") for line in table}) == 1
    assert "baseline" not in markdown(rows[:1], None, None)


def test_the_shipped_baseline_is_of_the_jobs_of_the_experiment():
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("config", ["experiment=ci"], return_hydra_config=True)
    assert str(config.hydra.mode).endswith("MULTIRUN")
    params = config.hydra.sweeper.params
    products = 1
    for values in params.values():
        products *= len(str(values).split(","))
    assert len(read_baseline(config.validation.baseline).jobs) == products + len(config.hydra.sweeper.also) == 13
    assert place_of("ci").parent.is_dir()


@pytest.mark.parametrize(
    ("values", "kept"), [("1,16", {"1"}), ("1,8", {"1", "8"}), ("16,32", set()), (None, {"1", "8"})]
)
def test_values_that_the_user_takes_for_an_axis_hold_for_the_jobs_beside_it(values, kept):
    params, key = {"simulator.quality.planted": "1,8", "numerics.kv": "mxint4"}, "simulator.quality.planted"
    also = [[f"{key}={gain}", "numerics.kv=bf16"] for gain in (1, 8)]
    given = [*(f"{name}={value}" for name, value in params.items()), *([f"{key}={values}"] if values else [])]
    jobs = jobs_beside(also, OverridesParser.create().parse_overrides(given), params)
    assert {job[0].partition("=")[2] for job in jobs} == kept
    assert all(job in also for job in jobs)


def test_a_job_beside_the_product_that_is_the_same_as_another_is_left_out():
    """The user's one format makes four jobs of two: one is that of the product."""
    also = [[f"model.layers={layers}", f"numerics.kv={kv}"] for layers in (2, 3) for kv in ("bf16", "mxint8")]
    plugins = importlib.import_module(
        "hydra_plugins.tripath_cluster"
    )  # Hydra loads plugins anew when it looks for them
    sweeper = plugins.TripathSweeper(
        max_batch_size=None, params={"model.layers": "1,2", "numerics.kv": "mxint4,mxint8"}, also=also
    )
    given = ["model.layers=1,2", "numerics.kv=mxint4,mxint8", "numerics.kv=mxint8"]
    for lines, counts in ((given[:2], 4 + 3), (given, 2 + 1)):
        (jobs,) = sweeper.split_arguments(OverridesParser.create().parse_overrides(lines), None)
        assert len(jobs) == counts
        assert len({tuple(sorted({each.partition("=")[0]: each for each in job}.items())) for job in jobs}) == counts


def test_a_sweep_has_jobs_beside_its_product(tripath_command, tmp_path):  # noqa: F811
    also = "hydra.sweeper.also=[['hardware.vlen=256','workload.batch=2']]"
    status, _, errors = tripath_command(*SWEEP, "workload.cache=none", also, "hydra.sweep.dir=sweep")
    assert (status, errors) == (cli.PASSED, "")
    assert list(read_sweep(tmp_path / "sweep")) == ["vlen=64", "vlen=128", "vlen=256 batch=2"]
    config = yaml.safe_load((tmp_path / "sweep" / "2" / "config.yaml").read_text())
    assert (config["workload"]["cache"], config["workload"]["batch"]) == ("none", 2)
    with (tmp_path / "sweep" / "sweep.csv").open() as file:
        assert [row["workload.batch"] for row in csv.DictReader(file)] == ["", "", "2"]
    assert "| vlen=256 batch=2 | passed |" in (tmp_path / "sweep" / "summary.md").read_text()
