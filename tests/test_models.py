"""Shipped models against what their publishers say of them, and against the program's map of memory."""

import math

import pytest

from dllm.families import LLADA2, expected_shapes
from npu.errors import TripathError
from npu_compiler.memory import hbm_map
from npu_compiler.tiling import make_tiling
from tests.conftest import compose_experiment
from tripath.api import analytical, cycle, prepare, schedule

PUBLISHED = {
    "llada_8b": (8.02e9, None, "arXiv:2502.09992, table 5"),
    "dream_7b": (7.62e9, 6.53e9, "Qwen2.5-7B, from which Dream comes (model card)"),
    "sdar_1_7b": (1.72e9, 1.4e9, "Qwen3-1.7B, whose shape it has (model card: 1.7B, 1.4B without embedding)"),
    "sdar_4b": (4.02e9, 3.6e9, "Qwen3-4B (model card: 4.0B, 3.6B without embedding)"),
    "sdar_8b": (8.19e9, 6.95e9, "Qwen3-8B (model card: 8.2B, 6.95B without embedding)"),
    "fast_dllm_v2_1_5b": (1.54e9, 1.31e9, "Qwen2.5-1.5B (model card)"),
    "fast_dllm_v2_7b": (7.62e9, 6.53e9, "Qwen2.5-7B (model card)"),
    "nemotron_diffusion_3b": (3.83e9, None, "its checkpoint's index"),
    "nemotron_diffusion_8b": (
        8.4e9,
        None,
        "Ministral 3 8B, whose shape it has (docs.nvidia.com, Megatron Bridge: 8.4B of text)",
    ),
    "smollm2_135m": (134.5e6, None, "its checkpoint's index"),
    "qwen3_8b": (8.19e9, 6.95e9, "model card: 8.2B, 6.95B without embedding"),
    "wedlm_8b": (8.19e9, 6.95e9, "Qwen3-8B, whose shape it has"),
    "llama3_1_8b": (8.03e9, None, "arXiv:2407.21783, its checkpoint's index"),
    "llada_moe_7b": (7.36e9, None, "its checkpoint's parameters (model card: 7B-A1B)"),
    "llada2_mini": (16.0e9, None, "arXiv:2512.15745: 16B"),
    "llada2_flash": (103.0e9, None, "its checkpoint's name and index: 100B"),
    "llada2_2_mini": (16.0e9, None, "LLaDA2-mini, whose shape it has"),
    "diffusiongemma_26b_a4b": (25.2e9, None, "transformers' diffusion_gemma: 25.2B of text, 3.8B of them active"),
    "sdar_30b_a3b": (30.53e9, 29.9e9, "Qwen3-30B-A3B (model card: 30.5B, 29.9B without embedding)"),
}
"""Parameters, and those without embedding and head, as published, and where."""
TWO_DIGITS = {"nemotron_diffusion_8b"}
"""Published so."""
CACHE_BYTES = {
    "llama3_1_8b": 131_072,
    "qwen3_8b": 147_456,
    "llada_8b": 524_288,
    "smollm2_135m": 23_040,
    "dream_7b": 57_344,
}
"""Of one token in BF16: 2 x layers x KV heads x head_dim x 2 bytes."""


def experiment_of(name, *changes):
    changes = ("paths=[cycle]", "hardware=npu_datacenter", "workload.prompt_length=64", *changes)
    return compose_experiment(f"model={name}", *changes)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name):
    model = experiment_of(name).model
    total, inner, _ = PUBLISHED[name]
    shapes = expected_shapes(model)
    assert sum(map(math.prod, shapes.values())) == pytest.approx(
        total, rel=0.02 if model.experts or name in TWO_DIGITS else 0.01
    )
    layers = sum(math.prod(shape) for part, shape in shapes.items() if ".blocks." in part)
    if inner:
        assert layers == pytest.approx(inner, rel=0.03)
    if model.experts is None:  # a multiply-accumulate for each weight of the layers
        assert model.network.layer_macs_per_row == pytest.approx(layers, rel=0.002)


@pytest.mark.parametrize(
    ("name", "tables", "published"), [("sdar_30b_a3b", 2, 3.3e9), ("diffusiongemma_26b_a4b", 1, 3.8e9)]
)
def test_a_row_of_a_mixture_meets_the_published_part_of_its_weights(name, tables, published):
    """Qwen3-30B-A3B, whose shape SDAR has: 3.3B of 30.5B are active (model card), embedding and head among them; DiffusionGemma's head
    is its embedding."""
    model = experiment_of(name).model
    active = model.network.layer_macs_per_row + tables * model.vocab * model.hidden
    assert active == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize(("name", "tensors"), [("llada2_mini", 14_813), ("llada2_flash", 24_161)])
def test_a_checkpoint_of_llada2_has_the_published_number_of_tensors(name, tensors):
    """As FluxServe's guides counted them in the headers of the checkpoints."""
    network = experiment_of(name).model.network
    names = {
        LLADA2.name_of(part.name, layer)
        for stored in network.weights() for _, layer in stored.of_layers() for part in stored.weight.parts
    }  # fmt: skip
    assert len(names) == tensors


@pytest.mark.parametrize("name", CACHE_BYTES)
def test_the_program_keeps_the_weights_and_the_cache(name):
    x = experiment_of(name, "numerics=bf16")
    lengths = [64]
    tensors = hbm_map(
        x.model, x.workload, x.numerics, make_tiling(x.model, x.workload, x.hardware, x.numerics, lengths), x.hardware
    )
    found = {tensor.name: tensor for tensor in tensors}
    kept = found["keys"].size_bytes + found["values"].size_bytes
    assert kept == CACHE_BYTES[name] * found["keys"].shape[3]
    weights = sum(found[stored.name].size_bytes for stored in x.model.network.weights())
    total, _, _ = PUBLISHED[name]
    twice = x.model.vocab * x.model.hidden if x.model.tied_embeddings else 0  # for the array, and to gather from
    assert weights == pytest.approx(2 * (total + twice), rel=0.02 if name in TWO_DIGITS else 0.01)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_model_brings_its_decoding(name):
    """The command that the README promises: a model, a machine and a prompt's length are enough."""
    uniform = name == "diffusiongemma_26b_a4b"
    length = 256 if uniform else 64  # a canvas
    x = experiment_of(name, f"workload.generation_length={length}", "numerics=mxint4")  # in which 100B fit into 64 GiB
    assert x.workload.steps == (48 if uniform else 64)
    prepared = prepare(x, "")
    assert len(prepared.program.words) < 20_000
    assert x.workload.caches.appends is (x.model.attention_mask != "full")


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_estimate_of_every_model_is_near_and_its_bound_holds(name):
    """`benchmarks/model_sizes.py` is the same for 256 + 256 tokens, with seconds."""
    length = 256 if name == "diffusiongemma_26b_a4b" else 64
    x = experiment_of(name, f"workload.generation_length={length}", "numerics=mxint4", "paths=[analytical,cycle]")
    program, load = prepare(x, "").program, schedule(x.workload)
    closed, exact = (
        path.simulate(program, hardware=x.hardware, trace=x.with_load(program, load)) for path in (analytical, cycle)
    )
    cycles = exact.metrics["makespan_cycles"]
    assert closed.metrics["lower_bound_cycles"] <= cycles
    assert closed.metrics["estimated_cycles"] == pytest.approx(cycles, rel=0.1)


@pytest.mark.parametrize(("given", "steps"), [
    ((), 32), (("workload.steps_per_block=2",), 8), (("workload.steps_per_block=2", "workload.generation_length=64"), 16),
    (("workload=wordmath", "workload.generation_length=16"), 16), (("workload.steps=16",), 16),
])  # fmt: skip
def test_steps_follow_the_blocks(given, steps):
    assert compose_experiment(*given).workload.steps == steps


@pytest.mark.parametrize(("given", "message"), [
    (("workload.steps_per_block=2", "workload.steps=8"), "workload.steps_per_block: 2 stands beside workload.steps 8; give workload.steps=null"),
    (("workload.steps_per_block=x",), "workload.steps_per_block: must be an integer of at least 1, got 'x'"),
    (("workload.steps_per_block=0",), "workload.steps_per_block: must be an integer of at least 1, got 0"),
    (("workload.steps_per_block=9",), "9 steps per block exceed workload.block_length 8"),
])  # fmt: skip
def test_steps_of_a_block_that_cannot_be_are_refused(given, message):
    with pytest.raises(TripathError, match=message):
        compose_experiment(*given)
