"""Classifier-free guidance: the reference against LLaDA's formula in torch, the program against the reference."""

import dataclasses

import numpy as np
import pytest

from dllm.decoding import generate
from dllm.reference import ReferenceModel
from dllm.workload import Workload
from npu.errors import TripathError
from tests.accuracy.test_reference import random_tensors, small_spec
from tests.conftest import compose_experiment
from tripath.api import accuracy, analytical, cycle, prepare

torch = pytest.importorskip("torch", reason="the oracle is torch, which the package does not need")
oracle = pytest.importorskip("tests.accuracy.torch_llada")

PROMPTS = "Tom has 12 apples and finds 30 more. How many apples does Tom have now?"


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("weight", [0.5, 3.0])
def test_logits_are_those_of_two_passes(weight, shifted):
    """`generate` of LLaDA: un_x[prompt_index] = mask_id; logits = un_logits + (cfg_scale + 1) * (logits - un_logits)."""
    spec = dataclasses.replace(small_spec(2), shifted_logits=shifted)
    tensors, prompt = random_tensors(spec, 4), [5, 9, 11, 4, 8, 3, 7, 6]
    workload = Workload(generation_length=16, block_length=8, steps=8, cache="none", guidance=weight)
    found = generate(ReferenceModel(spec, tensors), prompt, workload)
    canvas = np.array([*prompt, *[spec.mask_id] * 16])
    for record in found.steps:
        start = len(prompt) + 8 * record.block
        place = slice(start, start + 8)
        np.testing.assert_array_equal(record.canvas, canvas)
        without = canvas.copy()
        without[: len(prompt)] = spec.mask_id
        given, unprompted = (
            oracle.TorchLlada(spec, tensors).forward(tokens, slice(0, len(canvas)), keep=False)[place]
            for tokens in (canvas, without)
        )
        expected = unprompted + (weight + 1) * (given - unprompted)
        np.testing.assert_allclose(record.logits, expected.numpy(), rtol=1e-3, atol=1e-3)
        masked = [token == spec.mask_id for token in canvas[place]]
        ids, _, chosen = oracle.decide(expected, masked, workload, record.step)
        canvas[place] = np.where(chosen, ids, canvas[place])
    assert found.token_ids == canvas[len(prompt) :].tolist()


@pytest.mark.parametrize("more", [
    ["workload.cache=dual"], ["workload.cache=none", "numerics=mxint8"], ["workload.cache=prefix", "workload.commit=threshold"],
    ["workload.temperature=1.0", "workload.seed=5"], ["workload.stop_at_end=true"], ["workload.batch=3", "scheme=baos"],
], ids=str)  # fmt: skip
def test_the_program_equals_the_reference(more):
    x = compose_experiment("numerics=bf16", "workload.generation_length=16", "workload.steps=8", "workload.guidance=0.7",
                           "workload.batch=2", *more)  # fmt: skip
    prepared = prepare(x, PROMPTS)
    program = prepared.program
    found = accuracy.simulate(program, model=x.model, workload=x.workload, prompts=prepared.token_ids)
    metrics = found.result.metrics
    assert metrics["logit_kl"] < (0.02 if len(more) > 1 else 5e-3)
    assert metrics["argmax_agreement"] > 0.97
    assert len(found.token_ids) == x.workload.batch
    assert metrics["generated_tokens"] == x.workload.batch * 16
    times = cycle.simulate(program, hardware=x.hardware, trace=found.trace)
    bound = analytical.simulate(program, hardware=x.hardware, trace=found.trace)
    assert bound.metrics["lower_bound_cycles"] <= times.metrics["makespan_cycles"]
    assert times.metrics["makespan_cycles"] == pytest.approx(bound.metrics["estimated_cycles"], rel=0.06)
    assert times.counts == bound.counts == found.result.counts


def test_guidance_multiplies_as_often_as_twice_the_batch():
    """MACs are those of a batch twice as large, and no more."""
    lengths = {}
    for more in (["workload.guidance=1"], ["workload.batch=2"]):
        x = compose_experiment("paths=[cycle]", "workload.prompt_length=19", *more)
        prepared = prepare(x, None)
        trace = x.schedule(prepared.token_ids)
        lengths[more[0]] = cycle.simulate(prepared.program, hardware=x.hardware, trace=trace).counts["macs"]
    assert lengths["workload.guidance=1"] == lengths["workload.batch=2"]


@pytest.mark.parametrize(("more", "got"), [
    (["workload.cache=append"], "cache=append"),
    (["workload.stage=sampling", "workload.steps=1", "workload.block_length=32"], "stage=sampling"),
    (["compiler.sampling=host", "hardware=npu_host_sampling"], "compiler.sampling=host"),
])  # fmt: skip
def test_what_is_not_guided_is_refused_by_name(more, got):
    with pytest.raises(TripathError, match=r"workload\.guidance: ") as raised:
        prepare(compose_experiment("workload.guidance=2", *more), PROMPTS)
    assert got in str(raised.value)
