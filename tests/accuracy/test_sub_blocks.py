"""Blocks that are filled part by part (Fast-dLLM v2): against its rule in torch, and the program against the reference."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dllm.decoding import generate
from dllm.reference import ReferenceModel
from dllm.workload import Workload
from npu.errors import TripathError
from npu.program.exits import steps_of_blocks
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
FAST_DLLM_V2 = {"attention_mask": "block_causal", "shifted_logits": True, "seeded_blocks": True}
PROMPT = "Tom has 12 apples and finds 30 more. How many apples does Tom have now?"


def decode(spec, tensors, prompt, workload):
    """Tokens, and of each step (first position, whether the whole block was forwarded, canvas, logits of the part).

    As `generate` of Fast-dLLM v2 does it with `small_block_size` and `use_block_cache`: K and V of finished blocks stay; the rows
    of a part are forwarded alone once the block has K and V and the part's first token is no mask.
    """
    twin, mask = oracle.TorchLlada(spec, tensors), spec.mask_id
    length, part = workload.block_length, workload.sub_block_length
    first = len(prompt) // length * length
    blocks = -(-(len(prompt) - first + workload.generation_length) // length)
    canvas, steps = [*prompt, *[mask] * (first + blocks * length - len(prompt))], []
    groups = torch.arange(len(canvas)) // length
    for each in range(spec.layers):
        shape = (len(canvas), spec.kv_heads, spec.head_dim)
        twin.cache[each] = (torch.zeros(shape).double(), torch.zeros(shape).double())

    def forward(rows):
        return twin.forward(canvas, rows, keep=True, visible=groups[rows, None] >= groups[None])

    before = forward(slice(0, first))[-1:] if first else None
    for start in range(first, len(canvas), length):
        own, cached = slice(start, start + length), False
        if before is not None and canvas[start] == mask:
            canvas[start] = int(before[0].argmax())
        elif before is None:
            before = torch.zeros(1, spec.vocab).double()
        rows_of_block = torch.zeros(length, spec.vocab).double()
        for begin in range(start, start + length, part):
            place = slice(begin, begin + part)
            while mask in canvas[place]:
                alone = workload.sub_block_cache and cached and canvas[begin] != mask
                rows = place if alone else own
                rows_of_block[rows.start - start : rows.stop - start] = forward(rows)
                cached = True
                shifted = torch.cat([before, rows_of_block[:-1]])[begin - start :][:part]
                probability, ids = shifted.softmax(-1).max(-1)
                masked = torch.tensor([token == mask for token in canvas[place]])
                steps.append((begin - start, not alone, list(canvas), shifted.numpy(), masked.numpy()))
                chosen = masked & (probability >= workload.threshold)
                chosen[torch.where(masked, probability, -1.0).argmax()] = True
                for at in range(part):
                    canvas[begin + at] = int(ids[at]) if chosen[at] else canvas[begin + at]
        before = forward(own)[-1:]
    return canvas[len(prompt) : len(prompt) + workload.generation_length], steps


@pytest.mark.parametrize("threshold", [0.3, 0.95])
@pytest.mark.parametrize("prompt", [1, 16, 22])
@pytest.mark.parametrize("cached", [False, True])
def test_parts_are_filled_by_the_published_rule(cached, prompt, threshold):
    spec = dataclasses.replace(small_spec(2), **FAST_DLLM_V2)
    workload = Workload(
        generation_length=32, block_length=16, steps=32, cache="append", commit="threshold", threshold=threshold,
        sub_block_length=4, sub_block_cache=cached,
    )  # fmt: skip
    tensors, tokens = random_tensors(spec, 5), np.random.default_rng(prompt).integers(3, spec.vocab, prompt).tolist()
    tensors["model.transformer.ff_out.weight"][spec.mask_id] = (
        0.0  # the published loop never ends where the mask is likeliest
    )
    ids, expected = decode(spec, tensors, tokens, workload)
    mine = generate(ReferenceModel(spec, tensors), tokens, workload)
    assert [(s.loop.first, not s.loop.alone) for s in mine.steps] == [(first, whole) for first, whole, *_ in expected]
    for record, (_, _, canvas, logits, masked) in zip(mine.steps, expected, strict=True):
        np.testing.assert_array_equal(record.canvas, canvas)
        np.testing.assert_allclose(record.logits[masked], logits[masked], rtol=1e-4, atol=1e-4)
    assert mine.token_ids == ids
    assert any(record.loop.alone for record in mine.steps) == cached


def outcome(folder, *more):
    """The program's run on trained weights, whose logits are rarely near ties; without a config.json they belong to any model."""
    for file in ("model.safetensors", "tokenizer.json"):
        (folder / file).symlink_to(WEIGHTS / file)
    x = compose_experiment(
        *(f"model.{key}={str(value).lower()}" for key, value in FAST_DLLM_V2.items()), "numerics=bf16", "workload.cache=append",
        "workload.commit=threshold", "workload.threshold=0.999", "workload.generation_length=32", "workload.block_length=16",
        "workload.steps=32", "workload.batch=2", "workload.sub_block_length=4", f"model.checkpoint={folder}", *more,
    )  # fmt: skip
    prepared = prepare(x, PROMPT)
    found = accuracy.simulate(prepared.program, model=x.model, workload=x.workload, prompts=prepared.token_ids)
    return x, prepared.program, found


@pytest.mark.parametrize("more", [
    [], ["workload.sub_block_cache=true"], ["workload.sub_block_cache=true", "compiler=plain", "compiler.sampling=stored"],
    ["workload.sub_block_cache=true", "workload.stop_at_end=true"], ["numerics.block_size=8", "workload.sub_block_cache=true"],
], ids=["whole", "cached", "plain", "stops", "blocks of 8"])  # fmt: skip
def test_the_program_equals_the_reference(more, tmp_path):
    x, program, found = outcome(tmp_path, *more)
    metrics = found.result.metrics
    assert metrics["logit_kl"] < 2e-3
    assert metrics["argmax_agreement"] > 0.97
    assert metrics["token_agreement"] > 0.95
    assert metrics["denoising_steps"] > len(found.trip_counts) * 4  # more than one step in some part
    assert steps_of_blocks(program, found.trace.breaks) == found.trip_counts
    times = cycle.simulate(program, hardware=x.hardware, trace=found.trace)
    bound = analytical.simulate(program, hardware=x.hardware, trace=found.trace).metrics
    assert bound["lower_bound_cycles"] <= times.metrics["makespan_cycles"]
    assert times.metrics["makespan_cycles"] == pytest.approx(bound["estimated_cycles"], rel=0.06)
    rows = times.tables["blocks"].rows
    assert [steps for _, steps, *_ in rows] == found.trip_counts
    kinds = {row[0]: row[1] for row in times.tables["steps"].rows}
    alone = sum(record.loop.alone for record in found.steps[0])
    assert kinds["sub-block"] == 4 * len(rows)
    if x.workload.sub_block_cache:
        assert (kinds["warm"], kinds["refine"]) == (sum(found.trip_counts) - alone, alone)
        assert alone > 0
    else:
        assert kinds["step"] == sum(found.trip_counts)


@pytest.mark.parametrize("more", [[], ["compiler=plain", "compiler.sampling=stored"]], ids=["fused", "stored"])
def test_drawn_tokens_are_those_of_the_reference(more, tmp_path):
    """Each step of a part has random numbers of its own, for each sequence of the batch."""
    _, _, found = outcome(
        tmp_path, "workload.sub_block_cache=true", "workload.temperature=1.5", "workload.seed=3", *more
    )
    assert found.token_ids[0] != found.token_ids[1]
    assert found.result.metrics["argmax_agreement"] > 0.95
    assert found.result.metrics["token_agreement"] > 0.6


def test_the_published_model_fills_parts_of_8_by_default():
    x = compose_experiment(
        "model=fast_dllm_v2_7b", "hardware=npu_datacenter", "workload.prompt_length=64", "paths=[cycle]"
    )
    assert (x.workload.block_length, x.workload.sub_block_length, x.workload.sub_blocks) == (32, 8, 4)
    whole = compose_experiment("model=fast_dllm_v2_7b", "workload.prompt_length=64", "workload.block_length=4",
                               "paths=[cycle]")  # fmt: skip
    assert whole.workload.sub_blocks == 1


@pytest.mark.parametrize("masks", [31, 32, 22, 8, 3])
@pytest.mark.parametrize("steps", [32, 8])
@pytest.mark.parametrize("cached", [False, True])
def test_scheduled_steps_follow_the_masks_of_each_part(cached, steps, masks):
    """Counted one by one: a part of n masks takes n / (32 / steps) steps, the first of which forwards the whole block."""
    workload = Workload(generation_length=32, block_length=32, steps=steps, cache="append", commit="threshold",
                        sub_block_length=8, sub_block_cache=cached)  # fmt: skip
    found = iter(workload.scheduled_loops(1, masks))
    canvas, begun = [False] * (32 - masks) + [True] * masks, False
    for first in range(0, 32, 8):
        part = canvas[first : first + 8]
        taken = -(-sum(part) // (32 // steps))
        if not cached:
            assert next(found) == taken
            continue
        whole = int(any(part) and (part[0] or not begun))
        assert (next(found), next(found)) == (whole, taken - whole)
        begun |= whole
    assert next(found, None) is None


@pytest.mark.parametrize(("more", "key"), [
    (["workload.cache=dual"], "cache=dual"), (["workload.commit=quota"], "commit=quota"),
    (["workload.edit_threshold=0.5"], "edit_threshold=0.5"), (["workload.sub_block_length=32"], "exceeds workload.block_length 16"),
    (["workload.sub_block_length=16", "workload.sub_block_cache=true"], "needs blocks of several parts"),
    (["compiler.sampling=host", "hardware=npu_host_sampling"], "host leaves commits to the host"),
])  # fmt: skip
def test_what_parts_do_not_go_with_is_refused_by_name(more, key):
    base = [*(f"model.{key}={str(value).lower()}" for key, value in FAST_DLLM_V2.items()), "workload.cache=append",
            "workload.commit=threshold", "workload.generation_length=32", "workload.block_length=16", "workload.steps=32",
            "workload.sub_block_length=4"]  # fmt: skip
    with pytest.raises(TripathError, match=r"workload\.sub_block_") as raised:
        prepare(compose_experiment(*base, *more), PROMPT)
    assert key in str(raised.value)
