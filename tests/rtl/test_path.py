"""The RTL as a path of the command."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from rtl.path import MEMORIES, differing_bytes, differing_rows
from rtl.simulator import Memories
from tests.test_cli import tripath_command  # noqa: F401  a fixture
from tripath.command import cli

QUICK = ("experiment=rtl", "tracking=off", "workload.generation_length=16", "workload.steps=4")


def test_the_default_problem_four_ways(core, tripath_command, tmp_path):  # noqa: F811
    status, *texts = tripath_command(*QUICK, "hydra.run.dir=run")
    output = " ".join("".join(texts).split())
    assert status == cli.PASSED, output
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    compared = {
        row["metric"]: row
        for row in report["discrepancies"]
        if row["observed_source"] == "rtl" or row["expected_source"] == "rtl"
    }
    names = {"differing_instructions", "differing_tokens", *(f"differing_bytes.{name}" for name in MEMORIES)}
    assert names <= set(compared)
    assert all(compared[name]["observed"] == 0 for name in names)
    metrics = report["simulators"]["rtl"]["metrics"]
    assert metrics["rtl.makespan_cycles"] == report["simulators"]["cycle"]["metrics"]["cycle.makespan_cycles"]
    counted = {
        row["metric"] for row in report["discrepancies"] if "rtl" in (row["observed_source"], row["expected_source"])
    }
    assert {"instructions", "macs", "vector_lanes", "hbm_read_bytes", "hbm_write_bytes"} <= counted


def test_every_metric_is_documented():
    text = (Path(__file__).parents[2] / "docs" / "validation.md").read_text()
    for name in ("differing_instructions", "differing_bytes.<memory>", "differing_tokens"):
        assert f"`{name}`" in text


def test_without_verilator_it_is_one_line(tripath_command, monkeypatch):  # noqa: F811
    monkeypatch.setenv("PATH", "/nowhere")
    status, *texts = tripath_command(*QUICK)
    output = " ".join("".join(texts).split())
    assert status == cli.BAD_INPUT
    assert "rtl: needs verilator" in output


def test_it_needs_accuracy_beside_it(tripath_command):  # noqa: F811
    status, *texts = tripath_command(*QUICK, "paths=[cycle,rtl]")
    output = " ".join("".join(texts).split())
    assert status == cli.BAD_INPUT
    assert "paths: rtl needs accuracy beside it" in output


def test_an_instruction_that_starts_or_ends_elsewhere_is_counted():
    times = np.array([[3, 10, 20], [4, 11, 20], [3, 12, 22]])
    assert differing_rows(times, times[[2, 0, 1]]) == 0
    late = times.copy()
    late[1, 2] += 1
    assert differing_rows(times, late) == 1
    assert differing_rows(times, times[:2]) == 1
    assert differing_rows(times, np.concatenate([times, times[:1]])) == 1


def test_a_byte_that_differs_is_counted_but_not_the_payload_of_a_nan():
    zeros = {"hbm": np.zeros(4, np.uint8), "matrix": np.zeros(4, np.uint8), "vector": np.zeros(4, np.float32),
             "fp": np.zeros(4, np.float32), "integer": np.zeros(4, np.int32), "accumulator": np.zeros((2, 2), np.float32)}  # fmt: skip
    first = Memories(**zeros)
    fp = np.array([np.nan, 0, 0, 0], np.float32)
    assert sum(differing_bytes(first, first).values()) == 0
    assert differing_bytes(
        dataclasses.replace(first, fp=fp), dataclasses.replace(first, fp=np.array([-np.nan, 0, 0, 0], np.float32))
    ) == dict.fromkeys(MEMORIES, 0)
    wrong = dataclasses.replace(first, integer=np.array([0, 1, 0, 257], np.int32))
    assert differing_bytes(first, wrong)["integer"] == 3


@pytest.mark.parametrize("fault", ["times", "bits"])
def test_a_difference_fails_the_checks(default_experiment, fault):
    from npu.metrics import Result
    from tripath.validation.checks import check_differences

    metrics = {
        "makespan_cycles": 5.0,
        "differing_instructions": float(fault == "times"),
        "differing_bytes.hbm": float(fault == "bits"),
    }
    result = Result(simulator="rtl", program_digest="", trace_digest="", metrics=metrics, counts={})
    rows = list(check_differences({"rtl": result}, default_experiment.settings))
    assert [row.passed for row in rows] == [fault != "times", fault != "bits"]
