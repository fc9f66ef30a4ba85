"""Figures of others: the file, predictions by hand, what is refused by name, and the goals over the figures that gave no number."""

import json

import pytest

from npu.errors import TripathError
from tests.conftest import compose_experiment
from tripath.validation.evidence import discrepancies, figure_table, judge, quality_table
from tripath.validation.figures import Figure, Settings, calibration, read_figures
from tripath.validation.predictions import Models

ROW = {
    "id": "one", "source": "a lab", "device": "h100_sxm", "count": 1, "precision": "BF16", "engine": "vLLM, CUDA graph", "model": "-",
    "workload": {"M": 1, "N": 43008, "K": 5376}, "measured": "kernel time", "value": 1.5e-4, "unit": "s", "open": [], "quality": "A",
    "kind": "gemm",
}  # fmt: skip


@pytest.fixture(scope="module")
def experiment():
    return compose_experiment("experiment=figures")


@pytest.fixture(scope="module")
def models(experiment):
    return Models(devices=experiment.devices, models=experiment.models, memories=experiment.memories)


def judged(models, **changes):
    row = {**ROW, **changes}
    return judge([Figure(**{**row, "workload": Settings(row["workload"])})], models)[0]


def ours(models, **changes):
    row = judged(models, **changes)
    assert row.prediction is not None, row.reason
    return row.prediction.value


def test_the_goals_hold_over_what_gave_no_number(experiment, models):
    rows = judge(experiment.figures, models)
    for quality, share, median_error in (("A", 0.80, 0.12), ("B", 0.60, 0.25)):
        errors = sorted(
            abs(row.error) for row in rows if row.figure.quality == quality and row.verdict in ("passed", "failed")
        )
        assert len(errors) > 40
        assert sum(error <= 0.25 for error in errors) >= share * len(errors)
        assert errors[len(errors) // 2] <= median_error


def test_what_gave_a_number_is_compared_with_nothing(experiment, models):
    rows = judge(experiment.figures, models)
    assert set(calibration()) <= {row.id for row in experiment.figures}, "each stands in the file"
    compared = {row.scope for row in discrepancies(rows)}
    assert compared
    assert not compared & set(calibration())
    refused = {row.figure.id for row in rows if row.prediction is None and row.calibrates is None}
    assert len(compared) + len(refused) + len(calibration()) == len(rows) == len(figure_table(rows).rows)
    assert all(row.reason for row in rows if row.prediction is None)
    assert quality_table(rows).rows


def test_kernels_by_hand(models):
    """H100: 0.89 of 3.35 TB/s and 2.5 us a kernel in a graph; 0.667 of 989 TFLOP/s in attention."""
    moved = 2 * (5376 + 5376 * 43008 + 43008)
    assert ours(models) == pytest.approx(moved / (0.89 * 3.35e12) + 2.5e-6)
    assert ours(models, unit="FLOP/s") == pytest.approx(2 * 43008 * 5376 / ours(models))
    attention = {"batch": 2, "sequence": 4096, "heads": 16, "head_dim": 128, "causal": False}
    long = ours(models, kind="attention", engine="FA3", workload=attention)
    assert long == pytest.approx(4 * 2 * 16 * 4096**2 * 128 / (0.667 * 989e12) + 2.5e-6)
    causal = ours(models, kind="attention", engine="FA3", workload={**attention, "causal": True})
    assert causal - 2.5e-6 == pytest.approx((long - 2.5e-6) / 2)
    assert ours(models, kind="attention", engine="FA2", workload=attention) > long
    softmax = {"rows": 16384, "vocab": 131072}
    loss = ours(
        models, kind="sampling", engine="torch cross-entropy", measured="cross-entropy forward", workload=softmax
    )
    assert loss == pytest.approx(16 * 16384 * 131072 / (0.89 * 3.35e12), rel=0.01)
    assert ours(models, kind="dram", unit="bytes/s", measured="triad bandwidth") == pytest.approx(0.89 * 3.35e12)


DECODING = {"batch": 1, "prompt": 128, "output": 256, "block": 32, "cache_policy": "none"}


def test_tokens_are_counted_as_the_source_counts_them(models):
    run = {"kind": "throughput", "unit": "tokens/s", "engine": "HF eager", "model": "llada_8b_instruct"}
    step = ours(models, **{**run, "unit": "s/step"}, workload=DECODING)
    assert ours(models, **run, workload=DECODING) == pytest.approx(1 / step)
    assert ours(models, **run, workload={**DECODING, "tokens_per_forward": 4}) == pytest.approx(4 / step)
    assert ours(models, **run, workload={**DECODING, "steps": 64}) == pytest.approx(4 / step)
    assert ours(models, **run, workload={**DECODING, "counted_tokens": 128}) == pytest.approx(0.5 / step)
    assert ours(models, **{**run, "unit": "s/request"}, workload=DECODING) == pytest.approx(256 * step)
    remark = ["counted tokens: 64 of 256 by another table"]
    assert ours(models, **run, workload=DECODING, open=remark) == pytest.approx(0.25 / step)


def test_policies_and_engines_order_as_they_must(models):
    run = {"kind": "step", "unit": "s/step", "engine": "CUDA graph", "model": "dream_7b_base"}
    times = [
        ours(models, **run, workload={**DECODING, "cache_policy": policy}) for policy in ("none", "prefix", "dual")
    ]
    assert times == sorted(times, reverse=True)
    noise = [ours(models, **{**run, "model": "llada_8b", "engine": "HF"}, workload={**DECODING, "prompt": 2048, "temperature": t})
             for t in (0, 1)]  # fmt: skip
    assert noise[0] < noise[1], "FP64 Gumbel noise above temperature 0"
    longer = [ours(models, **{**run, "model": "llada_8b"}, workload={**DECODING, "prompt": prompt})
              for prompt in ("GSM8K 4-shot", "GSM8K 8-shot", "about 3000 tokens")]  # fmt: skip
    assert longer == sorted(longer)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kind": "weather"}, "no model of kind weather"),
        ({"device": "abacus"}, "no model of device abacus"),
        ({"count": 8}, "8 devices at work"),
        ({"kind": "step", "model": "diffusiongemma_26b_a4b", "workload": DECODING}, "canvases of uniform diffusion"),
        ({"kind": "step", "model": "gpt_9", "workload": DECODING, "engine": "HF"}, "no model gpt_9 in conf/model"),
        ({"workload": {"M": 1, "N": 2}}, "K is not stated"),
        ({"workload": {}}, "the shape of the product is not stated"),
        ({"unit": "miles"}, "no prediction in miles"),
        ({"device": "a100_sxm", "precision": "FP8"}, "has no rate for products in FP8"),
        ({"precision": "INT4"}, "no rate for precision INT4"),
        ({"kind": "step", "model": "llada_8b", "engine": "abacus", "workload": DECODING}, "no engine like abacus"),
        ({"kind": "step", "model": "llada_8b", "engine": "HF", "workload": {**DECODING, "prompt": "a tale"}}, "length of the prompt"),
        ({"kind": "step", "model": "llada_8b", "engine": "HF", "workload": {**DECODING, "cache_policy": "magic"}},
         "no cache policy like 'magic'"),
        ({"kind": "throughput", "unit": "tokens/s", "model": "dream_7b", "engine": "HF",
          "workload": {**DECODING, "token": "answer cut at stop strings"}}, "answers are cut"),
        ({"kind": "sampling", "engine": "abacus", "workload": {"rows": 1, "vocab": 9}}, "how often abacus passes over the logits"),
    ],
)  # fmt: skip
def test_what_cannot_be_expressed_says_why(models, changes, reason):
    row = judged(models, **changes)
    assert row.prediction is None
    assert row.verdict == "not expressed"
    assert reason in row.reason


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot read"),
        ("[]", "needs a list `figures`"),
        ('{"figures": []}', "needs a list `figures`"),
        ('{"figures": [3]}', "figure 1 must be a mapping"),
        (json.dumps({"figures": [{**ROW, "value": "fast"}]}), "figure one: value must be a number, got 'fast'"),
        (json.dumps({"figures": [{**ROW, "value": 0}]}), "figure one: value must be a number other than 0"),
        (json.dumps({"figures": [{**ROW, "count": True}]}), "figure one: count must be a int, got True"),
        (json.dumps({"figures": [{name: ROW[name] for name in ROW if name != "unit"}]}), "figure one: unit must be a str, got None"),
        (json.dumps({"figures": [ROW, ROW]}), "figure one stands there twice"),
    ],
)  # fmt: skip
def test_bad_files_are_one_line(tmp_path, content, message):
    file = tmp_path / "figures.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(TripathError, match=f"validation.figures: .*{message}") as caught:
        read_figures(str(file))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line():
    with pytest.raises(TripathError, match=r"validation\.figures: cannot read absent.json"):
        compose_experiment("experiment=figures", "validation.figures=absent.json")
