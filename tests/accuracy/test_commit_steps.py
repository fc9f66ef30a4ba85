"""The denoising step at which each token was committed, against a decoder in torch that knows no ISA."""

from collections import Counter

import numpy as np
import pytest

import accuracy.simulator
from npu_compiler import compile_program
from tests.accuracy.torch_llada import TorchLlada, decide
from tests.conftest import PROMPT, compose_experiment

HEAD = "model.transformer.ff_out.weight"
PROMPTS = (PROMPT, "Ali fills 6 bags with 9 candies each. How many candies are there in all?")
"""Confidences on them lie far enough apart that BF16 orders them as float32 does."""
SMALL = (
    "numerics=bf16",
    "workload.batch=2",
    "workload.generation_length=16",
    "workload.steps=8",
    "workload.threshold=0.6",
)


def torch_commit_steps(oracle, ids, workload):
    """Tokens, and for each the step of its block (from 1) at which torch commits it."""
    length, mask = workload.block_length, oracle.spec.mask_id
    canvas, found = np.array([*ids, *[mask] * workload.generation_length]), []
    for start in range(len(ids), len(canvas), length):
        place, committed = slice(start, start + length), np.zeros(length, int)
        for step in range(length):
            masked = canvas[place] == mask
            if not masked.any():
                break
            tokens, _, chosen = decide(
                oracle.block_logits(canvas, start, length, step, workload.cache), masked, workload, step
            )
            canvas[place] = np.where(chosen, tokens, canvas[place])
            committed[chosen.numpy()] = step + 1
        found += committed.tolist()
    return canvas[len(ids) :].tolist(), found


@pytest.mark.parametrize("commit", ["quota", "threshold"])
@pytest.mark.parametrize("cache", ["none", "dual"])
def test_commit_steps_are_those_of_torch(cache, commit, tensors, tokenizer, monkeypatch):
    """The logits are made smaller: the shipped model is so sure that its confidences tie in BF16. They are stored, so that sums are
    of two passes as torch's, and none ties otherwise."""
    x = compose_experiment(*SMALL, "compiler.sampling=stored", f"workload.cache={cache}", f"workload.commit={commit}")
    unsure = {**tensors, HEAD: tensors[HEAD] * np.float32(0.05)}
    monkeypatch.setattr(accuracy.simulator, "load_tensors", lambda _: unsure)
    prompts = [tokenizer.encode(text) for text in PROMPTS]
    program = compile_program(x.model, x.workload, x.hardware, x.numerics, [len(ids) for ids in prompts], x.compiler)
    outcome = accuracy.simulator.simulate(program, model=x.model, workload=x.workload, prompts=prompts)
    expected = [torch_commit_steps(TorchLlada(x.model, unsure), ids, x.workload) for ids in prompts]
    assert outcome.token_ids == [tokens for tokens, _ in expected]
    assert outcome.commit_steps == [steps for _, steps in expected]
    for steps in outcome.commit_steps:
        for block, trips in zip((steps[:8], steps[8:]), outcome.trip_counts, strict=True):
            assert max(block) <= trips
            counts = Counter(block)
            assert (
                counts == dict.fromkeys((1, 2, 3, 4), 2)
                if commit == "quota"
                else set(counts) == {*range(1, max(block) + 1)}
            )
