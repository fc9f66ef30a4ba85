"""The operators of Gemma's family: NumPy, torch with gradients and an independent torch agree, and the program computes them."""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest

import cycle
from cycle.races import find_race
from dllm.experts import Experts
from dllm.families import expected_shapes
from dllm.model import FullLayers
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

BESIDE = Experts(count=8, chosen=2, inner=32, factors=True, router_norm=True, beside_ffn=True)
FULL = FullLayers(period=2, kv_heads=1, head_dim=64, rope_theta=1e6, rotary_pairs=8, shared_kv=True)
KINDS = {"layers": 4, "full_layers": FULL, "qk_norm": True, "v_norm": True, "attention_scale": 0.5}
CHANGES = {
    "GELU": {"activation": "gelu_tanh"},
    "softcap": {"logit_softcap": 2.0},
    "V norm": {"qk_norm": True, "v_norm": True},
    "post norms": {"post_norms": True},
    "scales": {"embedding_scale": 8.0, "attention_scale": 1.0, "layer_scales": True},
    "router": {"experts": dataclasses.replace(BESIDE, beside_ffn=False)},
    "two branches": {"experts": BESIDE},
    "window": {"window": 5},
    "kinds of layers": KINDS | {"window": 6},
    "all": {"window": 4, "activation": "gelu_tanh", "logit_softcap": 3.0, "qk_norm": True, "v_norm": True, "post_norms": True,
            "embedding_scale": 8.0, "attention_scale": 1.0, "layer_scales": True, "experts": BESIDE, "tied_embeddings": True},
}  # fmt: skip


def spec_of(name):
    return dataclasses.replace(small_spec(2), **CHANGES[name])


@pytest.mark.parametrize("name", CHANGES)
def test_numpy_and_torch_compute_what_an_independent_torch_does(name):
    from dllm_training.model import DiffusionTransformer

    spec = spec_of(name)
    tensors = tensors_of(spec)
    expected = oracle.TorchLlada(spec, tensors).forward(PROMPT, slice(0, 7), keep=False)
    model = ReferenceModel(spec, tensors)
    np.testing.assert_allclose(model.logits(model.forward(np.array(PROMPT))), expected, atol=2e-4)
    trained = DiffusionTransformer(spec).eval()
    named = {name.removeprefix("model.transformer."): torch.from_numpy(value) for name, value in tensors.items()}
    trained.load_state_dict(named)
    with torch.no_grad():
        logits = trained(torch.tensor([PROMPT]), torch.ones(1, 7, dtype=torch.bool))[0]
    np.testing.assert_allclose(logits, expected, atol=2e-4)
    assert {n: tuple(v.shape) for n, v in trained.named_tensors().items()} == expected_shapes(spec)


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize(
    "changes", [("workload.cache=dual",), ("workload.cache=prefix", "hardware.sram.vector_bytes=49152")]
)
def test_the_program_computes_what_the_reference_path_does_step_by_step(name, changes):
    """Each logit within what other orders of sums do to the reference path, which rounds where the machine does. Rows take all
    experts: where near scores change places, the bound would be as loose as an expert is wide."""
    spec, prompts = spec_of(name), [PROMPT, PROMPT[:4]]
    if spec.experts is not None:
        spec = dataclasses.replace(spec, experts=dataclasses.replace(spec.experts, chosen=spec.experts.count))
    tensors = tensors_of(spec, seed=2)
    head = "wte" if spec.tied_embeddings else "ff_out"
    tensors[f"model.transformer.{head}.weight"][spec.mask_id] = 0.0  # never the best token
    x = small_experiment(spec, *changes)
    machine, records = run_executor(x, tensors, prompts)
    _, steps = compare(x, tensors, prompts, machine, records)
    counts = check(steps, x)
    assert counts[0] <= 0.1 * counts[1]
    program = machine.program
    assert find_race(program) is None
    fast, slow = (
        cycle.simulate(program, hardware=x.hardware, trace=machine.trace, race_check=False, fast_forward=forward)
        for forward in (True, False)
    )
    assert fast.metrics["makespan_cycles"] == slow.metrics["makespan_cycles"]
