"""The compiler: size, capacity errors, and work that follows the formulas of the cache policies."""

import dataclasses
import time

import pytest

from analytical.tree import retirements
from npu.errors import CapacityError, TripathError
from npu.hardware import Host
from npu.isa import Unit
from npu.program.tables import event_counts, tabulate
from npu.program.trace import Trace
from npu_compiler import compile_program, schedule, target
from tests.conftest import LLADA, compiled, compose_experiment


def test_llada_8b_compiles_in_a_second_to_a_few_thousand_words():
    experiment = compose_experiment(*LLADA)
    began = time.process_time()  # the suite shares its cores
    program, _ = compiled(experiment, 256)
    assert time.process_time() - began < 1.0
    assert len(program.words) < 10_000
    assert program.layout["canvas"] == 512


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_size_does_not_grow_with_layers_blocks_or_steps(cache):
    small = compose_experiment(
        f"workload.cache={cache}", "model.layers=2", "workload.generation_length=16", "workload.steps=16"
    )
    large = compose_experiment(
        f"workload.cache={cache}", "model.layers=8", "workload.generation_length=64", "workload.steps=32"
    )
    words = [len(compiled(experiment)[0].words) for experiment in (small, large)]
    assert abs(words[0] - words[1]) <= 4  # one loop more where the smaller has a single iteration


def forwarded_rows(workload, canvas):
    """Rows through the layers over a whole generation, by facts/diffusion.md: T * S, S + (T-1)(S-b), S + (T-1) L."""
    total, steps, length = 0, workload.steps_per_block, workload.block_length
    for block in range(workload.blocks):
        start = canvas - workload.generation_length + block * length
        refine = {"none": canvas, "prefix": canvas - start, "dual": length}[workload.cache]
        total += canvas + (steps - 1) * refine
    return total


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize(
    ("overrides", "prompt"),
    [
        ((), 19),
        (("workload.batch=3",), 8),
        (("workload.block_length=16", "workload.steps=8"), 40),
        (("hardware.sram.vector_bytes=60000", "workload.batch=2"), 30),
        (("workload.block_length=32", "workload.generation_length=64", "hardware.mlen=64"), 33),
    ],
)
def test_macs_are_those_of_the_forwarded_rows(cache, overrides, prompt):
    experiment = compose_experiment(f"workload.cache={cache}", *overrides)
    program, trace = compiled(experiment, prompt)
    model, workload, layout = experiment.model, experiment.workload, program.layout
    assert layout["canvas"] == -(-prompt // workload.block_length) * workload.block_length + workload.generation_length
    rows = workload.batch * forwarded_rows(workload, layout["canvas"])
    attention = 2 * layout["cache_tokens"] * model.query_width
    head_rows = workload.batch * workload.steps * workload.block_length
    expected = (
        rows * (model.network.layer_macs_per_row + model.layers * attention) + head_rows * model.hidden * model.vocab
    )
    assert event_counts(program, retirements(program, trace))["macs"] == expected


def test_cached_policies_forward_less(default_experiment):
    macs = {}
    for cache in ("none", "prefix", "dual"):
        program, trace = compiled(compose_experiment(f"workload.cache={cache}"))
        macs[cache] = event_counts(program, retirements(program, trace))["macs"]
    assert macs["dual"] < macs["prefix"] < macs["none"]


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (("hardware.sram.vector_bytes=9000",), CapacityError, r"hardware.sram.vector_bytes: working set .* exceeds .* \(phase "),
        (("hardware.sram.matrix_bytes=1000",), CapacityError, r"matrix_bytes: .* exceeds 1000 B \(phase ffn, hardware npu_small\)"),
        (("hardware.sram.fp_bytes=100",), CapacityError, "hardware.sram.fp_bytes"),
        (("hardware.sram.int_bytes=100",), CapacityError, "hardware.sram.int_bytes"),
        (("model=llada_8b", "hardware=npu_datacenter", "hardware.hbm.channels=1", "numerics=mxint8", "paths=[analytical]"), CapacityError,
         r"hardware.hbm.channels: .* need .* GiB, limit 2 GiB \(1 channels of hbm2e"),
        (("hardware.blen=64",), TripathError, "hardware.blen: 64 does not divide model.head_dim 32"),
        (("workload.generation_length=256", "workload.steps=256"), TripathError, "exceed the model's context of 256 tokens"),
        (("hardware.vlen=32", "model.head_dim=64", "hardware.mlen=64"), TripathError, "model.head_dim: 64 exceeds"),
        (("hardware.vlen=32", "workload.block_length=64", "workload.generation_length=64", "workload.steps=64"), TripathError,
         "block_length|key tile"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(overrides, error, message):
    experiment = compose_experiment(*overrides)
    with pytest.raises(error, match=message) as caught:
        compiled(experiment)
    assert "\n" not in str(caught.value)


def test_an_empty_prompt_and_a_wrong_batch_are_refused(default_experiment):
    x = default_experiment
    with pytest.raises(TripathError, match="prompt is empty"):
        compile_program(x.model, x.workload, x.hardware, x.numerics, [0])
    with pytest.raises(TripathError, match="1 sequences but 2 prompts"):
        compile_program(x.model, x.workload, x.hardware, x.numerics, [5, 5])


def test_compilation_is_deterministic(default_experiment):
    assert compiled(default_experiment)[0].digest == compiled(default_experiment)[0].digest


def test_every_phase_and_unit_occurs(default_experiment):
    program, _ = compiled(default_experiment)
    assert set(program.phase_names) == {
        "setup",
        "embed",
        "qkv",
        "attention",
        "out",
        "ffn",
        "lm_head",
        "sampling",
        "commit",
    }
    assert set(tabulate(program).unit.tolist()) == {int(unit) for unit in Unit}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_length": 7}, "workload.block_length"),
        ({"generation_length": 30}, "multiple of workload.block_length"),
        ({"steps": 30}, "multiple of the number of blocks"),
        ({"steps": 64}, "commits at least one token"),
        ({"batch": 0}, "workload.batch"),
        ({"cache": "all"}, "unknown 'all'"),
        ({"commit": "all"}, "unknown 'all'"),
        ({"threshold": 1.5}, "workload.threshold"),
        ({"prompt_length": 0}, "workload.prompt_length"),
    ],
)
def test_workloads_check_themselves(default_experiment, changes, message):
    with pytest.raises(TripathError, match=message):
        dataclasses.replace(default_experiment.workload, **changes)


def test_quotas_sum_to_the_block(default_experiment):
    for steps in (4, 8, 12, 20, 32):
        workload = dataclasses.replace(default_experiment.workload, steps=steps)
        quotas = workload.quotas()
        assert sum(quotas) == workload.block_length
        assert max(quotas) - min(quotas) <= 1
        assert sorted(quotas, reverse=True) == quotas


def test_schedule_has_one_exit_per_block(default_experiment):
    assert schedule(default_experiment.workload) == Trace(breaks=(7, 7, 7, 7))


def test_a_program_depends_on_no_more_of_the_hardware_than_its_target():
    x = compose_experiment("workload.steps=4")
    h = x.hardware
    others = {
        "clock_hz": 2 * h.clock_hz, "execution": "serial", "queue_depth": dict.fromkeys(h.queue_depth, 1),
        "accumulator_sets": 2, "write_out_columns": 2, "dma_outstanding": 1 + h.dma_outstanding, "frontend": dataclasses.replace(h.frontend, address_step_cycles=1),
        "timing": {name: dataclasses.replace(row, latency=row.latency + 1) for name, row in h.timing.items()},
        "hbm": dataclasses.replace(h.hbm, channels=2 * h.hbm.channels, interleave_bytes=2 * h.hbm.interleave_bytes, refresh="absolute",
                                   address_mapping="RoBaRaCoCh", page_bytes=2 * h.hbm.page_bytes,
                                   rows=h.hbm.rows // 2, model="simple"),
    }  # fmt: skip
    own = {"name": "other", "blen": 2 * h.blen, "mlen": 2 * h.mlen, "vlen": 2 * h.vlen, "prefetch_rows": 1, "fused_exponential": True,
           "sram": dataclasses.replace(h.sram, fp_bytes=2 * h.sram.fp_bytes)}  # fmt: skip
    checked = {
        "host": Host(link_bytes_per_s=1e9, link_latency_s=0.0, sampling_bytes_per_s=1e9),
        "append_only_cache": True,
    }
    assert {*others, *own, *checked} == {field.name for field in dataclasses.fields(h)}
    for name, value in checked.items():  # the programs of such machines: tests/test_host.py
        assert target(dataclasses.replace(h, **{name: value})) == target(h), name
    digest = compiled(x)[0].digest
    for name, value in others.items():
        other = dataclasses.replace(h, **{name: value})
        assert target(other) == target(h), name
        assert compiled(dataclasses.replace(x, hardware=other))[0].digest == digest, name
    for name, value in own.items():
        assert target(dataclasses.replace(h, **{name: value})) != target(h), name
