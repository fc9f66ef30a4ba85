"""How to run it again: what a report prints is run, in a shell without what the first run had."""

import html
import json
import os
import re
import shlex
import subprocess
import sys

import pytest

from npu.sources import ROOT
from tripath.command.arguments import shell_line

OWN_PATH = """
from npu.metrics import Result


def simulate(program, hardware, trace):
    cycles = float(len(program.words))
    return Result(simulator="mine", program_digest=program.digest, trace_digest=trace.digest, metrics={"makespan_cycles": cycles}, counts={})
"""


def test_the_project_itself_is_no_part_of_the_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(tmp_path / "a b"), ""]))
    assert shell_line("x=1") == f"PYTHONPATH='{tmp_path}/a b' tripath x=1"
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert shlex.split(shell_line("workload.prompt='a $b'")) == ["tripath", "workload.prompt='a $b'"]


@pytest.mark.system
def test_what_a_report_prints_gives_the_same_run(tmp_path):
    modules, configs = tmp_path / "my modules", tmp_path / "confs"
    modules.mkdir()
    (modules / "mine.py").write_text(OWN_PATH)
    (configs / "workload").mkdir(parents=True)
    (configs / "workload" / "own.yaml").write_text(
        "defaults:\n  - default\nprompt: Anna has 9 pens and buys 8 more. How many pens does Anna have now?\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{modules}"}
    arguments = ["--config-dir", str(configs), "workload=own", "tracking=off", "paths=[analytical,mine]",
                 "+simulator.mine.module=mine", "hydra.run.dir=first"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "tripath", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    page = (tmp_path / "first" / "report.html").read_text()
    printed = html.unescape(re.findall(r"<pre>([^<]*)</pre>", page)[-1]).splitlines()[-1]
    assert printed.startswith(f"PYTHONPATH='{modules}' tripath --config-dir")
    (tmp_path / "tripath").write_text(
        f'#!/bin/sh\nPYTHONPATH="{ROOT}:$PYTHONPATH" exec {sys.executable} -m tripath "$@"\n'
    )
    (tmp_path / "tripath").chmod(0o755)
    plain = {**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin"}
    plain.pop("PYTHONPATH", None)
    again = subprocess.run(
        ["sh", "-c", f"{printed} hydra.run.dir=second"], cwd=tmp_path, env=plain, capture_output=True, text=True
    )
    assert (again.returncode, again.stderr) == (0, "")
    first, second = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("first", "second"))
    for report in (first, second):
        for simulator in report["simulators"].values():
            del simulator["wall_seconds"]
    assert first == second
