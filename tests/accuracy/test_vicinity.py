"""dInfer's vicinity refresh: against its rule in torch, and the program against the reference."""

from typing import TYPE_CHECKING

import numpy as np
import pytest

from dllm.decoding import generate
from dllm.reference import ReferenceModel
from dllm.workload import Workload
from npu.errors import TripathError
from npu.program.exits import steps_of_blocks
from tests.accuracy.test_reference import random_tensors, small_spec
from tests.conftest import compose_experiment
from tripath.api import accuracy, analytical, cycle, prepare

if TYPE_CHECKING:
    import torch

    from tests.accuracy import torch_llada as oracle
else:
    torch = pytest.importorskip("torch", reason="the oracle is torch, which the package does not need")
    oracle = pytest.importorskip("tests.accuracy.torch_llada")

PROMPT = "Tom has 12 apples and finds 30 more. How many apples does Tom have now?"


def rows_of(block, step, start, length, canvas):
    """As dInfer says: four passes over everything at first, one at each new block, else the block and 16 rows on either side."""
    if step < (4 if block == 0 else 1):
        return slice(0, canvas)
    return slice(max(0, start - 16), min(canvas, start + length + 16))


@pytest.mark.parametrize("prompt", [5, 16, 23])
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_steps_forward_the_rows_of_the_published_rule(blocks, prompt):
    spec = small_spec(2)
    workload = Workload(generation_length=16 * blocks, block_length=16, steps=8 * blocks, cache="vicinity")
    tensors, tokens = random_tensors(spec, 8), np.random.default_rng(prompt).integers(3, spec.vocab, prompt).tolist()
    tensors["model.transformer.ff_out.weight"][spec.mask_id] = 0.0  # no step commits a mask
    found = generate(ReferenceModel(spec, tensors), tokens, workload)
    twin, canvas = oracle.TorchLlada(spec, tensors), np.array([*tokens, *[spec.mask_id] * 16 * blocks])
    for record in found.steps:
        start = prompt + 16 * record.block
        rows = rows_of(record.block, record.step, start, 16, len(canvas))
        np.testing.assert_array_equal(record.canvas, canvas)
        logits = twin.forward(canvas, rows, keep=rows != slice(0, len(canvas)))[start - rows.start :][:16]
        np.testing.assert_allclose(record.logits, logits.numpy(), rtol=1e-4, atol=1e-4)
        masked = [token == spec.mask_id for token in canvas[start : start + 16]]
        ids, _, chosen = oracle.decide(logits, masked, workload, record.step)
        canvas[start : start + 16] = np.where(chosen, ids, canvas[start : start + 16])
    assert found.token_ids == canvas[prompt:].tolist()
    assert found.trip_counts == [8] * blocks


@pytest.mark.parametrize("more", [
    ["workload.generation_length=48", "workload.steps=24"], ["workload.generation_length=16", "workload.steps=4"], ["workload.steps=32"],
    ["workload.commit=threshold", "workload.threshold=0.95"], ["numerics=mxint8"], ["workload.temperature=1.0", "workload.seed=2"],
    ["workload.stop_at_end=true"], ["compiler=plain"], ["workload.guidance=0.5"],
], ids=str)  # fmt: skip
def test_the_program_equals_the_reference(more):
    x = compose_experiment("numerics=bf16", "workload.cache=vicinity", "workload.block_length=16", "workload.batch=2",
                           "workload.generation_length=32", "workload.steps=16", *more)  # fmt: skip
    prepared = prepare(x, PROMPT)
    program = prepared.program
    found = accuracy.simulate(program, model=x.model, workload=x.workload, prompts=prepared.token_ids)
    metrics = found.result.metrics
    assert metrics["logit_kl"] < (0.02 if "numerics=mxint8" in more else 2e-3)
    assert metrics["argmax_agreement"] > 0.97
    assert steps_of_blocks(program, found.trace.breaks) == found.trip_counts
    times = cycle.simulate(program, hardware=x.hardware, trace=found.trace)
    bound = analytical.simulate(program, hardware=x.hardware, trace=found.trace)
    assert bound.metrics["lower_bound_cycles"] <= times.metrics["makespan_cycles"]
    assert times.metrics["makespan_cycles"] == pytest.approx(bound.metrics["estimated_cycles"], rel=0.06)
    assert times.counts == bound.counts == found.result.counts
    kinds = {row[0]: row[1] for row in times.tables["steps"].rows}
    warm = sum(min(steps, 1 if block else 4) for block, steps in enumerate(found.trip_counts))
    assert (kinds["warm"], kinds.get("refine", 0)) == (warm, sum(found.trip_counts) - warm)


def test_without_data_steps_are_split_as_the_policy_says():
    x = compose_experiment("workload.cache=vicinity", "workload.block_length=16", "workload.generation_length=48",
                           "workload.steps=18", "paths=[cycle]", "workload.prompt_length=20")  # fmt: skip
    prepared = prepare(x, None)
    trace = x.schedule(prepared.token_ids)
    assert trace.breaks == (4, 2, 1, 5, 1, 5)
    assert steps_of_blocks(prepared.program, trace.breaks) == [6, 6, 6]


@pytest.mark.parametrize(("more", "key"), [
    (["workload.block_length=8"], r"workload\.block_length: cache=vicinity needs blocks of 16 at least"),
    (["workload.commit=threshold", "workload.edit_threshold=0.5"], r"workload\.edit_threshold: cache=vicinity"),
    (["scheme=baos"], r"numerics\.smoothing\.scheme: baos measures one step of a block, workload\.cache=vicinity"),
    (["hardware.append_only_cache=true"], r"workload\.cache: vicinity rewrites rows of the cache"),
])  # fmt: skip
def test_what_does_not_go_with_it_is_refused_by_name(more, key):
    with pytest.raises(TripathError, match=key):
        prepare(compose_experiment("workload.cache=vicinity", "workload.block_length=16", *more), PROMPT)
