"""Every walker of a model's operators knows all of them, and what one says of itself is what the others count."""

import math

import pytest

import dllm.devices.graph
import dllm.devices.numpy_graph
import dllm.reference
import npu_compiler.operators
from dllm.families import FAMILIES, expected_shapes
from dllm.operators import OPERATORS, Rope
from dllm.weights import Role
from npu.errors import TripathError
from tests.conftest import compose_experiment


def test_every_walker_knows_every_operator():
    import accuracy.quality.model
    import dllm_training.model

    for table in (
        npu_compiler.operators.LOWER, dllm.reference.COMPUTE, accuracy.quality.model.COMPUTE, dllm_training.model.COMPUTE,
        dllm.devices.graph.TORCH_OPERATORS, dllm.devices.numpy_graph.OPERATORS,
    ):  # fmt: skip
        assert set(table) == set(OPERATORS)


def test_a_walker_that_lacks_an_operator_refuses_the_model_by_name():
    network = compose_experiment().model.network
    with pytest.raises(TripathError, match="model: the compiler lacks the operator Rope"):
        network.check(set(OPERATORS) - {Rope}, "the compiler")


@pytest.mark.parametrize("changes", [(), ("model.qk_norm=true",), ("model.qkv_bias=true",)], ids=str)
def test_training_has_the_tensors_that_the_operators_name(changes):
    from dllm_training.model import DiffusionTransformer

    spec = compose_experiment(*changes).model
    tensors = DiffusionTransformer(spec).named_tensors()
    assert {name: tuple(value.shape) for name, value in tensors.items()} == expected_shapes(spec)


@pytest.mark.parametrize("name", ["wordmath", "wordmath_block", "llada_8b", "dream_7b"])
def test_work_and_weights_agree(name):
    spec = compose_experiment(f"model={name}", "paths=[cycle]", "workload.prompt_length=8").model
    group = spec.network.groups[0]
    matrices = [w for each in group.pattern for w in each.weights if w.role is Role.MATRIX]
    assert sum(each.macs_per_row for each in group.pattern) == sum(math.prod(w.shape) for w in matrices)
    total = sum(math.prod(shape) for shape in expected_shapes(spec).values())
    published = {"llada_8b": 8.02e9, "dream_7b": 7.62e9, "wordmath": 0.72e6, "wordmath_block": 0.72e6}
    """Parameters: of LLaDA-8B (arXiv:2502.09992, table 5) and of Qwen2.5-7B, from which Dream comes (its model card)."""
    assert total == pytest.approx(published[name], rel=0.02)


def test_every_family_has_a_name_for_every_part():
    spec = compose_experiment("model.qk_norm=true", "model.qkv_bias=true").model
    for family in FAMILIES:
        names = [
            {family.name_of(part.name, None if stored.layers is None else 0) for part in stored.weight.parts}
            for stored in spec.network.weights()
        ]  # Q, K and V may be one tensor
        assert len(set().union(*names)) == sum(map(len, names))
