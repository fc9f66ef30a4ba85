"""What a sweep shows by stage: the stages add up to the run, and the experiment of support for diffusion runs."""

import csv
from pathlib import Path

import pytest

from npu.metrics import PHASES, SAMPLING_PHASES
from tests.test_cli import tripath_command  # noqa: F401  a fixture
from tripath.sweeps.by_phase import STAGES, seconds_of, stage_table, write_by_phase
from tripath.sweeps.summary import Row

TINY = ("model.layers=1", "workload.prompt_length=32", "workload.generation_length=32", "tracking=off")


def job(number, model, machine, cycles, *, joules=2.0, estimate=None):
    """A job at 1 GHz with these cycles by phase."""
    whole = sum(cycles.values())
    metrics = {f"cycle.phase_cycles.{phase}": value for phase, value in cycles.items()}
    metrics |= {"cycle.makespan_cycles": whole, "cycle.seconds": whole / 1e9, "cycle.energy_joules": joules}
    if estimate:
        metrics["analytical.seconds"] = estimate
    return Row(number=number, swept={"model": model, "hardware": machine}, verdict="passed", metrics=metrics)


def test_each_phase_belongs_to_one_stage():
    assert sorted(phase for phases in STAGES.values() for phase in phases) == sorted(PHASES)
    assert set(STAGES["transformer"]).isdisjoint(SAMPLING_PHASES)


def test_stages_are_seconds_and_add_up_to_the_run():
    cycles = {phase: 3**number for number, phase in enumerate(PHASES)}
    found = seconds_of(job(0, "a", "b", cycles))
    assert sum(found.values()) == pytest.approx(sum(cycles.values()) / 1e9)
    assert found["host"] == pytest.approx(cycles["host"] / 1e9)
    assert found["sampling"] == pytest.approx((cycles["sampling"] + cycles["commit"]) / 1e9)


def test_jobs_are_compared_with_the_first_of_their_model(tmp_path):
    rows = [
        job(2, "b", "own", {"qkv": 4e9}, joules=5.0),
        job(0, "a", "own", {"qkv": 1e9, "lm_head": 5e8, "sampling": 5e8}, estimate=1.9),
        job(1, "a", "host", {"qkv": 1e9, "lm_head": 5e8, "host": 1.5e9}, joules=3.0),
        Row(number=3, swept={"model": "b"}, verdict="bad input"),
    ]
    assert write_by_phase(tmp_path, rows[3:]) == []
    assert write_by_phase(tmp_path, rows) == ["by_phase.csv", "by_phase.md", "by_phase.png", "by_phase.svg"]
    assert (
        (tmp_path / "by_phase.md").read_text()
        == """\
| model | hardware | transformer, s | LM head, s | sampling, s | host, s | all, s | times | energy, J | times the energy | estimate |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| a | own | 1 | 0.5 | 0.5 | 0 | 2 | 1.000 | 2 | 1.000 | -5.0% |
| a | host | 1 | 0.5 | 0 | 1.5 | 3 | 1.500 | 3 | 1.500 |  |
| b | own | 4 | 0 | 0 | 0 | 4 | 1.000 | 5 | 1.000 |  |
"""
    )
    assert (tmp_path / "by_phase.png").read_bytes().startswith(b"\x89PNG")
    assert len(stage_table(rows[:3]).rows) == 3


def test_the_experiment_of_support_for_diffusion(tripath_command):  # noqa: F811
    """One layer: refreshing a cache saves most, a host costs its turns, and a cache that is appended needs no refresh."""
    status, _, errors = tripath_command("--multirun", "experiment=dllm_support", *TINY, "hydra.sweep.dir=sweep")
    assert (status, errors) == (0, "")
    with Path("sweep/by_phase.csv").open(newline="", encoding="utf-8") as file:
        rows = {(row["model"], row["hardware"]): row for row in csv.DictReader(file)}
    machines = ("npu_datacenter", "npu_host_sampling", "npu_append_only", "npu_autoregressive")
    assert set(rows) == {(model, machine) for model in ("llada_8b", "sdar_8b") for machine in machines}
    for (model, machine), row in rows.items():
        assert (float(row["host, s"]) > 0) == (machine in ("npu_host_sampling", "npu_autoregressive")), (model, machine)
        assert (float(row["sampling, s"]) > 0) == (float(row["host, s"]) == 0), (model, machine)
        parts = sum(float(value) for name, value in row.items() if name.endswith(", s") and name != "all, s")
        assert parts == pytest.approx(float(row["all, s"]), rel=0.01)
    times = {key: float(row["all, s"]) for key, row in rows.items()}
    assert times["llada_8b", "npu_append_only"] > times["llada_8b", "npu_datacenter"]
    assert (
        times["llada_8b", "npu_autoregressive"]
        > times["llada_8b", "npu_host_sampling"]
        > times["llada_8b", "npu_datacenter"]
    )
    assert times["sdar_8b", "npu_append_only"] == times["sdar_8b", "npu_datacenter"]
