"""The cycle path against a clock-driven oracle, and the laws of its statistics."""

import dataclasses

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import cycle
from npu.errors import ProgramError, TripathError
from npu.hardware import Host
from npu.isa import Instruction
from npu.metrics import PHASES, UNITS
from npu.program import Program, Tensor, words_of
from npu.program.trace import Trace
from tests.conftest import compiled, compose_experiment, with_timing
from tests.cycle.clocked import run_clocked

QUICK = ("workload.generation_length=16", "workload.steps=4")
SMALL = compose_experiment().hardware
REGISTERS = {"hbm": (0, 1), "matrix": (2, 3), "vector": (4, 5, 6), "fp": (7, 8)}


def prologue():
    """Two or three registers a memory; some step with the loop of level 0."""
    bases = {0: 0, 1: 4096, 2: 0, 3: 1024, 4: 0, 5: 256, 6: 288, 7: 0, 8: 8}
    code = [Instruction(mnemonic="A_BASE", operands={"register": r, "base": b}) for r, b in bases.items()]
    for register, stride in ((1, 96), (5, 64), (8, 1)):
        code.append(Instruction(mnemonic="A_STEP", operands={"register": register, "level": 0, "stride": stride}))
    return code


def instruction(draw):
    """One queued instruction with small operands, without semaphores."""

    def pick(memory):
        return draw(st.sampled_from(REGISTERS[memory]))

    v, f, n = lambda: pick("vector"), lambda: pick("fp"), draw(st.sampled_from([8, 32, 64]))
    kind = draw(
        st.sampled_from(["mm", "out", "add", "sub", "exp", "sum", "smul", "mov", "loadm", "loadv", "storev", "sync"])
    )
    bf16 = {"format": 1, "block": 5}
    return {
        "mm": lambda: ("M_MM", {"weights": pick("matrix"), "acts": v(), "rows": 4, "cols": 4, "k": 32, "block": 5,
                                "weight_format": 2, "act_format": 2, "block_stride": 33}),
        "out": lambda: ("M_OUT", {"dst": v(), "rows": 4, "cols": 4}),
        "add": lambda: ("V_ADD_VV", {"dst": v(), "a": v(), "b": v(), "n": n}),
        "sub": lambda: ("V_SUB_VF", {"dst": v(), "a": v(), "scalar": f(), "n": n}),
        "exp": lambda: ("V_EXP_V", {"dst": v(), "a": v(), "n": n}),
        "sum": lambda: ("V_RED_SUM", {"dst": f(), "a": v(), "n": n}),
        "smul": lambda: ("S_MUL_FP", {"dst": f(), "a": f(), "b": f()}),
        "mov": lambda: ("S_MOV_FP", {"dst": f(), "a": f()}),
        "loadm": lambda: ("H_LOAD_M", {"dst": pick("matrix"), "src": pick("hbm"), "rows": draw(st.integers(1, 3)), "row_bytes": draw(st.integers(1, 400))}),
        "loadv": lambda: ("H_LOAD_V", {"dst": v(), "src": pick("hbm"), "rows": 1, "cols": 64, **bf16}),
        "storev": lambda: ("H_STORE_V", {"dst": pick("hbm"), "src": v(), "rows": 1, "cols": 32, **bf16}),
        "sync": lambda: (draw(st.sampled_from(["M_SYNC", "V_SYNC", "H_LOAD_SYNC", "H_STORE_SYNC"])), {}),
    }[kind]()  # fmt: skip


SYNC = ("M_SYNC", "V_SYNC", "H_LOAD_SYNC", "H_STORE_SYNC")
HOST = Host(link_bytes_per_s=16e9, link_latency_s=20e-9, sampling_bytes_per_s=32e9)


def turn_of_the_host(draw):
    """A hand-over to the host that waits for a unit, or for nothing."""
    turn = {
        "logits": 1,
        "tokens": 0,
        "left": 0,
        "rows": draw(st.integers(1, 3)),
        "sent": draw(st.integers(1, 900)),
        "taken": 4,
    }
    if not draw(st.booleans()):
        return [Instruction(mnemonic="C_HOST", operands=turn)]
    giver = draw(st.sampled_from(SYNC))
    return [Instruction(mnemonic=giver, signals=(50,)), Instruction(mnemonic="C_HOST", operands=turn, waits=(50,))]


@st.composite
def programs(draw):
    """A random program: a loop around random instructions, with handshakes between units strewn in."""
    body = [
        Instruction(mnemonic=name, operands=operands)
        for name, operands in (instruction(draw) for _ in range(draw(st.integers(1, 12))))
    ]
    for semaphore in range(1, 1 + draw(st.integers(0, 4))):
        giver, taker = draw(st.permutations(SYNC))[:2]
        place = draw(st.integers(0, len(body)))
        body.insert(place, Instruction(mnemonic=giver, signals=(semaphore,)))
        body.insert(draw(st.integers(place + 1, len(body))), Instruction(mnemonic=taker, waits=(semaphore,)))
    if draw(st.booleans()):
        body[slice(*[draw(st.integers(0, len(body)))] * 2)] = turn_of_the_host(draw)
    body.append(Instruction(mnemonic="C_NEXT", operands={"level": 0}))
    head = Instruction(mnemonic="C_LOOP", operands={"level": 0, "trips": draw(st.integers(0, 5)), "length": len(body)})
    code = [*prologue(), head, *body, Instruction(mnemonic="C_END")]
    geometry = {"blen": SMALL.blen, "mlen": SMALL.mlen, "vlen": SMALL.vlen}
    geometry |= {"matrix_bytes": 8192, "vector_bytes": 4096, "fp_bytes": 256, "int_bytes": 64}
    tensor = Tensor(name="all", address=0, shape=(1 << 14,), format="bf16", block=32, writable=True)
    layout = {"batch": 1, "generation_length": 1}
    return Program(words=words_of(code), hbm=(tensor,), geometry=geometry, layout=layout, phases=())


@settings(
    max_examples=150, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate]
)  # shrinking takes minutes
@given(
    program=programs(), depth=st.sampled_from([1, 2, 4, 32]), outstanding=st.sampled_from([1, 2, 8]),
    model=st.sampled_from(["simple", "bursts"]), dispatch=st.sampled_from([0, 0, 1, 3]), sets=st.sampled_from([1, 2]),
)  # fmt: skip
def test_every_instruction_starts_and_ends_when_the_clocked_model_says(
    program, depth, outstanding, model, dispatch, sets
):
    depths = dict.fromkeys(SMALL.queue_depth, depth)
    hbm = dataclasses.replace(SMALL.hbm, model=model)
    frontend = dataclasses.replace(SMALL.frontend, dispatch_cycles=dispatch)
    facts = {"queue_depth": depths, "dma_outstanding": outstanding, "hbm": hbm, "frontend": frontend}
    hardware = dataclasses.replace(SMALL, accumulator_sets=sets, host=HOST, **facts)
    expected = run_clocked(program, hardware)
    result = cycle.simulate(program, hardware=hardware, trace=Trace(breaks=()), race_check=False)
    observed = sorted((row[0], row[4], row[5]) for row in result.tables["timeline"].rows)
    assert observed == sorted((program.instructions[n].mnemonic, start, end) for n, start, end in expected)
    ends = [end for _, _, end in expected]
    assert result.metrics["makespan_cycles"] >= max(ends, default=0)


@pytest.mark.parametrize("execution", ["serial", "decoupled"])
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_every_cycle_is_accounted_for(execution, cache):
    experiment = compose_experiment(*QUICK, f"hardware.execution={execution}", f"workload.cache={cache}")
    program, trace = compiled(experiment)
    result = cycle.simulate(program, hardware=experiment.hardware, trace=trace)
    makespan = result.metrics["makespan_cycles"]
    for row in result.tables["units"].rows:
        assert sum(row[1:]) == makespan, row[0]
    assert [row[0] for row in result.tables["units"].rows] == list(UNITS)
    assert sum(result.metrics.get(f"phase_cycles.{phase}", 0) for phase in PHASES) == makespan
    table = result.tables["phases"]
    columns = [table.columns.index(f"busy {unit}") for unit in UNITS]
    busy = np.array([[row[column] for column in columns] for row in table.rows]).sum(axis=0)
    assert busy.tolist() == [result.metrics[f"busy_cycles.{unit}"] for unit in UNITS]


def test_cached_policies_are_faster_and_serial_is_slower():
    makespans = {}
    for execution in ("serial", "decoupled"):
        for cache in ("none", "prefix", "dual"):
            experiment = compose_experiment(f"hardware.execution={execution}", f"workload.cache={cache}")
            program, trace = compiled(experiment)
            makespans[execution, cache] = cycle.simulate(program, hardware=experiment.hardware, trace=trace).metrics[
                "makespan_cycles"
            ]
    for execution in ("serial", "decoupled"):
        assert makespans[execution, "dual"] < makespans[execution, "prefix"] < makespans[execution, "none"]
    for cache in ("none", "prefix", "dual"):
        assert makespans["decoupled", cache] < makespans["serial", cache]


@pytest.mark.parametrize(
    "mnemonic", ["M_MM", "M_OUT", "V_EXP_V", "V_RED_SUM", "V_ADD_VV", "S_MUL_FP", "V_SYNC", "S_RECI_FP"]
)
def test_a_slower_unit_never_saves_cycles(mnemonic):
    experiment = compose_experiment(*QUICK)
    program, trace = compiled(experiment)
    base = cycle.simulate(program, hardware=experiment.hardware, trace=trace).metrics["makespan_cycles"]
    row = experiment.hardware.timing[mnemonic]
    for changes in ({"latency": row.latency + 7}, {"interval": row.interval + 3}):
        slower = with_timing(experiment.hardware, mnemonic, **changes)
        assert cycle.simulate(program, hardware=slower, trace=trace).metrics["makespan_cycles"] >= base


def test_more_bandwidth_and_deeper_queues_never_cost_cycles():
    makespans = []
    for channels in (1, 2, 4, 8):
        experiment = compose_experiment(*QUICK, f"hardware.hbm.channels={channels}")
        program, trace = compiled(experiment)
        makespans.append(cycle.simulate(program, hardware=experiment.hardware, trace=trace).metrics["makespan_cycles"])
    assert makespans == sorted(makespans, reverse=True)
    by_depth = []
    for depth in (1, 4, 32):
        experiment = compose_experiment(
            *QUICK, f"hardware.queue_depth.matrix={depth}", f"hardware.queue_depth.vector={depth}"
        )
        program, trace = compiled(experiment)
        by_depth.append(cycle.simulate(program, hardware=experiment.hardware, trace=trace).metrics["makespan_cycles"])
    assert by_depth == sorted(by_depth, reverse=True)


def test_what_does_not_belong_together_is_refused(default_experiment):
    program, trace = compiled(default_experiment)
    other = dataclasses.replace(default_experiment.hardware, vlen=128)
    with pytest.raises(TripathError, match=r"hardware.vlen: the program was compiled for 64, the hardware has 128"):
        cycle.simulate(program, hardware=other, trace=trace)
    with pytest.raises(ProgramError, match="the trace has no entry"):
        cycle.simulate(program, hardware=default_experiment.hardware, trace=Trace(breaks=(7,)))
    incomplete = {name: row for name, row in default_experiment.hardware.timing.items() if name != "V_EXP_V"}
    with pytest.raises(TripathError, match="no entry for V_EXP_V"):
        cycle.simulate(
            program, hardware=dataclasses.replace(default_experiment.hardware, timing=incomplete), trace=trace
        )


def test_the_same_run_twice_is_the_same(default_experiment):
    program, trace = compiled(compose_experiment(*QUICK))
    one, two = (cycle.simulate(program, hardware=default_experiment.hardware, trace=trace) for _ in range(2))
    assert one == two
