"""The analytical path: counts against a replay, the bound always, the estimate near, and independence of the cycle path."""

import ast
import dataclasses
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import analytical
import cycle
from analytical.overlap import LANES, NEVER, power
from analytical.tree import retirements
from npu.errors import ProgramError
from npu.program.trace import Trace
from tests.conftest import compiled, compose_experiment, with_timing
from tests.cycle.test_fastforward import machine, nests

GRID = [
    *[(f"workload.cache={cache}", f"hardware.execution={execution}") for cache in ("none", "prefix", "dual") for execution in ("serial", "decoupled")],
    ("hardware.blen=4",), ("hardware.mlen=64", "hardware.vlen=128"), ("hardware.hbm.channels=1",), ("hardware.hbm.channels=8",),
    ("workload.batch=4",), ("workload.batch=2", "workload.cache=prefix"), ("workload.block_length=16", "workload.steps=8"),
    ("workload.block_length=32", "workload.steps=8", "hardware.vlen=32"), ("numerics=bf16",), ("numerics=mxint4",),
    *[("hardware.accumulator_sets=2", f"workload.cache={cache}", f"hardware.execution={execution}")
      for cache in ("none", "dual") for execution in ("serial", "decoupled")], ("hardware.accumulator_sets=2", "hardware.blen=4"),
    ("hardware.accumulator_sets=2", "hardware.timing.M_OUT.interval=20"),
    ("hardware.write_out_columns=8",), ("hardware.write_out_columns=2", "hardware.accumulator_sets=2"),
    *[("hardware.fused_exponential=true", f"compiler={compiler}") for compiler in ("plain", "pipelined")],
    ("workload.generation_length=64", "workload.steps=16"), ("hardware.sram.vector_bytes=60000", "workload.cache=none"),
]  # fmt: skip


@pytest.mark.parametrize("overrides", GRID, ids=" ".join)
def test_counts_are_equal_the_bound_holds_and_the_estimate_is_near(overrides):
    short = () if any("steps" in text for text in overrides) else ("workload.steps=8",)
    experiment = compose_experiment(*overrides, *short)
    program, trace = compiled(experiment)
    exact = cycle.simulate(program, hardware=experiment.hardware, trace=trace, race_check=False)
    closed = analytical.simulate(program, hardware=experiment.hardware, trace=trace)
    assert closed.counts == exact.counts
    makespan = exact.metrics["makespan_cycles"]
    assert closed.metrics["lower_bound_cycles"] <= makespan
    assert closed.metrics["lower_bound_cycles"] >= 0.5 * makespan
    assert abs(closed.metrics["estimated_cycles"] - makespan) <= 0.1 * makespan
    for unit in ("matrix", "vector", "scalar"):
        assert closed.metrics[f"busy_cycles.{unit}"] == exact.metrics[f"busy_cycles.{unit}"]


def test_a_short_program_waits_for_its_maximum_and_its_sum():
    """The stage of sampling alone: a few thousand cycles, in which results of whole loops are awaited."""
    experiment = compose_experiment(
        "workload.stage=sampling", "workload.generation_length=8", "workload.steps=1", "workload.prompt_length=8",
        "paths=[analytical,cycle]",
    )  # fmt: skip
    program, trace = compiled(experiment, 8)
    exact = cycle.simulate(program, hardware=experiment.hardware, trace=trace).metrics["makespan_cycles"]
    closed = analytical.simulate(program, hardware=experiment.hardware, trace=trace).metrics
    assert closed["lower_bound_cycles"] <= exact
    assert abs(closed["estimated_cycles"] - exact) <= 0.1 * exact


@settings(max_examples=100, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(nest=nests(), depth=st.sampled_from([1, 4, 32]), sets=st.sampled_from([1, 2]))
def test_the_bound_holds_of_random_nests(nest, depth, sets):
    program, trace = nest
    hardware = machine(depth, 2, "decoupled", {}, 0, sets)
    exact = cycle.simulate(program, hardware=hardware, trace=trace, race_check=False)
    assume(exact.counts["hbm_read_bytes"] + exact.counts["hbm_write_bytes"])
    closed = analytical.simulate(program, hardware=hardware, trace=trace)
    assert closed.metrics["lower_bound_cycles"] <= exact.metrics["makespan_cycles"]


def test_with_two_sets_the_matrix_unit_is_bound_by_products_or_outputs():
    """Each instruction retires as often with one set as with two, and products and outputs take what they took."""
    experiment = compose_experiment("workload.steps=8")
    program, trace = compiled(experiment)
    time = {}
    for sets in (1, 2):
        hardware = dataclasses.replace(experiment.hardware, accumulator_sets=sets)
        time[sets] = analytical.simulate(program, hardware=hardware, trace=trace).metrics
    products = time[2]["busy_cycles.matrix"]
    outputs = time[1]["busy_cycles.matrix"] - products
    assert time[1]["bound_cycles.matrix"] == products + outputs
    assert time[2]["bound_cycles.matrix"] == max(products, outputs)
    assert products > 0
    assert outputs > 0


@lru_cache
def of_policy(cache):
    experiment = compose_experiment(f"workload.cache={cache}", "workload.commit=threshold")
    return experiment, compiled(experiment)[0]


@settings(max_examples=30, deadline=None)
@given(steps=st.lists(st.integers(0, 7), min_size=4, max_size=4), cache=st.sampled_from(["none", "prefix", "dual"]))
def test_counts_follow_any_trace(steps, cache):
    experiment, program = of_policy(cache)
    trace = Trace(breaks=tuple(steps))
    exact = cycle.simulate(program, hardware=experiment.hardware, trace=trace, race_check=False)
    assert analytical.simulate(program, hardware=experiment.hardware, trace=trace).counts == exact.counts
    assert retirements(program, trace).sum() == exact.metrics["instructions"]


@settings(max_examples=50, deadline=None)
@given(
    matrix=arrays(np.float64, (4, 4), elements=st.one_of(st.just(NEVER), st.integers(0, 50).map(float))),
    exponent=st.integers(1, 40),
)
def test_powers_are_repeated_products(matrix, exponent):
    expected = matrix
    for _ in range(exponent - 1):
        expected = (matrix[:, :, None] + expected[None, :, :]).max(axis=1)
    filled = np.full((4, LANES), NEVER)
    filled[:, :4] = matrix
    np.testing.assert_array_equal(power(filled, exponent)[:, :4], expected)
    np.testing.assert_array_equal(power.py_func(filled, exponent), power(filled, exponent))


def test_it_imports_nothing_of_the_cycle_path():
    for file in Path(analytical.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] in ("cycle", "accuracy") for name in names), file.name


def test_a_trace_of_another_program_is_refused(default_experiment):
    program, _ = compiled(default_experiment)
    with pytest.raises(ProgramError, match="2 loop exits, the program has 4"):
        analytical.simulate(program, hardware=default_experiment.hardware, trace=Trace(breaks=(7, 7)))


@pytest.mark.parametrize("mnemonic", ["M_MM", "V_EXP_V", "V_RED_SUM"])
def test_a_slower_unit_never_lowers_bound_or_estimate(mnemonic):
    experiment = compose_experiment("workload.steps=8")
    program, trace = compiled(experiment)
    base = analytical.simulate(program, hardware=experiment.hardware, trace=trace).metrics
    row = experiment.hardware.timing[mnemonic]
    for changes in ({"latency": row.latency + 9}, {"interval": row.interval + 2}):
        slower = with_timing(experiment.hardware, mnemonic, **changes)
        changed = analytical.simulate(program, hardware=slower, trace=trace).metrics
        assert changed["lower_bound_cycles"] >= base["lower_bound_cycles"]
        assert changed["estimated_cycles"] >= base["estimated_cycles"]


def test_bytes_double_with_the_width_of_the_weights():
    read = {}
    for weights in ("mxint4", "mxint8", "bf16", "fp32"):
        experiment = compose_experiment(f"numerics.weights={weights}", "workload.steps=4")
        program, trace = compiled(experiment)
        read[weights] = analytical.simulate(program, hardware=experiment.hardware, trace=trace).counts["hbm_read_bytes"]
    # Weights are the only part that changes: 17, 33, 64 and 128 bytes a block of 32.
    per_byte = (read["mxint8"] - read["mxint4"]) / (33 - 17)
    assert read["bf16"] - read["mxint8"] == pytest.approx(per_byte * (64 - 33))
    assert read["fp32"] - read["bf16"] == pytest.approx(per_byte * 64)


def test_the_simple_memory_takes_the_same_time_at_any_clock():
    """A core of twice the clock is up to twice as fast, and no less than its memory lets it."""
    experiment = compose_experiment("hardware.hbm.model=simple", "hardware.hbm.channels=1", "workload.steps=4")
    program, trace = compiled(experiment)
    for simulator, name in ((analytical, "estimated_cycles"), (cycle, "makespan_cycles")):
        found = {}
        for clock in (1e9, 2e9, 64e9):
            hardware = dataclasses.replace(experiment.hardware, clock_hz=clock)
            metrics = simulator.simulate(program, hardware=hardware, trace=trace).metrics
            found[clock] = metrics["seconds"]
            assert metrics[name] == pytest.approx(metrics["seconds"] * clock)
        counts = simulator.simulate(program, hardware=experiment.hardware, trace=trace).counts
        moved = counts["hbm_read_bytes"] + counts["hbm_write_bytes"]
        assert found[1e9] / 2 < found[2e9] < found[1e9]
        assert found[64e9] >= moved / 32e9  # 32 bytes a nanosecond
