"""Weights that stay while rows pass: no bit changes, and the weights move once a pass."""

import dataclasses
import random

import numpy as np
import pytest

from npu.formats import FORMATS
from npu.formats.rounding import decode_rows, encode_rows
from npu_compiler import CompilerOptions, compile_passes, schedule
from npu_compiler.staying import uses_staying
from tests.conftest import LLADA
from tests.test_shapes import drawn
from tripath.api import accuracy, analytical, compose_experiment, cycle

MEMORY = ("hardware.sram.vector_bytes=4194304", "hardware.sram.matrix_bytes=4194304")
DENSE = ("w_qkv", "w_out", "w_gate", "w_up", "w_down")


def traffic_of(result):
    """Bytes read of each tensor."""
    table = result.tables["traffic"]
    return {row[0]: row[table.columns.index("bytes read")] for row in table.rows}


@pytest.mark.parametrize("name", [name for name, each in FORMATS.items() if not each.integer or each.block_scaled])
@pytest.mark.parametrize("block", [8, 32])
def test_what_a_format_rounded_it_rounds_to_itself(name, block):
    """So activations may lie in HBM in the format to which the array rounds them: of all exponents, and next to each power of two."""
    rng, fmt = np.random.default_rng(3), FORMATS[name]
    rows = rng.normal(size=(4000, block)) * np.exp2(rng.integers(-126, 120, (4000, 1)).astype(float))
    rows[::5] = np.exp2(rng.integers(-120, 120, (800, block))) * (
        2 - np.exp2(-rng.integers(1, 12, (800, block)).astype(float))
    )
    rows[::7] *= rng.random((len(rows[::7]), block)) < 0.3
    given = (rows.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)  # BF16, as the lanes hold it
    memory = np.zeros(len(rows) * fmt.record_bytes(block), np.uint8)
    once, twice = np.zeros_like(given), np.zeros_like(given)
    encode_rows(given, fmt.code, block, memory)
    decode_rows(memory, fmt.code, block, once)
    assert np.array_equal(once.view(np.uint32) & 0xFFFF, np.zeros(once.shape, np.uint32)), "no BF16"
    encode_rows(once, fmt.code, block, memory)
    decode_rows(memory, fmt.code, block, twice)
    assert np.array_equal(once, twice)


@pytest.mark.parametrize("seed", [0, 5, 7, 8, 9, 13])
def test_a_drawn_program_gives_the_same_bits(seed, monkeypatch):
    """However little is saved: random models, machines, masks and cache policies, in chunks of few rows."""
    monkeypatch.setattr("npu_compiler.staying.WORTH", 1.0)
    model, fields, overrides, lengths = drawn(seed)
    x = compose_experiment(
        "paths=[analytical]", "workload.prompt_length=20", *MEMORY, "hardware.sram.fp_bytes=65536",
        "hardware.sram.int_bytes=65536", *overrides,
    )  # fmt: skip
    workload = dataclasses.replace(x.workload, **fields)
    rows = max(random.Random(seed).choice([8, 16, 32]), workload.block_length)
    prompts = [[3 + (7 * row + place) % (model.vocab - 3) for place in range(n)] for row, n in enumerate(lengths)]
    found = {}
    for residency in ("rows", "traffic"):
        options = CompilerOptions(residency=residency, chunk_rows=rows)
        made = compile_passes(model, workload, x.hardware, x.numerics, lengths, options)
        assert uses_staying(made.tree.body) == (residency == "traffic")
        ran = accuracy.simulate(made.program, model=model, workload=workload, prompts=prompts)
        times = cycle.simulate(made.program, hardware=x.hardware, trace=ran.trace)  # its race check is on
        bound = analytical.simulate(made.program, hardware=x.hardware, trace=ran.trace)
        assert bound.counts == times.counts == ran.result.counts
        assert bound.metrics["lower_bound_cycles"] <= times.metrics["makespan_cycles"]
        found[residency] = ran
    rows_pass, weights_stay = found.values()
    assert rows_pass.trace.breaks == weights_stay.trace.breaks
    for ours, theirs in zip(rows_pass.steps, weights_stay.steps, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            for name in ("canvas", "logits", "confidence"):
                assert np.array_equal(getattr(a, name), getattr(b, name))


def large(*overrides):
    """LLaDA-8B, 32 sequences of 64 + 32 tokens in 8 steps, with 4 MiB of Vector SRAM."""
    return compose_experiment(
        *LLADA, "workload.batch=32", "workload.prompt_length=64", "workload.generation_length=32", "workload.steps=8",
        "hardware.sram.vector_bytes=4194304", *overrides,
    )  # fmt: skip


def test_at_batch_32_weights_move_once_a_pass_and_cycles_do_not_rise():
    moved, cycles = {}, {}
    for residency in ("rows", "traffic"):
        x = large(f"compiler.residency={residency}")
        made = compile_passes(x.model, x.workload, x.hardware, x.numerics, [64] * 32, x.compiler)
        facts = {"hardware": x.hardware, "trace": schedule(x.workload)}
        times = cycle.simulate(made.program, **facts, race_check=False)
        moved[residency] = traffic_of(analytical.simulate(made.program, **facts)) | {
            "all": times.counts["hbm_read_bytes"] + times.counts["hbm_write_bytes"]
        }
        cycles[residency] = times.metrics["makespan_cycles"]
    matrices = {tensor.name: tensor.size_bytes for tensor in made.program.hbm if tensor.name in DENSE}
    steps = x.workload.steps
    assert {name: moved["traffic"][name] for name in DENSE} == {name: steps * size for name, size in matrices.items()}
    weights = {key: sum(own[name] for name in (*DENSE, "lm_head")) for key, own in moved.items()}
    assert weights["rows"] > 4 * weights["traffic"]
    assert moved["rows"]["all"] > 3.5 * moved["traffic"]["all"]
    assert cycles["traffic"] < 1.005 * cycles["rows"]


@pytest.mark.parametrize(
    "overrides", [("workload.batch=1",), ("hardware.sram.matrix_bytes=1048576",), ("compiler.schedule=plain",)]
)
def test_where_nothing_is_gained_the_program_is_the_same(overrides):
    """One chunk; a Matrix SRAM that holds no block worth it; a plain schedule."""
    digests = set()
    for residency in ("rows", "traffic"):
        x = large(f"compiler.residency={residency}", *overrides)
        lengths = [64] * x.workload.batch
        digests.add(compile_passes(x.model, x.workload, x.hardware, x.numerics, lengths, x.compiler).program.digest)
    assert len(digests) == 1
