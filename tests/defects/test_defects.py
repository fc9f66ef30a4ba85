"""Seeded defects: one thing wrong in one path at a time; the shipped checks must report each, by name."""

import dataclasses

import numpy as np
import pytest

import analytical
import cycle
from accuracy import simulator as accuracy_simulator
from accuracy.image import build_image
from analytical import overlap, tree
from analytical import simulator as analytical_simulator
from cycle import simulator as cycle_simulator
from cycle.code import UNIT_MATRIX
from npu.program import tables
from npu.program.trace import Trace
from tests.conftest import PROMPT, compiled, compose_experiment
from tripath.validation import validate

QUICK = ("workload.generation_length=16", "workload.steps=16")


@pytest.fixture(scope="module")
def clean(tokenizer):
    """Experiment, program, prompt, and the outcome of the accuracy path without a defect."""
    experiment = compose_experiment(*QUICK)
    program, _ = compiled(experiment)
    prompts = [tokenizer.encode(PROMPT)]
    outcome = accuracy_simulator.simulate(
        program, model=experiment.model, workload=experiment.workload, prompts=prompts
    )
    return experiment, program, prompts, outcome


def failures(clean, *, rerun=()):
    """Names of failed checks when the three paths are compared; paths in `rerun` run anew (with the defect)."""
    experiment, program, prompts, outcome = clean
    if "accuracy" in rerun:
        outcome = accuracy_simulator.simulate(
            program, model=experiment.model, workload=experiment.workload, prompts=prompts
        )
    results = {
        "accuracy": outcome.result,
        "cycle": cycle.simulate(program, hardware=experiment.hardware, trace=outcome.trace),
        "analytical": analytical.simulate(program, hardware=experiment.hardware, trace=outcome.trace),
    }
    rows = validate(results, experiment.settings)
    return {(row.kind, row.metric) for row in rows if not row.passed}


def test_without_a_defect_nothing_fails(clean):
    assert failures(clean) == set()


def wrong_fact(monkeypatch, mnemonic, field, change):
    """Corrupt the cycle path's loaded copy of one fact."""
    original = cycle_simulator.code_of

    def corrupted(program, hardware):
        code = original(program, hardware)
        for number, instruction in enumerate(program.instructions):
            if instruction.mnemonic == mnemonic:
                code[field][number] = change(code[field][number])
        return code

    monkeypatch.setattr(cycle_simulator, "code_of", corrupted)


@pytest.mark.parametrize(
    ("mnemonic", "field", "change", "expected"),
    [
        ("M_MM", "interval_cycles", lambda x: x + 1, ("count", "busy_cycles.matrix")),
        ("M_OUT", "interval_cycles", lambda x: x - 1, ("count", "busy_cycles.matrix")),
        ("V_EXP_V", "interval_cycles", lambda x: x + 1, ("count", "busy_cycles.vector")),
        ("S_RECI_FP", "interval_cycles", lambda x: x + 1, ("count", "busy_cycles.scalar")),
        ("M_OUT", "latency_cycles", lambda x: x + 400, ("estimate", "makespan_cycles")),
        ("M_MM", "interval_cycles", lambda x: 0 * x, ("bound", "makespan_cycles")),
    ],
)
def test_cycle_with_a_wrong_fact(clean, monkeypatch, mnemonic, field, change, expected):
    wrong_fact(monkeypatch, mnemonic, field, change)
    assert expected in failures(clean)


def test_cycle_with_a_wrong_byte_count(clean, monkeypatch):
    original = cycle_simulator.code_of

    def corrupted(program, hardware):
        code = original(program, hardware)
        loads = [n for n, i in enumerate(program.instructions) if i.mnemonic == "H_LOAD_M"]
        code["hbm_bytes"][loads[0]] += 1
        return code

    monkeypatch.setattr(cycle_simulator, "code_of", corrupted)
    assert ("count", "hbm_read_bytes") in failures(clean)


def test_cycle_with_a_loop_run_once_too_seldom(clean, monkeypatch):
    original = cycle_simulator.simulate

    def corrupted(program, *, hardware, trace):
        shorter = Trace(breaks=tuple(index - 1 for index in trace.breaks), gathers=trace.gathers)
        return dataclasses.replace(original(program, hardware=hardware, trace=shorter), trace_digest=trace.digest)

    monkeypatch.setattr(cycle, "simulate", corrupted)
    found = failures(clean)
    assert {("count", "instructions"), ("count", "macs"), ("count", "instructions.M_MM")} <= found


def test_cycle_with_memory_at_a_tenth_of_its_bandwidth(clean, monkeypatch):
    original = cycle_simulator.DescriptorCosts.fill

    def corrupted(costs, number):
        original(costs, number)
        costs.table["data"][number] *= 10

    monkeypatch.setattr(cycle_simulator.DescriptorCosts, "fill", corrupted)
    assert ("estimate", "makespan_cycles") in failures(clean)


def slow_matrix_unit(code, facts):
    code["interval_cycles"][code["unit"] == UNIT_MATRIX] += 1


def late_results(code, facts):
    code["latency_cycles"] += 400


def ignored_semaphores(code, facts):
    code["wait"], code["signal"] = 0, 0


def one_instruction_at_a_time(code, facts):
    facts["serial"] = 1


@pytest.mark.parametrize(
    ("defect", "expected"),
    [
        (slow_matrix_unit, ("count", "busy_cycles.matrix")),
        (late_results, ("estimate", "makespan_cycles")),
        (ignored_semaphores, ("bound", "makespan_cycles")),
        (one_instruction_at_a_time, ("estimate", "makespan_cycles")),
    ],
)
def test_analytical_knows_nothing_of_a_defect_in_cycle(clean, monkeypatch, defect, expected):
    """A wrong fact as cycle loaded it, or a wrong rule: the other path's numbers stay, and the comparison tells."""
    experiment, program, _, outcome = clean
    machine = cycle_simulator.run

    def numbers(simulate):
        fresh = dataclasses.replace(program)  # nothing counted before is known
        return simulate(fresh, hardware=experiment.hardware, trace=outcome.trace).metrics

    def defective(code, operands, facts, *others):
        defect(code, facts)
        return machine(code, operands, facts, *others)

    own, others = numbers(analytical.simulate), numbers(cycle.simulate)
    monkeypatch.setattr(cycle_simulator, "run", defective)
    assert numbers(analytical.simulate) == own
    assert numbers(cycle.simulate) != others
    assert expected in failures(clean)


def test_analytical_with_a_wrong_trip_count(clean, monkeypatch):
    original = tree.TripCounts.of
    monkeypatch.setattr(tree.TripCounts, "of", lambda self, loop: original(self, loop) + (loop.trips.base == 512 // 64))
    experiment, program, *others = clean
    fresh = dataclasses.replace(program)  # what was counted without the defect is a fact of the other
    assert ("count", "instructions.V_RED_MAX_IDX") in failures((experiment, fresh, *others))


def test_analytical_with_a_wrong_work_count(clean, monkeypatch):
    original = tables.event_counts

    def corrupted(program, retired):
        counts = original(program, retired)
        return {**counts, "macs": counts["macs"] + 1}

    monkeypatch.setattr(analytical_simulator, "event_counts", corrupted)
    assert failures(clean) == {("count", "macs")}


def test_analytical_with_a_bound_that_can_be_beaten(clean, monkeypatch):
    original = overlap.bound_cycles
    monkeypatch.setattr(analytical_simulator, "bound_cycles", lambda *arguments: 1.5 * original(*arguments))
    assert failures(clean) == {("bound", "makespan_cycles")}


def test_analytical_that_forgets_overlap(clean, monkeypatch):
    monkeypatch.setattr(overlap, "makespan", overlap.makespan.py_func)  # interpreted, it sees the defect
    monkeypatch.setattr(
        overlap, "power", lambda matrix, exponent: matrix + (exponent - 1) * matrix[np.isfinite(matrix)].max()
    )
    assert ("estimate", "makespan_cycles") in failures(clean)


def corrupt_image(monkeypatch, change):
    """Let `change(image, program)` corrupt the HBM image before the executor starts."""

    def corrupted(program, model, workload, tensors, prompts, **options):
        image = build_image(program, model, workload, tensors, prompts, **options)
        change(image, program)
        return image

    monkeypatch.setattr(accuracy_simulator, "build_image", corrupted)


def scale_one_layer(image, program):
    tensor = program.tensor("w_down")
    rows = image[tensor.address : tensor.address + tensor.size_bytes].reshape(tensor.shape[0], -1, 33)
    rows[1, :, 0] += 2  # exponents of one layer


def forget_positions(image, program):
    tensor = program.tensor("rope")
    cosines = image[tensor.address : tensor.address + tensor.size_bytes].view("<u2").reshape(tensor.shape)
    cosines[..., : tensor.shape[-1] // 2], cosines[..., tensor.shape[-1] // 2 :] = 0x3F80, 0


def truncate_weights(image, program):
    """Weights rounded towards minus infinity at four bits: the low nibble of every element is lost."""
    for name in ("w_qkv", "w_gate", "w_up", "w_down", "w_out"):
        tensor = program.tensor(name)
        rows = image[tensor.address : tensor.address + tensor.size_bytes].reshape(-1, 33)
        rows[:, 1:] &= 0xE0


def shift_vocabulary(image, program):
    tensor = program.tensor("lm_head")
    rows = image[tensor.address : tensor.address + tensor.size_bytes].reshape(tensor.shape[0], -1)
    rows[:] = np.roll(rows, 1, axis=0)


def widen_epsilon(image, program):
    tensor = program.tensor("constants")
    image[tensor.address : tensor.address + tensor.size_bytes].view("<f4")[5] = 1.0


@pytest.mark.parametrize(
    "change", [scale_one_layer, forget_positions, truncate_weights, shift_vocabulary, widen_epsilon]
)
def test_accuracy_with_wrong_numbers(clean, monkeypatch, change):
    corrupt_image(monkeypatch, change)
    assert ("fidelity", "logit_kl") in failures(clean, rerun={"accuracy"})


def test_accuracy_with_a_wrong_instruction_count(clean, monkeypatch):
    original = accuracy_simulator.event_counts

    def corrupted(program, retired):
        wrong = retired.copy()
        wrong[next(n for n, i in enumerate(program.instructions) if i.mnemonic == "V_EXP_V")] += 1
        return original(program, wrong)

    monkeypatch.setattr(accuracy_simulator, "event_counts", corrupted)
    assert {("count", "instructions.V_EXP_V"), ("count", "vector_lanes")} <= failures(clean, rerun={"accuracy"})
