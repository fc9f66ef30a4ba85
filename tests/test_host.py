"""A core whose host samples, and one whose cache is only appended: what a turn costs, what is refused, what support saves."""

import dataclasses
import math

import numpy as np
import pytest

import analytical
import cycle
from accuracy.executor import Machine
from cycle.races import check_races
from npu.errors import ProgramError, TripathError
from npu.hardware import Host
from npu.program import loop_tree
from npu.program.tables import address_registers
from npu_compiler import compile_program
from npu_compiler.arrangement import CompilerOptions
from rtl.limits import check_program
from tests.conftest import compiled, compose_experiment
from tests.cycle.test_fastforward import both, figures
from tests.cycle.test_races import HOST_SAMPLES, without
from tests.cycle.test_timing_rules import machine, simulate, stalls, starts

TURN = "A_BASE register=0 base=0\nH_STORE_SYNC signal=s1\nC_HOST logits=a0 tokens=a0 left=a0 rows=2 sent=2000 taken=8 wait=s1\nV_SYNC"
TURN_HOST = Host(link_bytes_per_s=2e9, link_latency_s=100e-9, sampling_bytes_per_s=4e9)
TURN_CYCLES = 100 + (4000 + 16 + 4) // 2 + 4000 // 4
"""At 1 GHz: a round trip, both directions at 2 bytes a cycle, 4 bytes of logits a cycle."""
SHORT = ("workload.generation_length=16", "workload.steps=4")


def on_host(*overrides):
    """An experiment whose host samples, with its program and trace."""
    x = compose_experiment(*HOST_SAMPLES, *SHORT, *overrides)
    return (x, *compiled(x))


def with_host(hardware, **changes):
    return dataclasses.replace(hardware, host=dataclasses.replace(hardware.host, **changes))


def test_a_turn_begins_with_its_token_and_takes_a_round_trip_both_ways_and_the_sampling():
    """A_BASE in cycle 0; the store's sync dispatched in 1, starts in 2, is over in 3, where the turn begins: a control cycle, then
    the host. The vector instruction is dispatched behind it, and starts a cycle later."""
    hardware = machine({"V_SYNC": (1, 1)}, host=TURN_HOST)
    result = simulate(TURN, hardware)
    assert hardware.clock_hz == 1e9
    assert starts(result, "V_SYNC") == [3 + 1 + TURN_CYCLES + 1]
    assert stalls(result, "frontend")["host"] == TURN_CYCLES
    for unit in ("matrix", "vector", "dma_in", "dma_out"):  # nothing is left for them to do by then
        assert stalls(result, unit)["host"] == TURN_CYCLES, unit
    assert (result.counts["hbm_read_bytes"], result.counts["hbm_write_bytes"]) == (4000, 16 + 4)


def test_a_turn_that_fills_its_last_cycle_takes_no_other():
    """At 1 GHz 20 ns are 20 cycles, and 20e-9 as a binary fraction is a little more. Against integers, in 32nds of a cycle."""
    host = Host(link_bytes_per_s=16e9, link_latency_s=20e-9, sampling_bytes_per_s=32e9)
    for sent in range(1, 2000):
        assert host.cycles(sent, 8, 1e9) == -(-(20 * 32 + 2 * (sent + 8) + sent) // 32), sent


def test_a_unit_that_still_works_does_not_wait_for_the_host():
    """The matrix unit is occupied for longer than the turn takes; the vector unit has nothing left to do."""
    text = TURN.replace("H_STORE_SYNC signal=s1", "M_SYNC\nV_SYNC").replace(" wait=s1", "")
    result = simulate(text, machine({"M_SYNC": (2 * TURN_CYCLES, 2 * TURN_CYCLES), "V_SYNC": (1, 1)}, host=TURN_HOST))
    assert stalls(result, "vector")["host"] == TURN_CYCLES
    assert "host" not in stalls(result, "matrix")


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("execution", ["serial", "decoupled"])
def test_cycles_grow_by_what_turns_grow_by(cache, execution):
    """Both timing paths: nothing runs beside a turn, so a slower host costs its turns' difference, to the cycle."""
    x, program, trace = on_host(f"workload.cache={cache}", f"hardware.execution={execution}")
    logits = next(each for each in program.hbm if each.name == "logits")
    turns = sum(trace.breaks) + len(trace.breaks)
    metrics = {}
    for rate in (25e9, 5e9, 1e9):
        hardware = with_host(x.hardware, link_bytes_per_s=rate)
        exact = cycle.simulate(program, hardware=hardware, trace=trace, race_check=False)
        closed = analytical.simulate(program, hardware=hardware, trace=trace)
        assert exact.counts == closed.counts
        assert exact.counts["instructions.C_HOST"] == turns
        sent, taken = logits.size_bytes, 4 * x.workload.block_length + 4
        each = math.ceil(1e9 * (1e-6 + sent / 1e11 + (sent + taken) / rate) - 1e-6)
        assert exact.metrics["stall_cycles.frontend.host"] == closed.metrics["bound_cycles.host"] == turns * each
        assert closed.metrics["lower_bound_cycles"] <= exact.metrics["makespan_cycles"]
        assert abs(closed.metrics["estimated_cycles"] / exact.metrics["makespan_cycles"] - 1) < 0.1
        metrics[turns * each] = exact.metrics["makespan_cycles"], closed.metrics["estimated_cycles"]
    (fast, base), *slower = sorted(metrics.items())
    for cycles, found in slower:
        assert found[0] - base[0] == cycles - fast
        assert found[1] - base[1] == pytest.approx(cycles - fast, abs=1)


def test_the_same_program_but_for_who_samples():
    """The transformer takes the same cycles; what the host reads are the logits that the core stored, once."""
    x, program, trace = on_host()
    own = dataclasses.replace(
        x, compiler=CompilerOptions(sampling="stored"), hardware=dataclasses.replace(x.hardware, host=None)
    )
    stored, _ = compiled(own)
    by_phase = [
        {row[0]: row[1] for row in cycle.simulate(each, hardware=h, trace=trace).tables["phases"].rows}
        for each, h in ((program, x.hardware), (stored, own.hardware))
    ]
    for phase in ("qkv", "attention", "out", "ffn"):
        assert by_phase[0][phase] == pytest.approx(by_phase[1][phase], rel=0.01), phase
    assert set(by_phase[1]) - set(by_phase[0]) == {"sampling"}
    assert set(by_phase[0]) - set(by_phase[1]) == {"host"}
    table = analytical.simulate(program, hardware=x.hardware, trace=trace).tables["traffic"]
    moved = {row[0]: row[2:] for row in table.rows}
    assert moved["logits"][0] == moved["logits"][1] > 0
    assert moved["remaining"][0] == moved["remaining"][1] == 4 * (sum(trace.breaks) + len(trace.breaks))


def test_fast_forward_goes_through_turns_of_the_host():
    x, program, trace = on_host("workload.generation_length=64", "workload.steps=64")
    fast, slow = both(program, x.hardware, trace)
    assert figures(fast) == figures(slow)


def test_every_cycle_is_explained_and_energy_is_the_same_on_both_paths():
    x, program, trace = on_host()
    facts = {"hardware": x.hardware, "trace": trace, "technology": x.technology}
    exact, closed = cycle.simulate(program, **facts), analytical.simulate(program, **facts)
    makespan = exact.metrics["makespan_cycles"]
    for row in exact.tables["units"].rows:
        assert sum(row[1:]) == makespan, row[0]
    assert exact.metrics["dynamic_energy_joules"] == pytest.approx(closed.metrics["dynamic_energy_joules"], rel=1e-9)
    assert exact.metrics["phase_cycles.host"] >= exact.metrics["stall_cycles.frontend.host"]


def test_the_host_waits_for_the_logits():
    """Each semaphore that a turn waits for is needed."""
    _, program, _ = on_host()
    awaited = {s for each in program.instructions if each.mnemonic == "C_HOST" for s in each.waits}
    assert awaited
    for semaphore in awaited:
        with pytest.raises(ProgramError, match="C_HOST"):
            check_races(without(program, semaphore))


@pytest.mark.parametrize("batch", [1, 3, 400])
def test_the_host_reads_the_rows_that_were_stored_for_it(batch):
    """Also where the first token of a block comes from one row of each sequence, and where the batch is cut into chunks."""
    x = compose_experiment(
        *HOST_SAMPLES, "model=fast_dllm_v2_1_5b", "workload.sub_block_length=32", "model.layers=1", "hardware=npu_datacenter", "numerics=mxint4",
        "workload.prompt_length=64", "workload.generation_length=32", f"workload.batch={batch}",
        "hardware.sram.fp_bytes=262144", "hardware.sram.int_bytes=262144", "hardware.hbm.channels=64",
    )  # fmt: skip
    program, _ = compiled(x, 64)
    logits, registers, tree = (
        next(each for each in program.hbm if each.name == "logits"),
        address_registers(program),
        loop_tree(program),
    )

    def rows(number, name, together):
        """Numbers of the rows of logits that an instruction touches over the loops around it, `together` behind each other."""
        o = program.instructions[number].operands
        register = registers[o[name]]
        places = {register.base + row * register.row_stride for row in range(o["rows"])}
        for loop in tree.around[number]:
            stride = register.strides.get(loop.level, 0)
            places = {place + index * stride for place in places for index in range(loop.trips.base if stride else 1)}
        return {(place - logits.address) // logits.row_bytes + row for place in places for row in range(together)}

    stored, turns = set(), []
    for number, each in enumerate(program.instructions):
        if each.mnemonic == "H_STORE_V" and program.phase_names[program.phase_of()[number]] == "lm_head":
            stored |= rows(number, "dst", 1)
        elif each.mnemonic == "C_HOST":
            turns.append((rows(number, "logits", each.operands["sent"] // logits.row_bytes), stored))
            stored = set()
    assert [len(read) for read, _ in turns] == [batch, 32 * batch]
    for read, written in turns:
        assert read == written


def test_programs_do_not_depend_on_how_fast_the_host_is():
    x, program, _ = on_host()
    other = dataclasses.replace(x, hardware=with_host(x.hardware, link_bytes_per_s=1e9))
    assert compiled(other)[0].digest == program.digest


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((*HOST_SAMPLES, "workload.commit=threshold", "workload.edit_threshold=0.5"), r"workload\.edit_threshold: compiler\.sampling=host"),
        (("compiler=host_sampling",), "compiler.sampling: host needs hardware.host, hardware npu_small has none"),
        (("hardware=npu_host_sampling",), r"compiler.sampling: must be host on hardware npu_host_sampling, whose host samples \(hardware.host\), got fused"),
        (("hardware=npu_host_sampling", "compiler.sampling=stored"), "got stored"),
        (("hardware=npu_append_only", "workload.cache=dual"), "workload.cache: dual rewrites rows of the cache, hardware npu_append_only has append_only_cache; one of none, append"),
        (("hardware=npu_append_only", "workload.cache=prefix"), "workload.cache: prefix rewrites"),
        ((*HOST_SAMPLES, "paths=[analytical,cycle,accuracy]"), r"paths: accuracy executes programs, what a host samples \(compiler.sampling=host\) is not simulated; use paths=\[analytical,cycle\]"),
        ((*HOST_SAMPLES, "hardware.host.link_bytes_per_s=0"), "hardware.host.link_bytes_per_s: must be"),
        ((*HOST_SAMPLES, "hardware.host.link_latency_s=-1"), "hardware.host.link_latency_s: must be"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_a_line(overrides, message):
    with pytest.raises(TripathError, match=message) as caught:
        compose_experiment("paths=[analytical,cycle]", *overrides)
    assert "\n" not in str(caught.value)


def test_who_has_no_host_refuses_the_program_by_name(default_experiment):
    x, program, trace = on_host()
    for path in (cycle, analytical):
        with pytest.raises(TripathError, match="the program hands over to a host, hardware npu_small has none"):
            path.simulate(program, hardware=default_experiment.hardware, trace=trace)
    with pytest.raises(ProgramError, match="hands over to a host, of which the accuracy path knows nothing"):
        Machine(program=program, hbm=np.zeros(program.hbm_bytes, np.uint8))
    with pytest.raises(TripathError, match="rtl: C_HOST is not built"):
        check_program(program, x.hardware)
    with pytest.raises(TripathError, match=r"hardware\.host"):
        compile_program(x.model, x.workload, default_experiment.hardware, x.numerics, [19], x.compiler)


@pytest.mark.parametrize("cache", ["none", "append"])
def test_a_cache_that_is_only_appended_runs_what_never_refreshes(cache):
    model = ("model=wordmath_block", "workload.prompt_length=16") if cache == "append" else ()
    overrides = (*model, f"workload.cache={cache}", *SHORT, "paths=[analytical,cycle]")
    programs = {
        compiled(compose_experiment(*overrides, f"hardware.append_only_cache={flag}"), 16)[0].digest
        for flag in ("true", "false")
    }
    assert len(programs) == 1
