"""The loop tree says of a program what its control bodies do; what no body runs is a fault that names the instruction."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import cycle
from accuracy.executor import Machine
from analytical.tree import retirements
from cycle.races import find_race
from npu.errors import ProgramError
from npu.isa import BY_MNEMONIC, TABLE, Instruction, Unit, assemble
from npu.isa.control import RING, control_step, new_control
from npu.isa.spec import ControlKind, instruction
from npu.program import Program, Tensor, words_of
from npu.program.looptree import LoopTree, TripCount, loops_of
from npu.program.trace import Trace
from tests.conftest import compose_experiment

HARDWARE = compose_experiment().hardware


def program_of(text):
    geometry = {name: getattr(HARDWARE, name) for name in ("blen", "mlen", "vlen")}
    geometry |= {"matrix_bytes": 64, "vector_bytes": 64, "fp_bytes": 64, "int_bytes": 64}
    tensor = Tensor(name="all", address=0, shape=(64,), format="bf16", block=32, writable=True)
    layout = {"batch": 1, "generation_length": 1}
    return Program(words=words_of(assemble(text)), hbm=(tensor,), geometry=geometry, layout=layout, phases=())


def tree_of(text):
    return LoopTree.of(assemble(text))


def test_a_tree_has_the_loops_their_counts_and_their_exits():
    tree = tree_of("""
        M_SYNC
        C_LOOP level=0 trips=3 length=8
          C_AFFINE register=1 base=5 factor=-2 level=0
          C_LOOP_R level=1 register=1 length=2
            V_SYNC
          C_NEXT level=1
          V_SYNC
          C_BREAK_IF level=0 flag=a0
          M_SYNC
        C_NEXT level=0
        C_END""")
    outer, inner = tree.loops
    assert tree.body == [0, outer, 10]
    assert outer.body == [2, inner, 6, 7, 8]
    assert (outer.head, outer.next, outer.level, outer.most_trips) == (1, 9, 0, 3)
    assert (outer.trips, outer.left_at, outer.leaves_early) == (TripCount(base=3), 7, True)
    assert (inner.head, inner.next, inner.body, inner.left_at) == (3, 5, [4], 5)
    assert (inner.trips, inner.most_trips) == (TripCount(base=5, factor=-2, level=0), 5)
    assert [len(around) for around in tree.around] == [0, 0, 1, 1, 2, 1, 1, 1, 1, 0, 0]


@pytest.mark.parametrize(("trips", "entries"), [(0, 0), (1, 1), (3, 1)])
def test_a_loop_that_never_goes_round_has_no_entry_in_the_trace(trips, entries):
    """Executor and cycle agree on the trace of a loop whose exit is never reached."""
    program = program_of(f"""
        A_BASE register=0 base=0
        C_LOOP level=0 trips={trips} length=2
          C_BREAK_IF level=0 flag=a0
        C_NEXT level=0
        C_END""")
    machine = Machine(program=program, hbm=np.zeros(program.hbm_bytes, np.uint8))
    while machine.run_to_break():
        pass
    assert len(machine.trace.breaks) == entries
    assert retirements(program, machine.trace).tolist() == machine.retired.tolist()
    assert machine.retired.tolist() == [1, 1, entries, 0, 1]  # the flag is zero: it leaves at once
    cycle.simulate(program, hardware=HARDWARE, trace=machine.trace)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            (
                "C_LOOP level=0 trips=2 length=4\nC_LOOP_R level=1 register=3 length=1\nC_NEXT level=1\n"
                "C_AFFINE register=3 base=9 factor=0 level=0\nC_NEXT level=0\nC_END"
            ),
            r"the trips of the loop at instruction 1 are set again \(instruction 3\)",
        ),
        (
            (
                "C_LOOP level=0 trips=2 length=2\nC_AFFINE register=3 base=9 factor=0 level=0\nC_NEXT level=0\n"
                "C_LOOP_R level=0 register=3 length=1\nC_NEXT level=0\nC_END"
            ),
            r"what sets the trips of a loop may be passed by \(instruction 3\)",
        ),
    ],
)
def test_a_trip_count_that_is_no_form_of_the_program_is_refused(text, said):
    with pytest.raises(ProgramError, match=said):
        tree_of(text)


@st.composite
def bodies(draw, level=0):
    """Instructions of nested loops whose counts come from few registers, set here and there."""
    code = []
    for kind in draw(st.lists(st.sampled_from(["set", "loop", "counted", "sync"]), max_size=4)):
        register = draw(st.integers(0, 1))
        inside = draw(bodies(level=level + 1)) if kind in ("loop", "counted") and level < 3 else []
        name, count = {"loop": ("C_LOOP", "trips"), "counted": ("C_LOOP_R", "register")}.get(kind, ("", ""))
        if kind == "set":
            form = {
                "base": draw(st.integers(-1, 3)),
                "factor": draw(st.integers(-2, 2)),
                "level": draw(st.integers(0, 3)),
            }
            code.append(Instruction(mnemonic="C_AFFINE", operands={"register": register, **form}))
        elif name:
            value = draw(st.integers(0, 3)) if count == "trips" else register
            operands = {"level": level, count: value, "length": len(inside) + 1}
            code += [Instruction(mnemonic=name, operands=operands), *inside]
            code.append(Instruction(mnemonic="C_NEXT", operands={"level": level}))
        else:
            code.append(Instruction(mnemonic="V_SYNC"))
    return code


@settings(max_examples=300, deadline=None)
@given(bodies())
def test_loops_go_round_as_their_tree_says(body):
    code = [*body, Instruction(mnemonic="C_END")]
    try:
        tree = LoopTree.of(code)
    except ProgramError:
        assume(False)
        return
    loops = {loop.head: loop for loop in tree.loops}
    control = new_control()
    while control.pc[0] >= 0:
        pc = int(control.pc[0])
        if code[pc].spec.control is None:
            control.pc[0] += 1
            continue
        assert control_step(control, code[pc].spec.opcode, np.array([*code[pc].operands.values(), 0], np.int64))
        if pc in loops:
            loop = loops[pc]
            index = 0 if loop.trips.level < 0 else int(control.index[loop.trips.level])
            assert control.trips[loop.level] == loop.trips.base + loop.trips.factor * index <= loop.most_trips
            assert loop.trips.level < 0 or loop.trips.level in {outer.level for outer in tree.around[pc]}
    assert [loop.head for loop in loops_of(tree.body)] == sorted(loops)


@pytest.fixture
def unknown_opcode():
    """A control instruction that the table has and no compiled dispatch."""

    @instruction(opcode=0x0F, unit=Unit.FRONTEND, control=ControlKind.ADVANCE, operands={"ring": RING})
    def a_forgotten(control, ring):
        """Advance a ring."""
        control.pc[0] += 1

    yield "A_FORGOTTEN"
    del TABLE[0x0F], BY_MNEMONIC["A_FORGOTTEN"]


def test_a_control_instruction_that_a_path_cannot_run_is_named(unknown_opcode):
    program = program_of(f"M_SYNC\n{unknown_opcode} ring=0\nC_END")
    for run in (
        lambda: cycle.simulate(program, hardware=HARDWARE, trace=Trace(breaks=()), race_check=False),
        lambda: find_race(program),
        lambda: Machine(program=program, hbm=np.zeros(128, np.uint8)).run_to_break(),
    ):
        with pytest.raises(ProgramError, match=rf"instruction 1 \({unknown_opcode}\)"):
            run()


def test_a_front_end_instruction_needs_a_kind_and_no_other_has_one():
    def row(**facts):
        @instruction(opcode=0xEE, **facts)
        def x_odd():
            """Never entered."""

    for facts in ({"unit": Unit.FRONTEND}, {"unit": Unit.MATRIX, "control": ControlKind.END}):
        with pytest.raises(ProgramError, match="isa: X_ODD of unit"):
            row(**facts)
