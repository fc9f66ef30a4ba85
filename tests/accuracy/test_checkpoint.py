"""Checkpoints: shards equal one file, BF16 widens exactly, and whatever is wrong is one line that names tensor and file."""

import dataclasses
import json
import shutil
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from accuracy.image import build_image
from dllm.checkpoint import load_tensors, load_tokenizer, open_checkpoint
from dllm.families import PREFIX, expected_shapes
from dllm.model import ModelSpec
from dllm.reference import ReferenceModel
from npu.errors import TripathError
from npu_compiler import compile_program
from tests.accuracy.torch_llada import TorchLlada
from tests.conftest import CHECKPOINT, compose_experiment

LAST = "model.transformer.ff_out.weight"


@pytest.fixture
def folder(tmp_path):
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(CHECKPOINT / name, tmp_path)
    return tmp_path


def model_in(default_experiment, folder):
    return dataclasses.replace(default_experiment.model, checkpoint=str(folder))


def test_shards_with_an_index_equal_one_file(default_experiment, folder, tensors):
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    loaded = load_tensors(model_in(default_experiment, folder))
    assert loaded.keys() == tensors.keys()
    for name in names:
        np.testing.assert_array_equal(loaded[name], tensors[name])


@pytest.mark.parametrize("kind", [ml_dtypes.bfloat16, np.float16])
def test_narrow_types_widen_exactly(default_experiment, folder, tensors, kind):
    narrow = {name: value.astype(kind) for name, value in tensors.items()}
    save_file(narrow, folder / "model.safetensors")
    loaded = load_tensors(model_in(default_experiment, folder))
    np.testing.assert_array_equal(loaded[LAST], narrow[LAST].astype(np.float32))


def write(folder, tensors):
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f, t: None, r"model\.safetensors is missing"),
        (lambda f, t: write(f, {k: v for k, v in t.items() if k != LAST}), rf"tensor {LAST} is missing in"),
        (
            lambda f, t: write(f, {**t, LAST: t[LAST][:-1]}),
            rf"tensor {LAST} has shape \(511, 128\), the model says \(512, 128\)",
        ),
        (lambda f, t: write(f, {**t, LAST: t[LAST].astype(np.int8)}), rf"tensor {LAST} has type I8"),
        (lambda f, t: (f / "model.safetensors").write_bytes(b"\xff" * 40), r"unreadable .*model\.safetensors"),
        (lambda f, t: (f / "model.safetensors.index.json").write_text("{}"), r"malformed .*index\.json"),
    ],
)
def test_damage_is_named(default_experiment, folder, tensors, damage, message):
    damage(folder, tensors)
    with pytest.raises(TripathError, match=message) as caught:
        load_tensors(model_in(default_experiment, folder))
    assert "\n" not in str(caught.value)


def test_a_missing_folder_or_tokenizer_is_named(folder):
    with pytest.raises(TripathError, match="no such folder"):
        load_tokenizer(str(folder / "nowhere"))
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(TripathError, match="unreadable"):
        load_tokenizer(str(folder))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(TripathError, match=r"no tokenizer\.json"):
        load_tokenizer(str(folder))


def test_the_names_are_those_of_llada(default_experiment, tensors):
    assert set(expected_shapes(default_experiment.model)) == set(tensors)


SHAPE = {"layers": 3, "hidden": 96, "heads": 3, "head_dim": 32, "ffn": 160, "vocab": 64, "rope_theta": 5e5, "mask_id": 63,
         "eos_id": 62, "max_sequence": 64}  # fmt: skip
LLADA = ModelSpec(name="llada", kv_heads=3, rms_eps=1e-5, **SHAPE)
DREAM = ModelSpec(name="dream", kv_heads=1, rms_eps=1e-6, qkv_bias=True, shifted_logits=True, **SHAPE)
DREAM_LAYER = {
    "attn_norm.weight": "input_layernorm.weight", "ff_norm.weight": "post_attention_layernorm.weight",
    "q_proj.weight": "self_attn.q_proj.weight", "k_proj.weight": "self_attn.k_proj.weight",
    "v_proj.weight": "self_attn.v_proj.weight", "q_proj.bias": "self_attn.q_proj.bias", "k_proj.bias": "self_attn.k_proj.bias",
    "v_proj.bias": "self_attn.v_proj.bias", "attn_out.weight": "self_attn.o_proj.weight", "ff_proj.weight": "mlp.gate_proj.weight",
    "up_proj.weight": "mlp.up_proj.weight", "ff_out.weight": "mlp.down_proj.weight",
}  # fmt: skip


def dream_name(name):
    whole = {"wte": "model.embed_tokens", "ln_f": "model.norm", "ff_out": "lm_head"}
    short = name.removeprefix(PREFIX)
    if short.startswith("blocks."):
        _, layer, rest = short.split(".", 2)
        return f"model.layers.{layer}.{DREAM_LAYER[rest]}"
    return f"{whole[short.split('.')[0]]}.weight"


def random_checkpoint(folder, spec, *, dream=False, shards=3):
    """A random checkpoint as Hugging Face writes it; its tensors (BF16 values) by LLaDA's names."""
    rng = np.random.default_rng(0)
    shapes = expected_shapes(spec)
    made = {name: (rng.normal(size=shape) / 8).astype(ml_dtypes.bfloat16) for name, shape in shapes.items()}
    named = {dream_name(name) if dream else name: value for name, value in made.items()}
    index = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(named.items())[shard::shards])
        save_file(part, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    config = {"num_attention_heads": spec.heads, "num_key_value_heads": spec.kv_heads} if dream else {
        "n_heads": spec.heads, "n_kv_heads": spec.kv_heads}  # fmt: skip
    config |= {
        "model_type": "Dream" if dream else "llada",
        "rope_theta": spec.rope_theta,
        "rms_norm_eps": spec.rms_eps,
        "mask_token_id": spec.mask_id,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return dataclasses.replace(spec, checkpoint=str(folder)), {k: v.astype(np.float32) for k, v in made.items()}


def test_a_sharded_llada_runs_as_in_torch(tmp_path):
    spec, made = random_checkpoint(tmp_path, LLADA)
    loaded = load_tensors(spec)
    canvas = np.arange(20) % spec.vocab
    reference = ReferenceModel(spec, loaded)
    expected = TorchLlada(spec, made).forward(canvas, slice(None), keep=False).numpy()
    np.testing.assert_allclose(reference.logits(reference.forward(canvas)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shards", [1, 4])
def test_dream_maps_into_the_same_names(tmp_path, shards):
    spec, made = random_checkpoint(tmp_path, DREAM, dream=True, shards=shards)
    loaded = load_tensors(spec)
    assert set(loaded) == set(made)
    for name, value in made.items():
        np.testing.assert_array_equal(loaded[name], value)
    (tmp_path / "config.json").unlink()
    with pytest.raises(TripathError, match=r"model\.qkv_bias: is false, but .* has tensor model\.layers\.0\.self_attn"):
        load_tensors(dataclasses.replace(spec, qkv_bias=False))


def test_a_sharded_dream_runs_as_in_torch(tmp_path):
    spec, made = random_checkpoint(tmp_path, DREAM, dream=True)
    canvas, reference = np.arange(20) % spec.vocab, ReferenceModel(spec, load_tensors(spec))
    expected = TorchLlada(dataclasses.replace(spec, shifted_logits=False), made).forward(
        canvas, slice(None), keep=False
    )
    np.testing.assert_allclose(reference.logits(reference.forward(canvas)), expected.numpy(), rtol=1e-4, atol=1e-5)


def test_reading_layer_by_layer_holds_a_layer_at_a_time(tmp_path):
    wide = dataclasses.replace(LLADA, layers=12, hidden=384, heads=12, kv_heads=12, ffn=768)
    spec, made = random_checkpoint(tmp_path, wide)
    layer_bytes = sum(value.nbytes for name, value in made.items() if ".blocks.0." in name)
    checkpoint = open_checkpoint(spec)
    tracemalloc.start()
    for index in range(spec.layers):
        layer = {name: checkpoint[name] for name in checkpoint if f".blocks.{index}." in name}
        assert sum(value.nbytes for value in layer.values()) == layer_bytes
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert layer_bytes < peak < 3 * layer_bytes


def test_some_layers_run_alone(tmp_path):
    spec, made = random_checkpoint(tmp_path, LLADA)
    sliced = load_tensors(dataclasses.replace(spec, layers=2, only_layers=[2, 0]))
    for place, layer in enumerate((2, 0)):
        for part in ("q_proj", "ff_out"):
            mine, theirs = (f"{PREFIX}blocks.{i}.{part}.weight" for i in (place, layer))
            np.testing.assert_array_equal(sliced[mine], made[theirs])
    assert not [name for name in sliced if ".blocks.2." in name]
    with pytest.raises(TripathError, match=r"model\.only_layers: must list layers of 0 to 3, got \[4\]"):
        compose_experiment("model.only_layers=[4]")
    assert compose_experiment("model.only_layers=[3,1]").model.layers == 2


def test_a_checkpoint_read_as_needed_makes_the_same_image(tmp_path, monkeypatch):
    """And holds one layer's tensors beside the image."""
    wide = dataclasses.replace(LLADA, layers=12, hidden=384, heads=12, kv_heads=12, ffn=768)
    spec, _ = random_checkpoint(tmp_path, wide)
    x = compose_experiment("workload.prompt_length=19", "workload.prompt=null")
    program = compile_program(spec, x.workload, x.hardware, x.numerics, [19])
    prompts, layer_bytes = [list(range(19))], 4 * spec.network.layer_macs_per_row // spec.layers
    kept = build_image(program, spec, x.workload, load_tensors(spec), prompts)
    monkeypatch.setattr("dllm.checkpoint.KEPT_BYTES", 0)
    lazy = load_tensors(spec)
    assert not isinstance(lazy, dict)
    tracemalloc.start()
    read = build_image(program, spec, x.workload, lazy, prompts)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert layer_bytes / 4 < peak - read.nbytes < 2 * layer_bytes
    np.testing.assert_array_equal(kept, read)
    canvas = np.arange(20) % spec.vocab
    np.testing.assert_array_equal(*(ReferenceModel(spec, t).forward(canvas) for t in (dict(lazy), lazy)))


def quantised_image(spec, tensors, folder):
    x = compose_experiment("workload.prompt_length=19", "workload.prompt=null", "numerics=mxint4")
    program = compile_program(spec, x.workload, x.hardware, x.numerics, [19])
    return build_image(program, spec, x.workload, tensors, [list(range(19))], quantised=folder)


@pytest.mark.parametrize("synthetic", [False, True])
def test_a_checkpoint_is_quantised_once(synthetic, tmp_path, monkeypatch):
    spec, _ = random_checkpoint(tmp_path, LLADA)
    spec = dataclasses.replace(spec, checkpoint="synthetic") if synthetic else spec
    held = quantised_image(spec, load_tensors(spec), tmp_path / "kept")
    assert not (tmp_path / "kept").exists()  # it is small, and at hand
    monkeypatch.setattr("dllm.checkpoint.KEPT_BYTES", 0)
    read = []
    kind = type(load_tensors(spec))
    monkeypatch.setattr(
        kind, "__getitem__", lambda self, name, get=kind.__getitem__: read.append(name) or get(self, name)
    )
    images = [quantised_image(spec, load_tensors(spec), tmp_path / "kept") for _ in range(2)]
    assert sorted(read) == sorted(expected_shapes(spec))  # each once
    for image in images:
        np.testing.assert_array_equal(image, held)


def test_damaged_or_foreign_quantised_weights_are_never_used(tmp_path, monkeypatch):
    monkeypatch.setattr("dllm.checkpoint.KEPT_BYTES", 0)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    spec, _ = random_checkpoint(tmp_path / "one", LLADA)
    expected = quantised_image(spec, load_tensors(spec), tmp_path / "kept")
    rng = np.random.default_rng(1)
    kept = sorted((tmp_path / "kept").iterdir())
    for file in kept:  # one bit flipped; cut short; longer; empty
        data = np.fromfile(file, np.uint8)
        data[rng.integers(data.size)] ^= 1 << rng.integers(8)
        file.write_bytes([bytes(data), bytes(data[:-1]), bytes(data) + b"x", b""][rng.integers(4)])
    np.testing.assert_array_equal(quantised_image(spec, load_tensors(spec), tmp_path / "kept"), expected)
    assert sorted((tmp_path / "kept").iterdir()) == kept
    other, made = random_checkpoint(tmp_path / "two", LLADA)
    changed = {name: value + np.float32(1) for name, value in made.items()}
    (tmp_path / "two" / "model.safetensors.index.json").unlink()
    save_file(changed, tmp_path / "two" / "model.safetensors")
    held = quantised_image(other, changed, None)
    np.testing.assert_array_equal(quantised_image(other, load_tensors(other), tmp_path / "kept"), held)
    (tmp_path / "file").write_text("")
    np.testing.assert_array_equal(quantised_image(spec, load_tensors(spec), tmp_path / "file"), expected)


def test_synthetic_weights_have_the_true_shapes_and_are_always_the_same():
    spec = dataclasses.replace(DREAM, checkpoint="synthetic")
    one, two = load_tensors(spec), load_tensors(spec)
    assert {name: value.shape for name, value in one.items()} == expected_shapes(spec)
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name])
    query = one[f"{PREFIX}blocks.0.q_proj.weight"]
    assert abs(query.std() * spec.hidden**0.5 - 1) < 0.05
    assert load_tokenizer("synthetic") is None


def rewrite_index(folder, change):
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    change(index["weight_map"])
    file.write_text(json.dumps(index))


def set_head(name):
    return lambda folder: rewrite_index(folder, lambda listed: listed.update({LAST: name}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        *(
            (set_head(name), rf"tensor {LAST} lies in .*, which is no file name beside .*index\.json")
            for name in (
                "../model.safetensors",
                "/etc/passwd",
                "..",
                "",
                "sub/a.safetensors",
                "..\\a",
                "C:a",
                "a\0b",
                7,
                None,
            )
        ),
        (set_head("model-00009-of-00009.safetensors"), r"model-00009-of-00009\.safetensors is missing in"),
        (set_head("model-00003-of-00003.safetensors"), None),
        (
            lambda f: (f / "model-00002-of-00003.safetensors").unlink(),
            r"model-00002-of-00003\.safetensors is missing in",
        ),
        (lambda f: (f / "model-00002-of-00003.safetensors").write_bytes(b""), r"unreadable .*model-00002"),
        (
            lambda f: (f / "model-00001-of-00003.safetensors").write_bytes(
                (f / "model-00001-of-00003.safetensors").read_bytes()[:-8]
            ),
            r"unreadable .*model-00001",
        ),
        (
            lambda f: save_file({"other": np.zeros(1, np.float32)}, f / "model-00001-of-00003.safetensors"),
            r"tensor \S+ is missing in .*model-00001-of-00003\.safetensors",
        ),
        (lambda f: rewrite_index(f, lambda listed: listed.clear()), r"malformed .*index\.json"),
        (lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": [1]}'), r"malformed .*index\.json"),
        (lambda f: (f / "config.json").write_text("["), r"malformed .*config\.json"),
        (
            lambda f: (f / "config.json").write_text('{"model_type": "llada", "n_heads": 6}'),
            r"model\.heads: is 3, the checkpoint says 6",
        ),
    ],
)
def test_damaged_shards_are_named(tmp_path, damage, message):
    spec, _ = random_checkpoint(tmp_path, LLADA)
    damage(tmp_path)
    if message is None:  # an index that names the wrong shard: the tensor is found all the same
        assert set(load_tensors(spec)) == set(expected_shapes(spec))
        return
    with pytest.raises(TripathError, match=message) as caught:
        load_tensors(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "hint"),
    [("pytorch_model.bin", "a pickle, which may run code"), ("adapter_model.safetensors", r"model\.adapter")],
)
def test_a_folder_of_another_kind_is_named(default_experiment, tmp_path, file, hint):
    (tmp_path / file).touch()
    with pytest.raises(TripathError, match=rf"model\.safetensors is missing in .*; .*{hint}"):
        open_checkpoint(model_in(default_experiment, tmp_path))
