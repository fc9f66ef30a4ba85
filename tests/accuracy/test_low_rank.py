"""Low-rank adapters: what they add is the product, by PEFT's formula; what is not understood is refused by name."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dllm.checkpoint import load_tensors, open_checkpoint
from dllm.families import QWEN, tensor_name
from dllm.folder import model_of
from npu.errors import TripathError
from tests.conftest import CHECKPOINT

RANK, ALPHA = 3, 12
PARTS = {"q_proj": (128, 128), "v_proj": (64, 128), "ff_proj": (256, 128), "ff_out": (128, 256)}


def module(part, layer):
    """PEFT's name of a matrix."""
    return "base_model.model." + QWEN.name_of(f"{part}.weight", layer).removesuffix(".weight")


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {}
    for part, (outputs, inputs) in PARTS.items():
        for side, shape in (("A", (RANK, inputs)), ("B", (outputs, RANK))):
            tensors[f"{module(part, 2)}.lora_{side}.weight"] = rng.standard_normal(shape).astype(np.float16)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none", "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    return tmp_path


def adapted(folder):
    return dataclasses.replace(model_of(CHECKPOINT), adapter=str(folder))


def test_matrices_gain_the_product_of_the_thin_ones_and_nothing_else_changes(folder):
    plain, mine = load_tensors(model_of(CHECKPOINT)), load_tensors(adapted(folder))
    stored = load_file(folder / "adapter_model.safetensors")
    for name, value in plain.items():
        part = next((part for part in PARTS if name == tensor_name(f"{part}.weight", 2)), None)
        expected = value.astype(np.float64)
        if part is not None:
            a, b = (stored[f"{module(part, 2)}.lora_{side}.weight"].astype(np.float64) for side in "AB")
            expected = expected + ALPHA / RANK * b @ a
            assert not np.array_equal(mine[name], value)
        np.testing.assert_allclose(mine[name], expected, rtol=1e-5, atol=1e-4)


def test_quantised_weights_are_kept_apart_from_those_without_an_adapter(folder):
    name, other = tensor_name("q_proj.weight", 2), tensor_name("q_proj.weight", 1)
    plain, mine = open_checkpoint(model_of(CHECKPOINT)), open_checkpoint(adapted(folder))
    assert plain.identity(name) != mine.identity(name)
    assert plain.identity(other) == mine.identity(other)


def test_an_adapter_may_be_trained_for_another_mask(folder):
    model = dataclasses.replace(model_of(CHECKPOINT), attention_mask="block_causal", seeded_blocks=True)
    with pytest.raises(TripathError, match=r"model\.attention_mask: is block_causal, the checkpoint says full"):
        open_checkpoint(model)
    assert open_checkpoint(dataclasses.replace(model, adapter=str(folder))).adapter is not None


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"use_dora": True}, "key use_dora = true is not understood"), ({"peft_type": "IA3"}, 'key peft_type = "IA3" is not'),
     ({"rank_pattern": {"q_proj": 4}}, "key rank_pattern = "), ({"r": None}, "lacks r and lora_alpha"),
     ({"r": 4}, r"is no finite matrix of shape \(4, \d+\), got \(3, \d+\)")],
)  # fmt: skip
def test_a_configuration_that_means_something_else_is_refused(folder, changed, said):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    with pytest.raises(TripathError, match=f"model.adapter: .*{said}"):
        open_checkpoint(adapted(folder))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop(f"{module('q_proj', 2)}.lora_B.weight"), "has one of lora_A and lora_B alone"),
        (lambda t: t.update({f"{module('q_proj', 9)}.lora_A.weight": np.zeros((3, 128), np.float16)}), "no matrix of model"),
        (lambda t: t.update({"base_model.model.model.embed_tokens.lora_A.weight": np.zeros((3, 512), np.float16)}), "no matrix"),
        (lambda t: t[f"{module('q_proj', 2)}.lora_A.weight"].fill(np.inf), "is no finite matrix"),
    ],
)  # fmt: skip
def test_tensors_that_no_matrix_takes_are_refused(folder, change, said):
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(TripathError, match=f"model.adapter: .*{said}"):
        open_checkpoint(adapted(folder))


def test_missing_files_and_synthetic_weights_are_named(folder):
    with pytest.raises(TripathError, match=r"model\.adapter: cannot read .*adapter_config\.json"):
        open_checkpoint(adapted(folder / "nothing"))
    with pytest.raises(TripathError, match=r"model\.adapter: needs the weights of a checkpoint"):
        dataclasses.replace(adapted(folder), checkpoint="synthetic")
