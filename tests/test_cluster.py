"""A sweep on a cluster of two nodes, each a `ray start` of its own on this machine."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

SECONDS = 600
START_SECONDS = 120
WHERE = """
import sys, time

from tripath.cluster.launch import Cluster, Launch, Task

def nothing():
    return 0

def where(_):
    import ray
    time.sleep(1)
    return ray.get_runtime_context().get_node_id()

cluster = Cluster(Launch(address=sys.argv[1]))
tasks = (Task(key="", prepare=(nothing, ()), function=where, arguments=()) for _ in range(6))
print(len({node for _, node in cluster.each(tasks, lambda _: None)}))
cluster.close()
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def address(tmp_path, monkeypatch):
    """Address of a cluster of two nodes with one processor each."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # A run of another test in this process may have said with it that its cluster has one node.
    monkeypatch.delenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", raising=False)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # nothing is sent
        probe.connect(("192.0.2.1", 1))
        head = f"{probe.getsockname()[0]}:{free_port()}"
    port = head.rpartition(":")[2]
    common = [str(Path(sys.executable).with_name("ray")), "start", "--num-cpus=1", "--block", "--disable-usage-stats",
              "--object-store-memory=100000000"]  # fmt: skip
    nodes = []
    try:
        with (tmp_path / "ray.log").open("w") as log:
            for place in ([f"--port={port}", "--head", "--include-dashboard=false"], [f"--address={head}"]):
                nodes.append(
                    subprocess.Popen([*common, *place], stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
                )
                until = time.monotonic() + START_SECONDS
                while (tmp_path / "ray.log").read_text().count("--block") < len(nodes):
                    assert time.monotonic() < until, (tmp_path / "ray.log").read_text()
                    time.sleep(0.2)
        yield head
    finally:
        for node in reversed(nodes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGTERM)
            node.wait(60)


@pytest.mark.system
def test_a_sweep_runs_on_both_nodes_of_a_cluster(tmp_path, address):
    def run(*command):
        return subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS)

    (tmp_path / "where.py").write_text(WHERE)
    found = run("where.py", address)
    assert (found.stdout, found.stderr) == ("2\n", "")
    done = run(
        "-m", "tripath", "--multirun", "tracking=off", "paths=[analytical]", "workload.cache=none,prefix,dual",
        f"launch.address={address}", "hydra.sweep.dir=sweep",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 passed" in done.stdout
    reports = [json.loads((tmp_path / "sweep" / job / "report.json").read_text()) for job in "012"]
    assert {report["status"] for report in reports} == {"passed"}
