"""Decoding with a cache that is appended equals recomputing everything under the mask; the program equals the reference."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dllm.canvas import canvas_of
from dllm.decoding import generate
from dllm.reference import ReferenceModel
from dllm.workload import Workload
from npu.errors import TripathError
from tests.accuracy.test_reference import random_tensors, small_spec
from tests.conftest import compose_experiment
from tripath.api import accuracy, analytical, cycle, prepare

if TYPE_CHECKING:
    import torch

    from tests.accuracy import torch_llada as oracle
else:
    torch = pytest.importorskip("torch", reason="the oracle is torch, which the package does not need")
    oracle = pytest.importorskip("tests.accuracy.torch_llada")

WEIGHTS = Path(accuracy.__file__).parent / "checkpoints" / "wordmath"
DECODINGS = {
    "iLLaDA": {"attention_mask": "full"},
    "SDAR": {"attention_mask": "block_causal"},
    "Fast-dLLM v2": {"attention_mask": "block_causal", "shifted_logits": True, "seeded_blocks": True},
    "Nemotron": {"attention_mask": "causal", "seeded_blocks": True},
    "SDAR, window": {"attention_mask": "block_causal", "window": 11},
    "Nemotron, window": {"attention_mask": "causal", "seeded_blocks": True, "window": 6},
    "autoregressive": {"attention_mask": "causal", "shifted_logits": True, "seeded_blocks": True},
}


class Oracle:
    """Recomputes a whole sequence at every step."""

    def __init__(self, spec, tensors, workload, prompt):
        self.spec, self.w, self.twin = spec, workload, oracle.TorchLlada(spec, tensors)
        length = workload.block_length
        aligned = spec.attention_mask == "block_causal"
        self.first = len(prompt) - (len(prompt) % length if aligned else 0)
        blocks = -(-(len(prompt) - self.first + workload.generation_length) // length)
        self.blocks = range(self.first, self.first + blocks * length, length)
        self.canvas = [*prompt, *[spec.mask_id] * (self.blocks.stop - len(prompt))]
        self.prompt = len(prompt)

    def group(self, row):
        """Number of the block of a row; the rows of a full mask's prompt are one block."""
        if self.spec.attention_mask == "full" and row < self.first:
            return -1
        return (row - self.first) // self.w.block_length

    def logits(self, end, block):
        """Logits [end, vocab] of all rows, where those from `block` on (a row) are denoised, the others clean."""
        causal = self.spec.attention_mask == "causal"

        def sees(row, key):
            return key <= row if causal and row < block else self.group(key) <= self.group(row)

        def begins(row):
            """The row, or the first one of the block that it sees whole."""
            return row if causal and row < block else self.first + self.group(row) * self.w.block_length

        visible = torch.tensor([[sees(row, key) for key in range(end)] for row in range(end)])
        window = self.spec.window or end + self.w.block_length
        inside = torch.tensor([[key > begins(row) - window for key in range(end)] for row in range(end)])
        return self.twin.forward(self.canvas[:end], slice(0, end), keep=False, visible=visible, windows=inside)

    def run(self):
        """Canvas and logits of every step."""
        mask, length, shift = self.spec.mask_id, self.w.block_length, int(self.spec.shifted_logits)
        for number, start in enumerate(self.blocks):
            if self.spec.seeded_blocks and length > 1 and self.canvas[start] == mask:
                self.canvas[start] = int(self.logits(start, start)[-1].argmax())
            step = 0
            while step < length and mask in self.canvas[start : start + length]:
                end = start if self.spec.seeded_blocks and length == 1 else start + length
                found = self.logits(end, start)
                found = torch.cat([found[:1] * 0, found])[-length - shift :][:length] if shift else found[-length:]
                if end == start:
                    found = self.logits(end, start)[-1:]
                masked = [token == mask for token in self.canvas[start : start + length]]
                ids, _, chosen = oracle.decide(found, masked, self.w, step)
                yield number, step, list(self.canvas), found.numpy(), masked
                for place, token, commit in zip(range(start, start + length), ids, chosen, strict=True):
                    self.canvas[place] = int(token) if commit else self.canvas[place]
                step += 1


@pytest.mark.parametrize("commit", ["quota", "threshold"])
@pytest.mark.parametrize("prompt", [1, 8, 13])
@pytest.mark.parametrize("name", DECODINGS)
def test_an_appended_cache_equals_recomputing_under_the_mask(name, prompt, commit):
    spec = dataclasses.replace(small_spec(2), **DECODINGS[name])
    length = 1 if name == "autoregressive" else 8
    workload = Workload(
        generation_length=16, block_length=length, steps=16, cache="append", commit=commit, threshold=0.5
    )
    tensors, tokens = random_tensors(spec, 3), np.random.default_rng(prompt).integers(3, spec.vocab, prompt).tolist()
    twin = Oracle(spec, tensors, workload, tokens)
    expected = list(twin.run())
    mine = generate(ReferenceModel(spec, tensors), tokens, workload)
    assert len(mine.steps) == len(expected)
    for record, (block, step, canvas, logits, masked) in zip(mine.steps, expected, strict=True):
        assert (record.block, record.step) == (block, step)
        np.testing.assert_array_equal(record.canvas, canvas)
        np.testing.assert_allclose(record.logits[masked], logits[masked], rtol=1e-4, atol=1e-4)
    assert mine.token_ids == twin.canvas[prompt : prompt + 16]


@pytest.mark.parametrize("length", [4, 8, 16])
@pytest.mark.parametrize("name", DECODINGS)
def test_the_program_equals_the_reference(name, length, tmp_path):
    """In BF16 what is left is rounding; both timing paths replay the trace, whose race check is on.

    The weights are trained ones, so that few logits are near ties; without a config.json they belong to any model.
    """
    for file in ("model.safetensors", "tokenizer.json"):
        (tmp_path / file).symlink_to(WEIGHTS / file)
    own = [f"model.{key}={str(value).lower()}" for key, value in DECODINGS[name].items()]
    length = 1 if name == "autoregressive" else length
    x = compose_experiment(
        *own, "numerics=bf16", "workload.cache=append", "workload.generation_length=16", f"workload.block_length={length}",
        "workload.steps=16", "workload.batch=2", f"model.checkpoint={tmp_path}",
    )  # fmt: skip
    prepared = prepare(x, "Tom has 12 apples and finds 30 more. How many apples does Tom have now?")
    program = prepared.program
    found = accuracy.simulate(program, model=x.model, workload=x.workload, prompts=prepared.token_ids)
    metrics = found.result.metrics
    assert metrics["logit_kl"] < 2e-3
    assert metrics["argmax_agreement"] > 0.97
    assert [len(ids) for ids in found.token_ids] == [16, 16]
    times = cycle.simulate(program, hardware=x.hardware, trace=found.trace)
    bound = analytical.simulate(program, hardware=x.hardware, trace=found.trace).metrics
    assert bound["lower_bound_cycles"] <= times.metrics["makespan_cycles"]
    assert times.metrics["makespan_cycles"] == pytest.approx(bound["estimated_cycles"], rel=0.06)


def test_what_a_mask_or_a_seed_needs_is_refused_by_name():
    spec = dataclasses.replace(small_spec(2), attention_mask="block_causal")
    workload = Workload(generation_length=8, block_length=8, steps=8, cache="dual")
    with pytest.raises(
        TripathError, match=r"workload\.cache: dual does not serve model\.attention_mask: block_causal, append"
    ):
        canvas_of(spec, workload, [3])
    beside = dataclasses.replace(small_spec(2), window=4)
    with pytest.raises(
        TripathError, match=r"workload\.cache: append does not serve model\.window 4 beside attention_mask: full"
    ):
        canvas_of(beside, dataclasses.replace(workload, cache="append"), [3])
    seeded = dataclasses.replace(small_spec(2), seeded_blocks=True)
    with pytest.raises(TripathError, match=r"workload\.cache: dual does not serve model\.seeded_blocks: true, append"):
        canvas_of(seeded, workload, [3])


def test_prompts_that_end_inside_a_block_open_it():
    """Aligned blocks: the tail of a prompt stands in the first one, and another block may follow the last full one."""
    spec = dataclasses.replace(small_spec(2), attention_mask="block_causal")
    workload = Workload(generation_length=16, block_length=8, steps=16, cache="append", batch=3)
    canvas = canvas_of(spec, workload, [3, 8, 21])
    assert (canvas.prompt, canvas.blocks, canvas.rows) == (16, 3, 40)
    assert [canvas.first(s) for s in range(3)] == [16, 8, 0]
    assert [canvas.output(s) for s in range(3)] == [slice(19, 35), slice(16, 32), slice(21, 37)]
    assert [canvas.end(s) for s in range(3)] == [40, 32, 40]
    assert canvas.most_masks == [8, 8, 8]
