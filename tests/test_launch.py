"""Ray: whole runs as a user starts them, on a cluster of their own and on one that is there already."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from analytical import simulate
from npu.errors import TripathError
from npu.program.trace import Trace
from tests.conftest import CHECKPOINT, PROMPT, compiled, compose_experiment
from tripath.cluster.launch import Cluster, Launch, Task

TIMEOUT_SECONDS = 240
HOLDER = """
import ray, sys
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=40)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


def run_tripath(folder, *arguments, mode="token"):
    command = [sys.executable, "-m", "tripath", *arguments, "launch.cache=off"]
    environment = {**os.environ, "RAY_AUTH_MODE": mode}  # Ray's token is its own: that of the user who runs the tests
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)


@pytest.fixture(scope="module")
def address():
    """Address of a Ray cluster that lives as long as the tests of this module."""
    command, pipe = [sys.executable, "-c", HOLDER], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as holder:
        yield holder.stdout.readline().strip()
        holder.communicate("")


def test_the_main_job_on_a_cluster_of_its_own(tmp_path):
    done = run_tripath(tmp_path, "hydra.run.dir=run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (done.returncode, done.stderr) == (0, "")
    assert report["status"] == "passed"
    assert report["generation"]["prompt"] == PROMPT
    assert len(report["generation"]["trip_counts"]) == 4
    assert report["simulators"]["accuracy"]["metrics"]["accuracy.generated_tokens"] == 32
    assert f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlruns/mlflow.db" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"run", "mlruns"}
    assert "RAY" not in done.stdout.upper().replace("WAITS FOR RAY", "").replace("ARRAY", "")


@pytest.mark.system
def test_timing_paths_alone_take_the_schedule_on_an_existing_cluster(tmp_path, address):
    done = run_tripath(
        tmp_path, "experiment=quick", "paths=[analytical,cycle]", "workload.prompt_length=30", "hydra.run.dir=run",
        f"launch.address={address}",
    )  # fmt: skip
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (done.returncode, done.stderr) == (0, "")
    assert set(report["simulators"]) == {"analytical", "cycle"}
    assert report["generation"] is None


@pytest.mark.system
def test_timing_paths_replay_the_steps_that_quality_counted(tmp_path, address):
    asked = ("paths=[analytical,quality]", "workload.commit=threshold", "workload.generation_length=16", "workload.steps=16",
             "simulator.quality.problems=4", "simulator.quality.compared=2")  # fmt: skip
    done = run_tripath(tmp_path, "tracking=off", *asked, "hydra.run.dir=run", f"launch.address={address}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "analytical: waits for quality's trace" in done.stdout
    found = json.loads((tmp_path / "run" / "report.json").read_text())["simulators"]
    experiment = compose_experiment(*asked)
    program, schedule = compiled(experiment)
    there = found["analytical"]["metrics"]["analytical.estimated_cycles"]
    steps = round(2 * found["quality"]["metrics"]["quality.steps_per_block"])
    costs = {
        simulate(program, hardware=experiment.hardware, trace=Trace(breaks=(first - 1, steps - first - 1))).metrics[
            "estimated_cycles"
        ]
        for first in range(1, steps)
    }
    assert steps < 16
    assert there in costs
    assert there < simulate(program, hardware=experiment.hardware, trace=schedule).metrics["estimated_cycles"]


@pytest.mark.system
def test_an_error_in_a_worker_is_one_line_and_status_2(tmp_path, address):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "tokenizer.json").write_text((CHECKPOINT / "tokenizer.json").read_text())
    done = run_tripath(
        tmp_path, "tracking=off", f"model.checkpoint={folder}", f"launch.address={address}", "hydra.run.dir=run"
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: model.checkpoint: model.safetensors is missing in")
    assert not (tmp_path / "run").exists()


@pytest.mark.system
def test_a_sweep_shares_one_cluster(tmp_path, address):
    done = run_tripath(
        tmp_path, "--multirun", "experiment=quick", "workload.cache=none,prefix,dual", f"launch.address={address}",
        "hydra.sweep.dir=sweep", "paths=[analytical,cycle]",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    makespans = [
        json.loads((tmp_path / "sweep" / job / "report.json").read_text())["simulators"]["cycle"]["metrics"]
        for job in "012"
    ]
    none, prefix, dual = (metrics["cycle.makespan_cycles"] for metrics in makespans)
    assert none > prefix > dual


@pytest.mark.system
def test_an_interrupt_ends_cleanly(tmp_path, address):
    command = [sys.executable, "-m", "tripath", "tracking=off", "launch.cache=off", "hydra.run.dir=run",
               f"launch.address={address}"]  # fmt: skip
    environment = {**os.environ, "RAY_AUTH_MODE": "token"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A test run in the background ignores SIGINT, and its children would inherit that.
    heed = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes, **heed) as process:
        assert process.stdout.readline()  # the simulators are about to run
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == 130
    assert errors == "error: interrupted\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.system
def test_a_cluster_that_wants_a_token_says_so_in_one_line(tmp_path, address):
    done = run_tripath(tmp_path, "tracking=off", f"launch.address={address}", mode="disabled")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "set RAY_AUTH_MODE=token" in done.stderr
    assert not list(tmp_path.iterdir())


def test_nothing_listens_at_an_address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = f"127.0.0.1:{probe.getsockname()[1]}"
    experiment = compose_experiment("experiment=quick", "paths=[analytical]")
    for address, message in ((closed, "refused"), ("nowhere", "must be auto or HOST:PORT")):
        cluster = Cluster(Launch(address=address))
        with pytest.raises(TripathError, match=rf"launch\.address: no Ray cluster at {address} .*{message}"):
            cluster.run(compiled(experiment)[0], experiment, [[1]], lambda _: None)
        with pytest.raises(TripathError, match="no Ray cluster"):
            next(cluster.each([Task(key="", prepare=(print, ()), function=print, arguments=())], lambda _: None))
        cluster.close()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_cpus": 0}, "launch.num_cpus: must be from 1 to 65536, got 0"),
        ({"in_flight": 0}, "launch.in_flight: must be from 1"),
        ({"cache": "maybe"}, "launch.cache: unknown 'maybe', one of on, off"),
        ({"address": "auto", "num_cpus": 2}, "launch.num_cpus: is a fact of the cluster"),
    ],
)
def test_launch_settings_are_checked(values, message):
    with pytest.raises(TripathError, match=message):
        Launch(**values)
