"""Published figures, the claims of the paper, and this machine's CPU."""

import dataclasses

import pytest

from dllm.devices import PHASES
from dllm.devices.numpy_graph import first_pass, gemm
from dllm.model import ModelSpec
from npu.errors import TripathError
from npu.metrics import Result
from tests.conftest import compose_experiment
from tripath.experiment import Outcome
from tripath.report.console import verdict_line
from tripath.run.comparison import with_comparisons
from tripath.validation import HostSettings, check_published, read_measurements
from tripath.validation.calibration import (
    ATTENTION,
    CALLS,
    ELEMENTS,
    GEMM_K,
    GEMM_N,
    GEMM_ROWS,
    PACKED_BYTES,
    PACKED_K,
    PACKED_ROWS,
    PLACES,
    REPACKED_BYTES,
    REPACKED_K,
    device_of,
    kernels,
    packed_matrices,
    packed_rows,
)
from tripath.validation.host import shapes_of
from tripath.validation.measurements import write_measurements

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
    """Times made from known rates: 50 GFLOP/s, packing at 5 GB/s, 10 GB/s in later passes, 2 GFLOP/s of contraction."""
    flops, byte, again = 50e9, 2e-10, 1e-10
    first = {
        768: 384,
        1024: 384,
    }  # OpenBLAS: at most 384 columns in a pass, halves where less than two such passes are left
    seconds = dict.fromkeys((name for name, _ in kernels()), 1e-6)
    seconds |= {f"gemm {m}": 2 * m * GEMM_K * GEMM_N / flops + 4 * GEMM_N * GEMM_K * byte for m in GEMM_ROWS}
    for k in PACKED_K:
        for size in PACKED_BYTES:
            n = packed_rows(size, k)
            seconds[f"pack {size:.0f} {k}"] = 2 * PACKED_ROWS * k * n / flops + 4 * k * n * byte
    for k in REPACKED_K:
        for size in REPACKED_BYTES:
            n, count = packed_rows(size, k), packed_matrices(size)
            copied = 4 * n * (first[k] * byte + (k - first[k]) * again)
            seconds[f"repack {size:.0f} {k}"] = count * (2 * PACKED_ROWS * k * n / flops + copied)
    r, s, h, d = ATTENTION
    seconds["scores"] = 2 * r * s * h * d / 2e9
    seconds |= {f"exp {n} {place}": seconds["call"] / CALLS + n / 4e8 for n in ELEMENTS for place in PLACES}
    each = {"nothing": 0.0, "call": 1e-6, "broadcast": 3e-6, "reduction": 2e-6, "mean": 9e-6, "split": 5e-6}
    seconds |= {f"{name} between": CALLS * (4e-6 + call) for name, call in each.items()}
    device = device_of(seconds)
    assert device["gemm_flops"] == pytest.approx(flops)
    assert device["scores_flops"] == pytest.approx(2e9)
    assert [rate for _, rate in device.curves["pack"]] == pytest.approx([1 / byte] * len(PACKED_BYTES))
    assert [rate for _, rate in device.curves["repack"]] == pytest.approx([1 / again] * len(REPACKED_BYTES))
    assert [rate for _, rate in device.curves["exp"]] == pytest.approx([4e8] * len(ELEMENTS))
    fixed = ("call_seconds", "broadcast_seconds", "reduction_seconds", "mean_seconds", "split_seconds")
    assert [device[name] for name in fixed] == pytest.approx([1e-6, 2e-6, 1e-6, 7e-6, 5e-6])


@pytest.mark.parametrize(
    ("k", "first"), [(256, 256), (384, 384), (392, 200), (640, 320), (760, 384), (768, 384), (4096, 384)]
)
def test_openblas_copies_weights_in_passes(k, first):
    """Of driver/level3/level3.c: a pass of 384 while two are left, half of what is left (in multiples of 8) below that."""
    assert first_pass(k) == first


def test_a_later_pass_is_as_fast_as_the_faster_of_two_caches():
    """Weights of 1 MB that come round among 64 MB: the first pass at the rate of 64 MB, the others at that of the matrix; alone at
    the rate of 1 MB, which is faster still."""
    base = compose_experiment("experiment=paper_end_to_end").devices["host"]
    curves = {**base.curves, "pack": [[1e6, 40e9], [64e6, 5e9]], "repack": [[1e6, 10e9], [64e6, 5e9]]}
    device = dataclasses.replace(base, curves=curves)
    n = 1_000_000 // (4 * 1024)

    def copying(resident):
        rows = [row for row in gemm(8, 1024, n, resident) if row.engine in ("pack", "repack")]
        return device.kernel_seconds(rows)

    first, later = 4 * 384 * n, 4 * 640 * n
    assert copying(64e6) == pytest.approx(first / 5e9 + later / 10e9, rel=1e-3)
    assert copying(1e6) == pytest.approx((first + later) / 40e9, rel=1e-3)


def test_rows_are_computed_by_fours():
    work = [next(row.work for row in gemm(rows, 512, 512, 0) if row.engine == "gemm") for rows in (1, 4, 5, 8, 9)]
    assert [each / work[0] for each in work] == [1, 1, 2, 2, 3]


def test_this_machine_is_measured_and_its_files_are_read_back(tmp_path):
    base = compose_experiment("experiment=validate_host")
    shapes = [{"name": "small", "hidden": 64}, {"name": "wide", "hidden": 128, "heads": 4}]
    timed = HostSettings(canvases=[12, 24], blocks=[8], repeats=1, rounds=1, shapes=shapes)
    experiment = dataclasses.replace(base, model=SMALL, host=timed)
    outcome = with_comparisons(experiment, outcome_of(experiment, {}), lambda _: None)
    assert outcome.status == "passed", "what is measured here is reported, and fails no run"
    assert {row.metric for row in outcome.discrepancies} == {f"host.{phase}" for phase in PHASES if phase != "step"} | {
        "host.median_error"
    }
    assert {row.scope.partition(",")[0] for row in outcome.discrepancies} == {"small", "wide"}
    assert len(outcome.tables["host"].rows) == 2 * (2 * 2 + 4)
    assert all(0.05 < row.observed < 20 for row in outcome.discrepancies)
    file = tmp_path / "host.csv"
    file.write_text(outcome.files["host.csv"], encoding="utf-8")
    rows = read_measurements(str(file))
    assert {row.phase for row in rows} == {"prefill", "norm", "refine", "lm_head", "sampling", "softmax"}
    assert {row.model for row in rows} == {"small", "wide"}
    assert all(row.wall_seconds and row.seconds > 0 for row in rows)
    assert write_measurements(rows) == outcome.files["host.csv"]
    (tmp_path / "device").mkdir()
    assert "software: numpy" in outcome.files["host.yaml"]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([{"name": "a", "hiden": 64}], r"validation\.host\.shapes\[0\]\.hiden: no such key of a model"),
        ([{"name": "a"}, {"name": "a", "vocab": 256}], r"validation\.host\.shapes\[1\]\.name: a is taken"),
        ([{"name": "a", "hidden": 0}], "model"),
    ],
)
def test_a_shape_that_is_none_is_refused_in_a_line(shapes, message):
    with pytest.raises(TripathError, match=message):
        shapes_of(SMALL, HostSettings(canvases=[8], blocks=[8], repeats=1, rounds=1, shapes=shapes))
