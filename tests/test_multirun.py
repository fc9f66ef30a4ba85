"""A sweep in process: what it composes, what it prints, writes and logs, and how it goes on when something breaks."""

import csv
import errno
import json
import shutil
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf

import tripath.run.job
import tripath.sweeps.multirun
import tripath.tracking.store
from npu.errors import TripathError
from tests.conftest import compose_experiment
from tests.test_cli import InlineCluster, tripath_command  # noqa: F401  a fixture
from tripath.command import cli
from tripath.command.composition import Composer, to_yaml
from tripath.run.job import compile_key
from tripath.sweeps.summary import Row, draw_summary, order, sort_metric, summary
from tripath.tracking.record import FILE, TRACKED, from_json
from tripath.tracking.store import DATABASE, Store, Tracking
from tripath.tracking.sync import sync

SWEEP = ("--multirun", "tracking=off", "experiment=quick", "paths=[analytical]", "hydra.sweep.dir=sweep")


def metrics_of(folder):
    return json.loads((folder / "report.json").read_text())["simulators"]


OVERRIDES = [
    ["workload.cache=none"], ["workload.cache=dual", "hardware.vlen=128"], ["hardware=npu_datacenter", "numerics=mxint4"],
    ["experiment=quick", "workload.batch=2"], ["workload.prompt='a, b'"], ["paths=[cycle]"],
    ["hardware=npu_plena", "hardware/timing=v1"], ["+simulator.cycle.speed=2"], ["~workload.factor"],
    ["workload.prompt='\\${z}'"], ["hardware.queue_depth={matrix:4}"], ["workload.prompt='1'"], ["workload.prompt=null"],
    ["++hardware.vlen=128"], ["hardware.clock_hz=2e9", "hardware.vlen=64", "hardware.vlen=128"], ["launch.cache_folder=${hardware.name}"],
]  # fmt: skip


def test_a_note_names_the_first_check_whole_and_how_many_more():
    names = [f"cycle.stall_cycles.dma_out.semaphore_matrix_{n} (baseline)" for n in range(3)]
    rows = [Row(number=0, swept={}, verdict="failed", error=", ".join(names)), make_row(1, 1.0)]
    assert [row[-1] for row in summary(rows, None).rows] == [f"{names[0]}, and 2 more", ""]
    told = Row(number=0, swept={}, verdict="bad input", error="a sentence, with commas, " + "x" * 100)
    assert summary([told], None).rows[0][-1] == told.error[:60] + "..."


def test_a_job_is_composed_as_hydra_composes_it():
    with initialize_config_module("conf", version_base="1.3"):
        master = compose("config", return_hydra_config=True)
        composer = Composer(GlobalHydra.instance().config_loader(), master)
        for number, overrides in enumerate([*OVERRIDES, *OVERRIDES[:4]]):  # some again, from what is remembered
            config, folder = composer(number, overrides)
            expected = compose("config", overrides=overrides)
            assert config == OmegaConf.to_container(expected, resolve=True)
            assert to_yaml(config) == OmegaConf.to_yaml(expected, resolve=True)
            assert folder.name == str(number)


def test_hydra_finds_the_launcher():
    assert "ClusterLauncher" in {plugin.__name__ for plugin in Plugins.instance().discover(Launcher)}


def test_jobs_share_a_program_where_they_compile_the_same():
    keys = [compile_key(compose_experiment(*overrides), None) for overrides in (
        [], ["simulator.cycle.race_check=false"], ["validation.estimate.value=0.05"], ["hardware.vlen=128"], ["paths=[]",
         "experiment=dram_reference"],
    )]  # fmt: skip
    assert keys[0] == keys[1] == keys[2]
    assert len(set(keys)) == 3


def test_a_sweep_leaves_a_table_a_picture_and_its_jobs(tripath_command, tmp_path):  # noqa: F811
    status, output, errors = tripath_command(*SWEEP, "hardware.vlen=64,128", "workload.cache=none,dual")
    assert (status, errors) == (cli.PASSED, "")
    with (tmp_path / "sweep" / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["hardware.vlen"], row["workload.cache"], row["verdict"]) for row in rows] == [
        ("64", "none", "passed"), ("64", "dual", "passed"), ("128", "none", "passed"), ("128", "dual", "passed"),
    ]  # fmt: skip
    for row in rows:
        found = metrics_of(tmp_path / "sweep" / row["job"])["analytical"]["metrics"]
        assert float(row["analytical.estimated_cycles"]) == found["analytical.estimated_cycles"]
    assert (tmp_path / "sweep" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert "4 passed" in output
    assert (tmp_path / "sweep" / "3" / "config.yaml").read_text().count("vlen: 128") == 1
    assert "hardware.vlen=64 workload.cache=none</pre>" in (tmp_path / "sweep" / "0" / "report.html").read_text()


def test_a_sweep_again_is_all_from_the_cache_and_the_same(tripath_command, tmp_path):  # noqa: F811
    arguments = (*SWEEP[:-1], "hardware.vlen=64,128")
    assert tripath_command(*arguments, "hydra.sweep.dir=one")[0] == cli.PASSED
    status, output, _ = tripath_command(*arguments, "hydra.sweep.dir=two")
    assert status == cli.PASSED
    assert "2 of 2 results from the cache" in output
    for job in "01":
        first, second = ((tmp_path / sweep / job / "report.json").read_bytes() for sweep in ("one", "two"))
        assert first == second
    assert "from the cache" not in tripath_command(*arguments, "hydra.sweep.dir=three", "launch.cache=off")[1]


def test_a_run_again_starts_no_cluster(tripath_command, tmp_path):  # noqa: F811
    arguments = ("experiment=quick", "paths=[analytical]")
    assert tripath_command(*arguments, "hydra.run.dir=one")[0] == cli.PASSED
    before = InlineCluster.made
    status, output, _ = tripath_command(*arguments, "hydra.run.dir=two")
    assert (status, InlineCluster.made) == (cli.PASSED, before)
    assert "from the cache: analytical" in output
    assert (tmp_path / "one" / "report.json").read_bytes() == (tmp_path / "two" / "report.json").read_bytes()


def test_the_table_is_sorted_by_the_metric_asked_for(tripath_command):  # noqa: F811
    arguments = (*SWEEP, "hardware.hbm.channels=4,1,2")
    for sign, expected in (("", "1 2 4"), ("-", "4 2 1")):
        output = tripath_command(*arguments, f"launch.sort_by={sign}analytical.tokens_per_second")[1]
        lines = [line.split() for line in output.splitlines() if " passed " in f"{line} "]
        assert " ".join(line[1] for line in lines if line[2:3] == ["passed"]) == expected
    errors = tripath_command(*arguments, "launch.sort_by=nothing")[2]
    assert errors.startswith("note: launch.sort_by: no job has nothing; they have analytical.")


def test_the_table_shows_the_metrics_asked_for(tripath_command, tmp_path):  # noqa: F811
    asked = [
        "analytical.lower_bound_cycles",
        "analytical.matrix_utilisation",
        "analytical.area_mm2",
        "analytical.energy_joules",
    ]
    tripath_command(*SWEEP, "hardware.hbm.channels=1,2", f"launch.columns=[{','.join(asked)}]", "hydra.sweep.dir=asked")
    head = next(
        line for line in (tmp_path / "asked" / "summary.md").read_text().splitlines() if line.startswith("| job")
    )
    columns = head.strip("| ").split(" | ")
    first = columns.index("verdict") + 2
    assert columns[first : first + len(asked)] == asked


def test_launch_and_tracking_are_not_swept(tripath_command):  # noqa: F811
    status, _, errors = tripath_command(*SWEEP, "launch.num_cpus=1,2")
    assert status == cli.BAD_INPUT
    assert errors == "error: job 1: launch, tracking, validation.baseline: are the same for all jobs of a sweep\n"


def break_job_1(monkeypatch, module):
    """Let job 1 raise where `module` runs it."""
    real = module.run_job

    def broken(prepared, job, cache):
        if job.number == 1:
            message = "a defect"
            raise RuntimeError(message)
        return real(prepared, job, cache)

    monkeypatch.setattr(module, "run_job", broken)


def test_a_job_that_raises_is_named_and_the_others_finish(tripath_command, tmp_path, monkeypatch):  # noqa: F811
    break_job_1(monkeypatch, tripath.sweeps.multirun)
    status, output, errors = tripath_command(*SWEEP, "hardware.vlen=64,128,256")
    assert status == cli.INTERNAL_ERROR
    assert "Traceback" in errors
    assert "error: job 1: a defect" in errors
    assert "2 passed, 1 internal error" in output
    assert {path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir()} == {"0", "2"}


def test_light_jobs_go_together_and_find_what_jobs_alone_find(tripath_command, tmp_path, monkeypatch):  # noqa: F811
    axes = ("hardware.hbm.channels=1,2,4", "hardware.vlen=64,128", "workload.cache=none,dual")
    compiled, real = [], tripath.run.job.compile_program
    monkeypatch.setattr(tripath.run.job, "compile_program", lambda *inputs: compiled.append(1) or real(*inputs))
    tables = []
    for more in ((), ("row_only=true",)):
        compiled.clear()
        status, _, errors = tripath_command(
            *SWEEP, *axes, *more, "launch.cache=off", "simulator.cycle.race_check=false"
        )
        assert (status, errors) == (cli.PASSED, "")
        with (tmp_path / "sweep" / "sweep.csv").open() as file:
            rows = sorted(csv.DictReader(file), key=lambda row: int(row["job"]))
        tables.append([{key: value for key, value in row.items() if "seconds" not in key} for row in rows])
    assert tables[0] == tables[1]
    assert len(tables[0]) == 12
    assert len(compiled) == 5  # four programs, one of them in two tasks of at most eight jobs


def test_a_light_job_that_raises_is_named_and_those_with_it_finish(tripath_command, tmp_path, monkeypatch):  # noqa: F811
    break_job_1(monkeypatch, tripath.run.job)
    status, output, errors = tripath_command(*SWEEP, "row_only=true", "hardware.vlen=64,128,256,1000")
    assert status == cli.INTERNAL_ERROR
    assert "Traceback" in errors
    assert "error: job 1: RuntimeError: a defect" in errors
    assert "error: job 3: hardware.vlen: must be a power of two from 32 to 8192, got 1000" in errors
    assert "2 passed, 1 bad input, 1 internal error" in output
    assert {path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir()} == set()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_costs_that_job_only(tripath_command, tmp_path, monkeypatch, code):  # noqa: F811
    real = Path.write_bytes

    def full(path, data):
        if path.parent.name == "1" and path.name == "program.bin":
            raise OSError(code, "No space left on device", str(path))
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    status, output, errors = tripath_command(*SWEEP, "hardware.vlen=64,128,256")
    assert status == cli.BAD_INPUT
    assert errors == f"error: job 1: hydra.sweep.dir: cannot write {tmp_path}/sweep/1 (No space left on device)\n"
    assert "2 passed, 1 bad input" in output
    assert not (tmp_path / "sweep" / "1" / "report.json").exists()
    monkeypatch.undo()


def test_a_run_whose_folder_is_full_is_one_line(tripath_command, monkeypatch):  # noqa: F811
    def full(path, _):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    status, _, errors = tripath_command("tracking=off", "experiment=quick", "paths=[analytical]", "hydra.run.dir=run")
    assert (status, errors.count("\n")) == (cli.BAD_INPUT, 1)
    assert "No space left on device" in errors


def test_an_interrupt_keeps_what_is_finished(tripath_command, tmp_path, monkeypatch):  # noqa: F811
    real = tripath.sweeps.multirun.run_job

    def interrupted(prepared, job, cache):
        if job.number == 2:
            raise KeyboardInterrupt
        return real(prepared, job, cache)

    monkeypatch.setattr(tripath.sweeps.multirun, "run_job", interrupted)
    status, output, errors = tripath_command(*SWEEP, "hardware.vlen=64,128,256")
    assert (status, errors) == (cli.INTERRUPTED, "error: interrupted\n")
    assert "2 passed, 1 not run" in output
    assert len(list((tmp_path / "sweep").glob("*/report.json"))) == 2
    monkeypatch.setattr(tripath.sweeps.multirun, "run_job", real)
    output = tripath_command(*SWEEP, "hardware.vlen=64,128,256")[1]
    assert "3 passed; 2 of 3 results from the cache" in output


@pytest.fixture(scope="module")
def migrated(tmp_path_factory):
    """A database that is there already: to make one takes seconds."""
    folder = tmp_path_factory.mktemp("migrated")
    Store(Tracking(enabled=True, uri=None, folder=str(folder), experiment="tripath")).wait()
    return folder / DATABASE


@pytest.fixture
def store(tmp_path, migrated):
    (tmp_path / "mlruns").mkdir()
    shutil.copy(migrated, tmp_path / "mlruns" / DATABASE)
    return Store(Tracking(enabled=True, uri=None, folder=str(tmp_path / "mlruns"), experiment="tests"))


def runs_of(store):
    store.wait()
    return store._client.search_runs([store._experiment_id])


STORED = ("--multirun", "experiment=quick", "paths=[analytical]", "tracking=sqlite", "tracking.experiment=tests")
TRACKED_SWEEP = (*STORED, "hydra.sweep.dir=sweep", "hardware.vlen=64,128")


def test_a_sweep_is_a_parent_with_a_run_for_each_job(tripath_command, tmp_path, store):  # noqa: F811
    status, output, errors = tripath_command(*TRACKED_SWEEP)
    assert (status, errors) == (cli.PASSED, "")
    runs = {run.info.run_name: run for run in runs_of(store)}
    assert set(runs) == {"sweep of vlen", "vlen=64", "vlen=128"}
    parent = runs.pop("sweep of vlen")
    assert parent.info.run_id in output
    assert parent.info.status == "FINISHED"
    assert parent.data.params == {"hardware.vlen": "64,128"}
    assert (parent.data.metrics["jobs"], parent.data.metrics["jobs.passed"]) == (2, 2)
    artifacts = {file.path for file in store._client.list_artifacts(parent.info.run_id)}
    assert artifacts == {"report.html", "sweep.csv", "sweep.png", "sweep.svg", "jobs.json", "junit.xml", "summary.md"}
    for run in runs.values():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert (run.data.tags["verdict"], run.info.status) == ("passed", "FINISHED")
        assert run.data.params["hardware.vlen"] == run.info.run_name.partition("=")[2]
        assert "analytical.busy_cycles.matrix" in run.data.metrics
        artifacts = {file.path for file in store._client.list_artifacts(run.info.run_id)}
        assert {"report.html", "roofline.png", "analytical_phases.json"} <= artifacts
    assert sync(tmp_path / "sweep", store) == []
    assert len(runs_of(store)) == 3


def test_a_sweep_that_is_interrupted_while_it_ends_has_not_passed(tripath_command, tmp_path, monkeypatch, store):  # noqa: F811
    real, ended = Store.end, []

    def end(self, run_id, record, folder):
        ended.append(record.status)
        if len(ended) == 1:
            raise KeyboardInterrupt
        return real(self, run_id, record, folder)

    monkeypatch.setattr(Store, "end", end)
    status, output, errors = tripath_command(*TRACKED_SWEEP)
    assert (status, errors.splitlines()[-1]) == (cli.INTERRUPTED, "error: interrupted")
    assert ended == ["FINISHED", "KILLED"]
    assert "2 passed" in output
    runs = {run.info.run_name: run for run in runs_of(store)}
    parent = runs.pop("sweep of vlen")
    assert (parent.info.status, parent.data.tags["verdict"]) == ("KILLED", "interrupted")
    assert {(run.info.status, run.data.tags["verdict"]) for run in runs.values()} == {("FINISHED", "passed")}
    folder = tmp_path / "sweep"
    kept = json.loads((folder / "record.json").read_text())
    assert (kept["status"], kept["tags"]["verdict"]) == ("KILLED", "interrupted")
    assert (folder / "report.html").exists()
    assert not [name for name in ("junit.xml", "summary.md") if (folder / name).exists()]
    assert tripath_command(*TRACKED_SWEEP)[0] == cli.PASSED
    (parent,) = (run for run in runs_of(store) if run.data.tags.get("kind") == "sweep")
    assert (parent.info.status, parent.data.tags["verdict"]) == ("FINISHED", "passed")
    assert (folder / "junit.xml").exists()


def interrupted_in_a_class():
    """As Python reports it where a class is made, which names its members."""

    class Named:
        def __set_name__(self, owner, name):
            raise KeyboardInterrupt

    type("Owner", (), {"member": Named()})


def interrupted_plainly():
    raise KeyboardInterrupt


@pytest.mark.parametrize("interrupt", [interrupted_plainly, interrupted_in_a_class])
@pytest.mark.parametrize("step", ["draw_summary", "page_of_sweep"])
def test_an_interrupted_import_leaves_no_run_going_on(tripath_command, tmp_path, monkeypatch, store, step, interrupt):  # noqa: F811
    """The library that draws is loaded for the first picture. If that is interrupted, drawing fails as often as it is tried."""
    tried = []

    def interrupted(*_, **__):
        tried.append(step)
        if len(tried) == 1:
            interrupt()
        message = "module 'matplotlib' has no attribute 'rcParams'"
        raise AttributeError(message)

    monkeypatch.setattr(tripath.sweeps.multirun, step, interrupted)
    status, _, errors = tripath_command(*TRACKED_SWEEP)
    assert (status, errors.splitlines()[-1]) == (cli.INTERRUPTED, "error: interrupted")
    assert len(tried) == 2
    (parent,) = (run for run in runs_of(store) if run.data.tags.get("kind") == "sweep")
    assert (parent.info.status, parent.data.tags["verdict"]) == ("KILLED", "interrupted")
    kept = json.loads((tmp_path / "sweep" / "record.json").read_text())
    assert (kept["status"], kept["tags"]["verdict"]) == ("KILLED", "interrupted")


@pytest.mark.parametrize("interrupt", [interrupted_plainly, interrupted_in_a_class])
def test_a_run_that_is_interrupted_while_it_imports_says_so(tripath_command, tmp_path, monkeypatch, interrupt):  # noqa: F811
    monkeypatch.setattr(tripath.report.drawing, "load", interrupt)
    folder = f"launch.cache_folder={tmp_path / 'cache'}"
    status, _, errors = tripath_command("experiment=quick", "paths=[analytical]", "tracking=off", folder)
    assert (status, errors.splitlines()[-1]) == (cli.INTERRUPTED, "error: interrupted")
    assert "Traceback" not in errors


class FailingStore(Store):
    """Goes away after its first job."""

    def log_folder(self, folder, parent=None):
        if folder.name == "1":
            message = "tracking.uri: the server is gone"
            raise TripathError(message)
        return super().log_folder(folder, parent)


def test_what_a_store_did_not_take_is_logged_later(tripath_command, tmp_path, monkeypatch, store):  # noqa: F811
    with monkeypatch.context() as patched:
        patched.setattr(tripath.tracking.store, "Store", FailingStore)
        status, output, errors = tripath_command(*TRACKED_SWEEP)
    assert status == cli.PASSED
    note = "note: tracking.uri: the server is gone; the results are kept, `tripath sync"
    assert errors.startswith(note)
    assert "mlflow  run" not in output
    folder = tmp_path / "sweep"
    assert (folder / "0" / TRACKED).exists()
    assert not (folder / "1" / TRACKED).exists()
    assert [run.info.status for run in runs_of(store)].count("RUNNING") == 1
    assert sync(folder, store) == [folder / "1"]
    runs = {run.info.run_name: run for run in runs_of(store)}
    parent = runs.pop("sweep of vlen")
    assert parent.info.status == "FINISHED"
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
    assert len(runs) == 2


def test_a_run_without_tracking_can_be_logged_later(tripath_command, tmp_path, store, capsys):  # noqa: F811
    import tripath.tracking.sync

    tripath_command("experiment=quick", "paths=[analytical]", "hydra.run.dir=run")
    for expected in ("1 runs logged\n", "0 runs logged\n"):
        assert tripath.tracking.sync.main(["run", "--experiment", "tests"]) == 0
        assert capsys.readouterr().out == expected
    assert {run.info.run_name for run in runs_of(store)} == {"wordmath npu_small dual", "analytical"}
    for folder, message in ((tmp_path / "absent", "no record of a run"), (tmp_path / "mlruns", "no record of a run")):
        assert tripath.tracking.sync.main([str(folder)]) == 2
        assert message in capsys.readouterr().err


def test_a_record_that_is_none_is_refused(tmp_path, store):
    for text in ("", "[]", "{}", '{"name": 1}'):
        (tmp_path / FILE).write_text(text)
        with pytest.raises(TripathError, match=r"record\.json: not a record"):
            from_json((tmp_path / FILE).read_bytes())


def make_row(number, cost, **swept):
    metrics = {} if cost is None else {"cycle.makespan_cycles": cost}
    return Row(number=number, swept={f"workload.{key}": value for key, value in swept.items()}, verdict="passed",
               metrics=metrics)  # fmt: skip


def test_rows_are_ordered_and_those_without_the_metric_come_last():
    rows = [make_row(0, None), make_row(1, 5.0), make_row(2, 3.0), make_row(3, 5.0)]
    assert sort_metric(rows, None) == "cycle.makespan_cycles"
    assert sort_metric(rows, "-cycle.makespan_cycles") == "-cycle.makespan_cycles"
    assert sort_metric(rows, "absent") is None
    assert [row.number for row in order(rows, "cycle.makespan_cycles")] == [2, 1, 3, 0]
    assert [row.number for row in order(rows, "-cycle.makespan_cycles")] == [1, 3, 2, 0]
    assert [row.number for row in order(rows, None)] == [0, 1, 2, 3]


def test_the_summary_is_drawn_for_any_kind_of_axes(tmp_path):
    rows = [make_row(n, 10.0 ** (n % 5), batch=str(2 ** (n % 5)), cache=("none", "dual")[n % 2], steps=str(n % 3))
            for n in range(30)]  # fmt: skip
    assert draw_summary(tmp_path / "three.png", rows, "cycle.makespan_cycles")
    assert draw_summary(
        tmp_path / "text.png", [make_row(n, 1.0, cache=c) for n, c in enumerate("ab")], "cycle.makespan_cycles"
    )
    assert not draw_summary(tmp_path / "one.png", rows[:1], "cycle.makespan_cycles")
    assert not draw_summary(tmp_path / "none.png", rows, None)
    assert {path.name for path in tmp_path.iterdir()} == {"three.png", "three.svg", "text.png", "text.svg"}
    assert summary(rows, None).columns[:4] == ["job", "batch", "cache", "steps"]
