"""The executor against torch step by step, and laws of padding, batches and formats."""

import dataclasses
import math

import numpy as np
import pytest

import cycle
from accuracy.image import read_tokens
from accuracy.simulator import execute, simulate
from dllm.decoding import generate
from dllm.families import expected_shapes
from dllm.reference import ReferenceModel
from npu_compiler import compile_program
from tests.accuracy.torch_llada import TorchLlada, decide
from tests.conftest import PROMPT, compose_experiment

UNIT_ROUNDOFF = 2.0**-9
ROUNDINGS_PER_LAYER = 26
"""BF16 roundings in a row through one layer: two norms (2 each), QKV, RoPE, scale, score, mask, shift, exp, partial product,
rescale and add (2), final scale, output, residual, gate, six for the gated activation, down, residual."""
SAFETY = 4.0


def run(experiment, prompts, tensors):
    """Machine and steps of prompts (token ids)."""
    x = experiment
    program = compile_program(x.model, x.workload, x.hardware, x.numerics, [len(p) for p in prompts])
    return execute(program, model=x.model, workload=x.workload, tensors=tensors, prompts=prompts)


def logit_bound(model, logits):
    """How far BF16 roundings can move a logit: they are independent, so they grow with the root of their number."""
    roundings = model.layers * ROUNDINGS_PER_LAYER + 4
    return SAFETY * math.sqrt(roundings) * UNIT_ROUNDOFF * float(np.abs(logits).max())


@pytest.mark.parametrize("commit", ["quota", "threshold"])
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize(
    "prompt", [PROMPT, "There are 7 pens in the shop of Ida. Ida finds 9 more. How many pens are there now?"]
)
def test_bf16_equals_torch_step_by_step_up_to_a_bound(cache, commit, prompt, tensors, tokenizer):
    experiment = compose_experiment("numerics=bf16", f"workload.cache={cache}", f"workload.commit={commit}")
    steps = equals_torch(experiment, tokenizer.encode(prompt), tensors)
    assert sum(int(step.committed.sum()) for step in steps) == experiment.workload.generation_length


@pytest.mark.parametrize(("cache", "commit"), [("none", "quota"), ("prefix", "threshold"), ("dual", "quota")])
def test_biases_and_shifted_logits_equal_torch_step_by_step(cache, commit, tensors, tokenizer):
    """Dream's two differences, on the shipped weights with biases as large as Q, K and V themselves."""
    dream = ("model.qkv_bias=true", "model.shifted_logits=true", "workload.generation_length=16", "workload.steps=16")
    experiment = compose_experiment("numerics=bf16", f"workload.cache={cache}", f"workload.commit={commit}", *dream)
    rng = np.random.default_rng(0)
    biases = {name: rng.normal(size=shape).astype(np.float32) for name, shape in expected_shapes(experiment.model).items()
              if name.endswith(".bias")}  # fmt: skip
    assert len(biases) == 3 * experiment.model.layers
    equals_torch(experiment, tokenizer.encode(PROMPT), {**tensors, **biases})


@pytest.mark.parametrize(("cache", "commit"), [("none", "threshold"), ("prefix", "quota"), ("dual", "quota")])
def test_norms_of_heads_equal_torch_step_by_step(cache, commit, tensors, tokenizer):
    """Qwen3's and SDAR's norms of Q and K, on the shipped weights. Factors are near one: the bound counts roundings,
    and large factors would multiply them in the scores."""
    norms = ("model.qk_norm=true", "workload.generation_length=16", "workload.steps=16")
    experiment = compose_experiment("numerics=bf16", f"workload.cache={cache}", f"workload.commit={commit}", *norms)
    rng = np.random.default_rng(0)
    factors = {name: (0.7 + 0.6 * rng.random(shape)).astype(np.float32) for name, shape in expected_shapes(experiment.model).items()
               if name.endswith(("q_norm.weight", "k_norm.weight"))}  # fmt: skip
    assert len(factors) == 2 * experiment.model.layers
    equals_torch(experiment, tokenizer.encode(PROMPT), {**tensors, **factors})


def equals_torch(experiment, ids, tensors):
    """Check every step of one sequence against torch on the same canvas; the executor's steps."""
    model, workload = experiment.model, experiment.workload
    cache, commit = workload.cache, workload.commit
    _, steps = run(experiment, [ids], tensors)
    oracle, length = TorchLlada(model, tensors), experiment.workload.block_length
    for mine in steps[0]:
        start = len(ids) + mine.block * length
        masked = mine.canvas[start : start + length] == model.mask_id
        logits = oracle.block_logits(mine.canvas, start, length, mine.step, cache)
        theirs, confidence, chosen = decide(logits, masked, workload, mine.step)
        error = np.abs(mine.logits - logits.numpy()).max()
        assert error <= logit_bound(model, logits.numpy())
        # A token may differ only where torch's own margin is within twice the observed error.
        for position in np.flatnonzero(mine.token_ids != theirs.numpy()):
            row = logits[position]
            assert row.max() - row[mine.token_ids[position]] <= 2 * error
        # Committed sets may differ only between confidences that the error and BF16 cannot tell apart: a confidence is
        # a softmax, so its logarithm moves by at most twice the error of the logits.
        slack = 2 * error + 2 * UNIT_ROUNDOFF + 2.0**-8
        if not np.array_equal(mine.committed, chosen.numpy()):
            logs = confidence.log().numpy()
            only_mine, only_theirs = mine.committed & ~chosen.numpy(), chosen.numpy() & ~mine.committed
            rivals = [math.log(workload.threshold)] if commit == "threshold" else []
            for position in np.flatnonzero(only_mine | only_theirs):
                others = [logs[p] for p in np.flatnonzero(only_theirs if only_mine[position] else only_mine)]
                assert min(abs(logs[position] - rival) for rival in [*others, *rivals]) <= slack
    return steps[0]


def test_numpy_reference_equals_torch(default_experiment, tensors, tokenizer):
    ids = tokenizer.encode(PROMPT)
    for cache in ("none", "prefix", "dual"):
        workload = dataclasses.replace(default_experiment.workload, cache=cache)
        made = generate(ReferenceModel(default_experiment.model, tensors), ids, workload)
        oracle = TorchLlada(default_experiment.model, tensors)
        for step in made.steps:
            start = len(ids) + step.block * 8
            logits = oracle.block_logits(step.canvas, start, 8, step.step, cache)
            np.testing.assert_allclose(step.logits, logits.numpy(), atol=2e-3)
            theirs, _, chosen = decide(logits, step.canvas[start : start + 8] == 1, workload, step.step)
            np.testing.assert_array_equal(step.token_ids, theirs.numpy())
            assert int(step.committed.sum()) == int(chosen.sum())


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_a_batch_gives_each_sequence_what_it_gets_alone(cache, tensors, tokenizer):
    """Prompts of different lengths: padding and neighbours change no bit of a sequence's own tokens and logits."""
    prompts = [tokenizer.encode(PROMPT), tokenizer.encode("Anna has 9 pens. How many pens does Anna have now?")]
    experiment = compose_experiment(
        "workload.batch=2", f"workload.cache={cache}", "workload.generation_length=16", "workload.steps=8"
    )
    _, together = run(experiment, prompts, tensors)
    single = compose_experiment(f"workload.cache={cache}", "workload.generation_length=16", "workload.steps=8")
    for prompt, steps in zip(prompts, together, strict=True):
        _, alone = run(single, [prompt], tensors)
        for one, other in zip(alone[0], steps, strict=True):
            np.testing.assert_array_equal(one.token_ids, other.token_ids)
            np.testing.assert_array_equal(one.logits, other.logits)
            np.testing.assert_array_equal(one.committed, other.committed)


@pytest.mark.parametrize(
    "overrides",
    [
        ("hardware.sram.vector_bytes=60000",), ("hardware.blen=4",), ("hardware.execution=serial",),
        ("hardware.queue_depth.vector=4", "hardware.hbm.channels=1"),
    ],
)  # fmt: skip
def test_what_only_concerns_time_or_place_changes_no_bit(overrides, tensors, tokenizer):
    ids = tokenizer.encode(PROMPT)
    small = ("workload.generation_length=16", "workload.steps=4")
    machine, steps = run(compose_experiment(*small), [ids], tensors)
    other, changed = run(compose_experiment(*small, *overrides), [ids], tensors)
    np.testing.assert_array_equal(read_tokens(machine.hbm, machine.program), read_tokens(other.hbm, other.program))
    for one, two in zip(steps[0], changed[0], strict=True):
        np.testing.assert_array_equal(one.logits, two.logits)


@pytest.mark.parametrize("numerics", ["mxint8", "mxint4_kv", "mxint4", "mxfp8", "bf16"])
def test_coarser_formats_lie_further_from_the_reference(numerics, tokenizer):
    experiment = compose_experiment(f"numerics={numerics}", "workload.generation_length=16", "workload.steps=16")
    x, ids = experiment, tokenizer.encode(PROMPT)
    program = compile_program(x.model, x.workload, x.hardware, x.numerics, [len(ids)])
    outcome = simulate(program, model=x.model, workload=x.workload, prompts=[ids])
    limit = {"bf16": 0.005, "mxint8": 0.05, "mxfp8": 0.2, "mxint4_kv": 0.5, "mxint4": 2.0}[numerics]
    assert 0 <= outcome.result.metrics["logit_kl"] < limit
    assert outcome.trip_counts == [8, 8]
    assert len(outcome.token_ids[0]) == 16
    assert outcome.trace.breaks == (7, 7)
    rows = sum(outcome.trip_counts) * 8 + 2 * (program.layout["canvas"] - 8)
    assert len(outcome.trace.gathers) == rows


def test_finished_sequences_commit_nothing_and_the_block_ends_when_all_are_done(tensors, tokenizer):
    """Threshold decoding of a batch: the step loop runs as long as the slowest sequence needs."""
    prompts = [
        tokenizer.encode(PROMPT),
        tokenizer.encode("Tom has 2 pens and finds 3 more. How many pens does Tom have now?"),
    ]
    experiment = compose_experiment("workload.batch=2", "workload.commit=threshold", "workload.threshold=0.6")
    machine, steps = run(experiment, prompts, tensors)
    tokens = read_tokens(machine.hbm, machine.program)
    assert not (tokens == experiment.model.mask_id).any()
    for sequence in steps:
        assert sum(int(step.committed.sum()) for step in sequence) == 32
    per_block = [
        [sum(bool(s.committed.any()) for s in sequence if s.block == b) for b in range(4)] for sequence in steps
    ]
    taken = [sum(step.block == b for step in steps[0]) for b in range(4)]
    assert taken == [max(pair) for pair in zip(*per_block, strict=True)]


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("commit", ["quota", "threshold"])
def test_a_model_that_commits_the_mask_token_still_ends(cache, commit, tensors, monkeypatch):
    """Each block then takes as many steps as it has tokens, and the timing paths replay exactly that."""
    experiment = compose_experiment(f"workload.cache={cache}", f"workload.commit={commit}", "workload.steps=16")
    name, x = "model.transformer.ff_out.weight", experiment
    only_mask = np.zeros_like(tensors[name])
    only_mask[x.model.mask_id] = 1e-3  # every other logit is 0
    monkeypatch.setattr("accuracy.simulator.load_tensors", lambda _: {**tensors, name: only_mask})
    program = compile_program(x.model, x.workload, x.hardware, x.numerics, [19])
    outcome = simulate(program, model=x.model, workload=x.workload, prompts=[list(range(3, 22))])
    assert set(outcome.token_ids[0]) == {x.model.mask_id}
    assert outcome.trip_counts == [8, 8, 8, 8]
    assert outcome.commit_steps == [[0] * 32]
    result = cycle.simulate(program, hardware=x.hardware, trace=outcome.trace)
    assert result.counts == outcome.result.counts
