"""Published figures, the claims of the paper, and this machine's CPU."""

import dataclasses

import pytest

from dllm.devices import PHASES
from dllm.model import ModelSpec
from npu.metrics import Result
from tests.conftest import compose_experiment
from tripath.experiment import Outcome
from tripath.report.console import verdict_line
from tripath.run.comparison import with_comparisons
from tripath.validation import HostSettings, check_published, read_measurements
from tripath.validation.calibration import (
    ATTENTION,
    ELEMENTS,
    GEMM_K,
    GEMM_N,
    GEMM_ROWS,
    PACKED_K,
    PACKED_N,
    PACKED_ROWS,
    device_of,
    kernels,
    packed_matrices,
)

SMALL = ModelSpec(
    name="small", layers=1, hidden=64, heads=2, kv_heads=1, head_dim=32, ffn=96, vocab=512, rope_theta=1e4, rms_eps=1e-5,
    mask_id=1, eos_id=2, max_sequence=64,
)  # fmt: skip


@pytest.fixture(scope="module")
def paper():
    return compose_experiment("experiment=paper_end_to_end")


def test_published_figures_are_all_there_and_misses_are_shown(paper):
    rows = {(row.metric, row.scope): row for row in check_published(paper.devices, paper.models)}
    assert len(rows) == 2
    assert rows["sampling_seconds", "a6000/llada_8b/fp32"].passed
    assert not rows["sampling_seconds", "a6000/llada_8b/fp64"].passed
    assert all(row.kind == "reference" and row.tolerance <= 0.25 and row.reason for row in rows.values())


def outcome_of(experiment, results):
    fail_on = experiment.settings.fail_on
    return Outcome(program=None, results=results, wall_seconds={}, discrepancies=[], generated=None, fail_on=fail_on)


def test_claims_are_held_against_the_simulated_machine(paper):
    a6000 = with_comparisons(paper, outcome_of(paper, {}), print).devices["a6000"]
    metrics = {
        "seconds": 1.0, "tokens_per_second": 4.91 * a6000["tokens_per_second"], "makespan_cycles": 100.0,
        "tokens_per_joule": 23.3 * a6000["tokens_per_joule"], "sampling_share": 0.1, "energy_joules": 1.0,
        "phase_cycles.sampling": 3.0, "phase_cycles.commit": 1.0,
    }  # fmt: skip
    ideal = Result(simulator="cycle", program_digest="p", trace_digest="t", metrics=metrics, counts={})
    outcome = with_comparisons(paper, outcome_of(paper, {"cycle": ideal}), print)
    claims = {row.metric: row for row in outcome.discrepancies if row.scope in ("npu", "a6000")}
    assert claims["tokens_per_second_over_a6000"].relative_error == pytest.approx(0.0)
    assert claims["tokens_per_joule_over_a6000"].relative_error == pytest.approx(0.0)
    assert claims["other_share"].observed == pytest.approx(0.96)
    assert claims["other_share"].passed
    assert not claims["sampling_stage_share"].passed, "a dense model is no mixture of experts"
    assert outcome.status == "passed"
    assert "are only reported" in verdict_line(outcome) or "is only reported" in verdict_line(outcome)
    assert [row[0] for row in outcome.tables["devices"].rows] == ["npu", "a100", "h100", "a6000", "host"]


@pytest.mark.parametrize(("share", "holds"), [(0.0, True), (0.099, True), (0.11, False)])
def test_less_than_a_tenth_of_sampling_is_a_bound(paper, share, holds):
    claim = next(row for row in paper.settings.references if row.metric == "npu.other_share")
    assert (abs((1 - share) / claim.expected - 1) <= claim.tolerance) == holds


def test_calibration_recovers_the_rates_that_made_it():
    """Times made from known rates: 50 GFLOP/s, packing at 10 GB/s and 100 ns a row, 2 GFLOP/s of contraction."""
    flops, byte, row = 50e9, 1e-10, 1e-7
    seconds = dict.fromkeys((name for name, _ in kernels()), 1e-6)
    copied = GEMM_N * (row + 4 * GEMM_K * byte)
    seconds |= {f"gemm {m}": 2 * m * GEMM_K * GEMM_N / flops + copied for m in GEMM_ROWS}
    for size in (2_000_000, 14_000_000, 96_000_000):
        for k in PACKED_K:
            one = 2 * PACKED_ROWS * k * PACKED_N / flops + PACKED_N * (row + 4 * k * byte)
            seconds[f"pack {size} {k}"] = packed_matrices(size, k) * one
    r, s, h, d = ATTENTION
    seconds["scores"] = 2 * r * s * h * d / 2e9
    seconds |= {f"exp {n}": seconds["call"] / 500 + n / 4e8 for n in ELEMENTS}
    device = device_of(seconds)
    assert device["gemm_flops"] == pytest.approx(flops)
    assert device["scores_flops"] == pytest.approx(2e9)
    assert [rate for _, rate in device.curves["pack"]] == pytest.approx([1 / byte] * 3)
    assert [rate for _, rate in device.curves["pack_row"]] == pytest.approx([1 / row] * 3)
    assert [rate for _, rate in device.curves["exp"]] == pytest.approx([4e8] * len(ELEMENTS))


def test_this_machine_is_measured_and_its_files_are_read_back(tmp_path):
    base = compose_experiment("experiment=validate_host")
    timed = HostSettings(canvases=[12, 24], blocks=[8], repeats=1, rounds=1)
    experiment = dataclasses.replace(base, model=SMALL, host=timed)
    outcome = with_comparisons(experiment, outcome_of(experiment, {}), lambda _: None)
    assert outcome.status == "passed", "what is measured here is reported, and fails no run"
    assert {row.metric for row in outcome.discrepancies} == {f"host.{phase}" for phase in PHASES if phase != "step"} | {
        "host.median_error"
    }
    assert len(outcome.tables["host"].rows) == 2 * 2 + 4
    assert all(0.05 < row.observed < 20 for row in outcome.discrepancies)
    file = tmp_path / "host.csv"
    file.write_text(outcome.files["host.csv"], encoding="utf-8")
    rows = read_measurements(str(file))
    assert {row.phase for row in rows} == {"prefill", "norm", "refine", "lm_head", "sampling", "softmax"}
    assert all(row.seconds > 0 for row in rows)
    (tmp_path / "device").mkdir()
    assert "software: numpy" in outcome.files["host.yaml"]
