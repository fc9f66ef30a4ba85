"""Drawn tokens and random re-masking: each step of the machine follows LLaDA's rule with the same random numbers, whatever the schedule."""

import dataclasses

import numpy as np
import pytest

import analytical
import cycle
from accuracy.simulator import execute, simulate
from dllm.canvas import canvas_of
from dllm.checkpoint import load_tensors, load_tokenizer
from dllm.decoding import commit_quota, committed, generate
from dllm.noise import Draws
from dllm.reference import ReferenceModel, softmax
from npu.errors import TripathError
from npu.formats.rounding import round_bf16
from npu_compiler import compile_program
from tests.conftest import compose_experiment
from tripath.api import prepare

PROMPTS = ("Tom has 12 apples and finds 30 more. How many apples does Tom have now?",
           "Nina has 4 bags with 6 pens each. How many pens does Nina have?")  # fmt: skip
SHORT = ("workload.generation_length=16", "workload.steps_per_block=4", "workload.seed=7")


def run(*overrides, prompts=PROMPTS):
    """Experiment, program, machine and steps of a short generation."""
    x = compose_experiment(*SHORT, *overrides)
    tokenizer = load_tokenizer(x.model.checkpoint)
    ids = [tokenizer.encode(prompt) for prompt in prompts[: x.workload.batch]]
    program = compile_program(x.model, x.workload, x.hardware, x.numerics, [len(each) for each in ids], x.compiler)
    machine, steps = execute(program, model=x.model, workload=x.workload, tensors=load_tensors(x.model), prompts=ids)
    return x, ids, program, machine, steps


def tokens_of(steps):
    return [[record.token_ids.tolist() for record in records] for records in steps]


def relative_bound(logits):
    """Of a confidence: differences and exponentials are rounded to BF16, half a unit in the ninth place each; the rest is finer."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    weights = np.exp(shifted)
    return (weights * (1 - shifted)).sum(-1) / weights.sum(-1) * 2**-9 * 1.01 + 2**-13


CASES = [("model=wordmath", "workload.batch=2", "compiler.sampling=fused"), ("model=wordmath", "compiler.sampling=stored"),
         ("model=wordmath_block", "workload.batch=2", "workload.steps_per_block=2")]  # fmt: skip


@pytest.mark.parametrize("overrides", CASES, ids=" ".join)
def test_every_step_draws_the_token_of_the_largest_noisy_logit(overrides):
    """The machine's noise is off by 2^-12 at most, in units of ln 2, so a token is within twice that of the largest."""
    temperature = 0.8
    x, _, program, machine, steps = run(*overrides, f"workload.temperature={temperature}")
    other = 0
    for sequence, records in enumerate(steps):
        draws = Draws(workload=x.workload, sequence=sequence)
        for record in records:
            noise = draws.gumbel(record.block, x.workload.block_length, record.step, x.model.vocab)
            noisy = (record.logits / temperature + noise) / np.log(2)
            drawn = np.take_along_axis(noisy, record.token_ids[:, None], 1)[:, 0]
            assert (noisy.max(-1) - drawn < 2**-11 + 2**-16).all()
            probability = softmax(record.logits.astype(np.float64))
            exact = np.take_along_axis(probability, record.token_ids[:, None], 1)[:, 0]
            assert (np.abs(record.confidence / exact - 1) <= relative_bound(record.logits)).all()
            other += int((record.token_ids != record.logits.argmax(-1)).sum())
    assert other > 0, "noise decides somewhere"
    exact = cycle.simulate(program, hardware=x.hardware, trace=machine.trace, technology=x.technology)
    closed = analytical.simulate(program, hardware=x.hardware, trace=machine.trace, technology=x.technology)
    assert exact.counts == closed.counts
    assert closed.metrics["lower_bound_cycles"] <= exact.metrics["makespan_cycles"]
    assert abs(closed.metrics["estimated_cycles"] / exact.metrics["makespan_cycles"] - 1) < 0.1


def test_numbers_depend_on_the_place_alone():
    """Another way of sampling, another cut of the vocabulary, another batch or schedule: the same tokens at every step."""
    base = tokens_of(run("workload.temperature=0.8", "workload.batch=2")[-1])
    for overrides in (("compiler.sampling=stored", "workload.batch=2"), ("compiler=plain", "workload.batch=2"),
                      ("hardware.vlen=128", "workload.batch=2"), ("workload.batch=1",)):  # fmt: skip
        found = tokens_of(run("workload.temperature=0.8", *overrides)[-1])
        assert found == base[: len(found)], overrides


def test_a_sequence_a_step_and_a_seed_have_numbers_of_their_own():
    same = (PROMPTS[0], PROMPTS[0])
    two = tokens_of(run("workload.temperature=2.0", "workload.batch=2", prompts=same)[-1])
    assert two[0] != two[1]
    other = tokens_of(run("workload.temperature=2.0", "workload.seed=8", prompts=same)[-1])
    assert other[0] != two[0]


def test_the_coldest_temperature_writes_what_the_largest_logits_write():
    cold, greedy = (tokens_of(run(f"workload.temperature={t}")[-1]) for t in (0.001, 0))
    assert cold == greedy


@pytest.mark.parametrize(
    "more", [(), ("workload.commit=threshold", "workload.threshold=0.7"), ("workload.temperature=1.0",)], ids=str
)
@pytest.mark.parametrize("model", ["wordmath", "wordmath_block"])
def test_random_re_masking_commits_the_largest_random_numbers(model, more):
    x, prompts, program, machine, steps = run(f"model={model}", "workload.score=random", "workload.batch=2", *more)
    w, plan, checked = x.workload, canvas_of(x.model, x.workload, [len(each) for each in prompts]), 0
    for sequence, records in enumerate(steps):
        for record in records:
            start = plan.prompt - plan.first(sequence) + record.block * w.block_length
            masked = record.canvas[start : start + w.block_length] == x.model.mask_id
            if len(masked) < w.block_length:  # another sequence has a block more
                continue
            rank = Draws(workload=w, sequence=sequence).uniform(record.block, w.block_length, record.step)
            rank = np.array([round_bf16(np.float32(each)) for each in rank])
            if w.commit == "threshold":
                expected = committed(rank, masked, w, 0)
            else:
                expected = commit_quota(rank, masked, w.quotas()[record.step] if record.step < len(w.quotas()) else 0)
            assert np.array_equal(record.committed, expected)
            checked += 1
    assert checked > 4
    assert cycle.simulate(program, hardware=x.hardware, trace=machine.trace).counts == (
        analytical.simulate(program, hardware=x.hardware, trace=machine.trace).counts
    )


@pytest.mark.parametrize(
    "overrides", [("model=wordmath", "numerics=bf16"), ("model=wordmath_block", "numerics=bf16")], ids=" ".join
)
def test_the_reference_draws_the_same_numbers(overrides):
    """In BF16 logits are near those of FP32: the same noise makes nearly the same tokens, other noise makes others."""
    x = compose_experiment(*SHORT, *overrides, "workload.temperature=4.0", "workload.batch=2")
    tokenizer = load_tokenizer(x.model.checkpoint)
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    program = compile_program(x.model, x.workload, x.hardware, x.numerics, [len(each) for each in prompts])
    found = simulate(program, model=x.model, workload=x.workload, prompts=prompts)
    assert found.result.metrics["argmax_agreement"] > 0.9
    reference = ReferenceModel(x.model, load_tensors(x.model))
    alike = []
    for seed in (7, 8):
        free = generate(reference, prompts[0], dataclasses.replace(x.workload, seed=seed))
        records = {(record.block, record.step): record for record in free.steps}
        alike.append(np.mean(records[0, 0].token_ids == found.steps[0][0].token_ids))
    assert alike[0] > alike[1]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("workload.temperature=0.0001",), r"workload\.temperature: must be 0 or at least 0\.001"),
        (
            ("workload.score=random", "workload.commit=threshold", "workload.edit_threshold=0.5"),
            r"workload\.score: random ranks masks, workload\.edit_threshold needs confidences",
        ),
        (
            ("workload.temperature=1", "workload.batch=65536", "workload.generation_length=65536"),
            r"workload\.batch: random numbers have 2\^32 streams",
        ),
        (
            ("hardware=npu_autoregressive", "compiler=host_sampling", "workload.cache=none", "workload.temperature=1"),
            r"workload\.temperature: compiler\.sampling=host",
        ),
        (
            ("hardware=npu_autoregressive", "compiler=host_sampling", "workload.cache=none", "workload.score=random"),
            r"workload\.score: compiler\.sampling=host",
        ),
    ],
)
def test_who_cannot_draw_says_so(overrides, said):
    with pytest.raises(TripathError, match=said):
        prepare(compose_experiment(*overrides), PROMPTS[0])


@pytest.mark.parametrize("given", ["workload.temperature=0.5", "workload.score=random"])
def test_the_quality_path_does_not_draw(given):
    from accuracy.quality import simulate as quality

    x = compose_experiment(given)
    with pytest.raises(TripathError, match=r"the quality path draws no random numbers"):
        quality(model=x.model, workload=x.workload, numerics=x.numerics, problems=2)
