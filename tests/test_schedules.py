"""The search for a schedule: never slower than the one it starts from, by the same cycle path, with the same bits, kept."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

import tripath.run.schedules
from npu.errors import TripathError
from npu_compiler import CompilerOptions, compile_program
from tests.conftest import LLADA, PROMPT, compose_experiment
from tests.test_cli import tripath_command  # noqa: F401  a fixture
from tests.test_explanation import facts
from tripath.api import accuracy, cycle
from tripath.run.job import compile_key, prepare
from tripath.run.results import NO_CACHE, Cache
from tripath.run.schedules import axes, search

SHORT = ("paths=[analytical,cycle]", "workload.prompt_length=19", "workload.generation_length=16", "workload.steps=4")
PROMPTS = [[3 + place for place in range(19)]]


def cycles(x, options):
    program = compile_program(x.model, x.workload, x.hardware, x.numerics, [19] * x.workload.batch, options)
    trace = x.schedule(PROMPTS * x.workload.batch, program)
    return cycle.simulate(program, hardware=x.hardware, trace=trace).metrics["makespan_cycles"]


@pytest.mark.parametrize("overrides", [
    (), ("workload.cache=none", "hardware.sram.vector_bytes=65536"), ("hardware.sram.matrix_bytes=20000",),
    ("model=wordmath_block", "workload.batch=3"), ("hardware.execution=serial",),
])  # fmt: skip
def test_what_is_chosen_takes_no_more_cycles_than_pipelined(overrides):
    x = compose_experiment(*SHORT, "compiler=auto", *overrides)
    found = search(x, PROMPTS * x.workload.batch, NO_CACHE)
    assert found.cycles <= found.pipelined_cycles
    assert found.cycles == cycles(x, found.options)
    assert found.pipelined_cycles == cycles(x, dataclasses.replace(x.compiler, schedule="pipelined"))
    assert found.options.sampling == x.compiler.sampling
    assert found.proposed >= found.confirmed >= 1


def test_more_panels_are_found_where_few_descriptors_hide_little(monkeypatch):
    """A memory of a long latency: what brute force over all values finds fastest is among what the search proposes."""
    x = compose_experiment(
        *SHORT, "compiler=auto", "hardware.hbm.model=simple", "hardware.hbm.read_latency_cycles=2000"
    )
    monkeypatch.setattr(
        tripath.run.schedules, "axes", lambda _: {"weight_slots": (2, 4, 8), "heads": (1, 4), "ffn_slice": (None, 32)}
    )
    pipelined = dataclasses.replace(x.compiler, schedule="pipelined")
    every = [
        cycles(x, dataclasses.replace(pipelined, weight_slots=slots, heads=heads, ffn_slice=columns))
        for slots, heads, columns in itertools.product((2, 4, 8), (1, 4), (None, 32))
    ]
    found = search(x, PROMPTS, NO_CACHE)
    assert found.options.weight_slots == 8
    assert found.cycles == min(every) < cycles(x, pipelined)
    assert "the array" in found.because


@pytest.mark.parametrize("options", [
    {"weight_slots": 7, "heads": 2, "ffn_slice": 32, "chunk_rows": 16}, {"weight_slots": 2, "heads": 8, "chunk_rows": 24},
    {"heads": 1, "ffn_slice": 32, "chunk_rows": 8},
])  # fmt: skip
def test_no_key_that_is_searched_changes_a_bit(options):
    x = compose_experiment("workload.generation_length=16", "workload.steps=4", "numerics=mxint4")
    prompts, found, digests = prepare(x, PROMPT).token_ids, [], set()
    for changed in ({}, options):
        program = compile_program(
            x.model, x.workload, x.hardware, x.numerics, [len(prompts[0])], CompilerOptions(**changed)
        )
        digests.add(program.digest)
        found.append(accuracy.simulate(program, model=x.model, workload=x.workload, prompts=prompts).steps)
    assert len(digests) == 2
    for ours, theirs in zip(*found, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert all(
                np.array_equal(getattr(a, name), getattr(b, name)) for name in ("canvas", "logits", "confidence")
            )


def test_every_key_that_is_searched_is_one_of_the_compiler(default_experiment):
    assert set(axes(default_experiment)) <= {each.name for each in dataclasses.fields(CompilerOptions)}


def test_a_choice_is_kept(tmp_path, monkeypatch):
    x, cache = compose_experiment(*SHORT, "compiler=auto"), Cache(tmp_path)
    first = search(x, PROMPTS, cache)
    monkeypatch.setattr(tripath.run.schedules, "compile_program", None)
    assert search(x, PROMPTS, cache) == first
    other = dataclasses.replace(x, hardware=dataclasses.replace(x.hardware, dma_outstanding=1))
    with pytest.raises(TypeError):  # another machine is searched anew
        search(other, PROMPTS, cache)


def test_programs_of_a_search_depend_on_the_whole_machine():
    keys = {
        compile_key(compose_experiment(*SHORT, f"compiler={compiler}", f"hardware.dma_outstanding={number}"), None)
        for compiler in ("auto", "pipelined")
        for number in (4, 8)
    }
    assert len(keys) == 3


def test_a_compiler_alone_refuses_to_search():
    x = compose_experiment(*SHORT, "compiler=auto")
    with pytest.raises(TripathError, match=r"compiler\.schedule: auto is a search"):
        compile_program(x.model, x.workload, x.hardware, x.numerics, [19], x.compiler)


def test_chunks_that_hold_no_block_are_refused():
    x = compose_experiment(*SHORT, "model=wordmath_block", "compiler.chunk_rows=4")
    with pytest.raises(TripathError, match=r"compiler\.chunk_rows: too few for a block of 8 rows"):
        compile_program(x.model, x.workload, x.hardware, x.numerics, [19], x.compiler)


def test_a_run_says_what_was_chosen_and_why(tripath_command, tmp_path):  # noqa: F811
    status, _, errors = tripath_command(*SHORT, "tracking=off", "compiler=auto", "hydra.run.dir=run")
    assert status == 0, errors
    value, meaning = facts(tmp_path / "run")["schedule"]
    assert value == "auto"
    assert "compiler.weight_slots=" in meaning
    assert "because" in meaning
    x = compose_experiment(*SHORT, *meaning.partition(":")[0].split(", "))
    program = compile_program(x.model, x.workload, x.hardware, x.numerics, [19], x.compiler)
    assert json.loads((tmp_path / "run" / "report.json").read_text())["program"]["digest"] == program.digest
    status, _, errors = tripath_command(*SHORT, "tracking=off", "hydra.run.dir=plain")
    assert status == 0, errors
    assert "schedule" not in facts(tmp_path / "plain")


def test_a_large_model_gains():
    x = compose_experiment(
        *LLADA, "workload.prompt_length=64", "workload.generation_length=32", "workload.steps=2", "model.layers=2",
        "hardware.sram.vector_bytes=4194304", "workload.batch=4", "compiler=auto",
    )  # fmt: skip
    found = search(x, [[7] * 64] * 4, NO_CACHE)
    assert found.cycles < found.pipelined_cycles
