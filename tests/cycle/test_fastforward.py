"""Fast-forward changes nothing but the time it takes: every figure is that of running every iteration."""

import dataclasses

import numpy as np
import pytest
from hypothesis import Phase as Stage
from hypothesis import given, settings
from hypothesis import strategies as st

import cycle
from npu.isa import Instruction, assemble
from npu.program import Phase, Program, Tensor, words_of
from npu.program.trace import Trace
from npu_compiler import compile_program, schedule
from tests.conftest import compiled, compose_experiment
from tests.cycle.test_cycle import HOST, SMALL, SYNC, instruction, turn_of_the_host

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


def program_of(code, phases=()):
    """A program for the small machine."""
    geometry = {"blen": SMALL.blen, "mlen": SMALL.mlen, "vlen": SMALL.vlen}
    geometry |= {"matrix_bytes": 8192, "vector_bytes": 1 << 16, "fp_bytes": 4096, "int_bytes": 64}
    tensor = Tensor(name="all", address=0, shape=(1 << 20,), format="bf16", block=32, writable=True)
    return Program(
        words=words_of([*code, Instruction(mnemonic="C_END")]), hbm=(tensor,), geometry=geometry,
        layout={"batch": 1, "generation_length": 1}, phases=phases,
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
    """Layers, many times over, of instructions, a loop whose trips the layer decides, experts that each read a number, around a
    loop that has its trips from it, and a tail; all of it in a loop that may be left early; and its trace."""
    setup = [Instruction(mnemonic="A_BASE", operands={"register": r, "base": b}) for r, b in BASES.items()]
    for register, memory in REGISTERS.items():
        for level in (0, 1, 2, 3):
            stride = draw(st.sampled_from([0, 0, *STRIDES[memory], *([8] if memory == "hbm" else [])]))
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
    rows, rounds, times = draw(st.integers(1, 12)), draw(st.integers(1, 8)), draw(st.integers(1, 6))
    before, after = renumbered(body(draw, 3), 20), renumbered(body(draw, 3), 27)
    sized = renumbered(body(draw, 2), 34)
    growing = {"register": 1, "base": 1, "factor": draw(st.integers(0, 1)), "level": 0}
    grown = [
        Instruction(mnemonic="C_AFFINE", operands=growing),
        Instruction(mnemonic="C_LOOP_R", operands={"level": 2, "register": 1, "length": len(sized) + 1}),
        *sized,
        Instruction(mnemonic="C_NEXT", operands={"level": 2}),
    ]
    experts = loop(1, rows, [read, *gone, *turn, *behind])
    if draw(st.booleans()):  # as many experts as the layer decides, none in the first
        steered = Instruction(mnemonic="C_LOOP_R", operands={"level": 1, "register": 2, "length": len(experts) - 1})
        operands = {"register": 2, "base": draw(st.integers(-1, 1)), "factor": draw(st.integers(0, 1)), "level": 0}
        experts = [Instruction(mnemonic="C_AFFINE", operands=operands), steered, *experts[1:]]
        rows = rounds + 1
    layer = [*before, *(grown if draw(st.booleans()) else []), *experts, *loop(2, draw(st.integers(1, 9)), after)]
    if draw(st.booleans()):
        layer += turn_of_the_host(draw)
    code, breaks = loop(0, rounds, layer), ()
    if draw(st.booleans()):
        code.insert(0, Instruction(mnemonic="C_BREAK_IF", operands={"level": 3, "flag": 8}))
        breaks = (draw(st.integers(0, times - 1)),)
    whole = [*setup, *loop(3, times, code)]
    first = whole.index(read) - experts.index(read)
    end = first + len(experts)
    phases = (Phase(name="experts", start=first, stop=end), Phase(name="rest", start=end, stop=len(whole)))
    numbers = draw(st.lists(st.integers(0, most + 4), min_size=1, max_size=3))
    size = rows * rounds * times
    counts = draw(st.lists(st.sampled_from(numbers), min_size=size, max_size=size))
    return program_of(whole, draw(st.sampled_from([phases, ()]))), Trace(breaks=breaks, counts=tuple(counts))


LAYERS = """
A_BASE register=0 base=0
A_STEP register=0 level=0 stride={hbm}
A_BASE register=2 base=0
A_BASE register=4 base=0
A_BASE register=5 base=1024
A_STEP register=5 level=0 stride={vector}
A_BASE register=6 base=4096
A_BASE register=9 base=3
C_LOOP level=3 trips=8 length=17
C_LOOP level=0 trips=6 length=15
C_AFFINE register=1 base=3 factor={inner} level=0
C_AFFINE register=2 base=2 factor={experts} level=0
H_LOAD_M dst=a2 src=a0 rows=1 row_bytes=40
V_EXP_V dst=a4 a=a4 n=8
V_ADD_VV dst=a6 a=a5 b=a5 n=8
C_LOOP_R level=2 register=1 length=2
V_EXP_V dst=a6 a=a6 n=8
C_NEXT level=2
C_LOOP_R level=1 register=2 length=5
C_COUNT register=0 at=a9 most=24
C_LOOP_N level=2 register=0 unit=0 length=2
V_ADD_VV dst=a6 a=a6 b=a6 n=8
C_NEXT level=2
C_NEXT level=1
C_NEXT level=0
C_NEXT level=3
C_END"""
"""Layers that are alike but for what is filled in: how a layer moves an address of HBM and one of Vector SRAM, which meets another in
some layers, and how it decides on two trip counts."""


@pytest.mark.parametrize(
    "moved",
    [{}, {"hbm": 8}, {"vector": -256}, {"inner": 1}, {"experts": 1}],
    ids=lambda moved: ",".join(moved) or "nothing",
)
def test_layers_that_differ_in_one_thing_are_not_taken_for_each_other(moved):
    text = LAYERS.format(**{"hbm": 0, "vector": 0, "inner": 0, "experts": 0, **moved})
    program = program_of(assemble(text)[:-1])
    experts = sum(2 + moved.get("experts", 0) * layer for layer in range(6))
    hardware, trace = machine(4, 2, "decoupled", {}, 0, 1), Trace(breaks=(), counts=(3,) * (8 * experts))
    fast, slow = both(program, hardware, trace, trace_window=(0, 0))
    assert figures(fast) == figures(slow)
    assert fast.metrics["skipped_instructions"] > slow.metrics["instructions"] / (4 if moved else 2)


KNOWN = []


@settings(max_examples=150, derandomize=True, deadline=None, phases=[Stage.explicit, Stage.reuse, Stage.generate])
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
    hardware = dataclasses.replace(machine(depth, outstanding, execution, memory, dispatch, sets), host=HOST)
    fast, slow = both(program, hardware, trace, trace_window=(start, start + 50))
    assert figures(fast) == figures(slow)
    KNOWN.append(fast.metrics["skipped_instructions"] / fast.metrics["instructions"])


def test_iterations_that_read_numbers_were_known():
    assert np.mean(np.array(KNOWN) > 0) > 0.15, "the law above would hold of a machine that knows none"


SKIPPED = []


@settings(max_examples=250, derandomize=True, deadline=None, phases=[Stage.explicit, Stage.reuse, Stage.generate])
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
