"""Where a cycle goes: what prolongs the run adds up to phases, steps and the makespan, and HBM is waited for while it is busy."""

import numpy as np
import pytest

import analytical
import cycle
from npu.metrics import UNITS
from npu.program import loop_tree
from tests.conftest import compiled, compose_experiment

CASES = [
    (), ("workload.cache=none",), ("workload.cache=prefix", "workload.batch=3"), ("hardware.execution=serial",),
    ("model=wordmath_block",), ("hardware.hbm.channels=1", "numerics=mxint4_baos"),
]  # fmt: skip


@pytest.fixture(scope="module", params=CASES, ids=str)
def run(request):
    experiment = compose_experiment(*request.param, "workload.generation_length=24", "workload.steps=12")
    program, _ = compiled(experiment)
    trace = experiment.schedule([[0] * 19] * experiment.workload.batch)
    found = cycle.simulate(program, hardware=experiment.hardware, trace=trace, race_check=False)
    return experiment, program, trace, found


def numbers(table, *, of):
    """The sum of columns behind the first `of`, by these."""
    sums = {}
    for row in table.rows:
        sums[tuple(row[:of])] = sums.get(tuple(row[:of]), 0) + sum(row[of:])
    return sums


def test_units_and_causes_add_up_to_each_phase_and_phases_to_the_run(run):
    _, program, _, found = run
    cycles = {row[0]: row[1] for row in found.tables["phases"].rows}
    by_cell = numbers(found.tables["critical"], of=2)
    assert all(value <= cycles[phase] for (phase, _), value in by_cell.items())
    by_phase = dict.fromkeys(cycles, 0)
    for (phase, _), value in by_cell.items():
        by_phase[phase] += value
    assert by_phase == cycles
    assert sum(cycles.values()) == found.metrics["makespan_cycles"]
    columns = found.tables["steps"].columns
    for row in found.tables["steps"].rows:
        assert row[columns.index("cycles")] == sum(row[columns.index(UNITS[0]) :])
        by_phase[row[columns.index("phase")]] -= row[columns.index("cycles")]
    assert not any(by_phase.values())
    assert set(cycles) == set(program.phase_names)


def test_a_step_is_gone_through_as_often_as_the_trace_says(run):
    experiment, program, trace, found = run
    passes = {row[0]: row[1] for row in found.tables["steps"].rows}
    blocks, policy = len(trace.breaks), experiment.workload.caches
    loop = next(loop for loop in loop_tree(program).loops if loop.leaves_early)
    refined = sum(trace.breaks) + (0 if loop.exit is not None and loop.exit < len(loop.body) // 2 else blocks)
    names = {"step": refined, "clean": blocks} if policy.appends else {"step": refined}
    if policy.caches and not policy.appends:
        names = {"warm": blocks, "refine": refined}
    assert {name: passes[name] for name in names} == names
    assert set(passes) - set(names) <= {"setup", "prompt", "first token"}


def test_blocks_end_in_turn_and_the_last_one_with_the_run(run):
    experiment, _, _, found = run
    ends = [row[2] for row in found.tables["blocks"].rows]
    assert np.all(np.diff([0, *ends]) > 0)
    assert found.metrics["first_block_cycles"] == ends[0]
    assert ends[-1] <= found.metrics["makespan_cycles"]
    if not experiment.workload.caches.appends:  # those forward the finished block once more
        assert found.metrics["makespan_cycles"] - ends[-1] < 200


def test_a_run_of_one_block_takes_as_long_as_the_first_of_many():
    """The canvas is as long, so that what a step forwards is the same."""
    ends = []
    for length in (8, 24):
        experiment = compose_experiment(
            "workload.cache=dual", f"workload.generation_length={length}", f"workload.steps={length // 2}"
        )
        program, trace = compiled(experiment, 11 + 32 - length)
        found = cycle.simulate(program, hardware=experiment.hardware, trace=trace, race_check=False)
        ends.append(found.metrics["first_block_cycles"])
    assert ends[1] == pytest.approx(ends[0], rel=0.02)


def test_hbm_is_waited_for_only_while_it_serves_the_other_direction(run):
    experiment, _, _, found = run
    rows = {
        row[0]: dict(zip(found.tables["units"].columns[1:], row[1:], strict=True)) for row in found.tables["units"].rows
    }
    for own, other in (("dma_in", "dma_out"), ("dma_out", "dma_in")):
        served = sum(rows[other][name] for name in ("busy", "dram_row", "dram_refresh"))
        assert rows[own]["dram_bandwidth"] <= served
        assert experiment.hardware.execution == "decoupled" or not rows[own]["dram_bandwidth"]


def test_what_steps_need_at_least_adds_up_to_what_phases_need(run):
    experiment, program, trace, found = run
    result = analytical.simulate(program, hardware=experiment.hardware, trace=trace)
    needed = {}
    for _, _, phase, *loads, _ in result.tables["steps"].rows:
        needed[phase] = np.add(needed.get(phase, 0), loads)
    for phase, *loads, _ in result.tables["phases"].rows:
        assert np.abs(np.subtract(needed[phase], loads)).max() <= len(result.tables["steps"].rows), (
            phase
        )  # each is rounded
    places = {tuple(row[:3]) for row in result.tables["steps"].rows}
    assert {(row[0], row[2], row[3]) for row in found.tables["steps"].rows} <= places
