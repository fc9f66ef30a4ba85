"""Random models, machines and decodings: every program has no race, equals the reference but for rounding, and is counted alike."""

import dataclasses
import random
from typing import Any

import numpy as np
import pytest

from dllm.experts import Experts
from dllm.model import ModelSpec
from npu_compiler import CompilerOptions
from tests.conftest import compose_experiment
from tripath.api import accuracy, analytical, compile_program, cycle

CASES = 14


def drawn(seed: int) -> tuple[ModelSpec, dict[str, Any], list[str], list[int]]:
    """A model with random weights, a workload's fields, overrides of the machine, and lengths of prompts."""
    rng = random.Random(seed)
    kv_heads, block, batch = rng.choice([1, 2, 3, 5]), rng.choice([4, 8, 16, 32]), rng.choice([1, 2, 3])
    cache = rng.choice(["none", "prefix", "dual", "append"])
    mask = rng.choice(["full", "block_causal", "causal"]) if cache == "append" else "full"
    seeded = cache == "append" and rng.random() < 0.5
    vocab, head_dim = rng.choice([96, 101, 160, 512, 1057]), rng.choice([32, 64, 96, 24, 80])
    experts = rng.choice([
        None, None, Experts(count=8, chosen=2, inner=32, normalised=False),
        Experts(count=16, chosen=3, inner=64, score="sigmoid", bias=True, groups=4, kept_groups=2, scale=2.5, shared=64),
    ])  # fmt: skip
    model = ModelSpec(
        name="drawn", layers=rng.choice([1, 2]), hidden=32 * rng.choice([1, 2, 3, 5, 6, 8]), heads=kv_heads * rng.choice([1, 2, 3]),
        kv_heads=kv_heads, head_dim=head_dim, ffn=32 * rng.choice([2, 4, 7, 10, 14]), vocab=vocab,
        rope_theta=1e4, rms_eps=1e-5, mask_id=1, eos_id=2, max_sequence=4096, qkv_bias=rng.random() < 0.5,
        qk_norm=rng.random() < 0.5, rotary_dim=rng.choice([None, 16]), experts=experts, tied_embeddings=rng.random() < 0.3,
        shifted_logits=rng.random() < 0.5, attention_mask=mask, seeded_blocks=seeded, checkpoint="synthetic",
    )  # fmt: skip
    if seeded and rng.random() < 0.5:
        block = 1
    blocks, steps = rng.choice([1, 2, 3]), rng.choice([1, 2, 4])
    workload = {"cache": cache, "block_length": block, "generation_length": block * blocks, "batch": batch,
                "steps": blocks * min(steps, block)}  # fmt: skip
    smoothed = ["mxint4_baos"] if cache != "append" and head_dim % 32 == 0 else []
    numerics = rng.choice(["mxint8", "mxint4", "mxfp8", "bf16", *smoothed])
    numerics = numerics if experts is None else "bf16"  # a choice between near scores shall not differ often
    machine = [f"hardware.{width}={rng.choice(sizes)}" for width, sizes in (("blen", [4, 8, 16]), ("mlen", [32, 64, 128]),
               ("vlen", [128, 256]))]  # fmt: skip
    return model, workload, [*machine, f"numerics={numerics}"], [rng.randrange(1, 40) for _ in range(batch)]


@pytest.mark.parametrize("seed", range(CASES))
def test_a_drawn_program_is_right_on_every_path(seed):
    model, fields, overrides, lengths = drawn(seed)
    right_on_every_path(model, fields, overrides, lengths, random.Random(~seed).choice(["fused", "stored"]))


@pytest.mark.parametrize("lengths", [[3], [7, 1]], ids=str)
@pytest.mark.parametrize(("shifted", "seeded", "sub_blocks"), [(True, True, 2), (True, False, 1), (False, True, 1)])
def test_a_prompt_that_fills_no_block_needs_no_row_before_it(shifted, seeded, sub_blocks, lengths):
    """The rows are wider than all that lies in front of them in HBM."""
    model, fields, _, _ = drawn(0)
    model = dataclasses.replace(
        model, hidden=512, shifted_logits=shifted, seeded_blocks=seeded, attention_mask="block_causal"
    )
    fields |= {"cache": "append", "block_length": 8, "generation_length": 16, "steps": 16, "batch": len(lengths),
               "commit": "threshold", "threshold": 0.5, "sub_block_length": 8 // sub_blocks}  # fmt: skip
    right_on_every_path(model, fields, ["numerics=bf16"], lengths, "fused")


def right_on_every_path(model, fields, overrides, lengths, sampling):
    """The paths agree on a program, its tokens are the reference's, and the plain schedule has the same ones."""
    x = compose_experiment(
        "paths=[analytical]", "workload.prompt_length=20", "hardware.sram.vector_bytes=4194304",
        "hardware.sram.matrix_bytes=4194304", "hardware.sram.fp_bytes=65536", "hardware.sram.int_bytes=65536", *overrides,
    )  # fmt: skip
    workload = dataclasses.replace(x.workload, **fields)
    program = compile_program(
        model, workload, x.hardware, x.numerics, lengths, CompilerOptions(schedule="pipelined", sampling=sampling)
    )
    prompts = [[3 + (7 * row + place) % (model.vocab - 3) for place in range(n)] for row, n in enumerate(lengths)]
    found = accuracy.simulate(program, model=model, workload=workload, prompts=prompts)
    times = cycle.simulate(program, hardware=x.hardware, trace=found.trace)  # its race check is on
    bound = analytical.simulate(program, hardware=x.hardware, trace=found.trace)
    assert bound.counts == times.counts == found.result.counts
    assert bound.metrics["lower_bound_cycles"] <= times.metrics["makespan_cycles"]
    assert found.result.metrics["logit_kl"] < 0.2
    one_by_one = compile_program(
        model, workload, x.hardware, x.numerics, lengths, CompilerOptions(schedule="plain", sampling=sampling)
    )
    slower = accuracy.simulate(one_by_one, model=model, workload=workload, prompts=prompts)
    assert slower.trace.breaks == found.trace.breaks
    for ours, theirs in zip(found.steps, slower.steps, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert all(
                np.array_equal(getattr(a, name), getattr(b, name)) for name in ("canvas", "logits", "confidence")
            )
