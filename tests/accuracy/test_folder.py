"""Folders of Hugging Face: published configurations give the shipped models, small checkpoints of each layout compute what torch
computes and run as programs, and what is not understood is one line."""

import dataclasses
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from dllm.adapters import ADAPTERS
from dllm.checkpoint import load_tensors, load_tokenizer
from dllm.decoding import generate
from dllm.families import LLADA, LLADA2, NEMOTRON, QWEN, expected_shapes
from dllm.folder import describe
from dllm.reference import ReferenceModel
from dllm.workload import Workload
from npu.errors import TripathError
from tests.accuracy.test_append import Oracle
from tests.conftest import compose_experiment
from tripath.api import accuracy, analytical, cycle, prepare

LAYOUTS = Path(__file__).parent / "layouts"
NAMES = sorted(file.stem for file in LAYOUTS.iterdir())
MASKED = [name for name in NAMES if name != "diffusiongemma_26b_a4b"]
"""What is decoded from masks; the other is in test_gemma_folder.py."""
SHIPPED = [name for name in NAMES if name not in {"i_dlm_8b", "qwen2_5_1_5b"}]
FAMILY = {
    "llada_8b": LLADA,
    "llada2_mini": LLADA2,
    "llada2_flash": LLADA2,
    "llada2_2_mini": LLADA2,
    "nemotron_diffusion_3b": NEMOTRON,
    "nemotron_diffusion_8b": NEMOTRON,
}
OUTSIDE = {
    LLADA.name: ("model.transformer.wte", "model.transformer.ln_f", "model.transformer.ff_out"),
    QWEN.name: ("model.embed_tokens", "model.norm", "lm_head"),
    LLADA2.name: ("model.word_embeddings", "model.norm", "lm_head"),
    NEMOTRON.name: ("encoder.embed_tokens", "encoder.norm", "diffusion_head"),
}
"""Names of embedding, last norm and head, as published."""
SMALL = {
    "d_model": 96, "n_layers": 2, "n_heads": 3, "n_kv_heads": 3, "mlp_hidden_size": 160, "embedding_size": 128,
    "hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1, "intermediate_size": 160,
    "vocab_size": 128, "head_dim": 32, "mask_token_id": 99, "eos_token_id": 98, "bd_size": 8, "max_sequence_length": 512,
    "max_position_embeddings": 512, "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32,
    "expert_intermediate_size": 32, "n_group": 4, "topk_group": 2, "rotary_dim": 16, "moe_layer_freq": [1, 1],
}  # fmt: skip
"""A shape by the keys of any layout."""
WIDE = {"num_attention_heads": 4, "num_key_value_heads": 2}
"""Where a layout says how wide a head is: together the heads are wider than the stream."""


def published(name):
    return json.loads((LAYOUTS / f"{name}.json").read_text())


def write(folder, config):
    (folder / "config.json").write_text(json.dumps(config))


def compose(folder, *changes):
    return compose_experiment(
        "model=hf", f"model.folder={folder}", "paths=[analytical,cycle]", "workload.prompt_length=16", *changes
    )


@pytest.mark.parametrize("name", SHIPPED)
def test_a_published_configuration_gives_the_shipped_model(name, tmp_path):
    write(tmp_path, published(name))
    x = compose(tmp_path, f"model.name={name}", "hardware=npu_datacenter")
    shipped = compose_experiment(
        f"model={name}",
        "model.checkpoint=null",
        "paths=[cycle]",
        "workload.prompt_length=16",
        "hardware=npu_datacenter",
    )
    autoregressive = x.model.decoding.block_length == 1  # its mask is our choice
    ours = dataclasses.replace(shipped.model, mask_id=x.model.mask_id) if autoregressive else shipped.model
    decoding = dataclasses.replace(ours.decoding, default_prompt=None)
    assert x.model == dataclasses.replace(ours, decoding=decoding)
    assert x.workload == shipped.workload


def test_what_no_shipped_model_has_is_read_too(tmp_path):
    write(tmp_path, published("i_dlm_8b"))
    x = compose(tmp_path, "hardware=npu_datacenter", "model.name=sdar_8b")
    assert (x.model.attention_mask, x.model.shifted_logits, x.model.qk_norm) == ("causal", True, True)
    assert (x.workload.block_length, x.workload.cache) == (1, "append")
    write(tmp_path, published("qwen2_5_1_5b"))
    model = compose(tmp_path, "hardware=npu_datacenter", "model.mask_id=7").model
    assert (model.qkv_bias, model.tied_embeddings, model.head_dim, model.mask_id) == (True, True, 128, 7)
    assert model.name == tmp_path.name


@pytest.mark.parametrize("name", ["wordmath", "wordmath_block", "wordmath_moe"])
def test_the_folder_of_a_trained_model_is_that_model(name):
    shipped = compose_experiment(f"model={name}", "workload.prompt_length=16").model
    read = compose(shipped.checkpoint).model
    assert dataclasses.replace(read, decoding=shipped.decoding) == shipped


def given(name):
    """Ids of a small vocabulary, where a layout says none."""
    ids = {"mask_token_id": "model.mask_id=99", "eos_token_id": "model.eos_id=98"}
    return [override for key, override in ids.items() if key not in published(name)]


def small(folder, name):
    """A small random checkpoint of a published layout, in BF16; the experiment of its folder."""
    config = published(name)
    config |= {key: value for key, value in SMALL.items() if key in config} | (WIDE if "head_dim" in config else {})
    if "expert_capacity" in config:
        config |= {"expert_capacity": 5, "block_size": 8}
    if "layer_types" in config:
        config["layer_types"] = ["full_attention"] * 2
    write(folder, config)
    x = compose(folder, *given(name), "workload.generation_length=32")
    family, rng = FAMILY.get(name, QWEN), np.random.default_rng(len(name))
    assert tuple(family.outside.values()) == OUTSIDE[family.name]
    tensors = {}
    for ours, shape in expected_shapes(x.model).items():
        _, _, rest = ours.partition("transformer.")
        layer = int(rest.split(".")[1]) if rest.startswith("blocks.") else None
        part = rest if layer is None else rest.split(".", 2)[2]
        value = rng.normal(size=shape) / (8 if len(shape) == 2 else 4) + part.endswith(("norm.weight", "ln_f.weight"))
        tensors.setdefault(family.name_of(part, layer), []).append(value.astype(ml_dtypes.bfloat16))
    tensors = {name: np.concatenate(parts) for name, parts in tensors.items()}  # Q, K and V may be one
    save_file(tensors, folder / "model.safetensors")
    return compose(folder, *given(name), "workload.generation_length=32")


@pytest.mark.parametrize("name", MASKED)
def test_a_small_checkpoint_of_the_layout_decodes_as_in_torch(name, tmp_path):
    """The oracle recomputes the whole sequence under the mask at every step, in float64."""
    x = small(tmp_path, name)
    assert x.model.checkpoint == str(tmp_path)
    tensors, length = load_tensors(x.model), min(x.workload.block_length, 8)
    workload = Workload(generation_length=16, block_length=length, steps=16, cache="append", commit=x.workload.commit)
    prompt = np.random.default_rng(3).integers(0, 90, 13).tolist()
    mine = generate(ReferenceModel(x.model, tensors), prompt, workload)
    twin = Oracle(x.model, tensors, workload, prompt)
    for record, (block, step, canvas, logits, masked) in zip(mine.steps, twin.run(), strict=True):
        assert (record.block, record.step) == (block, step)
        np.testing.assert_array_equal(record.canvas, canvas)
        np.testing.assert_allclose(record.logits[masked], logits[masked], rtol=1e-4, atol=1e-4)
    assert mine.token_ids == twin.canvas[13 : 13 + 16]


@pytest.mark.parametrize("name", MASKED)
def test_a_small_checkpoint_of_the_layout_runs_as_a_program(name, tmp_path):
    small(tmp_path, name)
    x = compose(tmp_path, *given(name), "workload.generation_length=32", "numerics=bf16")
    prepared = prepare(x, "")
    assert len(prepared.program.words) < 20_000
    found = accuracy.simulate(prepared.program, model=x.model, workload=x.workload, prompts=prepared.token_ids)
    assert found.result.metrics["logit_kl"] < 2e-3
    assert found.result.metrics["argmax_agreement"] > 0.9
    times = cycle.simulate(prepared.program, hardware=x.hardware, trace=found.trace).metrics
    bound = analytical.simulate(prepared.program, hardware=x.hardware, trace=found.trace).metrics
    assert bound["lower_bound_cycles"] <= times["makespan_cycles"]


REFUSED = [
    ("qwen3_8b", {"final_logit_softcapping": 30.0}, "config.json key final_logit_softcapping = 30.0 is not understood"),
    ("qwen3_8b", {"hidden_act": "gelu"}, 'key hidden_act = "gelu" is not understood'),
    ("qwen3_8b", {"attention_bias": True}, "key attention_bias = true is not understood"),
    ("qwen3_8b", {"use_sliding_window": True}, "key use_sliding_window = true is not understood"),
    ("fast_dllm_v2_7b", {"layer_types": ["full_attention", "sliding_attention"]}, "key layer_types = "),
    ("llada_8b", {"attention_layer_norm": True}, "key attention_layer_norm = true is not understood"),
    ("llada2_mini", {"expert_capacity": 4}, r"model\.experts\.block_capacity: each row takes 8 experts"),
    ("llada2_mini", {"partial_rotary_factor": 0.25}, "key partial_rotary_factor = 0.25 of head_dim 128 is not rotary_dim 64"),
    ("llada_moe_7b", {"moe_router_enable_expert_bias": True}, "key moe_router_enable_expert_bias = true is not understood"),
    ("llada_moe_7b", {"moe_layer_freq": [0, 1]}, "key moe_layer_freq = "),
    ("sdar_30b_a3b", {"mlp_only_layers": [3]}, "key mlp_only_layers = "),
    ("llada_8b", {"block_type": "sequential"}, 'key block_type = "sequential" is not understood'),
    ("sdar_8b", {"block_size": 6}, "key block_size = 6 is not understood"),
    ("diffusiongemma_26b_a4b", {"use_bidirectional_attention": "all"}, 'key use_bidirectional_attention = "all" is not understood'),
    ("diffusiongemma_26b_a4b", {"layer_types": ["full_attention"] * 30}, "key layer_types = .* is not understood"),
    ("diffusiongemma_26b_a4b", {"hidden_activation": "gelu"}, 'key hidden_activation = "gelu" is not understood'),
    ("sdar_8b", {"model_type": "gpt_neox"}, 'key model_type = "gpt_neox" is none of llada, llada2_moe, sdar_moe, Dream, sdar'),
    ("sdar_8b", {"model_type": None}, "key model_type = null is none of llada, llada2_moe, sdar_moe, Dream, sdar"),
    ("llama3_1_8b", {"architectures": ["StableDiffcoderForCausalLM"]}, "key architectures = .* is not understood"),
    ("llama3_1_8b", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, 'key rope_scaling.rope_type = "dynamic" is not'),
    ("llama3_1_8b", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling.original_max_position_embeddings = null"),
    ("llama3_1_8b", {"rope_scaling": {"type": "linear", "factor": 2.0, "partial": 1}}, "key rope_scaling.partial = 1 is not"),
    (
        "qwen2_5_1_5b",
        {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
        "key rope_scaling.mscale = null is not understood",  # attention would be scaled
    ),
    ("qwen3_8b", {"rope_scaling": "linear"}, 'key rope_scaling = "linear" is not understood'),
    ("qwen3_8b", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "key quantization_config = gptq is a quantised layout"),
    ("qwen3_8b", {"quantization_config": {"quant_method": "awq", "bits": 4}}, "key quantization_config = awq is a quantised layout"),
    ("qwen3_8b", {"hidden_size": None}, r"config.json lacks hidden_size, give model.hidden "),
    ("qwen3_8b", {"hidden_size": "wide"}, r"model\.hidden: must be an integer, got 'wide'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "message"), REFUSED)
def test_what_is_not_understood_is_refused_by_key_and_value(name, change, message, tmp_path):
    write(tmp_path, published(name) | change)
    with pytest.raises(TripathError, match=message) as caught:
        compose(tmp_path)
    assert "\n" not in str(caught.value)
    if not str(caught.value).startswith(("model.hidden: ", "model.experts.")):
        assert str(caught.value).startswith("model.folder: ")
        assert str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize("key", ["hidden_sizes", "n_routed_experts", "rope_local_base_freq", "attn_logit_softcapping"])
@pytest.mark.parametrize("name", NAMES)
def test_every_key_that_no_adapter_names_is_refused(name, key, tmp_path):
    write(tmp_path, published(name) | {key: 0})
    with pytest.raises(TripathError, match=rf"model\.folder: config\.json key {key} = 0 is not understood \("):
        compose(tmp_path)


def test_a_folder_must_be_there_and_hold_a_configuration(tmp_path):
    with pytest.raises(TripathError, match=r"model\.folder: no such folder .*nowhere"):
        compose(tmp_path / "nowhere")
    with pytest.raises(TripathError, match=r"model\.folder: cannot read .*config\.json \(No such file"):
        compose(tmp_path)
    for text in ("{", "[1]", "\xff"):
        (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(TripathError, match=r"model\.folder: malformed .*config\.json"):
            compose(tmp_path)
    with pytest.raises(TripathError, match=r"model\.folder: give the folder of a checkpoint"):
        compose_experiment("model=hf", "paths=[cycle]", "workload.prompt_length=16")


def test_what_ends_a_text_may_stand_in_the_generation_config(tmp_path):
    config = published("nemotron_diffusion_8b")
    del config["eos_token_id"]
    write(tmp_path, config)
    with pytest.raises(TripathError, match=r"config\.json lacks eos_token_id, give model\.eos_id"):
        compose(tmp_path, "hardware=npu_datacenter")
    assert compose(tmp_path, "hardware=npu_datacenter", "model.eos_id=5").model.eos_id == 5
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [11, 2]}')
    assert compose(tmp_path, "hardware=npu_datacenter").model.eos_id == 11
    assert describe(tmp_path / "config.json").ends == (11, 2)
    assert compose(tmp_path, "hardware=npu_datacenter").model.end_ids == (11, 2)


COMPARED = [
    ("rope_theta", 5e5), ("rms_eps", 1e-3), ("qk_norm", False), ("attention_mask", "causal"), ("seeded_blocks", True),
    ("shifted_logits", True), ("mask_id", 4), ("eos_id", 5), ("max_sequence", 4096), ("heads", 6), ("tied_embeddings", True),
    ("rope_scaling", {"kind": "linear", "factor": 2.0}),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), COMPARED)
def test_a_checkpoint_is_the_model_or_is_refused(key, value, tmp_path):
    """Every field that config.json or the family fixes is compared, by the timing paths too."""
    x = small(tmp_path, "sdar_8b")
    config = json.loads((tmp_path / "config.json").read_text()) | {"mask_token_id": 99}
    write(tmp_path, config)
    changed = (
        f"model.{key}={value}" if not isinstance(value, dict) else "model.rope_scaling={kind: linear, factor: 2.0}"
    )
    with pytest.raises(TripathError, match=rf"model\.{key}: is .*, the checkpoint says .*config\.json") as caught:
        prepare(compose(tmp_path, "workload.generation_length=32", changed), "")
    assert "\n" not in str(caught.value)
    prepare(dataclasses.replace(x, model=dataclasses.replace(x.model, mask_id=99)), "")


def test_tensors_that_a_tied_head_repeats_are_read_once(tmp_path):
    x = small(tmp_path, "smollm2_135m")
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}, file)
    load_tensors(x.model)
    save_file({**tensors, "lm_head.weight": -tensors["model.embed_tokens.weight"]}, file)
    with pytest.raises(TripathError, match=r"no operator of model .* reads tensor lm_head\.weight"):
        load_tensors(x.model)


@pytest.mark.parametrize("kind", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_weights_of_eight_bits_widen_exactly(kind, tmp_path):
    x = small(tmp_path, "qwen3_8b")
    file, name = tmp_path / "model.safetensors", "model.layers.0.mlp.up_proj.weight"
    codes = np.resize(np.arange(256, dtype=np.uint8), 160 * 96).reshape(160, 96)
    finite = np.isfinite(codes.view(kind).astype(np.float32))
    narrow = np.where(finite, codes, 0).astype(np.uint8).view(kind)
    tensors = load_file(file)
    save_file({**tensors, name: narrow}, file)
    loaded = load_tensors(x.model)["model.transformer.blocks.0.up_proj.weight"]
    np.testing.assert_array_equal(loaded, narrow.astype(np.float32))
    save_file({**tensors, name: codes.view(kind)}, file)
    with pytest.raises(TripathError, match=rf"tensor {name} has a value that is not finite \(.*model\.safetensors\)"):
        load_tensors(x.model)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(value, tmp_path):
    x = small(tmp_path, "dream_7b")
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][7] = value
    save_file(tensors, file)
    with pytest.raises(TripathError, match=r"tensor model\.norm\.weight has a value that is not finite \(.*model\.saf"):
        load_tensors(x.model)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_what_git_lfs_has_not_fetched_is_named(name, tmp_path):
    x = small(tmp_path, "qwen3_8b")
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(
        TripathError, match=rf"model\.checkpoint: .*{name} is a pointer of Git LFS; `git lfs pull`"
    ) as caught:
        prepare(x, "")
    assert "\n" not in str(caught.value)


def test_names_of_one_family_under_the_configuration_of_another_are_refused(tmp_path):
    x = small(tmp_path, "dream_7b")
    write(tmp_path, published("llada_8b"))
    with pytest.raises(TripathError, match="the names of the tensors are Qwen's, not those of a LLaDA"):
        load_tensors(x.model)


def test_a_tokenizer_may_be_two_files(tmp_path):
    texts = ["Tom has 12 apples and finds 30 more.", "Anna has 9 pens; she buys 8."] * 4
    whole = Tokenizer(models.BPE())
    whole.pre_tokenizer, whole.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    whole.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    whole.model.save(str(tmp_path))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|mask|>": whole.get_vocab_size()}))
    found = load_tokenizer(str(tmp_path))
    for text in (*texts, "Zoë's  new\ttext"):
        assert found.encode(text) == whole.encode(text).ids
        assert found.decode(found.encode(text)) == whole.decode(whole.encode(text).ids)
    assert found.encode("<|mask|>") == [whole.get_vocab_size()]
    (tmp_path / "merges.txt").write_text("a b c\n")
    with pytest.raises(TripathError, match=r"unreadable .*vocab\.json"):
        load_tokenizer(str(tmp_path))


def test_no_tokenizer_is_needed_where_the_prompt_is_a_length(tmp_path):
    small(tmp_path, "qwen3_8b")
    assert load_tokenizer(str(tmp_path), needed=False) is None
    assert prepare(compose(tmp_path), "").prompts.tokenizer is None
    x = compose(tmp_path, "workload.prompt_length=null", "workload.prompt=x")
    with pytest.raises(TripathError, match=r"no tokenizer\.json in .*, nor vocab\.json with merges\.txt"):
        prepare(x, "")


def test_the_adapters_contradict_neither_themselves_nor_the_model():
    for row in ADAPTERS:
        given = {key for keys in row.keys.values() for key in keys}
        assert not given & row.ignored, row.model_types
        assert not (given | row.ignored) & row.only.keys(), row.model_types
        assert not row.keys.keys() & row.constants.keys(), row.model_types
