"""Token editing (LLaDA2.1): each step of the machine follows the published rule; all paths agree on what it costs."""

import numpy as np
import pytest

import analytical
import cycle
from accuracy.simulator import execute
from dllm.checkpoint import load_tensors, load_tokenizer
from dllm.decoding import generate
from dllm.reference import ReferenceModel
from npu.errors import TripathError
from npu_compiler import compile_program
from tests.conftest import compose_experiment

PROMPTS = ("Tom has 12 apples and finds 30 more. How many apples does Tom have now?",
           "Nina has 4 bags with 6 pens each. How many pens does Nina have?")  # fmt: skip
MASKS_AND_EDITS = [(0.5, 0.3), (0.9, 0.5), (0.7, 0.99)]


def rule(step, entered, mask_id, threshold, edit_threshold):
    """Positions that change: masks of enough confidence and the best one; tokens that the block placed, if sure to be others."""
    now = step.canvas[step.place]
    masked = now == mask_id
    sure = masked & (step.confidence >= np.float32(threshold))
    if masked.any():
        sure[np.where(masked, step.confidence, -1).argmax()] = True
    edited = (entered == mask_id) & ~masked & (step.confidence >= np.float32(edit_threshold))
    return (sure | edited) & (step.token_ids != now)


class Placed:
    """A record of a step, and where its block lies in its canvas."""

    def __init__(self, record, place):
        self.place = place
        for name in ("block", "step", "canvas", "token_ids", "confidence", "committed"):
            setattr(self, name, getattr(record, name))


def check_steps(records, places, spec, workload):
    """Every step follows the rule; a block ends with the first step that leaves no mask and changes nothing, or at the limit."""
    for block, place in places.items():
        steps = [Placed(record, place) for record in records if record.block == block]
        entered = steps[0].canvas[place]
        for number, step in enumerate(steps):
            expected = rule(step, entered, spec.mask_id, workload.threshold, workload.edit_threshold)
            assert np.array_equal(step.committed, expected), (block, number)
            after = np.where(expected, step.token_ids, step.canvas[place])
            idle = not expected.any() and (after != spec.mask_id).all()
            assert idle == (number + 1 == len(steps)) or len(steps) == workload.block_length + 17


@pytest.mark.parametrize(("threshold", "edit"), MASKS_AND_EDITS)
@pytest.mark.parametrize("model", ["wordmath", "wordmath_block"])
def test_the_reference_follows_the_rule(model, threshold, edit):
    x = compose_experiment(f"model={model}", "workload.commit=threshold", f"workload.threshold={threshold}",
                           f"workload.edit_threshold={edit}", "workload.generation_length=16")  # fmt: skip
    prompt = load_tokenizer(x.model.checkpoint).encode(PROMPTS[0])
    found = generate(ReferenceModel(x.model, load_tensors(x.model)), prompt, x.workload)
    length = x.workload.block_length
    start = len(prompt) // length * length if model == "wordmath_block" else len(prompt)
    places = {
        block: slice(start + block * length, start + (block + 1) * length) for block in range(len(found.trip_counts))
    }
    check_steps(found.steps, places, x.model, x.workload)


@pytest.mark.parametrize(("model", "threshold", "edit"), [("wordmath", 0.9, 0.5), ("wordmath_block", 0.5, 0.3)])
def test_the_machine_follows_the_rule_and_the_paths_agree(model, threshold, edit):
    x = compose_experiment(f"model={model}", "workload.commit=threshold", f"workload.threshold={threshold}",
                           f"workload.edit_threshold={edit}", "workload.generation_length=16", "workload.batch=2")  # fmt: skip
    tokenizer, tensors = load_tokenizer(x.model.checkpoint), load_tensors(x.model)
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    program = compile_program(x.model, x.workload, x.hardware, x.numerics, [len(prompt) for prompt in prompts])
    machine, steps = execute(program, model=x.model, workload=x.workload, tensors=tensors, prompts=prompts)
    length = x.workload.block_length
    edits = 0
    for prompt, records in zip(prompts, steps, strict=True):
        begin = len(prompt) // length * length if model == "wordmath_block" else len(prompt)
        for record in records:
            place = slice(begin + record.block * length, begin + (record.block + 1) * length)
            if place.stop > len(record.canvas):  # the other sequence has a block more
                continue
            entered = next(r for r in records if r.block == record.block).canvas[place]
            expected = rule(Placed(record, place), entered, x.model.mask_id, threshold, edit)
            edits += int((expected & (record.canvas[place] != x.model.mask_id)).sum())
            assert np.array_equal(record.committed, expected)
    assert edits > 0
    result = cycle.simulate(program, hardware=x.hardware, trace=machine.trace)
    assert result.counts == analytical.simulate(program, hardware=x.hardware, trace=machine.trace).counts


def test_a_sure_model_that_nothing_edits_writes_what_it_wrote_without_edits():
    """From a confidence of 1 on only tokens are edited that are certain to be others."""
    tokens = []
    for more in ("", "workload.edit_threshold=1.0"):
        x = compose_experiment("workload.commit=threshold", *([more] if more else []))
        prompt = load_tokenizer(x.model.checkpoint).encode(PROMPTS[0])
        tokens.append(generate(ReferenceModel(x.model, load_tensors(x.model)), prompt, x.workload).token_ids)
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize("given", ["workload.commit=quota", "workload.commit=factor"])
def test_edits_need_a_threshold(given):
    with pytest.raises(TripathError, match=r"workload\.edit_threshold: commit=threshold edits tokens"):
        compose_experiment(given, "workload.edit_threshold=0.5")


def test_the_quality_path_refuses_edits():
    from accuracy.quality import simulate

    x = compose_experiment("workload.commit=threshold", "workload.edit_threshold=0.5")
    with pytest.raises(TripathError, match=r"workload\.edit_threshold: the quality path does not carry this out"):
        simulate(model=x.model, workload=x.workload, numerics=x.numerics, problems=2)
