"""MLflow: what a run leaves in a store, and what a store that cannot be used says."""

import dataclasses
import json
import math
import shutil
import subprocess
from pathlib import Path

import pytest

import tripath.tracking.record
import tripath.tracking.store
from npu.errors import TripathError
from tests.conftest import compose_experiment
from tests.test_report import make_outcome
from tripath.command.composition import compose_values
from tripath.report.run_report import write_files
from tripath.tracking.record import TRACKED, Record, git_commit, parameters, record_of
from tripath.tracking.store import Store, Tracked, Tracking


def tracking(folder, uri=None):
    return Tracking(enabled=True, uri=uri, folder=str(folder), experiment="tests")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A run of the timing paths in a new store: (client, tracked, outcome)."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("tracked")
    experiment = compose_experiment("experiment=quick", "paths=[analytical,cycle]")
    outcome = make_outcome(experiment)
    cycle = outcome.results["cycle"]
    cycle = dataclasses.replace(cycle, metrics={**cycle.metrics, "oddity": math.nan})
    outcome = dataclasses.replace(outcome, results={**outcome.results, "cycle": cycle})
    write_files(folder / "run", experiment, outcome, configuration="a: 1\n", command="tripath")
    tracked = Store(tracking(folder / "mlruns")).log_folder(folder / "run")
    return MlflowClient(tracking_uri=tracked.uri), tracked, outcome


def runs(client, tracked):
    found = client.search_runs([tracked.experiment_id])
    return {run.info.run_id: run for run in found}


def test_a_parent_has_a_child_for_each_path(recorded):
    client, tracked, outcome = recorded
    found = runs(client, tracked)
    parent = found.pop(tracked.run_id)
    assert parent.info.status == "FINISHED"
    assert {run.info.run_name for run in found.values()} == set(outcome.results)
    assert {run.data.tags["mlflow.parentRunId"] for run in found.values()} == {tracked.run_id}
    assert {run.info.status for run in found.values()} == {"FINISHED"}


def test_every_run_can_be_filtered_by_its_tags(recorded):
    client, tracked, outcome = recorded
    for run in runs(client, tracked).values():
        tags = run.data.tags
        assert tags["program_digest"] == outcome.program.digest
        assert tags["trace_digest"] == outcome.results["cycle"].trace_digest
        assert (tags["model"], tags["hardware"], tags["cache"]) == ("wordmath", "npu_small", "dual")
        assert tags["verdict"] == "passed"
        assert tags.get("git_commit") == git_commit()
    failed = client.search_runs([tracked.experiment_id], "tags.verdict = 'failed'")
    assert not failed


def test_parameters_and_headline_metrics_are_on_the_parent(recorded):
    client, tracked, outcome = recorded
    parent = runs(client, tracked)[tracked.run_id].data
    assert parent.params["workload.steps"] == "4"
    assert parent.params["hardware.hbm.channels"] == "2"
    assert not any("timing" in name for name in parent.params)
    makespan = outcome.results["cycle"].metrics["makespan_cycles"]
    assert parent.metrics["cycle.makespan_cycles"] == makespan
    assert parent.metrics["validation.failed"] == 0
    assert abs(parent.metrics["validation.estimate.makespan_cycles.relative_error"]) < 0.1


def test_children_hold_all_finite_metrics_tables_and_pictures(recorded):
    client, tracked, outcome = recorded
    for run_id, run in runs(client, tracked).items():
        if run_id == tracked.run_id:
            continue
        name = run.info.run_name
        expected = {f"{name}.{key}" for key, value in outcome.results[name].metrics.items() if math.isfinite(value)}
        assert set(run.data.metrics) == expected | {"wall_seconds"}
        artifacts = {file.path for file in client.list_artifacts(run_id)}
        assert {f"{title}.json" for title in outcome.results[name].tables if title != "timeline"} <= artifacts
        assert "timeline.json" not in artifacts
        assert {"roofline.png", "stalls.png", "timeline.png"} <= artifacts or name != "cycle"


def test_artifacts_are_those_of_the_run_folder(recorded):
    client, tracked, _ = recorded
    artifacts = {file.path for file in client.list_artifacts(tracked.run_id)}
    assert artifacts == {
        "config.yaml", "program.asm", "program.bin", "report.html", "report.json", "timeline.perfetto-trace",
        *(f"{name}.{kind}" for name in ("roofline", "stalls", "steps", "timeline") for kind in ("png", "svg")),
    }  # fmt: skip
    report = Path(client.download_artifacts(tracked.run_id, "report.json"))
    assert json.loads(report.read_text())["status"] == "passed"


def test_the_description_of_a_run_leads_to_its_page(recorded):
    client, tracked, _ = recorded
    parent = client.get_run(tracked.run_id)
    page = f"#/experiments/{tracked.experiment_id}/runs/{tracked.run_id}/artifacts/report.html?workflowType=machine_learning"
    assert f"[report.html]({page})" in parent.data.tags["mlflow.note.content"]
    assert "report.html" in {file.path for file in client.list_artifacts(tracked.run_id)}


def test_a_failed_run_says_so_and_shares_the_store(recorded, tmp_path):
    client, tracked, outcome = recorded
    experiment = compose_experiment("experiment=quick", "paths=[analytical,cycle]")
    row = dataclasses.replace(outcome.discrepancies[0], observed=-1)
    database = tracked.uri.removeprefix("sqlite:///")
    copy = tmp_path / "mlflow.db"
    shutil.copy(database, copy)
    store = Store(tracking(tmp_path, f"sqlite:///{copy}"))
    again = store.log(record_of(experiment, dataclasses.replace(outcome, discrepancies=[row])), tmp_path)
    assert again.experiment_id == tracked.experiment_id
    run = type(client)(tracking_uri=again.uri).get_run(again.run_id)
    assert (run.info.status, run.data.tags["verdict"]) == ("FAILED", "failed")


class Interrupted:
    """A client that the user interrupts once a number of requests have been carried out."""

    def __init__(self, client, requests):
        self._client, self._left = client, requests

    def __getattr__(self, name):
        def request(*arguments, **options):
            done = getattr(self._client, name)(*arguments, **options)
            self._left -= 1
            if not self._left:
                raise KeyboardInterrupt
            return done

        return request


def test_a_run_that_is_interrupted_after_any_request_goes_on_nowhere_and_has_not_passed(recorded, tmp_path):
    """A run of its own that a request has just made is known to the server alone: its parent then ends as KILLED."""
    client, tracked, outcome = recorded
    shutil.copytree(Path(tracked.uri.removeprefix("sqlite:///")).parents[1] / "run", tmp_path / "run")
    for requests in range(2, 100):
        (tmp_path / "run" / TRACKED).unlink(missing_ok=True)
        before = set(runs(client, tracked))
        store = Store(Tracking(enabled=True, uri=tracked.uri, folder=str(tmp_path), experiment="tests"))
        store.wait()
        store.__dict__["_client"] = Interrupted(store._client, requests)
        try:
            store.log_run(tmp_path / "run")
        except KeyboardInterrupt:
            whole = False
        else:
            whole = True
        made = {key: run for key, run in runs(client, tracked).items() if key not in before}
        below = [run for run in made.values() if "mlflow.parentRunId" in run.data.tags]
        (parent,) = (run for run in made.values() if "mlflow.parentRunId" not in run.data.tags)
        assert not [run for run in (parent, *below[1:]) if run.info.status == "RUNNING"]
        assert not [run for run in made.values() if run.data.tags.get("verdict") and run.info.status != "FINISHED"]
        if whole:
            assert (parent.info.status, parent.data.tags["verdict"]) == ("FINISHED", outcome.status)
            assert len(below) == len(outcome.results)
            break
    else:
        pytest.fail("never whole")
    assert requests > 5 * len(outcome.results)


def test_a_sweep_started_again_in_its_folder_goes_on_with_its_run(recorded, tmp_path):
    """Its jobs are there once; another command, or a run that was deleted, is a run of its own."""
    client, tracked, _ = recorded
    job, other = tmp_path / "0", tmp_path / "1"
    for place in (job, other):
        shutil.copytree(Path(tracked.uri.removeprefix("sqlite:///")).parents[1] / "run", place)
        (place / TRACKED).unlink()
    store = Store(Tracking(enabled=True, uri=tracked.uri, folder=str(tmp_path), experiment="tests"))
    sweep = Record(name="sweep", status="RUNNING", tags={"kind": "sweep"}, parameters={"axes": "cache"})
    first = store.begin(sweep, tmp_path)
    store.log_folder(job, first.run_id)
    client.set_tag(first.run_id, "verdict", "failed")
    client.set_terminated(first.run_id, "KILLED")

    again = store.begin(sweep, tmp_path)
    assert again == first
    run = client.get_run(first.run_id)
    assert (run.info.status, "verdict" in run.data.tags) == ("RUNNING", False)
    store.log_folder(job, again.run_id)
    store.log_folder(other, again.run_id)
    below = [run for run in runs(client, tracked).values() if run.data.tags.get("mlflow.parentRunId") == first.run_id]
    assert len(below) == 2

    changed = dataclasses.replace(sweep, tags={**sweep.tags, "command": "tripath model=llada_8b"})
    third = store.begin(changed, tmp_path)
    assert third.run_id != first.run_id
    client.delete_run(third.run_id)
    assert store.begin(changed, tmp_path).run_id not in (first.run_id, third.run_id)


def test_a_store_that_cannot_be_opened_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for settings in (tracking(tmp_path / "file" / "mlruns"), tracking(tmp_path, "nonsense://x")):
        with pytest.raises(TripathError, match=r"tracking\.uri: cannot open") as error:
            Store(settings).wait()
        assert "\n" not in str(error.value)


def test_a_store_that_cannot_be_written_is_one_line(recorded, tmp_path):
    _, tracked, outcome = recorded
    experiment = compose_experiment("experiment=quick", "paths=[analytical,cycle]")
    store = Store(tracking(tmp_path, tracked.uri))
    store.wait()
    with pytest.raises(TripathError, match=r"tracking\.uri: cannot write to sqlite"):
        store.log(record_of(experiment, outcome, files=["absent"]), tmp_path)


def test_an_interrupted_first_start_leaves_no_half_made_store(tmp_path, monkeypatch):
    import mlflow

    def interrupted(*_, **__):
        message = "killed"
        raise RuntimeError(message)

    monkeypatch.setattr(mlflow.MlflowClient, "search_experiments", interrupted)
    with pytest.raises(TripathError, match="killed"):
        Store(tracking(tmp_path)).wait()
    assert not (tmp_path / tripath.tracking.store.DATABASE).exists()


def test_the_command_that_opens_a_store_survives_a_shell(tmp_path):
    tracked = Tracked(uri=f"sqlite:///{tmp_path}/a b/mlflow.db", experiment_id="1", run_id="r")
    script = f"printf '%s\\n' {tracked.command}"
    shown = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert tracked.uri in shown.stdout.splitlines()
    assert tracked.page == "http://127.0.0.1:5000/#/experiments/1/runs/r?workflowType=machine_learning"
    served = Tracked(uri="http://server:8080/", experiment_id="1", run_id="r")
    assert served.page == "http://server:8080/#/experiments/1/runs/r?workflowType=machine_learning"


def test_parameters_are_flat_and_complete():
    flat = parameters(compose_experiment("workload.batch=2", "simulator.cycle.race_check=false"))
    assert flat["workload.batch"] == "2"
    assert flat["paths"] == "analytical,cycle,accuracy"
    assert flat["simulator.cycle.race_check"] == "False"
    groups = {name.partition(".")[0] for name in flat}
    assert groups == {"model", "workload", "hardware", "numerics", "compiler", "simulator", "paths"}


def test_a_copy_that_git_does_not_know_has_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(tripath.tracking.record, "__file__", str(tmp_path / "record.py"))
    assert git_commit.__wrapped__() is None


@pytest.mark.parametrize("name", ["my%20project", "q?z", "a#b", "x y", "ü"])
def test_a_folder_may_have_any_name(tmp_path, name):
    folder = tmp_path / name
    store = Store(tracking(folder))
    store.wait()
    assert (folder / "mlflow.db").exists()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_address_that_mlflow_s_own_variable_names_is_taken(monkeypatch):
    assert compose_values("tracking=sqlite")["tracking"]["uri"] is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there:5000")
    assert compose_values("tracking=sqlite")["tracking"]["uri"] == "http://there:5000"
    assert compose_values("tracking=sqlite", "tracking.uri=null")["tracking"]["uri"] is None
