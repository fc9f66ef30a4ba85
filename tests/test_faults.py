"""What breaks while a sweep runs: workers, the driver, the user's patience, the database; on real processes."""

import dataclasses
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import tripath.tracking.store
from npu.errors import TripathError
from tests.conftest import compose_experiment
from tripath.cluster.launch import Cluster, Launch, Task
from tripath.cluster.ray_calls import WorkerLostError
from tripath.run.job import Job, compile_key, prepare, run_job
from tripath.run.results import Cache
from tripath.tracking.record import Record
from tripath.tracking.store import Store, Tracking

pytestmark = pytest.mark.system
SECONDS = 240
QUICK = ("tracking=off", "paths=[analytical]", "hydra.sweep.dir=sweep", "launch.num_cpus=2")


def make_job(tmp_path, number=0):
    experiment = compose_experiment("experiment=quick", "paths=[analytical]", f"hardware.hbm.channels={2**number}")
    return Job(number=number, name="", folder=tmp_path, experiment=experiment, default_prompt="Tom has 12 apples.",
               configuration="", command="")  # fmt: skip


def task_of(job, function, *arguments):
    inputs = job.experiment, job.default_prompt
    return Task(key=compile_key(*inputs), prepare=(prepare, inputs), function=function,
                arguments=(job, Cache(None), *arguments))  # fmt: skip


def dies_once(prepared, job, cache, marker):
    """Killed in the middle of its work, the first time."""
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return run_job(prepared, job, cache)


def dies_always(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def eats_memory(*_):
    """As the kernel does to a process that has no memory left: it refuses more."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))
    return bytearray(2**34)


def nothing(*_):
    return 0


def refuses(*_):
    message = "workload.steps: a rule is broken"
    raise TripathError(message)


@pytest.fixture(scope="module")
def cluster():
    cluster = Cluster(Launch(num_cpus=2))
    yield cluster
    cluster.close()


def without_time(outcome):
    report = json.loads(outcome.files["report.json"])
    for simulator in report["simulators"].values():
        del simulator["wall_seconds"]
    return report


def test_a_worker_that_is_killed_is_tried_again_and_others_that_fail_cost_only_themselves(cluster, tmp_path):
    jobs = [make_job(tmp_path, number) for number in range(3)]
    tasks = [
        task_of(jobs[0], dies_once, str(tmp_path / "marker")), task_of(jobs[1], run_job), task_of(jobs[2], dies_always),
        task_of(jobs[2], eats_memory), task_of(jobs[2], refuses),
    ]  # fmt: skip
    found = {id(task): value for task, value in cluster.each(iter(tasks), lambda _: None)}
    retried, other, lost, out_of_memory, refused = (found[id(task)] for task in tasks)
    assert (tmp_path / "marker").exists()
    for job, outcome in ((jobs[0], retried), (jobs[1], other)):
        here = run_job(prepare(job.experiment, job.default_prompt), job, Cache(None))
        assert without_time(outcome) == without_time(here)
        assert set(outcome.files) == set(here.files)
    assert isinstance(lost, WorkerLostError)
    assert "its worker died, also when tried again" in str(lost)
    assert "MemoryError" in str(out_of_memory)
    assert isinstance(refused, TripathError)


def test_no_more_jobs_are_handed_out_than_there_is_room_for(cluster, monkeypatch):
    cluster._wait()  # while Ray starts, jobs are drawn ahead
    monkeypatch.setattr(cluster, "_launch", Launch(in_flight=1))
    drawn, handed = [], []

    def tasks():
        for number in range(4):
            drawn.append(number)
            yield Task(key="same", prepare=(nothing, ()), function=nothing, arguments=())

    for number, _ in enumerate(cluster.each(tasks(), handed.append)):
        assert len(drawn) <= number + 2
    assert max(handed) == 1


def start(folder, *arguments, **environment):
    """A sweep as a user starts it, with a cache in `folder`; SIGINT is heeded also where the tests ignore it."""
    command = [sys.executable, "-m", "tripath", "--multirun", *arguments]
    cache = {"TRIPATH_CACHE": str(folder / "cache")}
    with (folder / "log").open("w") as log:
        return subprocess.Popen(
            command, cwd=folder, env={**os.environ, **cache, **environment}, stdout=log, stderr=subprocess.STDOUT,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  no thread runs yet
        )  # fmt: skip


def reports(folder):
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("sweep/*/report.json")}


def wait_for(condition, seconds=SECONDS):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


def below(root):
    """Processes that descend from `root`."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, grown = {root}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        found, grown = found | more, bool(more)
    return found - {root}


def alive(pids):
    """Those that are there and no zombies."""
    states = {}
    for pid in pids:
        try:
            states[pid] = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
    return {pid for pid, state in states.items() if state not in "ZX"}


AXES = ("hardware.hbm.channels=1,2,4,8", "workload.cache=none,dual")


def test_a_driver_that_is_killed_leaves_nothing_behind_but_results(tmp_path):
    process = start(tmp_path, *QUICK, *AXES)
    wait_for(lambda: len(reports(tmp_path)) >= 2 or process.poll() is not None)
    children = below(process.pid)
    process.kill()
    process.wait()
    before = reports(tmp_path)
    assert 2 <= len(before) < 8
    wait_for(lambda: not alive(children), 90)
    again = start(tmp_path, *QUICK, *AXES)
    assert again.wait(SECONDS) == 0
    after, log = reports(tmp_path), (tmp_path / "log").read_text()
    assert len(after) == 8
    hits = int(log.partition(" of 8 results from the cache")[0].rpartition(" ")[2])
    assert len(before) <= hits < 8
    assert {job: after[job] for job in before} == before


def test_an_interrupted_sweep_ends_cleanly_and_keeps_what_is_finished(tmp_path):
    process = start(tmp_path, *QUICK, *AXES)
    wait_for(lambda: reports(tmp_path) or process.poll() is not None)
    children = below(process.pid)
    process.send_signal(signal.SIGINT)
    assert process.wait(SECONDS) == 130, (tmp_path / "log").read_text()
    log = (tmp_path / "log").read_text()
    assert "error: interrupted" in log
    assert "Traceback" not in log
    assert f"{len(reports(tmp_path))} passed" in log
    assert "not run" in log
    assert (tmp_path / "sweep" / "sweep.csv").exists()
    wait_for(lambda: not alive(children), 30)


def test_jobs_that_need_more_memory_than_there_is_are_named(tmp_path):
    """Ray's own watch over memory, told that a hundredth of it is all there is."""
    process = start(tmp_path, *QUICK, "workload.cache=none", RAY_memory_usage_threshold="0.01",
                    RAY_memory_monitor_refresh_ms="50", RAY_task_oom_retries="0")  # fmt: skip
    assert process.wait(SECONDS) == 3
    log = (tmp_path / "log").read_text()
    assert "error: job 0: its worker ran out of memory" in log
    assert "1 internal error" in log


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    settings = Tracking(enabled=True, uri=None, folder=str(folder), experiment="tests")
    Store(settings).wait()
    return settings


def log(settings, number):
    return Store(settings).log(Record(name=str(number), status="FINISHED", tags={}, metrics={"x": number}), Path())


@pytest.mark.parametrize("seconds", [7, 30])
def test_a_database_that_is_locked_is_waited_for(database, monkeypatch, seconds):
    """SQLite itself waits five seconds."""
    path = Path(database.folder) / tripath.tracking.store.DATABASE
    store = Store(database)
    store.wait()
    monkeypatch.setattr(tripath.tracking.store, "RETRY_SECONDS", 0.2)
    holder = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN EXCLUSIVE")
    timer = threading.Timer(seconds, lambda: holder.execute("COMMIT"))
    timer.start()
    tracked = store.log(Record(name="late", status="FINISHED", tags={}, metrics={"x": 1}), Path())
    assert not timer.is_alive()
    assert store._client.get_run(tracked.run_id).data.metrics == {"x": 1}
    holder.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr(tripath.tracking.store, "PATIENCE_SECONDS", 1)
    with pytest.raises(TripathError, match=r"tracking\.uri: cannot write to .* locked"):
        store.log(Record(name="never", status="FINISHED", tags={}), Path())
    holder.close()


def test_a_database_that_is_gone_is_one_line(database, tmp_path):
    settings = dataclasses.replace(database, folder=str(tmp_path))
    store = Store(settings)
    store.wait()
    (tmp_path / tripath.tracking.store.DATABASE).write_bytes(b"")
    with pytest.raises(TripathError, match=r"tracking\.uri: cannot write to") as error:
        store.log(Record(name="gone", status="FINISHED", tags={}), Path())
    assert "\n" not in str(error.value)


def test_sixteen_writers_share_one_database(database):
    writers = [threading.Thread(target=log, args=(database, number)) for number in range(16)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    store = Store(database)
    store.wait()
    names = {run.info.run_name for run in store._client.search_runs([store._experiment_id])}
    assert {str(number) for number in range(16)} <= names
