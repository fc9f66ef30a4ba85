"""Fast-forward changes nothing but the time it takes: every figure is that of running every iteration."""

import dataclasses

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import cycle
from npu.isa import Instruction
from npu.program import Program, Tensor, words_of
from npu.program.trace import Trace
from npu_compiler import compile_program, schedule
from tests.conftest import compiled, compose_experiment
from tests.cycle.test_cycle import SMALL, SYNC, instruction

EFFORT = ("executed_instructions", "skipped_instructions")
STRIDES = {"hbm": [0, 64, 4096], "matrix": [0, 64], "vector": [0, 64, 128, 32], "fp": [0, 1]}
REGISTERS = {0: "hbm", 1: "hbm", 2: "matrix", 3: "matrix", 4: "vector", 5: "vector", 6: "vector", 7: "fp", 8: "fp"}
BASES = {0: 0, 1: 4096, 2: 0, 3: 1024, 4: 0, 5: 8192, 6: 288, 7: 0, 8: 80}


def figures(result):
    """Everything that a run says, without how much of it was executed."""
    metrics = {name: value for name, value in result.metrics.items() if name not in EFFORT}
    return metrics, result.counts, result.tables


def both(program, hardware, trace, **options):
    """The run with fast-forward and the run without."""
    return [
        cycle.simulate(program, hardware=hardware, trace=trace, race_check=False, fast_forward=fast, **options)
        for fast in (True, False)
    ]


def body(draw, length):
    """Random instructions with handshakes strewn in."""
    code = [
        Instruction(mnemonic=name, operands=operands)
        for name, operands in (instruction(draw) for _ in range(draw(st.integers(1, length))))
    ]
    for semaphore in draw(st.lists(st.integers(1, 40), unique=True, max_size=3)):
        giver, taker = draw(st.permutations(SYNC))[:2]
        place = draw(st.integers(0, len(code)))
        code.insert(place, Instruction(mnemonic=giver, signals=(semaphore,)))
        code.insert(draw(st.integers(place + 1, len(code))), Instruction(mnemonic=taker, waits=(semaphore,)))
    return code


def loop(level, trips, code):
    """`code` as the body of a loop."""
    head = Instruction(mnemonic="C_LOOP", operands={"level": level, "trips": trips, "length": len(code) + 1})
    return [head, *code, Instruction(mnemonic="C_NEXT", operands={"level": level})]


def renumbered(code, first):
    """The same code with semaphores counted up from `first`: no two parts share one."""
    names = {}

    def rename(semaphores):
        return tuple(names.setdefault(s, first + len(names)) for s in semaphores)

    return [dataclasses.replace(i, waits=rename(i.waits), signals=rename(i.signals)) for i in code]


def program_of(code):
    """A program for the small machine."""
    geometry = {"blen": SMALL.blen, "mlen": SMALL.mlen, "vlen": SMALL.vlen}
    geometry |= {"matrix_bytes": 8192, "vector_bytes": 1 << 16, "fp_bytes": 4096, "int_bytes": 64}
    tensor = Tensor(name="all", address=0, shape=(1 << 20,), format="bf16", block=32, writable=True)
    return Program(
        words=words_of([*code, Instruction(mnemonic="C_END")]), hbm=(tensor,), geometry=geometry,
        layout={"batch": 1, "generation_length": 1}, phases=(),
    )  # fmt: skip


def machine(depth, outstanding, execution, memory, dispatch, sets):
    """The small machine with these queues, descriptors in flight, order of execution, HBM, front end and accumulators."""
    return dataclasses.replace(
        SMALL, queue_depth=dict.fromkeys(SMALL.queue_depth, depth), dma_outstanding=outstanding, execution=execution,
        hbm=dataclasses.replace(SMALL.hbm, **memory),
        frontend=dataclasses.replace(SMALL.frontend, dispatch_cycles=dispatch), accumulator_sets=sets,
    )  # fmt: skip


@st.composite
def nests(draw):
    """A loop around instructions and two inner loops, one of which may be left by a break; and its trace."""
    setup = [Instruction(mnemonic="A_BASE", operands={"register": r, "base": b}) for r, b in BASES.items()]
    for register, memory in REGISTERS.items():
        for level in (0, 1):
            stride = draw(st.sampled_from(STRIDES[memory]))
            operands = {"register": register, "level": level, "stride": stride}
            setup += [Instruction(mnemonic="A_STEP", operands=operands)] if stride else []
    ring = {"register": 6, "ring": 1, "length": draw(st.integers(1, 3)), "stride": 4096}
    setup.append(Instruction(mnemonic="A_RING", operands=ring))
    first, second = renumbered(body(draw, 6), 1), renumbered(body(draw, 6), 10)
    between = renumbered(body(draw, 4), 20)
    turn = [Instruction(mnemonic="A_NEXT", operands={"ring": 1})] if draw(st.booleans()) else []
    outer, breaks = draw(st.integers(1, 40)), ()
    if draw(st.booleans()):
        second.insert(0, Instruction(mnemonic="C_BREAK_IF", operands={"level": 1, "flag": 8}))
        exits = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
        breaks = tuple(exits[min(i // draw(st.integers(1, 8)), len(exits) - 1)] for i in range(outer))
        second_loop = loop(1, 4, second)
    else:
        second_loop = loop(1, draw(st.integers(1, 30)), second)
    whole = loop(0, outer, [*loop(1, draw(st.integers(1, 30)), first), *between, *turn, *second_loop])
    return program_of([*setup, *whole]), Trace(breaks=breaks)


@st.composite
def counted_nests(draw):
    """A loop whose iterations read a number, around a loop that has its trips from it, many times over; and its trace."""
    setup = [Instruction(mnemonic="A_BASE", operands={"register": r, "base": b}) for r, b in BASES.items()]
    for register, memory in REGISTERS.items():
        for level in (0, 1, 2):
            stride = draw(st.sampled_from([0, *STRIDES[memory]]))
            operands = {"register": register, "level": level, "stride": stride}
            setup += [Instruction(mnemonic="A_STEP", operands=operands)] if stride and register != 8 else []
    ring = {"register": 6, "ring": 1, "length": draw(st.integers(1, 3)), "stride": 4096}
    setup.append(Instruction(mnemonic="A_RING", operands=ring))
    setup.append(Instruction(mnemonic="A_BASE", operands={"register": 9, "base": 3}))
    inner, behind = renumbered(body(draw, 6), 1), renumbered(body(draw, 4), 10)
    turn = [Instruction(mnemonic="A_NEXT", operands={"ring": 1})] if draw(st.booleans()) else []
    unit, most = draw(st.integers(0, 3)), 24
    counted = {"level": 2, "register": 0, "unit": unit, "length": len(inner) + 1}
    read = Instruction(mnemonic="C_COUNT", operands={"register": 0, "at": 9, "most": most})
    gone = [
        Instruction(mnemonic="C_LOOP_N", operands=counted),
        *inner,
        Instruction(mnemonic="C_NEXT", operands={"level": 2}),
    ]
    rows, rounds = draw(st.integers(2, 24)), draw(st.integers(1, 12))
    code = loop(0, rounds, [*renumbered(body(draw, 3), 20), *loop(1, rows, [read, *gone, *turn, *behind])])
    numbers = draw(st.lists(st.integers(0, most + 4), min_size=1, max_size=3))
    counts = draw(st.lists(st.sampled_from(numbers), min_size=rows * rounds, max_size=rows * rounds))
    return program_of([*setup, *code]), Trace(breaks=(), counts=tuple(counts))


KNOWN = []


@settings(max_examples=150, derandomize=True, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    nest=counted_nests(), depth=st.sampled_from([1, 4, 32]), outstanding=st.sampled_from([1, 2, 8]),
    execution=st.sampled_from(["decoupled", "decoupled", "serial"]), start=st.integers(0, 300),
    memory=st.sampled_from([{"model": "simple"}, {}, {"refresh": "absolute"}]), dispatch=st.sampled_from([0, 0, 3]),
    sets=st.sampled_from([1, 2]),
)  # fmt: skip
def test_iterations_that_read_numbers_are_the_same_with_and_without(
    nest, depth, outstanding, execution, start, memory, dispatch, sets
):
    program, trace = nest
    hardware = machine(depth, outstanding, execution, memory, dispatch, sets)
    fast, slow = both(program, hardware, trace, trace_window=(start, start + 50))
    assert figures(fast) == figures(slow)
    KNOWN.append(fast.metrics["skipped_instructions"] / fast.metrics["instructions"])


def test_iterations_that_read_numbers_were_known():
    assert np.mean(np.array(KNOWN) > 0) > 0.15, "the law above would hold of a machine that knows none"


SKIPPED = []


@settings(max_examples=250, derandomize=True, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    nest=nests(), depth=st.sampled_from([1, 4, 32]), outstanding=st.sampled_from([1, 2, 8]),
    execution=st.sampled_from(["decoupled", "decoupled", "serial"]), start=st.integers(0, 3000),
    memory=st.sampled_from([{"model": "simple"}, {}, {"refresh": "absolute"}]), dispatch=st.sampled_from([0, 0, 3]),
    sets=st.sampled_from([1, 2]),
)  # fmt: skip
def test_random_nests_are_the_same_with_and_without(nest, depth, outstanding, execution, start, memory, dispatch, sets):
    program, trace = nest
    hardware = machine(depth, outstanding, execution, memory, dispatch, sets)
    fast, slow = both(program, hardware, trace, trace_window=(start, start + 500))
    assert figures(fast) == figures(slow)
    assert slow.metrics["skipped_instructions"] == 0
    SKIPPED.append(fast.metrics["skipped_instructions"] / fast.metrics["instructions"])


def test_random_nests_did_skip():
    assert np.mean(np.array(SKIPPED) > 0) > 0.15, "the law above would hold of a machine that never skips"


@pytest.mark.parametrize("execution", ["serial", "decoupled"])
@pytest.mark.parametrize("commit", ["quota", "threshold"])
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_shipped_configurations_are_the_same_with_and_without(cache, commit, execution):
    experiment = compose_experiment(
        f"workload.cache={cache}", f"workload.commit={commit}", f"hardware.execution={execution}"
    )
    program, trace = compiled(experiment)
    if commit == "threshold":
        trace = Trace(breaks=(2, 2, 0, 5))
    fast, slow = both(program, experiment.hardware, trace)
    assert figures(fast) == figures(slow)
    assert fast.metrics["skipped_instructions"] > 0.2 * fast.metrics["instructions"]


@pytest.mark.parametrize("sets", [1, 2])
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_a_large_model_is_the_same_with_and_without(cache, sets):
    experiment = compose_experiment(
        "model=llada_8b", "hardware=npu_datacenter", "numerics=mxint4", "workload=llada_gsm8k", f"workload.cache={cache}",
        "workload.prompt_length=32", "workload.generation_length=64", "workload.steps=8", "model.layers=4",
        "paths=[analytical,cycle]", f"hardware.accumulator_sets={sets}",
    )  # fmt: skip
    program = compile_program(
        experiment.model,
        experiment.workload,
        experiment.hardware,
        experiment.numerics,
        [experiment.workload.prompt_length],
    )
    fast, slow = both(program, experiment.hardware, schedule(experiment.workload))
    assert figures(fast) == figures(slow)
    assert fast.metrics["skipped_instructions"] > 0.5 * fast.metrics["instructions"]
