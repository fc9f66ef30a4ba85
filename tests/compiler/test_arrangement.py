"""What is in flight changes cycles alone; logits that are sampled as they come give the tokens of stored ones."""

import dataclasses

import numpy as np
import pytest

from npu_compiler import CompilerOptions, compile_passes, compile_program, schedule
from npu_compiler.arrangement import MOST_HEADS, PLAIN, Sampling, arrangements
from tests.conftest import LLADA, compose_experiment
from tripath.api import accuracy, cycle


def made(x, **options):
    """What the compiler makes of an experiment, with these options."""
    return compile_passes(
        x.model, x.workload, x.hardware, x.numerics, [19] * x.workload.batch, CompilerOptions(**options)
    )


@pytest.mark.parametrize("kv_heads", [1, 2, 3, 4, 8, 9])
@pytest.mark.parametrize("group", [1, 2, 3, 4, 7])
def test_heads_in_flight_divide_the_heads_and_the_plain_arrangement_comes_last(default_experiment, kv_heads, group):
    model = dataclasses.replace(default_experiment.model, heads=kv_heads * group, kv_heads=kv_heads)
    found = list(arrangements(CompilerOptions(), model, default_experiment.workload))
    assert found[-1] == dataclasses.replace(PLAIN, sampling=Sampling.FUSED)
    for each in found:
        assert kv_heads % each.kv_heads == 0
        assert group % each.queries == 0
        assert 1 <= each.heads <= MOST_HEADS
    assert found[0].heads >= min(2, kv_heads * group)


@pytest.mark.parametrize(
    ("matrix_bytes", "weight_slots", "heads"), [(17280, 4, 4), (17279, 3, 4), (12864, 4, 2), (8640, 2, 2), (8639, 2, 1)]
)
def test_what_matrix_sram_does_not_hold_is_not_in_flight(matrix_bytes, weight_slots, heads):
    """Four panels take 8,448 bytes, a tile of keys and one of values in two slots 4,416 for each KV head."""
    x = compose_experiment(f"hardware.sram.matrix_bytes={matrix_bytes}")
    pipelined, plain = made(x), made(x, schedule="plain")
    found = pipelined.tiling.arrangement
    assert pipelined.program.geometry["matrix_bytes"] <= matrix_bytes
    assert (found.weight_slots, found.heads) == (weight_slots, heads)
    facts = {"hardware": x.hardware, "trace": schedule(x.workload)}
    fast, slow = (cycle.simulate(each.program, **facts).metrics["makespan_cycles"] for each in (pipelined, plain))
    assert (fast < slow) == (found != plain.tiling.arrangement)


def test_more_in_flight_never_makes_chunks_smaller():
    for vector_bytes in range(60000, 200000, 20000):
        x = compose_experiment(f"hardware.sram.vector_bytes={vector_bytes}", "workload.batch=3")
        assert made(x).tiling.chunk_rows >= made(x, schedule="plain").tiling.chunk_rows


@pytest.mark.parametrize(
    "overrides", [(), ("workload.batch=3", "hardware.sram.vector_bytes=80000"), ("workload.cache=none",)]
)
def test_tokens_of_stored_and_of_fused_sampling(overrides):
    """The sum of exponentials is rounded otherwise: each term twice to BF16, against another maximum."""
    x = compose_experiment("numerics=bf16", "workload.generation_length=8", "workload.steps=4", *overrides)
    prompts = [list(range(3, 22))] * x.workload.batch
    records = []
    for sampling in ("stored", "fused"):
        program = made(x, sampling=sampling).program
        assert ("logits" in {each.name for each in program.hbm}) == (sampling == "stored")
        records.append(accuracy.simulate(program, model=x.model, workload=x.workload, prompts=prompts).steps)
    for stored, fused in zip(*records, strict=True):
        first, other = stored[0], fused[0]
        assert np.array_equal(first.logits, other.logits)
        assert np.array_equal(first.token_ids, other.token_ids)
        np.testing.assert_allclose(other.confidence, first.confidence, rtol=2**-6)
        p = np.exp(first.logits.astype(np.float64) - first.logits.max(-1, keepdims=True)).sum(-1)
        np.testing.assert_allclose(other.confidence, 1 / p, rtol=2**-6)


def test_the_vocabulary_takes_no_room_where_sampling_is_fused():
    x = compose_experiment(*LLADA, "workload.batch=32")
    used = set()
    for vocab in (1 << 15, 1 << 18):
        model = dataclasses.replace(x.model, vocab=vocab, mask_id=5, eos_id=6)
        program = compile_program(model, x.workload, x.hardware, x.numerics, [256] * 32)
        used.add(program.geometry["vector_bytes"])
    assert len(used) == 1


def test_fewer_heads_are_in_flight_where_the_address_registers_do_not_suffice(monkeypatch):
    """A mixture on small panels, for half the registers: each head in flight has addresses of its own, and so has each loop over
    experts."""
    monkeypatch.setattr("npu_compiler.emission.ADDRESS_REGISTERS", 512)
    x = compose_experiment("model=wordmath_moe")
    pipelined, plain = made(x), made(x, schedule="plain")
    assert (
        plain.tiling.arrangement.heads
        < pipelined.tiling.arrangement.heads
        < next(arrangements(CompilerOptions(), x.model, x.workload)).heads
    )
