"""Commits bounded by entropy: the machine's entropies are those of its logits, and each step commits what the rule says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import analytical
import cycle
from accuracy.simulator import execute, simulate
from dllm.checkpoint import load_tensors, load_tokenizer
from dllm.decoding import commit_entropy_bound, entropy_of
from npu.errors import TripathError
from npu.formats.rounding import round_bf16
from npu.isa import vector
from npu_compiler import compile_program
from tests.conftest import compose_experiment
from tripath.api import prepare

PROMPTS = ("Tom has 12 apples and finds 30 more. How many apples does Tom have now?",
           "Nina has 4 bags with 6 pens each. How many pens does Nina have?")  # fmt: skip
SHORT = ("workload.generation_length=16", "workload.commit=entropy_bound", "workload.batch=2")


def rule(entropies, masked, bound):
    """By brute force: the positions in ascending order, each if the sum of those before is at most the bound."""
    order = sorted(np.flatnonzero(masked), key=lambda position: (entropies[position], position))
    chosen, total = np.zeros(len(masked), bool), np.float32(0)
    for position in order:
        if total > np.float32(bound):
            break
        chosen[position] = True
        total = np.float32(total + entropies[position])
    return chosen


@settings(max_examples=200, deadline=None)
@given(data=st.data(), bound=st.sampled_from([0.0, 0.1, 0.5, 3.0]))
def test_instruction_and_reference_follow_the_rule(data, bound):
    values = st.lists(
        st.sampled_from([0.0, 0.0625, 0.125, 0.25, 0.5, 1.0, 2.0]), min_size=1, max_size=12
    )  # sums are exact
    entropies = np.array(data.draw(values), np.float32)
    masked = np.array(data.draw(st.lists(st.booleans(), min_size=len(entropies), max_size=len(entropies))))
    n = len(entropies)
    lanes = np.concatenate([entropies, masked.astype(np.float32), np.zeros(n, np.float32)])
    vector.v_budget_mask(lanes, np.array([bound], np.float32), 2 * n, 0, n, 0, n)
    expected = rule(entropies, masked, bound)
    assert np.array_equal(lanes[2 * n :] == 1, expected)
    assert np.array_equal(commit_entropy_bound(entropies, masked, bound), expected)


def test_entropies_of_known_distributions():
    logits = np.log(np.array([[0.5, 0.25, 0.25], [1.0, 1e-30, 1e-30], [1 / 3, 1 / 3, 1 / 3]]))
    assert entropy_of(logits) == pytest.approx([1.5 * np.log(2), 0, np.log(3)])


def error_bound(logits):
    """Of the machine's entropy. With d the difference to the largest logit, d and exp(d) are rounded to BF16, half a unit in
    the ninth place each, so exp(d) is off by the share (1 + |d|) 2^-9 and d exp(d) by (3 + |d|) 2^-9; FP32 adds less than 2^-13."""
    d = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    weights = np.exp(d) / np.exp(d).sum(-1, keepdims=True)
    of_total = (weights * (1 - d)).sum(-1) * 2**-9
    spread = (weights * -d).sum(-1)
    of_spread = (weights * -d * (3 - d)).sum(-1) * 2**-9
    return 1.02 * (of_total + of_spread + spread * of_total) + 2**-13


CASES = [("compiler.sampling=fused",), ("compiler.sampling=stored",), ("model=wordmath_block", "workload.entropy_bound=1.5"),
         ("workload.temperature=3.0", "workload.entropy_bound=0.5"), ("numerics=mxint4", "workload.entropy_bound=0.02")]  # fmt: skip


@pytest.mark.parametrize("overrides", CASES, ids=" ".join)
def test_every_step_commits_what_the_rule_says(overrides):
    x = compose_experiment(*SHORT, *overrides)
    tokenizer = load_tokenizer(x.model.checkpoint)
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    program = compile_program(x.model, x.workload, x.hardware, x.numerics, [len(each) for each in prompts], x.compiler)
    machine, steps = execute(
        program, model=x.model, workload=x.workload, tensors=load_tensors(x.model), prompts=prompts
    )
    length, checked = x.workload.block_length, 0
    for prompt, records in zip(prompts, steps, strict=True):
        begin = len(prompt) // length * length if x.model.name == "wordmath_block" else len(prompt)
        for record in records:
            start = begin + record.block * length
            masked = record.canvas[start : start + length] == x.model.mask_id
            if len(masked) < length:  # the other sequence has a block more
                continue
            exact = entropy_of(record.logits.astype(np.float64))
            assert (np.abs(record.entropy - exact) <= error_bound(record.logits)).all()
            ranks = np.array([round_bf16(each) for each in record.entropy])
            expected = rule(ranks, masked, x.workload.entropy_bound)
            assert np.array_equal(record.committed, expected & (record.token_ids != x.model.mask_id))
            checked += 1
    assert checked >= 4
    exact = cycle.simulate(program, hardware=x.hardware, trace=machine.trace)
    closed = analytical.simulate(program, hardware=x.hardware, trace=machine.trace)
    assert exact.counts == closed.counts
    assert closed.metrics["lower_bound_cycles"] <= exact.metrics["makespan_cycles"]


def test_a_larger_bound_takes_no_more_steps_at_its_first_step_and_the_reference_agrees():
    committed = []
    for bound in (0.01, 0.5, 50.0):
        x = compose_experiment(*SHORT, f"workload.entropy_bound={bound}", "numerics=bf16")
        tokenizer = load_tokenizer(x.model.checkpoint)
        prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
        program = compile_program(x.model, x.workload, x.hardware, x.numerics, [len(each) for each in prompts])
        found = simulate(program, model=x.model, workload=x.workload, prompts=prompts)
        committed.append(int(found.steps[0][0].committed.sum()))
        assert found.result.metrics["transfer_set_overlap"] > 0.9
    assert committed == sorted(committed)
    assert committed[-1] == 8, "a bound above 8 log V takes all"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("workload.score=random",), r"workload\.score: commit=entropy_bound ranks by entropies"),
        (("workload.edit_threshold=0.5",), r"workload\.edit_threshold: commit=threshold edits tokens"),
        (
            ("hardware=npu_autoregressive", "compiler=host_sampling", "workload.cache=none"),
            r"workload\.commit: compiler\.sampling=host",
        ),
    ],
)
def test_who_cannot_measure_says_so(overrides, said):
    with pytest.raises(TripathError, match=said):
        prepare(compose_experiment("workload.commit=entropy_bound", *overrides), PROMPTS[0])


def test_the_quality_path_measures_no_bound():
    from accuracy.quality import simulate as quality

    x = compose_experiment("workload.commit=entropy_bound")
    with pytest.raises(TripathError, match=r"workload\.commit=entropy_bound: the quality path does not"):
        quality(model=x.model, workload=x.workload, numerics=x.numerics, problems=2)
