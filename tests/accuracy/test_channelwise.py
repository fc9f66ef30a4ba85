"""Steps by channel: every witness computes them, a factor as if the matrix before it had it, all of them alike."""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest

from cycle.races import find_race
from dllm.families import expected_shapes
from dllm.model import ModelSpec
from dllm.operators import Channelwise, Residual, Step
from dllm.reference import ReferenceModel
from tests.accuracy.quality.agreement import compare, run_executor, small_experiment
from tests.accuracy.quality.test_agreement import check
from tests.accuracy.test_experts import PROMPT, tensors_of
from tests.accuracy.test_reference import small_spec

if TYPE_CHECKING:
    import torch

    from tests.accuracy import torch_llada as oracle
else:
    torch = pytest.importorskip("torch", reason="the oracle is torch, which the package does not need")
    oracle = pytest.importorskip("tests.accuracy.torch_llada")

FACTOR = ((Step.SCALE, "weight"),)
ALL = ((Step.SCALE, "alpha"), (Step.TANH, ""), (Step.SCALE, "weight"), (Step.SHIFT, "bias"))
"""Those of Dynamic Tanh (arXiv:2503.10622)."""


def with_steps(monkeypatch, steps):
    """Every model has the steps before it adds what attention and the MLP return to the stream."""
    plain = ModelSpec.network.fget

    def network(spec):
        def pattern(operators):
            number = 0
            for each in operators:
                if isinstance(each, Residual):
                    number += 1
                    yield Channelwise(name=f"steps{number}", part=f"steps{number}", width=spec.hidden, steps=steps)
                yield each

        found = plain(spec)
        groups = tuple(dataclasses.replace(group, pattern=tuple(pattern(group.pattern))) for group in found.groups)
        return dataclasses.replace(found, groups=groups)

    monkeypatch.setattr(ModelSpec, "network", property(network))


def given(spec):
    """Random weights: factors near one, and terms near zero."""
    tensors = tensors_of(spec, seed=2)
    tensors |= {name: value - 1 for name, value in tensors.items() if name.endswith("bias")}
    return tensors


def trained_logits(spec, tensors):
    from dllm_training.model import DiffusionTransformer

    trained = DiffusionTransformer(spec).eval()
    trained.load_state_dict({n.removeprefix("model.transformer."): torch.from_numpy(v) for n, v in tensors.items()})
    assert {n: tuple(v.shape) for n, v in trained.named_tensors().items()} == expected_shapes(spec)
    with torch.no_grad():
        return trained(torch.tensor([PROMPT]), torch.ones(1, len(PROMPT), dtype=torch.bool))[0].numpy()


def numpy_logits(spec, tensors):
    model = ReferenceModel(spec, tensors)
    return model.logits(model.forward(np.array(PROMPT)))


def test_a_factor_is_that_of_the_matrix_before_it(monkeypatch):
    with_steps(monkeypatch, FACTOR)
    spec = small_spec(2)
    tensors = given(spec)
    scaled = dict(tensors)
    for layer in range(spec.layers):
        for number, matrix in ((1, "attn_out"), (2, "ff_out")):
            place = f"model.transformer.blocks.{layer}."
            factor = scaled.pop(f"{place}steps{number}.weight")
            assert np.abs(factor - 1).max() > 0.05
            scaled[f"{place}{matrix}.weight"] = scaled[f"{place}{matrix}.weight"] * factor[:, None]
    expected = oracle.TorchLlada(spec, scaled).forward(PROMPT, slice(0, len(PROMPT)), keep=False)
    np.testing.assert_allclose(numpy_logits(spec, tensors), expected, atol=2e-4)
    np.testing.assert_allclose(trained_logits(spec, tensors), expected, atol=2e-4)


def test_training_and_the_numpy_reference_compute_the_same_steps(monkeypatch):
    spec = small_spec(2)
    without = numpy_logits(spec, given(spec))
    with_steps(monkeypatch, ALL)
    tensors = given(spec)
    logits = numpy_logits(spec, tensors)
    assert np.abs(logits - without).max() > 0.05
    np.testing.assert_allclose(trained_logits(spec, tensors), logits, atol=2e-4)


@pytest.mark.parametrize(
    "changes", [("workload.cache=dual",), ("workload.cache=prefix", "hardware.sram.vector_bytes=49152")]
)
def test_the_program_computes_what_the_reference_path_does_step_by_step(monkeypatch, changes):
    with_steps(monkeypatch, ALL)
    spec, prompts = small_spec(2), [PROMPT, PROMPT[:4]]
    tensors = given(spec)
    tensors["model.transformer.ff_out.weight"][spec.mask_id] = 0.0  # never the best token
    x = small_experiment(spec, *changes)
    machine, records = run_executor(x, tensors, prompts)
    _, steps = compare(x, tensors, prompts, machine, records)
    counts = check(steps, x)
    assert counts[0] <= 0.1 * counts[1]
    assert find_race(machine.program) is None
