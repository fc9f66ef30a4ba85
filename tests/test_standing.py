"""A standing cluster: what a command does on it is what it does alone, nothing is left of it, and it is used by its like alone."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tripath.cluster import standing

SECONDS = 300
CHECKS = ("experiment=quick", "paths=[analytical,cycle]", "workload.prompt_length=30", "launch.cache=off")
LISTENS = "0A"
LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")
"""127.0.0.1 as the kernel's tables write it, in both families, and ::1."""


def environment(place):
    return {**os.environ, "TRIPATH_CLUSTER": str(place), "TRIPATH_MARK": str(place)}


def start(place, *arguments, cwd=None, **options):
    command = [sys.executable, "-m", "tripath", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": cwd or place.parent}
    heed = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    return subprocess.Popen(command, **{**pipes, "env": environment(place), **heed, **options})


def tripath(place, *arguments, given=None, **options):
    with start(place, *arguments, stdin=subprocess.PIPE, **options) as process:
        out, errors = process.communicate(given, timeout=SECONDS)
    return process.returncode, out, errors


def processes(place):
    """Processes that descend from one that was started with this mark, by id."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"TRIPATH_MARK={place}".encode() in entry.read_bytes():
                found.append(int(entry.parent.name))
    return found


def none_left(place, seconds=60):
    until = time.monotonic() + seconds
    while left := processes(place):
        if time.monotonic() > until:
            return left
        time.sleep(0.2)
    return []


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder of a standing cluster, which is gone without a trace at the end."""
    place = tmp_path_factory.mktemp("standing") / "c"
    status, out, errors = tripath(place, "cluster", "start")
    assert (status, errors) == (0, "")
    assert "stands since" in out
    yield place
    assert tripath(place, "cluster", "stop")[:2] == (0, "the cluster has ended\n")
    assert none_left(place) == []
    assert tripath(place, "cluster", "status")[1] == "no cluster stands\n"


@pytest.mark.system
def test_a_job_gives_what_it_gives_alone_from_a_process_that_loads_no_library(place, tmp_path):
    alone = tmp_path / "none"
    asked = ("hydra.run.dir=run", "launch.cache=off")
    mine, others = tmp_path / "a", tmp_path / "b"
    for folder, on in ((mine, place), (others, alone)):
        folder.mkdir()
        status, out, errors = tripath(on, *asked, cwd=folder)
        assert (status, errors) == (0, "")
        assert "all checks hold" in out
    for name in (
        "program.bin",
        "program.stages",
        "config.yaml",
        "roofline.png",
        "stalls.png",
        "timeline.perfetto-trace",
    ):
        assert (mine / "run" / name).read_bytes() == (others / "run" / name).read_bytes(), name
    found, expected = (json.loads((folder / "run" / "report.json").read_text()) for folder in (mine, others))
    for report in (found, expected):
        for simulator in report["simulators"].values():
            del simulator["wall_seconds"]
    assert found == expected
    code = (
        "import sys, tripath.cluster.standing; print({'numpy', 'hydra', 'ray', 'mlflow', 'numba'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.system
def test_a_command_has_the_folder_files_and_statuses_of_who_asks(place, tmp_path):
    (tmp_path / "prompts.txt").write_text("Tom has 2 apples.\nAnna has 3 pens.\n")
    status, out, errors = tripath(
        place, "tracking=off", "paths=[analytical]", "workload.prompts_file=prompts.txt", cwd=tmp_path
    )
    assert (status, errors) == (0, "")
    assert f"files   {tmp_path}/runs" in out
    text = "Anna has 9 pens.\n"
    asked = ("tracking=off", "paths=[analytical]", "workload.prompts_file=/dev/stdin", "hydra.run.dir=piped")
    assert tripath(place, *asked, given=text, cwd=tmp_path)[0] == 0
    status, _, errors = tripath(place, "hardware.blem=3", cwd=tmp_path)
    assert (status, errors.count("\n")) == (2, 1)
    assert "did you mean 'hardware.blen'" in errors
    asked = (*CHECKS, "validation.tolerances.estimate.makespan_cycles.value=0", "tracking=off")
    assert tripath(place, *asked, cwd=tmp_path)[0] in {1, 2}
    assert tripath(place, "tracking=off", "launch.num_cpus=1", *CHECKS, cwd=tmp_path)[0] == 0  # on a cluster of its own


@pytest.mark.system
def test_a_sweep_runs_on_it_with_the_files_of_who_asks(place, tmp_path):
    (tmp_path / "prompts.txt").write_text("Tom has 2 apples.\n")
    asked = (
        "tracking=off",
        "paths=[analytical]",
        "workload.cache=none,prefix,dual",
        "workload.prompts_file=prompts.txt",
    )
    status, out, errors = tripath(place, "--multirun", *asked, cwd=tmp_path)
    assert (status, errors) == (0, "")
    assert "3 passed" in out


@pytest.mark.system
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupt_reaches_the_fork(place, tmp_path, how):
    asked = (
        "tracking=off",
        "launch.cache=off",
        "hydra.run.dir=run",
        "workload.generation_length=64",
        "workload.steps=64",
    )
    with start(place, *asked, cwd=tmp_path) as process:
        assert process.stdout.readline()
        process.send_signal(how)
        _, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, errors) == (-9 if how == signal.SIGKILL else 130, "error: interrupted\n")
    until = time.monotonic() + 60
    keeper = json.loads((place / "state.json").read_text())["pid"]
    children = Path(f"/proc/{keeper}/task/{keeper}/children")
    while len(children.read_text().split()) > 1:  # the head alone is left
        assert time.monotonic() < until
        time.sleep(0.1)
    assert not (tmp_path / "run").exists()
    assert tripath(place, *CHECKS, "tracking=off", cwd=tmp_path)[0] == 0


@pytest.mark.system
def test_it_is_used_by_commands_of_its_kind_alone(place, tmp_path):
    status, _, errors = tripath(place, "--help", cwd=tmp_path, env={**environment(place), "NUMBA_DEBUG_CACHE": "0"})
    assert status == 0
    assert (
        errors == "note: the standing cluster has other environment and is not used; `tripath cluster stop` ends it\n"
    )
    status, out, errors = tripath(place, "--help", cwd=tmp_path)
    assert (status, errors) == (0, "")
    assert "Config groups" in out


@pytest.mark.system
def test_it_listens_on_this_machine_alone(place):
    found = set()
    for pid in processes(place):
        with contextlib.suppress(OSError):
            for file in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    found |= set(re.findall(r"socket:\[(\d+)\]", str(file.readlink())))
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENS and fields[9] in found:
                listening.append(fields[1].partition(":")[0])
    assert listening
    assert set(listening) <= set(LOOPBACK)


@pytest.mark.system
@pytest.mark.parametrize("how", ["idle", "killed"])
def test_it_ends_without_orphans(tmp_path, how):
    place = tmp_path / "c"
    minutes = "0.05" if how == "idle" else "30"
    assert tripath(place, "cluster", "start", f"--idle-minutes={minutes}", "--num-cpus=1")[0] == 0
    if how == "killed":
        os.kill(json.loads((place / "state.json").read_text())["pid"], signal.SIGKILL)
    assert none_left(place, 90) == []
    assert tripath(place, "cluster", "status")[1] == "no cluster stands\n"


def test_wrong_arguments_are_one_line(tmp_path):
    for arguments in (("--idle-minutes=0",), ("--num-cpus=0",)):
        status, _, errors = tripath(tmp_path / "c", "cluster", "start", *arguments)
        assert (status, errors.count("\n")) == (2, 1)
        assert errors.startswith(f"error: {arguments[0].partition('=')[0]}: must be")


def test_the_digest_of_sources_follows_code_and_configuration(tmp_path, monkeypatch):
    """What a change to any of them gives is another kind."""
    import shutil

    from npu import sources

    first = standing.kind()
    assert first == standing.kind()
    for package in (*sources.PACKAGES, "conf"):
        shutil.copytree(
            sources.ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "checkpoints")
        )
    for module in (sources, standing):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    seen = set()
    for file in (None, "cycle/machine.py", "tripath/report/console.py", "conf/workload/default.yaml"):
        if file:
            (tmp_path / file).write_text((tmp_path / file).read_text() + "\n# changed\n")
        sources.sources_of.cache_clear()
        sources.digest_of_sources.cache_clear()
        seen.add(standing.kind()["sources"])
    sources.sources_of.cache_clear()
    sources.digest_of_sources.cache_clear()
    assert len(seen) == 4
