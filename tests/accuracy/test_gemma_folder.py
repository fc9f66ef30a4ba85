"""A checkpoint in DiffusionGemma's layout: every tensor is found under its published name, and the model runs as a program."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from dllm.checkpoint import load_tensors
from dllm.decoding import visible
from dllm.operators import Mask
from dllm.reference import ReferenceModel
from npu.errors import TripathError
from tests.accuracy.test_folder import compose, published, write
from tripath.api import accuracy, cycle, prepare

SHAPE = {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "num_global_key_value_heads": 1,
    "head_dim": 32, "global_head_dim": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "num_experts": 4, "top_k_experts": 2,
    "vocab_size": 128, "sliding_window": 12, "sliding_window_pattern": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 2, "max_position_embeddings": 512,
}  # fmt: skip
HIDDEN, EXPERTS, INNER = 64, 4, 32
PLAIN = {
    "input_layernorm.weight": "attn_norm.weight", "post_attention_layernorm.weight": "attn_post_norm.weight",
    "pre_feedforward_layernorm.weight": "ff_norm.weight", "post_feedforward_layernorm_1.weight": "dense_post_norm.weight",
    "pre_feedforward_layernorm_2.weight": "experts_norm.weight", "post_feedforward_layernorm_2.weight": "experts_post_norm.weight",
    "post_feedforward_layernorm.weight": "ff_post_norm.weight", "self_attn.q_norm.weight": "q_norm.weight",
    "self_attn.k_norm.weight": "k_norm.weight", "self_attn.q_proj.weight": "q_proj.weight", "self_attn.k_proj.weight": "k_proj.weight",
    "self_attn.v_proj.weight": "v_proj.weight", "self_attn.o_proj.weight": "attn_out.weight", "mlp.gate_proj.weight": "ff_proj.weight",
    "mlp.up_proj.weight": "up_proj.weight", "mlp.down_proj.weight": "ff_out.weight", "router.proj.weight": "router.weight",
    "router.scale": "router.norm.weight", "router.per_expert_scale": "router.factors", "layer_scalar": "layer_scale.weight",
}  # fmt: skip
"""Published names of a layer's tensors, and ours."""


def stored():
    """A small random checkpoint, by the published names; and what each of our names should be."""
    rng = np.random.default_rng(5)
    tensors, ours = {}, {}

    def put(name, shape, mine, scale=0.125, centre=0.0):
        value = (rng.normal(size=shape) * scale + centre).astype(ml_dtypes.bfloat16)
        tensors[name] = value
        if mine:
            ours[f"model.transformer.{mine}"] = value.astype(np.float32)
        return value.astype(np.float32)

    put("model.decoder.embed_tokens.weight", (128, HIDDEN), "wte.weight")
    put("model.decoder.norm.weight", (HIDDEN,), "ln_f.weight", centre=1.0)
    own = "model.decoder.self_conditioning."
    put(f"{own}pre_norm.weight", (HIDDEN,), "self_conditioning.norm.weight", centre=1.0)
    put(f"{own}gate_proj.weight", (96, HIDDEN), "self_conditioning.ff_proj.weight")
    put(f"{own}up_proj.weight", (96, HIDDEN), "self_conditioning.up_proj.weight")
    put(f"{own}down_proj.weight", (HIDDEN, 96), "self_conditioning.ff_out.weight")
    for layer in range(4):
        prefix, mine = f"model.decoder.layers.{layer}.", f"blocks.{layer}."
        head, kv = (64, 1) if layer % 2 else (32, 2)
        shapes = {
            "self_attn.q_norm.weight": (head,), "self_attn.k_norm.weight": (head,), "self_attn.q_proj.weight": (4 * head, HIDDEN),
            "self_attn.k_proj.weight": (kv * head, HIDDEN), "self_attn.o_proj.weight": (HIDDEN, 4 * head),
            "mlp.gate_proj.weight": (96, HIDDEN), "mlp.up_proj.weight": (96, HIDDEN), "mlp.down_proj.weight": (HIDDEN, 96),
            "router.proj.weight": (EXPERTS, HIDDEN), "router.per_expert_scale": (EXPERTS,), "layer_scalar": (1,),
            **({} if layer % 2 else {"self_attn.v_proj.weight": (kv * head, HIDDEN)}),
        }  # fmt: skip
        for name, part in PLAIN.items():
            if name not in shapes and name.startswith("self_attn."):
                continue
            shape = shapes.get(name, (HIDDEN,))
            put(prefix + name, shape, mine + part, centre=float(len(shape) == 1))
        put(
            f"model.encoder.language_model.layers.{layer}.layer_scalar",
            (1,),
            f"{mine}clean_layer_scale.weight",
            centre=1.0,
        )
        both = put(f"{prefix}experts.gate_up_proj", (EXPERTS, 2 * INNER, HIDDEN), "")
        down = put(f"{prefix}experts.down_proj", (EXPERTS, HIDDEN, INNER), "")
        for expert in range(EXPERTS):
            at = f"model.transformer.{mine}experts.{expert}."
            ours |= {f"{at}ff_proj.weight": both[expert, :INNER], f"{at}up_proj.weight": both[expert, INNER:],
                     f"{at}ff_out.weight": down[expert]}  # fmt: skip
    put("model.encoder.vision_tower.patch_embedder.weight", (8, 8), "")
    return tensors, ours


@pytest.fixture
def folder(tmp_path):
    config = published("diffusiongemma_26b_a4b") | {"canvas_length": 16}
    config["text_config"] |= SHAPE
    write(tmp_path, config)
    numbers = {"max_denoising_steps": 5, "t_max": 0.7, "t_min": 0.3, "entropy_bound": 0.2, "confidence_threshold": 0.01}
    (tmp_path / "generation_config.json").write_text(json.dumps(numbers))
    return tmp_path


def test_every_tensor_is_found_under_its_published_name(folder):
    tensors, ours = stored()
    save_file(tensors, folder / "model.safetensors")
    x = compose(folder)
    loaded = load_tensors(x.model)
    assert set(loaded) == set(ours)
    for name, value in ours.items():
        np.testing.assert_array_equal(loaded[name], value, err_msg=name)
    w = x.workload
    assert (w.block_length, w.steps_per_block, w.temperature, w.last_temperature) == (16, 5, 0.7, 0.3)
    assert (w.entropy_bound, w.stop_entropy, w.diffusion, w.cache) == (0.2, 0.01, "uniform", "append")
    assert (x.model.embedding_scale, x.model.full_layers.rotary_pairs, x.model.self_conditioning) == (8.0, 8, 96)


def test_the_whole_checkpoint_computes_what_torch_does(folder):
    """Both kinds of layers, experts beside the MLP, all norms and scales, soft tokens: NumPy, torch with gradients, and the oracle."""
    torch = pytest.importorskip("torch", reason="the oracle is torch, which the package does not need")
    from dllm_training.model import DiffusionTransformer
    from tests.accuracy.torch_llada import TorchLlada

    save_file(stored()[0], folder / "model.safetensors")
    spec = compose(folder).model
    tensors, rng, places = load_tensors(spec), np.random.default_rng(8), np.arange(16)
    tokens, soft = rng.integers(0, 128, 16), rng.normal(size=(16, spec.hidden)).astype(np.float32)
    sees = visible(Mask.CAUSAL, places, slice(0, 16), 16)
    near = abs(places[:, None] - places) < spec.window
    twin = TorchLlada(spec, tensors)
    expected = twin.forward(tokens.tolist(), slice(0, 16), keep=False, visible=torch.from_numpy(sees),
                            windows=torch.from_numpy(near), soft=torch.from_numpy(soft).double())  # fmt: skip
    model = ReferenceModel(spec, tensors)
    mine = model.logits(model.forward(tokens, slice(0, 16), None, sees, places, soft=soft))
    np.testing.assert_allclose(mine, expected, atol=2e-4, rtol=2e-4)
    trained = DiffusionTransformer(spec).eval()
    trained.load_state_dict(
        {name.removeprefix("model.transformer."): torch.from_numpy(value) for name, value in tensors.items()}
    )
    with torch.no_grad():
        logits = trained(
            torch.from_numpy(tokens)[None], torch.ones(1, 16, dtype=torch.bool), soft=torch.from_numpy(soft)[None]
        )
    np.testing.assert_allclose(logits[0], expected, atol=2e-4, rtol=2e-4)


def test_it_runs_as_a_program(folder):
    save_file(stored()[0], folder / "model.safetensors")
    x = compose(folder, "numerics=bf16", "workload.generation_length=32")
    prepared = prepare(x, "")
    found = accuracy.simulate(prepared.program, model=x.model, workload=x.workload, prompts=prepared.token_ids)
    assert found.trip_counts == [5, 5]
    assert found.result.metrics["generated_tokens"] == 32
    assert found.result.metrics["forwards"] == 1 + 2 * (5 + 1)
    assert found.steps[0][0].canvas.shape == (16 + 32,)
    times = cycle.simulate(prepared.program, hardware=x.hardware, trace=found.trace).metrics
    assert times["makespan_cycles"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.decoder.layers.1.layer_scalar"), r"tensor model\.decoder\.layers\.1\.layer_scalar is missing"),
        (lambda t: t.update({"model.decoder.layers.0.experts.down_proj": t["model.decoder.layers.0.experts.down_proj"][:3]}),
         r"tensor model\.decoder\.layers\.0\.experts\.down_proj has shape \(3, 64, 32\)"),
        (lambda t: t.update({"model.decoder.layers.1.self_attn.v_proj.weight": np.zeros((64, 64), np.float32)}), "reads tensor"),
    ],
)  # fmt: skip
def test_what_is_missing_or_too_much_is_one_line(folder, change, message):
    tensors = stored()[0]
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    x = compose(folder)
    with pytest.raises(TripathError, match=message):
        load_tensors(x.model)


def test_a_contradiction_of_keys_is_named(folder):
    (folder / "generation_config.json").write_text('{"stability_threshold": 2}')
    with pytest.raises(TripathError, match="key stability_threshold"):
        compose(folder)
