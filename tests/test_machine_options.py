"""Options of the machine: what each changes, that it changes nothing else, and who refuses it."""

import dataclasses

import numpy as np
import pytest

from npu.errors import TripathError
from npu.formats.rounding import round_bf16
from npu.isa.spec import BY_MNEMONIC
from tests.conftest import PROMPT, compiled, compose_experiment
from tests.golden.cases import EDGES
from tripath.api import accuracy, analytical, cycle, prepare

FUSED = "hardware.fused_exponential=true"


@pytest.mark.parametrize(("columns", "interval", "latency"), [(1, 34, 106), (2, 18, 90), (4, 10, 82), (32, 3, 75)])
def test_columns_leave_the_array_in_fewer_cycles(columns, interval, latency):
    """Of 32: two cycles and a column, or several, in each; the last column is there as much earlier."""
    hardware = compose_experiment("hardware=npu_datacenter", f"hardware.write_out_columns={columns}").hardware
    assert (hardware.interval_cycles("M_OUT"), hardware.latency_cycles("M_OUT")) == (interval, latency)
    assert hardware.latency_cycles("M_MM") == 72


@pytest.mark.parametrize(
    ("columns", "message"), [(16, "must be at most 8"), (3, "must be a power of two from 1 to 128, got 3")]
)
def test_columns_beyond_the_tile_are_refused(columns, message):
    with pytest.raises(TripathError, match=rf"hardware\.write_out_columns: {message}"):
        compose_experiment(f"hardware.write_out_columns={columns}")


def test_no_more_columns_than_a_row_of_vector_sram_holds():
    with pytest.raises(TripathError, match=r"hardware.write_out_columns: must be at most 4 .* got 8"):
        compose_experiment("hardware.write_out_columns=8", "hardware.vlen=32")


def test_a_wider_write_out_leaves_the_program_and_saves_cycles():
    found = {}
    for columns in (1, 2, 8):
        x = compose_experiment("workload.steps=4", f"hardware.write_out_columns={columns}")
        program, trace = compiled(x)
        result = cycle.simulate(program, hardware=x.hardware, trace=trace, race_check=False)
        outputs = result.counts["instructions.M_OUT"]
        found[columns] = (
            program.digest,
            result.metrics["busy_cycles.matrix"],
            outputs,
            result.metrics["makespan_cycles"],
        )
    assert found[1][0] == found[2][0] == found[8][0]
    assert found[1][1] - found[2][1] == 4 * found[1][2], "eight columns in four cycles"
    assert found[1][1] - found[8][1] == 7 * found[1][2], "in one"
    assert found[1][3] > found[2][3] > found[8][3]


def test_one_instruction_has_the_bits_of_three():
    """Over edges, and numbers as scores have them; what is summed up stays apart from what was there."""
    rng = np.random.default_rng(0)
    edges = (EDGES << 16).view(np.float32)
    fused, *three = (BY_MNEMONIC[name].body for name in ("V_EXP_SUM_VF", "V_SUB_VF", "V_EXP_V", "V_RED_SUM"))
    for number in range(300):
        n = int(rng.integers(1, 70))
        row = np.array([round_bf16(x) for x in rng.normal(size=n).astype(np.float32) * 20], np.float32)
        if number % 3 == 0:
            row = np.where(rng.random(n) < 0.3, rng.choice(edges, n), row).astype(np.float32)
        fp = np.array([np.nanmax(row), rng.random() * 10], np.float32)
        ours, theirs = (np.concatenate([np.full(n, 7, np.float32), row]) for _ in range(2))
        sums = fp.copy(), fp.copy()
        fused(ours, sums[0], 0, 1, n, 0, n)
        three[0](theirs, sums[1], 0, n, 0, n)
        three[1](theirs, 0, 0, n)
        three[2](theirs, sums[1], 1, 0, n)
        assert ours.tobytes() == theirs.tobytes()
        assert sums[0].tobytes() == sums[1].tobytes()


@pytest.mark.parametrize(
    "overrides", [(), ("compiler=plain",), ("workload.cache=none", "numerics=mxint4", "workload.batch=2")]
)
def test_a_fused_exponential_leaves_every_bit_and_saves_vector_work(overrides):
    short = ("workload.generation_length=16", "workload.steps=4", "paths=[analytical,cycle,accuracy]", *overrides)
    found = []
    for option in ((), (FUSED,)):
        x = compose_experiment(*short, *option)
        prompts = [prepare(x, PROMPT).token_ids[0]] * x.workload.batch
        program, _ = compiled(x, len(prompts[0]))
        run = accuracy.simulate(program, model=x.model, workload=x.workload, prompts=prompts)
        times = cycle.simulate(program, hardware=x.hardware, trace=run.trace)  # its race check is on
        bound = analytical.simulate(program, hardware=x.hardware, trace=run.trace)
        assert bound.counts == times.counts == run.result.counts
        assert bound.metrics["lower_bound_cycles"] <= times.metrics["makespan_cycles"]
        found.append((run, times))
    (before, slow), (after, fast) = found
    for ours, theirs in zip(before.steps, after.steps, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert all(
                np.array_equal(getattr(a, name), getattr(b, name)) for name in ("canvas", "logits", "confidence")
            )
    fused = fast.counts["instructions.V_EXP_SUM_VF"]
    for mnemonic in ("V_SUB_VF", "V_RED_SUM"):
        assert slow.counts[f"instructions.{mnemonic}"] - fast.counts.get(f"instructions.{mnemonic}", 0) == fused
    assert slow.counts["vector_lanes"] == fast.counts["vector_lanes"], "the same work, in one pass over the row"
    assert fast.metrics["busy_cycles.vector"] < slow.metrics["busy_cycles.vector"]


@pytest.mark.parametrize("path", [cycle, analytical])
def test_a_machine_without_the_instruction_refuses_the_program(path):
    x = compose_experiment(FUSED, "workload.steps=4")
    program, trace = compiled(x)
    path.simulate(program, hardware=x.hardware, trace=trace)
    with pytest.raises(
        TripathError, match=r"hardware\.fused_exponential: the program has V_EXP_SUM_VF, hardware npu_small lacks it"
    ):
        path.simulate(program, hardware=dataclasses.replace(x.hardware, fused_exponential=False), trace=trace)
